//! The gateway's userspace: it accepts, sniffs, routes and connects; then a tier carries the bytes.

pub mod account;
pub mod doctor;
pub mod kernel;
pub mod sniff;
pub mod config;
pub mod admin;
