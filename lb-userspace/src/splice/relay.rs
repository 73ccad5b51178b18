//! The relay: userspace carries a connection's bytes between its two legs, whatever their transport.
//!
//! One task carries both directions. A direction reads into the worker's buffers and writes at once; only what the
//! receiver does not take is held, and then nothing more is read: that is the back-pressure. Between two plain sockets a
//! direction whose reads keep filling the buffer moves its bytes through a pipe with splice(2) until it runs dry. An idle
//! connection owns neither buffer nor pipe.

use super::pipe::Pipe;
use super::transport::{Failure, Transport};
use super::{Side, idle_expired};
use crate::clock::now_ms;
use crate::reason::{CloseReason, TlsError};
use crate::scratch::{self, Buffers};
use crate::socket::{finish, reset_on_close};
use crate::traffic::{Traffic, add};
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

/// Carries bytes until both directions have ended, one leg is reset, or nothing has moved for `idle`; or until the TLS of a
/// leg fails, with the cause.
///
/// A reset of one leg is passed on: the other socket is set to reset when it is closed.
pub async fn relay(
    client: impl Transport,
    server: impl Transport,
    traffic: &Traffic,
    idle: Option<Duration>,
) -> Result<CloseReason, TlsError> {
    let (request, response) = (Direction::default(), Direction::default());
    let mut relay = Relay { client, server, request, response, traffic, first_closed: None };
    tokio::select! {
        biased;
        end = poll_fn(|cx| relay.poll(cx)) => end,
        () = idle_expired(traffic, idle) => Ok(CloseReason::IdleTimeout),
    }
}

struct Relay<'a, C, S> {
    client: C,
    server: S,
    request: Direction,
    response: Direction,
    traffic: &'a Traffic,
    /// Whose FIN came first.
    first_closed: Option<Side>,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The sender's FIN (or close_notify) received, everything delivered.
    Closed,
    ReadFailed,
    WriteFailed,
    /// The TLS of this leg.
    Tls(Side, TlsError),
}

impl<C: Transport, S: Transport> Relay<'_, C, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<CloseReason, TlsError>> {
        let before = self.traffic.moved();
        scratch::with(|buffers| {
            let Relay { client, server, request, response, traffic, .. } = self;
            request.poll(Side::Client, client, server, &traffic.bytes_in, cx, buffers);
            response.poll(Side::Server, server, client, &traffic.bytes_out, cx, buffers);
        });
        if self.traffic.moved() != before {
            self.traffic.active_ms.store(now_ms(), Relaxed);
        }
        let ends = [
            (Side::Client, self.request.end, self.response.end),
            (Side::Server, self.response.end, self.request.end),
        ];
        for (side, end, other) in ends {
            match end {
                Some(End::Closed) if self.first_closed.is_none() => {
                    self.first_closed = Some(side);
                    // With both at their end the sockets are closed at once, which says the same. A receiver that
                    // is gone shows when the other direction reads from it.
                    if other.is_none() {
                        let _ = finish(self.socket(side.other()));
                    }
                }
                Some(End::ReadFailed) => return Poll::Ready(Ok(self.reset(side))),
                Some(End::Tls(side, cause)) => {
                    reset_on_close(self.socket(side.other()));
                    return Poll::Ready(Err(cause));
                }
                // What the receiver sent before it went is still worth delivering: the other direction goes on.
                Some(End::Closed | End::WriteFailed) | None => {}
            }
        }
        Poll::Ready(Ok(match (self.request.end, self.response.end) {
            (None, _) | (_, None) => return Poll::Pending,
            (Some(End::WriteFailed), _) => self.reset(Side::Server),
            (_, Some(End::WriteFailed)) => self.reset(Side::Client),
            _ => self.first_closed.unwrap_or(Side::Client).closed(),
        }))
    }

    fn socket(&self, side: Side) -> &TcpStream {
        match side {
            Side::Client => self.client.socket(),
            Side::Server => self.server.socket(),
        }
    }

    /// `side` is gone: the other leg is told so by a reset, not by a FIN that would look like a clean end.
    fn reset(&self, side: Side) -> CloseReason {
        reset_on_close(self.socket(side.other()));
        side.reset()
    }
}

