//! What a relayed leg speaks: the application's bytes as they are, or inside of TLS.

use crate::reason::TlsError;
use crate::scratch::Output;
use crate::socket::read_once;
use crate::traffic::add;
use std::io::{
    self,
    ErrorKind::{Interrupted, WouldBlock},
    IoSlice,
};
use std::mem;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// One leg of a relayed connection, which takes and gives the application's bytes.
///
/// The methods work in buffers that the worker lends them: an idle leg owns none.
pub trait Transport {
    /// Whether the application's bytes can be moved out of the socket by splice(2).
    fn gives_to_splice(&self) -> bool;

    /// Whether the application's bytes can be moved into the socket by splice(2). Once they can, they always can.
    fn takes_from_splice(&self) -> bool;

    /// The leg's socket.
    fn socket(&self) -> &TcpStream;

    /// Receives once, into `input`; `plaintext` is room for what is made of it. Not called again behind the end or a failure.
    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Poll<Result<Received<'b>, Failure>>;

    /// Sends `bytes`, and keeps what the socket does not take; called when nothing is left of the write before. `records` is
    /// room for what is made of them. Adds to `delivered` the bytes that the socket has taken, or inside of TLS those that
    /// are encrypted.
    fn write(&mut self, bytes: &[u8], records: &mut Output, delivered: &AtomicU64) -> Result<(), Failure>;

    /// The last write was the last: what the transport itself says then (close_notify, unless the other leg's peer has not said
    /// it either) is sent behind it. The FIN is the relay's.
    fn end(&mut self, how: PeerEnd, records: &mut Output) -> Result<(), Failure>;

    /// Sends what is kept, and adds to `delivered` as [`write`](Self::write) does; ready when nothing is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>>;
}

/// One that stays its owner's.
impl<T: Transport> Transport for &mut T {
    fn gives_to_splice(&self) -> bool {
        (**self).gives_to_splice()
    }

    fn takes_from_splice(&self) -> bool {
        (**self).takes_from_splice()
    }

    fn socket(&self) -> &TcpStream {
        (**self).socket()
    }

    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Poll<Result<Received<'b>, Failure>> {
        (**self).poll_read(cx, input, plaintext)
    }

    fn write(&mut self, bytes: &[u8], records: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
        (**self).write(bytes, records, delivered)
    }

    fn end(&mut self, how: PeerEnd, records: &mut Output) -> Result<(), Failure> {
        (**self).end(how, records)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>> {
        (**self).poll_flush(cx, delivered)
    }
}

/// What one read has given.
#[derive(Debug)]
pub struct Received<'b> {
    /// For the other leg. Empty if all that came was the transport's own, or part of a record.
    pub bytes: &'b [u8],
    /// The peer sends nothing behind them.
    pub end: Option<PeerEnd>,
}

/// How a peer has ended what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEnd {
    /// As it should: by a FIN, and inside of TLS by close_notify.
    Whole,
    /// Inside of TLS, by a FIN alone: anybody on the way can have sent that, to cut off the rest (RFC 8446, section 6.1).
    Cut,
}

/// Why a leg cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its socket: the peer is gone, mostly by a reset.
    Socket,
    /// Its TLS.
    Tls(TlsError),
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Failure::Socket
    }
}

/// A leg without TLS. `S`: its socket, or a reference to it.
#[derive(Debug)]
pub struct Plain<S> {
    socket: S,
    received: Vec<u8>,
    kept: Kept,
}

impl<S: Deref<Target = TcpStream>> Plain<S> {
    /// `received`: what was read from the socket before, and comes before what is still to be read.
    pub fn new(socket: S, received: Vec<u8>) -> Self {
        Plain { socket, received, kept: Kept::default() }
    }

    /// Its socket.
    pub(crate) fn own_socket(&self) -> &S {
        &self.socket
    }

