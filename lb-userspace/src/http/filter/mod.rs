//! What is changed in requests and answers, or said instead of a server's answer. Pure; no I/O, no clock.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod cors;
pub mod forwarded;
pub mod headers;
pub mod redirect;
pub mod rewrite;
pub mod session;
