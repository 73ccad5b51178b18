//! The leg of a client whose TLS records the kernel has: kTLS, for bulk.
//!
//! A session begins in userspace. When a MiB has passed, and both directions are between two records, the kernel
//! gets its keys and goes on. From there on plaintext is written to the socket, or moved into it by splice(2). What the peer
//! says beside application data (close_notify, alerts, a KeyUpdate) the kernel gives apart, and it is answered here: so nothing
//! is read by splice(2), which cannot tell the one from the other.

use super::transport::{Failure, Kept, PeerEnd, Received};
use crate::account::{Books, Connection};
use crate::kernel::ktls::{self, ContentType, Direction, Support};
use crate::kernel::tcp;
use crate::reason::{FallbackReason, TlsError};
use crate::tls::ktls::{KEY_UPDATE, KernelSession, Said, suite};
use crate::tls::{Role, Session, goes_on};
use std::io::{
    self,
    ErrorKind::{Interrupted, WouldBlock},
};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Bytes of a connection, in both directions, after which it counts as bulk: what the kernel saves must be more than what it
/// takes to give it the keys.
const AFTER: u64 = 1024 * 1024;

/// How often it is looked at whether a key is spent: once in so many times that something could be sent. Each time that are at
/// most some hundred records (of what a pipe holds), so that a key is changed in time.
const LOOK: u32 = 1024;

/// How long is waited before it is asked once more whether the socket has all records: at first, and at most. A peer may stop to
/// read for ever.
const PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Alerts that the gateway itself sends: fatal (RFC 8446, section 6), but for the first.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
const UNEXPECTED_MESSAGE: [u8; 2] = [2, 10];
const BAD_RECORD_MAC: [u8; 2] = [2, 20];
const INTERNAL_ERROR: [u8; 2] = [2, 80];

/// A connection that may go to the kernel.
pub struct Offload {
    /// Where it is noted.
    pub books: Arc<Books>,
    /// The client's.
    pub connection: Arc<Connection>,
}

impl Offload {
    /// The connection counts as bulk.
    pub(super) fn is_due(&self) -> bool {
        self.connection.traffic.moved() >= AFTER
    }

    fn delivered(&self) -> u64 {
        self.connection.traffic.bytes_out.load(Relaxed)
    }
}

/// The records of a leg, in the kernel.
pub(super) struct KernelRecords<R: Role> {
    session: KernelSession<R>,
    /// Whether the kernel takes new keys.
    takes_keys: bool,
    offload: Offload,
    /// The present one.
    key: Key,
    /// What the socket has, when it has all records, less what the application's bytes and the present key's records make of
    /// it. As [`tcp::sent`] counts; it may wrap.
    before: u64,
    /// Bytes of records beside application data, in plaintext.
    beside: u64,
    /// What came before the kernel took over woke nobody up for it.
    is_new: bool,
    /// The peer has new keys and asks for the gateway's, or those are spent: they come before anything else is sent.
    owes_update: bool,
    /// close_notify is still to be sent.
    owes_end: bool,
    has_ended: bool,
    /// Counts down to the next look at the key.
    look: u32,
    /// The last, and the present one.
    paused: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

/// A key of what is sent.
#[derive(Clone, Copy)]
struct Key {
    /// The number of the first record that the kernel has sealed with it.
    first: u64,
    /// What was delivered before it came into use.
    delivered: u64,
}

/// What became of an attempt.
pub(super) enum Attempt<R: Role> {
    Taken(Box<KernelRecords<R>>),
    /// Nothing has changed.
    Refused(Session<R>),
}

impl<R: Role> KernelRecords<R> {
    /// Gives the kernel a session that [is at rest](Session::is_at_rest), and whose records the socket has all taken.
    pub(super) fn take(
        session: Session<R>,
        socket: &TcpStream,
        offload: Offload,
    ) -> Result<Attempt<R>, TlsError> {
        let prepared = || -> io::Result<u64> {
            ktls::prepare(socket.as_fd())?;
            tcp::sent_exactly(socket.as_fd())
        };
        let refused = |session, error: &dyn std::fmt::Display| {
            tracing::debug!(id = offload.connection.id, %error, "kTLS is refused");
            offload.books.stats.fallbacks.add(FallbackReason::KtlsRefused as usize);
            Ok(Attempt::Refused(session))
        };
        let suite = suite(&session).map(|suite| (suite, ktls::support(suite)));
        let Some((suite, support)) = suite.filter(|(_, support)| *support != Support::Nothing) else {
            return refused(session, &"not with this cipher suite");
        };
        let before = match prepared() {
            Ok(before) => before,
            Err(error) => return refused(session, &error),
        };
        let (session, keys) = KernelSession::new(session, suite)?;
        for (direction, keys) in keys {
            ktls::set_keys(socket.as_fd(), direction, &keys).map_err(internal)?;
        }
        let first = ktls::next_sequence(socket.as_fd(), suite).map_err(internal)?;
        offload.books.promoted(&offload.connection);
        Ok(Attempt::Taken(Box::new(Self {
            session,
            takes_keys: support == Support::NewKeys,
            key: Key { first, delivered: 0 },
            before: before.wrapping_sub(offload.delivered()),
            offload,
            beside: 0,
            is_new: true,
            owes_update: false,
            owes_end: false,
            has_ended: false,
            look: LOOK,
            paused: PAUSE / 2,
            pause: None,
        })))
    }

