//! Splice: bytes flow between the two legs. The tier is chosen per connection.

pub mod copy;
pub(crate) mod keepalive;
pub mod packet;
mod pipe;
mod scratch;
pub mod sockmap;
pub mod terminate;
mod tier;

pub use tier::{Choice, choose};

pub(crate) use crate::close::reset_on_close;

use crate::account::CloseReason;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes of a connection. One writer, the task that carries it; in the packet tier several threads, which only raise them.
/// `connections` and the metrics read.
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

impl Traffic {
    /// Bytes in both directions: whether anything has moved between two looks.
    pub(crate) fn moved(&self) -> u64 {
        self.bytes_in.load(Relaxed).wrapping_add(self.bytes_out.load(Relaxed))
    }
}

/// Adds to a counter that has one writer: no locked instruction.
pub(crate) fn add(counter: &AtomicU64, bytes: usize) {
    counter.store(counter.load(Relaxed) + bytes as u64, Relaxed);
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

/// Ends when no byte has moved for `idle`; never without one.
pub(crate) async fn idle_expired(traffic: &Traffic, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let quiet = Duration::from_millis(crate::clock::now_ms() - traffic.active_ms.load(Relaxed));
        match idle.checked_sub(quiet) {
            // Not before the next millisecond: the clock's own unit, or this would spin within it.
            Some(left) => tokio::time::sleep(left.max(Duration::from_millis(1))).await,
            None => return,
        }
    }
}

/// Reads once. A read that does not fill its buffer has emptied the socket: tokio is told so, as its own
/// `AsyncRead` does, or the next look would be a system call that finds nothing. A FIN behind the bytes is not
/// missed: tokio never forgets that a side was closed.
pub(crate) fn read_once(socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    let read = socket.try_read(into)?;
    if 0 < read && read < into.len() {
        let _ = socket.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Ok(read)
}

/// Waits for bytes and appends what one read gives (at most 16 KiB); 0 at the end.
pub(crate) async fn read_some(socket: &TcpStream, into: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        let read = scratch::with(|buffers| {
            let read = read_once(socket, &mut buffers.input[..16 * 1024])?;
            into.extend_from_slice(&buffers.input[..read]);
            Ok(read)
        });
        match read {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// Writes all of `bytes`, waiting for room.
pub(crate) async fn write_all(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends a FIN: the other leg's half is at its end. A peer that is gone already needs none.
pub(crate) fn finish(socket: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
