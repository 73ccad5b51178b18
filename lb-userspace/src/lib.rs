//! The gateway's userspace: it accepts, sniffs, routes and connects; then a tier carries the bytes.

pub mod account;
pub mod clock;
pub mod doctor;
pub mod kernel;
pub mod splice;
