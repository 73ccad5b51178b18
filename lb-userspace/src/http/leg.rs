//! A leg as hyper reads and writes it: a [`Transport`], in whose worker's buffers the bytes pass.

use crate::close::LegSocket;
use crate::scratch::{self, Buffers, Output};
use crate::socket::finish;
use crate::splice::tls::Tls;
use crate::splice::transport::{Failure, PeerEnd, Plain, Received, Transport};
use crate::tls::{Dialling, Role};
use crate::traffic::Traffic;
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io::{self, IoSlice};
use std::mem;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// Bytes that are written at a time: more would only grow the worker's buffers.
const MOST_WRITTEN: usize = 64 * 1024;

/// Bytes that are asked of a TLS leg at least: a record, so that its parts need not be kept.
const RECORD: usize = 17 * 1024;

/// Reads in a row before the worker's other connections have their turn: what a peer sends without an end may cost far more to
/// look at than to send.
const TURN: u8 = 4;

/// A transport of one of the two kinds, for requests.
pub(crate) trait Leg: Transport {
    /// Bytes of the buffer to lend for a read that is to give up to `room` bytes.
    fn lent(&self, room: usize) -> usize;

    /// Sends these pieces as one. `gathered`: room to put them together.
    fn write_slices(
        &mut self,
        slices: &[IoSlice<'_>],
        gathered: &mut Output,
        records: &mut Output,
        delivered: &AtomicU64,
    ) -> Result<(), Failure>;

    /// Takes bytes back: they come first, once more.
    fn put_back(&mut self, bytes: &[u8]);

    /// How many bytes the socket has not taken yet.
    fn left(&self) -> usize;
}

impl<S: Deref<Target = TcpStream>> Leg for Plain<S> {
    fn lent(&self, room: usize) -> usize {
        room
    }

    fn write_slices(
        &mut self,
        slices: &[IoSlice<'_>],
        _: &mut Output,
        _: &mut Output,
        delivered: &AtomicU64,
    ) -> Result<(), Failure> {
        Plain::write_slices(self, slices, delivered)
    }

    fn put_back(&mut self, bytes: &[u8]) {
        Plain::put_back(self, bytes);
    }

    fn left(&self) -> usize {
        Plain::left(self)
    }
}

impl<R: Role, S: Deref<Target = TcpStream>> Leg for Tls<R, S> {
    fn lent(&self, room: usize) -> usize {
        self.held() + room.max(RECORD)
    }

    fn write_slices(
        &mut self,
        slices: &[IoSlice<'_>],
        gathered: &mut Output,
        records: &mut Output,
        delivered: &AtomicU64,
    ) -> Result<(), Failure> {
        gathered.clear();
        slices.iter().for_each(|slice| gathered.extend(slice));
        self.write(gathered.bytes(), records, delivered)
    }

    fn put_back(&mut self, bytes: &[u8]) {
        Tls::put_back(self, bytes);
    }

    fn left(&self) -> usize {
        Tls::left(self)
    }
}

/// The leg to a server.
pub(super) enum Far {
    Plain(Plain<LegSocket>),
    Tls(Box<Tls<Dialling, LegSocket>>),
}

impl Far {
    /// From here on it ends with a FIN instead of a reset.
    pub(super) fn clean(&self) {
        match self {
            Far::Plain(leg) => leg.own_socket().clean(),
            Far::Tls(leg) => leg.own_socket().clean(),
        }
    }
}

impl Transport for Far {
    fn gives_to_splice(&self) -> bool {
        false
    }

    fn takes_from_splice(&self) -> bool {
        false
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Far::Plain(leg) => leg.socket(),
            Far::Tls(leg) => leg.socket(),
        }
    }

    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Poll<Result<Received<'b>, Failure>> {
        match self {
            Far::Plain(leg) => leg.poll_read(cx, input, plaintext),
            Far::Tls(leg) => leg.poll_read(cx, input, plaintext),
        }
    }

    fn write(&mut self, bytes: &[u8], records: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
        match self {
            Far::Plain(leg) => leg.write(bytes, records, delivered),
            Far::Tls(leg) => leg.write(bytes, records, delivered),
        }
    }

