//! The relay: userspace carries a connection's bytes between its two legs, whatever they speak.
//!
//! One task carries both directions. A direction reads into the worker's buffers and writes at once; only what the
//! receiver does not take is kept, and then nothing more is read: that is the back-pressure. Between two sockets that
//! splice(2) can serve, a direction whose reads keep filling the buffer moves its bytes through a pipe until it runs dry.
//! An idle connection owns neither buffer nor pipe.
//!
//! How a connection ends, and what the log says then:
//!
//! | what happens | what is done | reason |
//! |---|---|---|
//! | a leg's sender ends (FIN, close_notify) | the rest is delivered, then the other leg is told so; the other direction goes on | whose end came first, once both have ended |
//! | inside of TLS, a leg's sender ends without close_notify | the same, but what was cut off must not look whole: the other leg gets a FIN alone | the same |
//! | reading from a leg fails | the other leg is reset | that leg's reset |
//! | writing to a leg fails | what it sent before is still delivered; at its end the other leg is reset | that leg's reset |
//! | the TLS of a leg fails | the other leg is reset | the cause |
//! | no byte moves for `idle` | both legs are closed | `idle_timeout` |

use super::pipe::Pipe;
use super::transport::{Failure, PeerEnd, Received, Transport};
use crate::clock::now_ms;
use crate::reason::{CloseReason, TlsError};
use crate::scratch::{self, Buffers};
use crate::socket::{finish, reset_on_close};
use crate::traffic::{Traffic, add};
use lb_common::packet::Side;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpStream;

/// Reads that one direction may do before the worker's other connections have their turn.
const TURN: usize = 16;

/// Reads in a row that fill the buffer before a direction counts as bulk and gets a pipe.
const BULK: u8 = 3;

/// Carries bytes until both directions have ended, one leg is reset, or nothing has moved for `idle`; or until TLS
/// fails, with the leg and the cause.
///
/// A reset of one leg is passed on: the other socket is set to reset when it is closed.
pub fn relay<C: Transport, S: Transport>(
    client: C,
    server: S,
    traffic: &Traffic,
    idle: Option<Duration>,
) -> impl Future<Output = Result<CloseReason, (Side, TlsError)>> {
    // Not an `async fn`: its future would have room for both transports twice, as arguments and in the relay.
    let [request, response] = [Side::Client, Side::Server].map(Direction::new);
    let mut relay = Relay { client, server, request, response, traffic, first_closed: None };
    async move {
        tokio::select! {
            biased;
            end = poll_fn(|cx| relay.poll(cx)) => end,
            () = idle_expired(traffic, idle) => Ok(CloseReason::IdleTimeout),
        }
    }
}

/// Ends when no byte has moved for `idle`; never without one. The time until now, of handshakes and attempts to connect, is no
/// silence.
async fn idle_expired(traffic: &Traffic, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    traffic.active_ms.store(now_ms(), Relaxed);
    loop {
        let quiet = Duration::from_millis(now_ms() - traffic.active_ms.load(Relaxed));
        match idle.checked_sub(quiet) {
            // Not before the next millisecond: the clock's own unit, or this would spin within it.
            Some(left) => tokio::time::sleep(left.max(Duration::from_millis(1))).await,
            None => return,
        }
    }
}

struct Relay<'a, C, S> {
    client: C,
    server: S,
    request: Direction,
    response: Direction,
    traffic: &'a Traffic,
    /// Whose end was passed on first.
    first_closed: Option<Side>,
}

/// How a direction ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The sender has ended, everything is delivered.
    Closed,
    /// This leg, the direction's sender or its receiver, cannot go on.
    Failed(Side, Failure),
}

