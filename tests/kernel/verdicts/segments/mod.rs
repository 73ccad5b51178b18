//! Segments of a connection that is spliced, and what only looks like one.

mod exits;
mod numbers;
mod packets;
mod passing;
mod refused;

pub(crate) use packets::{ipv4, with_ip_header};