    /// As [`Transport::poll_read`](super::transport::Transport::poll_read).
    pub(super) fn poll_read<'b>(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
    ) -> Poll<Result<Received<'b>, Failure>> {
        let ktls::Received { bytes, content } = loop {
            let mut receive = || ktls::receive(socket.as_fd(), input);
            let received = if std::mem::take(&mut self.is_new) {
                receive()
            } else {
                ready!(socket.poll_read_ready(cx))?;
                socket.try_io(Interest::READABLE, receive)
            };
            match received {
                Ok(received) => break received,
                Err(error) if error.kind() == WouldBlock => {}
                Err(error) => return Poll::Ready(Err(self.broken(socket, &error))),
            }
        };
        let end = match content {
            // Many leave so. The other leg sees the same FIN.
            None => Some(PeerEnd::Cut),
            Some(ContentType::APPLICATION_DATA) => {
                self.session.hear_data();
                if bytes < input.len() && goes_on(bytes) {
                    let _ = tcp::flush_acknowledgement(socket.as_fd());
                }
                return Poll::Ready(Ok(Received { bytes: &input[..bytes], end: None }));
            }
            Some(content) => match self.hear(socket, content, &input[..bytes]) {
                Ok(is_end) => is_end.then_some(PeerEnd::Whole),
                Err((cause, alert)) => {
                    self.say(socket, alert);
                    return Poll::Ready(Err(Failure::Tls(cause)));
                }
            },
        };
        Poll::Ready(Ok(Received { bytes: &[], end }))
    }

    /// Acts upon what the peer says beside application data: whether it has ended. Else why the session cannot go on, and what
    /// the peer is told.
    fn hear(
        &mut self,
        socket: &TcpStream,
        content: ContentType,
        bytes: &[u8],
    ) -> Result<bool, (TlsError, Option<[u8; 2]>)> {
        let violation = |cause| match cause {
            TlsError::ProtocolViolation => (cause, Some(UNEXPECTED_MESSAGE)),
            // It was an alert, to which there is no answer.
            cause => (cause, None),
        };
        match self.session.hear(content, bytes).map_err(violation)? {
            Said::Nothing => Ok(false),
            Said::End => Ok(true),
            Said::KeyUpdate { .. } if !self.takes_keys => Err((TlsError::KeyUpdate, Some(INTERNAL_ERROR))),
            Said::KeyUpdate { asks } => {
                let not_now = |cause| (cause, Some(INTERNAL_ERROR));
                self.set_next_keys(socket, Direction::Receive).map_err(not_now)?;
                // Behind close_notify nothing is sent.
                self.owes_update |= asks && !self.has_ended;
                Ok(false)
            }
        }
    }

    fn set_next_keys(&mut self, socket: &TcpStream, direction: Direction) -> Result<(), TlsError> {
        let keys = self.session.next_keys(direction)?;
        ktls::set_keys(socket.as_fd(), direction, &keys).map_err(internal)
    }

    /// Why nothing more can be received.
    fn broken(&mut self, socket: &TcpStream, error: &io::Error) -> Failure {
        let (cause, alert) = match error.raw_os_error() {
            Some(libc::EBADMSG) => (TlsError::Undecryptable, BAD_RECORD_MAC),
            // A record that is too long, or of another version.
            Some(libc::EMSGSIZE | libc::EINVAL) => (TlsError::ProtocolViolation, UNEXPECTED_MESSAGE),
            _ => return Failure::Socket,
        };
        tracing::debug!(id = self.offload.connection.id, %error, "TLS error");
        // Until it is taken, nothing can be sent.
        let _ = socket.take_error();
        self.say(socket, Some(alert));
        Failure::Tls(cause)
    }

    /// Sends a last alert, if there is room for it. Behind our FIN there is nothing to be said.
    fn say(&mut self, socket: &TcpStream, alert: Option<[u8; 2]>) {
        if let Some(alert) = alert.filter(|_| !self.has_ended) {
            let _ = ktls::send_record(socket.as_fd(), ContentType::ALERT, &alert);
        }
    }

    /// As [`Transport::write`](super::transport::Transport::write). `kept`: what the socket has not taken yet, in plaintext.
    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        kept: &mut Kept,
        socket: &TcpStream,
        delivered: &AtomicU64,
    ) -> Result<(), Failure> {
        if self.owes_update {
            kept.hold(bytes);
        } else {
            crate::traffic::add(delivered, kept.write(bytes, socket)?);
        }
        Ok(())
    }

    /// The last write was the last.
    pub(super) fn end(&mut self, how: PeerEnd) {
        (self.has_ended, self.owes_end) = (true, how == PeerEnd::Whole);
    }

    /// As [`Transport::poll_flush`](super::transport::Transport::poll_flush). Once the last write was the last, it is ready when
    /// the socket has all records: the FIN, which would be sent at once, must not overtake those that the kernel has sealed and
    /// not queued yet.
    pub(super) fn poll_flush(
        &mut self,
        kept: &mut Kept,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        delivered: &AtomicU64,
    ) -> Poll<Result<(), Failure>> {
        if self.owes_update {
            ready!(self.poll_record(socket, cx, ContentType::HANDSHAKE, &KEY_UPDATE))?;
            self.owes_update = false;
            self.change_key(socket).map_err(Failure::Tls)?;
        }
        ready!(kept.poll_deliver(socket, cx, delivered))?;
        if self.owes_end {
            ready!(self.poll_record(socket, cx, ContentType::ALERT, &CLOSE_NOTIFY))?;
            self.owes_end = false;
        }
        if self.has_ended {
            return self.poll_queued(socket, cx);
        }
        self.look -= 1;
        if self.look == 0 {
            self.look = LOOK;
            self.owes_update = self.is_key_spent(socket).map_err(Failure::Tls)?;
            if self.owes_update && !self.takes_keys {
                self.say(socket, Some(INTERNAL_ERROR));
                return Poll::Ready(Err(Failure::Tls(TlsError::KeyUpdate)));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_record(
        &mut self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
        content: ContentType,
        bytes: &[u8],
    ) -> Poll<io::Result<()>> {
        loop {
            match socket.try_io(Interest::WRITABLE, || ktls::send_record(socket.as_fd(), content, bytes)) {
                Err(error) if error.kind() == WouldBlock => ready!(socket.poll_write_ready(cx))?,
                Err(error) if error.kind() == Interrupted => {}
                Ok(()) => {
                    self.beside += bytes.len() as u64;
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn next_sequence(&self, socket: &TcpStream) -> Result<u64, TlsError> {
        ktls::next_sequence(socket.as_fd(), self.session.suite()).map_err(internal)
    }

    fn is_key_spent(&self, socket: &TcpStream) -> Result<bool, TlsError> {
        let bytes = self.offload.delivered() - self.key.delivered;
        Ok(self.session.is_spent(bytes, self.next_sequence(socket)?))
    }

    /// Bytes that the records of the present key take beside their plaintext.
    fn overhead(&self, socket: &TcpStream) -> Result<u64, TlsError> {
        let records = self.next_sequence(socket)? - self.key.first;
        Ok(records * self.session.suite().overhead())
    }

    /// A KeyUpdate was sent: what follows is protected by the next key.
    fn change_key(&mut self, socket: &TcpStream) -> Result<(), TlsError> {
        let overhead = self.overhead(socket)?;
        self.set_next_keys(socket, Direction::Transmit)?;
        self.before = self.before.wrapping_add(overhead);
        self.key = Key { first: 0, delivered: self.offload.delivered() };
        Ok(())
    }

    /// Ready when the socket has as many bytes as there are in all records.
    fn poll_queued(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let overhead = self.overhead(socket).map_err(Failure::Tls)?;
            let all = self.before.wrapping_add(self.offload.delivered() + self.beside + overhead);
            let sent = tcp::sent(socket.as_fd())?;
            if sent.bytes >= all || sent.is_closed {
                return Poll::Ready(Ok(()));
            }
            self.paused = (2 * self.paused).min(LONGEST_PAUSE);
            self.pause = Some(Box::pin(tokio::time::sleep(self.paused)));
        }
    }
}

fn internal(error: io::Error) -> TlsError {
    tracing::warn!(%error, "kTLS failed");
    TlsError::Internal
}