impl<C: Transport, S: Transport> Relay<'_, C, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<CloseReason, (Side, TlsError)>> {
        let before = self.traffic.moved();
        scratch::with(|buffers| {
            let Relay { client, server, request, response, traffic, .. } = self;
            request.poll(client, server, &traffic.bytes_in, cx, buffers);
            response.poll(server, client, &traffic.bytes_out, cx, buffers);
        });
        if self.traffic.moved() != before {
            self.traffic.active_ms.store(now_ms(), Relaxed);
        }
        for (direction, other) in [(&self.request, &self.response), (&self.response, &self.request)] {
            match direction.end {
                Some(End::Closed) if self.first_closed.is_none() => {
                    self.first_closed = Some(direction.sender);
                    // With both at their end the sockets are closed at once, which says the same. A receiver that
                    // is gone shows when the other direction reads from it.
                    if other.end.is_none() {
                        let _ = finish(self.socket(other.sender));
                    }
                }
                Some(End::Failed(leg, Failure::Socket)) if leg == direction.sender => {
                    return Poll::Ready(Ok(self.reset(leg)));
                }
                Some(End::Failed(leg, Failure::Tls(cause))) => {
                    reset_on_close(self.socket(leg.other()));
                    return Poll::Ready(Err((leg, cause)));
                }
                // What the receiver sent before it went is still worth delivering: the other direction goes on.
                Some(End::Closed | End::Failed(_, Failure::Socket)) | None => {}
            }
        }
        let (Some(request), Some(response)) = (self.request.end, self.response.end) else {
            return Poll::Pending;
        };
        Poll::Ready(Ok(match (request, response) {
            (End::Failed(leg, _), _) | (_, End::Failed(leg, _)) => self.reset(leg),
            (End::Closed, End::Closed) => CloseReason::closed_by(self.first_closed.unwrap_or(Side::Client)),
        }))
    }

    fn socket(&self, leg: Side) -> &TcpStream {
        match leg {
            Side::Client => self.client.socket(),
            Side::Server => self.server.socket(),
        }
    }

    /// This leg is gone: the other one is told so by a reset, not by a FIN that would look like a clean end.
    fn reset(&self, leg: Side) -> CloseReason {
        reset_on_close(self.socket(leg.other()));
        CloseReason::reset_by(leg)
    }
}

/// One direction, from a leg to the other.
struct Direction {
    sender: Side,
    /// Reads in a row that filled the buffer.
    full_reads: u8,
    /// The sender has ended.
    ended: bool,
    end: Option<End>,
    /// Of a bulk transfer.
    pipe: Option<Pipe>,
}

impl Direction {
    fn new(sender: Side) -> Self {
        Direction { sender, full_reads: 0, ended: false, end: None, pipe: None }
    }

    /// Carries what there is, and notes how the direction has ended if it has.
    fn poll(
        &mut self,
        from: &mut impl Transport,
        to: &mut impl Transport,
        delivered: &AtomicU64,
        cx: &mut Context<'_>,
        buffers: &mut Buffers,
    ) {
        if self.end.is_none()
            && let Poll::Ready(end) = self.poll_carry(from, to, delivered, cx, buffers)
        {
            self.pipe = None;
            self.end = Some(end.map_or_else(|end| end, |()| End::Closed));
        }
    }

