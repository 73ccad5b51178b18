//! The byte counters of a connection.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The byte counters of a connection. They have one writer, the task that carries it; in the packet tier several threads
/// write, which only raise them. `connections` and the metrics read them.
///
/// In passthrough they count the bytes on the wire, TLS included; on a terminated route the plaintext.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Client to server, delivered to the server's socket.
    pub bytes_in: AtomicU64,
    /// Server to client, delivered to the client's socket.
    pub bytes_out: AtomicU64,
    /// [`crate::clock::now_ms`] of the last byte in either direction.
    pub active_ms: AtomicU64,
}

impl Traffic {
    /// Bytes in both directions. If it stays the same, nothing has moved.
    pub(crate) fn moved(&self) -> u64 {
        self.bytes_in.load(Relaxed).wrapping_add(self.bytes_out.load(Relaxed))
    }
}

/// Adds to a counter that has one writer, without a locked instruction.
pub(crate) fn add(counter: &AtomicU64, bytes: usize) {
    counter.store(counter.load(Relaxed) + bytes as u64, Relaxed);
}
