//! Account: bytes and duration of each connection, counted once, with the reason it ended.

pub mod histogram;
mod reason;

pub use histogram::Histogram;
pub use reason::{CloseReason, FallbackReason, RejectReason, Tier};