    /// Reads and delivers until `from` has nothing more, or `to` takes nothing more.
    fn poll_carry<F: Transport, T: Transport>(
        &mut self,
        from: &mut F,
        to: &mut T,
        delivered: &AtomicU64,
        cx: &mut Context<'_>,
        buffers: &mut Buffers,
    ) -> Poll<Result<(), End>> {
        let (sender, receiver) = (self.sender, self.sender.other());
        let sender_failed = |failure| End::Failed(sender, failure);
        let receiver_failed = |failure| End::Failed(receiver, failure);
        for _ in 0..TURN {
            ready!(to.poll_flush(cx, delivered)).map_err(receiver_failed)?;
            if let Some(pipe) = &mut self.pipe {
                ready!(poll_drain(pipe, to.socket(), cx, delivered)).map_err(receiver_failed)?;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if self.pipe.is_none()
                && self.full_reads >= BULK
                && from.gives_to_splice()
                && to.takes_from_splice()
            {
                self.pipe = Pipe::get();
            }
            let Buffers { input, plaintext, records } = &mut *buffers;
            let room = input.len();
            let received = match &mut self.pipe {
                Some(pipe) => poll_fill(pipe, from.socket(), cx),
                None => from.poll_read(cx, input, plaintext),
            };
            let Poll::Ready(received) = received else {
                self.rest();
                return Poll::Pending;
            };
            let Received { bytes, end } = received.map_err(sender_failed)?;
            self.full_reads = if bytes.len() == room { self.full_reads.saturating_add(1) } else { 0 };
            self.ended = end.is_some();
            if !bytes.is_empty() {
                to.write(bytes, records, delivered).map_err(receiver_failed)?;
            }
            if let Some(how) = end {
                to.end(how, records).map_err(receiver_failed)?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The sender ran dry: the pipe, which is empty, goes back to the worker's store.
    fn rest(&mut self) {
        self.full_reads = 0;
        if let Some(pipe) = self.pipe.take() {
            pipe.put_back();
        }
    }
}

/// Fills the pipe, which is empty.
fn poll_fill(
    pipe: &mut Pipe,
    from: &TcpStream,
    cx: &mut Context<'_>,
) -> Poll<Result<Received<'static>, Failure>> {
    loop {
        ready!(from.poll_read_ready(cx))?;
        match pipe.fill(from) {
            Ok(filled) => {
                return Poll::Ready(Ok(Received {
                    bytes: &[],
                    end: (filled == 0).then_some(PeerEnd::Whole),
                }));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
    }
}

/// Delivers what is in the pipe.
fn poll_drain(
    pipe: &mut Pipe,
    to: &TcpStream,
    cx: &mut Context<'_>,
    delivered: &AtomicU64,
) -> Poll<Result<(), Failure>> {
    while pipe.held() > 0 {
        match pipe.drain(to) {
            Ok(drained) => add(delivered, drained),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(to.poll_write_ready(cx))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
    }
    Poll::Ready(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Output;
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::pin::pin;
    use std::task::Waker;
    use tokio::net::TcpListener;

    /// A leg whose peer is written down. Its socket is real, for the FIN and the reset.
    #[derive(Default)]
    struct Peer {
        /// What each read gives; behind them nothing comes.
        says: RefCell<VecDeque<Result<Received<'static>, Failure>>>,
        /// Why nothing can be written to it.
        deaf: Option<Failure>,
        hears: RefCell<Vec<u8>>,
    }

    struct Scripted<'a>(&'a Peer, &'a TcpStream);

    impl Transport for Scripted<'_> {
        fn gives_to_splice(&self) -> bool {
            false
        }

        fn takes_from_splice(&self) -> bool {
            false
        }

        fn socket(&self) -> &TcpStream {
            self.1
        }

        fn poll_read<'b>(
            &mut self,
            _: &mut Context<'_>,
            _: &'b mut [u8],
            _: &'b mut Output,
        ) -> Poll<Result<Received<'b>, Failure>> {
            self.0.says.borrow_mut().pop_front().map_or(Poll::Pending, Poll::Ready)
        }

        fn write(&mut self, bytes: &[u8], _: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
            self.0.deaf.map_or(Ok(()), Err)?;
            self.0.hears.borrow_mut().extend(bytes);
            add(delivered, bytes.len());
            Ok(())
        }

        fn end(&mut self, _: PeerEnd, records: &mut Output) -> Result<(), Failure> {
            self.write(b"; end", records, &AtomicU64::new(0))
        }

        fn poll_flush(&mut self, _: &mut Context<'_>, _: &AtomicU64) -> Poll<Result<(), Failure>> {
            Poll::Ready(Ok(()))
        }
    }

    const SAYS: Result<Received, Failure> = Ok(Received { bytes: b"words", end: None });
    const ENDS: Result<Received, Failure> = Ok(Received { bytes: b"", end: Some(PeerEnd::Whole) });
    const TLS: Failure = Failure::Tls(TlsError::Undecryptable);

    fn peer<const N: usize>(says: [Result<Received<'static>, Failure>; N]) -> Peer {
        Peer { says: RefCell::new(says.into()), ..Peer::default() }
    }

    fn deaf<const N: usize>(says: [Result<Received<'static>, Failure>; N], failure: Failure) -> Peer {
        Peer { deaf: Some(failure), ..peer(says) }
    }

    /// The gateway's socket of a leg, and that of its peer.
    async fn socket() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (socket, peer) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (socket.unwrap(), peer.unwrap().0)
    }

    fn is_to_be_reset(socket: &TcpStream) -> bool {
        socket2::SockRef::from(socket).linger().unwrap() == Some(Duration::ZERO)
    }

    #[tokio::test]
    async fn an_end_is_passed_on_while_the_other_direction_goes_on() {
        let (near, _near_peer) = socket().await;
        let (far, far_peer) = socket().await;
        let (client, server) = (peer([SAYS, ENDS]), peer([SAYS]));
        let traffic = Traffic::default();
        let mut relay = pin!(relay(Scripted(&client, &near), Scripted(&server, &far), &traffic, None));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(relay.as_mut().poll(cx).is_pending());
        assert_eq!(*server.hears.borrow(), b"words; end");
        far_peer.readable().await.unwrap();
        assert_eq!(far_peer.try_read(&mut [0]).unwrap(), 0, "a FIN");

        server.says.borrow_mut().extend([SAYS, ENDS]);
        assert_eq!(relay.as_mut().poll(cx), Poll::Ready(Ok(CloseReason::ClientClosed)));
        assert_eq!(*client.hears.borrow(), b"wordswords; end");
        assert!(!is_to_be_reset(&near) && !is_to_be_reset(&far));
        assert_eq!((traffic.bytes_in.load(Relaxed), traffic.bytes_out.load(Relaxed)), (5, 10));
    }

    #[tokio::test]
    async fn a_failure_of_one_leg_resets_the_other() {
        let socket_fails = || Err(Failure::Socket);
        let undecryptable = |side| Err((side, TlsError::Undecryptable));
        let cases = [
            ("the client resets", peer([SAYS, socket_fails()]), peer([]), Ok(CloseReason::ClientReset)),
            ("the server resets", peer([]), peer([SAYS, socket_fails()]), Ok(CloseReason::ServerReset)),
            ("reads of the client's TLS fail", peer([Err(TLS)]), peer([SAYS]), undecryptable(Side::Client)),
            ("reads of the server's TLS fail", peer([SAYS]), peer([Err(TLS)]), undecryptable(Side::Server)),
            ("writes of the client's TLS fail", deaf([], TLS), peer([SAYS]), undecryptable(Side::Client)),
            ("writes of the server's TLS fail", peer([SAYS]), deaf([], TLS), undecryptable(Side::Server)),
            (
                "the server takes nothing, and what it has sent is delivered",
                peer([SAYS]),
                deaf([SAYS, ENDS], Failure::Socket),
                Ok(CloseReason::ServerReset),
            ),
            (
                "the client takes nothing, and what it has sent is delivered",
                deaf([SAYS, ENDS], Failure::Socket),
                peer([SAYS]),
                Ok(CloseReason::ClientReset),
            ),
            (
                "the server takes nothing, and resets",
                peer([SAYS]),
                deaf([SAYS, socket_fails()], Failure::Socket),
                Ok(CloseReason::ServerReset),
            ),
        ];
        for (case, client, server, expected) in cases {
            let ((near, _near_peer), (far, _far_peer)) = (socket().await, socket().await);
            let traffic = Traffic::default();
            let relay = relay(Scripted(&client, &near), Scripted(&server, &far), &traffic, None);
            assert_eq!(relay.await, expected, "{case}");
            let client_fails = matches!(expected, Ok(CloseReason::ClientReset) | Err((Side::Client, _)));
            assert_eq!(
                (is_to_be_reset(&near), is_to_be_reset(&far)),
                (!client_fails, client_fails),
                "{case}"
            );
            if case.ends_with("delivered") {
                let heard = if client_fails { server.hears } else { client.hears };
                assert_eq!(heard.into_inner(), b"words; end", "{case}");
            }
        }
    }

    #[tokio::test]
    async fn what_came_before_the_relay_is_no_silence() {
        let ((near, _near_peer), (far, _far_peer)) = (socket().await, socket().await);
        let (client, server) = (peer([]), peer([]));
        let idle = Duration::from_secs(1);
        let traffic = Traffic { active_ms: (now_ms() - 2_000).into(), ..Traffic::default() };
        let relay = pin!(relay(Scripted(&client, &near), Scripted(&server, &far), &traffic, Some(idle)));
        assert!(relay.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn a_receiver_that_is_gone_is_waited_for_until_the_connection_is_idle() {
        let ((near, _near_peer), (far, _far_peer)) = (socket().await, socket().await);
        let (client, server) = (peer([SAYS]), deaf([], Failure::Socket));
        let traffic = Traffic { active_ms: now_ms().into(), ..Traffic::default() };
        let idle = Some(Duration::from_millis(1));
        let end = relay(Scripted(&client, &near), Scripted(&server, &far), &traffic, idle).await;
        assert_eq!(end, Ok(CloseReason::IdleTimeout));
    }
}
