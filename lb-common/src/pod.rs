//! The types that may cross the boundary as plain bytes.

use crate::{packet, sockmap};

// SAFETY: `repr(C)`, `Copy` and without padding; every bit pattern is a value.
unsafe impl aya::Pod for sockmap::Flow {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Tuple {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Flow {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Path {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::track::Track {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Sighting {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Handover {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Record {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Name {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::Event {}
// SAFETY: as above.
unsafe impl aya::Pod for packet::odd::Fragments {}
