//! Account: bytes and duration of each connection, counted once, with the reason it ended.

mod reason;

pub use reason::{CloseReason, FallbackReason, RejectReason, Tier};
