//! The copy tier: userspace relays between the two sockets.
//!
//! One task carries both directions. A direction reads into the worker's buffer and writes at once; only what
//! the receiver does not take is held, and then nothing more is read: that is the back-pressure. A direction
//! whose reads keep filling the buffer moves its bytes through a pipe with splice(2) until it runs dry. An idle
//! connection owns neither buffer nor pipe.

use super::idle_expired;
use super::pipe::Pipe;
use crate::reason::CloseReason;
use crate::scratch;
use crate::socket::{finish, read_once, reset_on_close};
use crate::traffic::{Traffic, add};
use lb_common::packet::Side;
use std::future::poll_fn;
use std::io::{self, ErrorKind::WouldBlock};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Reads that one direction may do before the worker's other connections have their turn.
const TURN: usize = 16;

/// Reads in a row that fill the buffer before a direction counts as bulk and gets a pipe.
const BULK: u8 = 3;

/// Carries bytes until both directions have ended, one leg is reset, or nothing has moved for `idle`.
/// `prefix` was read from the client before and goes to the server first.
///
/// A reset of one leg is passed on: the other socket is set to reset when it is closed.
pub async fn relay(
    client: &TcpStream,
    server: &TcpStream,
    prefix: Vec<u8>,
    traffic: &Traffic,
    idle: Option<Duration>,
) -> CloseReason {
    let mut request = Half::new(client, server, &traffic.bytes_in);
    request.held = Held::Bytes { bytes: prefix, sent: 0 };
    let response = Half::new(server, client, &traffic.bytes_out);
    let mut relay = Relay { request, response, traffic, first_closed: None };
    tokio::select! {
        biased;
        reason = poll_fn(|cx| relay.poll(cx)) => reason,
        () = idle_expired(traffic, idle) => CloseReason::IdleTimeout,
    }
}

struct Relay<'a> {
    request: Half<'a>,
    response: Half<'a>,
    traffic: &'a Traffic,
    first_closed: Option<Side>,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let before = self.traffic.moved();
        let (request, response) = scratch::with(|buffers| {
            let input = &mut buffers.input[..];
            (self.request.poll(cx, input), self.response.poll(cx, input))
        });
        if self.traffic.moved() != before {
            self.traffic.active_ms.store(crate::clock::now_ms(), Relaxed);
        }
        let halves = [
            (Side::Client, request, response, self.request.to),
            (Side::Server, response, request, self.response.to),
        ];
        for (side, end, other, to) in halves {
            match end {
                Poll::Ready(End::Closed) if self.first_closed.is_none() => {
                    self.first_closed = Some(side);
                    // With both at their end the sockets are closed at once, which says the same. A receiver that
                    // is gone shows when the other half reads from it.
                    if other.is_pending() {
                        let _ = finish(to);
                    }
                }
                Poll::Ready(End::ReadFailed) => return Poll::Ready(self.reset(side)),
                // What the receiver sent before it went is still worth delivering: the other half goes on.
                Poll::Ready(End::Closed | End::WriteFailed) | Poll::Pending => {}
            }
        }
        Poll::Ready(match (ready!(request), ready!(response)) {
            (End::WriteFailed, _) => self.reset(Side::Server),
            (_, End::WriteFailed) => self.reset(Side::Client),
            _ => CloseReason::closed_by(self.first_closed.unwrap_or(Side::Client)),
        })
    }

    /// `side` is gone: the other leg is told so by a reset, not by a FIN that would look like a clean end.
    fn reset(&self, side: Side) -> CloseReason {
        reset_on_close(match side {
            Side::Client => self.response.from,
            Side::Server => self.request.from,
        });
        CloseReason::reset_by(side)
    }
}

/// How a direction ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// FIN received, everything delivered.
    Closed,
    ReadFailed,
    WriteFailed,
}

