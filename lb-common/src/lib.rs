//! What the kernel programs and userspace agree on: map keys and values, limits, the ABI version.
//!
//! No I/O, no allocation, no clock; compiled for the kernel and for the host from the same source.
#![no_std]
