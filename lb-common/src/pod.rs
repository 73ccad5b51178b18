//! The types that may cross the boundary as plain bytes.

use crate::sockmap::Flow;

// SAFETY: `repr(C)`, `Copy` and without padding; every bit pattern is a value.
unsafe impl aya::Pod for Flow {}