/// What a direction has read and not yet delivered.
enum Held {
    Nothing,
    /// `bytes[sent..]`; never empty.
    Bytes {
        bytes: Vec<u8>,
        sent: usize,
    },
    /// `length` bytes in the pipe, 0 between two moves of a bulk transfer.
    Pipe {
        pipe: Pipe,
        length: usize,
    },
}

/// One direction.
struct Half<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    delivered: &'a AtomicU64,
    held: Held,
    /// Reads in a row that filled the buffer.
    full_reads: u8,
    /// `from` has sent its FIN.
    eof: bool,
    end: Option<End>,
}

impl<'a> Half<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, delivered: &'a AtomicU64) -> Self {
        Half { from, to, delivered, held: Held::Nothing, full_reads: 0, eof: false, end: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<End> {
        if self.end.is_none() {
            let end = match ready!(self.poll_carry(cx, scratch)) {
                Ok(()) => End::Closed,
                Err(end) => end,
            };
            self.held = Held::Nothing;
            self.end = Some(end);
        }
        self.end.map_or(Poll::Pending, Poll::Ready)
    }

    /// Reads and delivers until `from` has nothing more, or `to` takes nothing more.
    fn poll_carry(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<(), End>> {
        for _ in 0..TURN {
            ready!(self.poll_deliver(cx)).map_err(|_| End::WriteFailed)?;
            if self.eof {
                return Poll::Ready(Ok(()));
            }
            if self.from.poll_read_ready(cx).map_err(|_| End::ReadFailed)?.is_pending() {
                self.rest();
                return Poll::Pending;
            }
            match self.take(scratch) {
                Err(error) if error.kind() == WouldBlock => {}
                Err(_) => return Poll::Ready(Err(End::ReadFailed)),
                Ok(0) => self.eof = true,
                Ok(length) if matches!(self.held, Held::Nothing) => {
                    let sent = match self.to.try_write(&scratch[..length]) {
                        Ok(sent) => sent,
                        Err(error) if error.kind() == WouldBlock => 0,
                        Err(_) => return Poll::Ready(Err(End::WriteFailed)),
                    };
                    add(self.delivered, sent);
                    if sent < length {
                        self.held = Held::Bytes { bytes: scratch[sent..length].to_vec(), sent: 0 };
                    }
                }
                Ok(_) => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read: into the pipe in bulk, else into `scratch`. The number of bytes, 0 at the end.
    fn take(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        if let Held::Pipe { pipe, length } = &mut self.held {
            let read = self.from.try_io(Interest::READABLE, || pipe.fill(self.from))?;
            *length = read;
            return Ok(read);
        }
        let read = read_once(self.from, scratch)?;
        self.full_reads = if read == scratch.len() { self.full_reads.saturating_add(1) } else { 0 };
        Ok(read)
    }

    /// Delivers what is held.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = match &mut self.held {
                Held::Nothing => {
                    if self.full_reads >= BULK
                        && let Some(pipe) = Pipe::get()
                    {
                        self.held = Held::Pipe { pipe, length: 0 };
                    }
                    return Poll::Ready(Ok(()));
                }
                Held::Bytes { bytes, sent } if *sent == bytes.len() => {
                    self.held = Held::Nothing;
                    continue;
                }
                Held::Pipe { length: 0, .. } => return Poll::Ready(Ok(())),
                Held::Bytes { bytes, sent } => {
                    self.to.try_write(&bytes[*sent..]).inspect(|written| *sent += written)
                }
                Held::Pipe { pipe, length } => self
                    .to
                    .try_io(Interest::WRITABLE, || pipe.drain(self.to, *length))
                    .inspect(|written| *length -= written),
            };
            match written {
                Ok(written) => add(self.delivered, written),
                Err(error) if error.kind() == WouldBlock => ready!(self.to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// `from` ran dry: the pipe goes back to the worker's store.
    fn rest(&mut self) {
        self.full_reads = 0;
        if let Held::Pipe { length: 0, .. } = self.held
            && let Held::Pipe { pipe, .. } = std::mem::replace(&mut self.held, Held::Nothing)
        {
            pipe.put_back();
        }
    }
}
