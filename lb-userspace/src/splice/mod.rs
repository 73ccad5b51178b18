//! Splice: bytes flow between the two legs. The tier is chosen per connection.

pub mod sockmap;

use crate::account::CloseReason;
use std::io;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::TcpStream;

/// Bytes of a connection. One writer: the task that carries it; `connections` and the metrics read.
///
/// In passthrough these are the bytes of both legs, TLS included; on a terminated route the plaintext.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Client to server, delivered to the server's socket.
    pub bytes_in: AtomicU64,
    /// Server to client, delivered to the client's socket.
    pub bytes_out: AtomicU64,
    /// [`crate::clock::now_ms`] of the last byte in either direction.
    pub active_ms: AtomicU64,
}

/// Which leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    pub(crate) fn closed(self) -> CloseReason {
        match self {
            Side::Client => CloseReason::ClientClosed,
            Side::Server => CloseReason::ServerClosed,
        }
    }

    pub(crate) fn reset(self) -> CloseReason {
        match self {
            Side::Client => CloseReason::ClientReset,
            Side::Server => CloseReason::ServerReset,
        }
    }
}

/// Makes the close of this socket a reset, as the other leg's end was. Best effort: a socket that is already
/// gone needs none.
pub fn reset_on_close(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Sends a FIN: the other leg's half is at its end. A peer that is gone already needs none.
pub(crate) fn finish(socket: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
