//! What the kernel programs and userspace share: map keys and values, limits, the ABI version.
//!
//! No I/O, no allocation, no clock; compiled for the kernel and for the host from the same source. Every number
//! is in the byte order of the machine.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
#![no_std]

pub mod packet;
#[cfg(feature = "user")]
mod pod;
pub mod sockmap;

/// Names the directory of the pins. A change of a map's name, key, value or meaning needs a new one: an old
/// program would read the new maps wrongly.
pub const ABI_VERSION: u32 = 5;