    fn end(&mut self, how: PeerEnd, records: &mut Output) -> Result<(), Failure> {
        match self {
            Far::Plain(leg) => leg.end(how, records),
            Far::Tls(leg) => leg.end(how, records),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>> {
        match self {
            Far::Plain(leg) => leg.poll_flush(cx, delivered),
            Far::Tls(leg) => leg.poll_flush(cx, delivered),
        }
    }
}

impl Leg for Far {
    fn lent(&self, room: usize) -> usize {
        match self {
            Far::Plain(leg) => leg.lent(room),
            Far::Tls(leg) => leg.lent(room),
        }
    }

    fn write_slices(
        &mut self,
        slices: &[IoSlice<'_>],
        gathered: &mut Output,
        records: &mut Output,
        delivered: &AtomicU64,
    ) -> Result<(), Failure> {
        match self {
            Far::Plain(leg) => Leg::write_slices(leg, slices, gathered, records, delivered),
            Far::Tls(leg) => Leg::write_slices(&mut **leg, slices, gathered, records, delivered),
        }
    }

    fn put_back(&mut self, bytes: &[u8]) {
        match self {
            Far::Plain(leg) => leg.put_back(bytes),
            Far::Tls(leg) => leg.put_back(bytes),
        }
    }

    fn left(&self) -> usize {
        match self {
            Far::Plain(leg) => leg.left(),
            Far::Tls(leg) => leg.left(),
        }
    }
}

/// Hears of the bytes of a leg.
pub(super) trait Meter {
    /// A peer that ends its TLS without close_notify has failed: what it sends may be an answer that goes on until its end (RFC
    /// 9112, section 9.8).
    const IS_CUT_BY_FIN: bool;

    /// Counts what is written.
    fn delivered(&self) -> &AtomicU64;

    /// These were read.
    fn received(&self, bytes: &[u8]);

    /// hyper wants to read on, and these are there, at least one. How many of them it gets now, at least one; the rest comes
    /// later.
    fn passes(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    /// What comes next is not read before all that was written is sent.
    fn waits(&self) -> bool {
        false
    }

    /// The socket has taken so many.
    fn written(&self, bytes: usize);

    /// The peer sends nothing more; an error: the leg cannot go on.
    fn ended(&self, how: Result<(), Failure>);
}

/// Of a leg to a server, whose bytes count as those of its clients.
#[derive(Default)]
pub(super) struct Silent(Traffic);

impl Meter for Silent {
    const IS_CUT_BY_FIN: bool = true;

    fn delivered(&self) -> &AtomicU64 {
        &self.0.bytes_in
    }

    fn received(&self, _: &[u8]) {}

    fn written(&self, _: usize) {}

    fn ended(&self, _: Result<(), Failure>) {}
}

/// A leg that hyper reads and writes.
pub(super) struct Io<L, M> {
    leg: L,
    meter: M,
    /// Received; hyper has not taken what is behind `taken`.
    spare: Vec<u8>,
    taken: usize,
    /// Reads since there was nothing to be read.
    turn: u8,
    /// The peer sends nothing more.
    has_ended: bool,
    /// The last word is said.
    is_finished: bool,
}

impl<L: Leg, M: Meter> Io<L, M> {
    pub(super) fn new(leg: L, meter: M) -> Self {
        Io { leg, meter, spare: Vec::new(), taken: 0, turn: 0, has_ended: false, is_finished: false }
    }

    pub(super) fn leg(&self) -> &L {
        &self.leg
    }

    /// The leg, which gives first what hyper has not taken: `unread`, and what was read behind it.
    pub(super) fn into_leg(mut self, unread: &[u8]) -> L {
        let unread = [unread, &self.spare[self.taken..]].concat();
        if !unread.is_empty() {
            self.leg.put_back(&unread);
        }
        self.leg
    }

    /// Waits for the first bytes, and has them at least until they tell whether they are `preface`; `None`: the peer has ended
    /// before. They are still to be read.
    pub(super) fn poll_begins_with(
        &mut self,
        cx: &mut Context<'_>,
        preface: &[u8],
    ) -> Poll<io::Result<Option<bool>>> {
        loop {
            let begun = self.spare.len().min(preface.len());
            if self.spare[..begun] != preface[..begun] {
                return Poll::Ready(Ok(Some(false)));
            }
            if begun == preface.len() {
                return Poll::Ready(Ok(Some(true)));
            }
            if self.has_ended {
                return Poll::Ready(Ok((begun > 0).then_some(false)));
            }
            let mut read = mem::take(&mut self.spare);
            let polled = self.poll_receive(cx, RECORD, |_, bytes| read.extend_from_slice(bytes));
            self.spare = read;
            ready!(polled)?;
        }
    }

    /// Reads once, up to `room` bytes or a little more.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        mut take: impl FnMut(&M, &[u8]),
    ) -> Poll<io::Result<()>> {
        let Io { leg, meter, turn, has_ended, .. } = self;
        if *turn == TURN {
            *turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let received = scratch::with(|Buffers { input, plaintext, .. }| {
            let lent = leg.lent(room).min(input.len());
            let Received { bytes, end } = ready!(leg.poll_read(cx, &mut input[..lent], plaintext))?;
            if !bytes.is_empty() {
                meter.received(bytes);
                take(meter, bytes);
            }
            if end == Some(PeerEnd::Cut) && M::IS_CUT_BY_FIN {
                return Poll::Ready(Err(Failure::Socket));
            }
            if end.is_some() {
                meter.ended(Ok(()));
            }
            *has_ended = end.is_some();
            Poll::Ready(Ok(()))
        });
        *turn = if received.is_ready() { *turn + 1 } else { 0 };
        Poll::Ready(ready!(received).map_err(|failure| self.failed(failure)))
    }

    fn failed(&self, failure: Failure) -> io::Error {
        self.meter.ended(Err(failure));
        io::ErrorKind::ConnectionReset.into()
    }

    /// Sends what is left of the last write.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let Io { leg, meter, .. } = self;
        let left = leg.left();
        if left == 0 {
            return Poll::Ready(Ok(()));
        }
        let flushed = leg.poll_flush(cx, meter.delivered());
        meter.written(left - leg.left());
        flushed
    }

    /// Sends what `write` makes, once what was sent before is gone.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut L, &mut Buffers, &AtomicU64) -> Result<(), Failure>,
    ) -> Poll<io::Result<()>> {
        let flushed = ready!(self.poll_left(cx));
        let Io { leg, meter, .. } = self;
        let sent = flushed.and_then(|()| {
            let before = meter.delivered().load(Relaxed);
            let sent = scratch::with(|buffers| write(leg, buffers, meter.delivered()));
            meter.written((meter.delivered().load(Relaxed) - before) as usize);
            sent
        });
        Poll::Ready(sent.map_err(|failure| self.failed(failure)))
    }

    /// Says the last word, and sends what is left.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_finished {
            ready!(self.poll_send(cx, |leg, Buffers { records, .. }, _| leg.end(PeerEnd::Whole, records)))?;
            self.is_finished = true;
        }
        ready!(self.poll_left(cx)).map_err(|failure| self.failed(failure))?;
        Poll::Ready(finish(self.leg.socket()))
    }
}

impl<L: Leg + Unpin, M: Meter + Unpin> Read for Io<L, M> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.leg.left() > 0 && this.meter.waits() {
            if let Poll::Ready(sent) = this.poll_left(cx) {
                sent.map_err(|failure| this.failed(failure))?;
                // hyper may have more of it, and sends that after this.
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        let mut has_read = false;
        while this.spare.is_empty() && !this.has_ended && !has_read {
            let mut rest = Vec::new();
            let polled = this.poll_receive(cx, into.remaining(), |meter, bytes| {
                rest.extend_from_slice(&bytes[pass(meter, bytes, &mut into)..]);
                has_read = true;
            });
            this.spare = rest;
            ready!(polled)?;
        }
        if !has_read && !this.spare.is_empty() {
            this.taken += pass(&this.meter, &this.spare[this.taken..], &mut into);
            if this.taken == this.spare.len() {
                (this.spare, this.taken) = (Vec::new(), 0);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Gives hyper some of these bytes; how many.
fn pass(meter: &impl Meter, bytes: &[u8], into: &mut ReadBufCursor<'_>) -> usize {
    let room = &bytes[..bytes.len().min(into.remaining())];
    let passed = if room.is_empty() { 0 } else { meter.passes(room) };
    into.put_slice(&bytes[..passed]);
    passed
}

impl<L: Leg + Unpin, M: Meter + Unpin> Write for Io<L, M> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(MOST_WRITTEN)];
        let write = |leg: &mut L, buffers: &mut Buffers, delivered: &AtomicU64| {
            leg.write(bytes, &mut buffers.records, delivered)
        };
        ready!(self.get_mut().poll_send(cx, write))?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut length = 0;
        let fits = |slice: &&IoSlice<'_>| {
            length += slice.len();
            length <= MOST_WRITTEN
        };
        let taken = slices.iter().take_while(fits).count();
        let Some((first, _)) = slices.split_first() else { return Poll::Ready(Ok(0)) };
        if taken == 0 {
            return self.poll_write(cx, first);
        }
        let slices = &slices[..taken];
        let write = |leg: &mut L, buffers: &mut Buffers, delivered: &AtomicU64| {
            let Buffers { plaintext, records, .. } = buffers;
            leg.write_slices(slices, plaintext, records, delivered)
        };
        ready!(self.get_mut().poll_send(cx, write))?;
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(this.poll_left(cx));
        Poll::Ready(flushed.map_err(|failure| this.failed(failure)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_finish(cx)
    }
}
