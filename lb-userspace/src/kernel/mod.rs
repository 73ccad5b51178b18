//! The kernel: what it can do. The only user of aya.

pub mod probe;
pub mod version;
