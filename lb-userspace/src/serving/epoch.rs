//! Ends what is under way with a server or for a route.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often all that was under way was ended from outside. What began in an earlier epoch than the current one is to end.
#[derive(Debug, Default)]
pub struct Epoch(AtomicU64);

impl Epoch {
    /// To be remembered by what begins now.
    pub fn current(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Ends what is under way. Whoever carries it has to be told to look.
    pub fn advance(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}