/// One direction, from a leg to the other.
#[derive(Default)]
struct Direction {
    /// Of a bulk transfer, with how many bytes are in it: 0 between two moves.
    pipe: Option<(Pipe, usize)>,
    /// Reads in a row that filled the buffer.
    full_reads: u8,
    /// The sender has ended.
    eof: bool,
    end: Option<End>,
}

impl Direction {
    /// Carries what there is, and notes how the direction ended once it has.
    fn poll(
        &mut self,
        sender: Side,
        from: &mut impl Transport,
        to: &mut impl Transport,
        delivered: &AtomicU64,
        cx: &mut Context<'_>,
        buffers: &mut Buffers,
    ) {
        if self.end.is_some() {
            return;
        }
        let Poll::Ready(end) = self.poll_carry(from, to, delivered, cx, buffers) else { return };
        self.pipe = None;
        self.end = Some(match end {
            Ok(()) => End::Closed,
            Err((Role::Sender, Failure::Socket)) => End::ReadFailed,
            Err((Role::Receiver, Failure::Socket)) => End::WriteFailed,
            Err((Role::Sender, Failure::Tls(cause))) => End::Tls(sender, cause),
            Err((Role::Receiver, Failure::Tls(cause))) => End::Tls(sender.other(), cause),
        });
    }

    /// Reads and delivers until `from` has nothing more, or `to` takes nothing more.
    fn poll_carry(
        &mut self,
        from: &mut impl Transport,
        to: &mut impl Transport,
        delivered: &AtomicU64,
        cx: &mut Context<'_>,
        buffers: &mut Buffers,
    ) -> Poll<Result<(), (Role, Failure)>> {
        let sender = |failure| (Role::Sender, failure);
        let receiver = |failure| (Role::Receiver, failure);
        for _ in 0..TURN {
            ready!(to.poll_flush(cx, delivered)).map_err(receiver)?;
            ready!(self.poll_drain(to, cx, delivered)).map_err(|_| receiver(Failure::Socket))?;
            if self.eof {
                return Poll::Ready(Ok(()));
            }
            if from.poll_readable(cx).map_err(sender)?.is_pending() {
                self.rest();
                return Poll::Pending;
            }
            if self.is_bulk(from, to) {
                self.eof = self.fill(from).map_err(|_| sender(Failure::Socket))?;
            } else {
                let Buffers { input, plaintext, records } = &mut *buffers;
                let Some(received) = from.read(input, plaintext).map_err(sender)? else { continue };
                self.full_reads = if received.filled { self.full_reads.saturating_add(1) } else { 0 };
                self.eof = received.end;
                if !received.bytes.is_empty() {
                    to.write(received.bytes, records, delivered).map_err(receiver)?;
                }
            }
            if self.eof {
                to.end(&mut buffers.records).map_err(receiver)?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether bytes go through a pipe: between two plain sockets, after reads that kept filling the buffer.
    fn is_bulk(&mut self, from: &impl Transport, to: &impl Transport) -> bool {
        if self.pipe.is_none() && self.full_reads >= BULK && from.is_plain() && to.is_plain() {
            self.pipe = Pipe::get().map(|pipe| (pipe, 0));
        }
        self.pipe.is_some()
    }

    /// Fills the pipe, which is empty. `true`: the sender has ended.
    fn fill(&mut self, from: &impl Transport) -> io::Result<bool> {
        let Some((pipe, length)) = &mut self.pipe else { return Ok(false) };
        match from.socket().try_io(Interest::READABLE, || pipe.fill(from.socket())) {
            Ok(read) => {
                *length = read;
                Ok(read == 0)
            }
            Err(error) if error.kind() == WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Delivers what is in the pipe.
    fn poll_drain(
        &mut self,
        to: &impl Transport,
        cx: &mut Context<'_>,
        delivered: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        let Some((pipe, length)) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        let to = to.socket();
        while *length > 0 {
            match to.try_io(Interest::WRITABLE, || pipe.drain(to, *length)) {
                Ok(written) => {
                    *length -= written;
                    add(delivered, written);
                }
                Err(error) if error.kind() == WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The sender ran dry: the pipe, which is empty, goes back to the worker's store.
    fn rest(&mut self) {
        self.full_reads = 0;
        if let Some((pipe, 0)) = self.pipe.take() {
            pipe.put_back();
        }
    }
}

/// What a leg is to a direction.
#[derive(Clone, Copy)]
enum Role {
    Sender,
    Receiver,
}