    /// Takes bytes back that [`poll_read`](Transport::poll_read) has given: they come first, once more.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.received.splice(..0, bytes.iter().copied());
    }

    /// How many bytes the socket has not taken yet.
    pub(crate) fn left(&self) -> usize {
        self.kept.left()
    }

    /// As [`write`](Transport::write), of several pieces.
    pub(crate) fn write_slices(
        &mut self,
        slices: &[IoSlice<'_>],
        delivered: &AtomicU64,
    ) -> Result<(), Failure> {
        add(delivered, self.kept.write_slices(slices, &self.socket)?);
        Ok(())
    }
}

impl<S: Deref<Target = TcpStream>> Transport for Plain<S> {
    fn gives_to_splice(&self) -> bool {
        self.received.is_empty()
    }

    fn takes_from_splice(&self) -> bool {
        true
    }

    fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Poll<Result<Received<'b>, Failure>> {
        if !self.received.is_empty() {
            let bytes = plaintext.hold(&mem::take(&mut self.received));
            return Poll::Ready(Ok(Received { bytes, end: None }));
        }
        let read = ready!(poll_read_once(&self.socket, cx, input))?;
        Poll::Ready(Ok(Received { bytes: &input[..read], end: (read == 0).then_some(PeerEnd::Whole) }))
    }

    fn write(&mut self, bytes: &[u8], _: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
        add(delivered, self.kept.write(bytes, &self.socket)?);
        Ok(())
    }

    fn end(&mut self, _: PeerEnd, _: &mut Output) -> Result<(), Failure> {
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>> {
        self.kept.poll_deliver(&self.socket, cx, delivered).map_err(Failure::from)
    }
}

/// Reads once, when there is something to read.
pub(crate) fn poll_read_once(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    into: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_read_ready(cx))?;
        match read_once(socket, into) {
            Err(error) if error.kind() == WouldBlock => {}
            read => return Poll::Ready(read),
        }
    }
}

/// Bytes that a socket has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    bytes: Vec<u8>,
    /// 0 <= sent <= bytes.len()
    sent: usize,
}

impl Kept {
    /// How many bytes there are.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends `bytes` behind what is kept, at once if nothing is, and keeps what the socket does not take. How much of
    /// `bytes` it took.
    pub(crate) fn write(&mut self, bytes: &[u8], to: &TcpStream) -> io::Result<usize> {
        let sent = match self.left() {
            0 => match to.try_write(bytes) {
                Ok(sent) => sent,
                // kTLS waits for a lock of its own, in which a signal may interrupt it.
                Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => 0,
                Err(error) => return Err(error),
            },
            _ => 0,
        };
        if sent < bytes.len() {
            self.hold(&bytes[sent..]);
        }
        Ok(sent)
    }

    /// Keeps `bytes` behind what is kept.
    pub(crate) fn hold(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// As [`write`](Self::write), of several pieces.
    fn write_slices(&mut self, slices: &[IoSlice<'_>], to: &TcpStream) -> io::Result<usize> {
        let sent = match self.left() {
            0 => match to.try_write_vectored(slices) {
                Ok(sent) => sent,
                Err(error) if error.kind() == WouldBlock => 0,
                Err(error) => return Err(error),
            },
            _ => 0,
        };
        let mut passed = sent;
        for slice in slices {
            let own = passed.min(slice.len());
            self.bytes.extend_from_slice(&slice[own..]);
            passed -= own;
        }
        Ok(sent)
    }

    /// As [`poll_flush`](Self::poll_flush), of the application's bytes: adds to `delivered` those that the socket has taken.
    pub(crate) fn poll_deliver(
        &mut self,
        to: &TcpStream,
        cx: &mut Context<'_>,
        delivered: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        let left = self.left();
        if left == 0 {
            return Poll::Ready(Ok(()));
        }
        let flushed = self.poll_flush(to, cx);
        add(delivered, left - self.left());
        flushed
    }

    /// Sends what is kept; ready when nothing is left.
    pub(crate) fn poll_flush(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left() > 0 {
            match to.try_write(&self.bytes[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) if error.kind() == Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        *self = Kept::default();
        Poll::Ready(Ok(()))
    }
}
