//! Bodies: of a request on its way to a server, and of the answer to it on its way to the client.

use super::account::Request;
use super::hop;
use super::link::Link;
use super::upstream::Driver;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::cell::{Cell, RefCell};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// Bytes of a request's body that are kept, for another attempt or a mirror.
const MAX_KEPT: usize = 64 * 1024;

/// How long a server has to ask for a body.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a body ends before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// Its sender, or the connection to it, has failed.
    #[error(transparent)]
    Failed(#[from] hyper::Error),
    /// Its sender has broken it off, and does not call that an error.
    #[error("the body ends before its time")]
    CutShort,
    /// It is being sent once more.
    #[error("the body is sent on another connection")]
    Superseded,
    /// It took longer than its rule allows.
    #[error("the answer took too long")]
    TimedOut,
}

/// The body of a client's request.
pub(super) struct Source {
    link: Rc<Link>,
    incoming: RefCell<Incoming>,
    /// Bytes that the client has announced.
    announced: Option<u64>,
    is_http2: bool,
    /// Bytes that have come.
    pub(super) bytes: Rc<Cell<u64>>,
    /// All of it has come.
    has_ended: Cell<bool>,
    /// It is being sent to a server.
    is_read: Cell<bool>,
    /// How often it was begun to be sent; the last one that did so sends it.
    turn: Cell<u64>,
    /// Of whoever waits for more of it to send.
    reader: Cell<Option<Waker>>,
    /// The client has broken it off.
    has_failed: Cell<bool>,
    /// What has come so far, for those who read it again; `None`: it is not kept, or was too long.
    kept: RefCell<Option<Vec<Bytes>>>,
    /// Tells when nothing more of it comes.
    over: Notify,
}

impl Source {
    /// `version`: of the client's request; `keeps`: it may be read again.
    pub(super) fn new(incoming: Incoming, version: Version, keeps: bool, link: Rc<Link>) -> Rc<Self> {
        Rc::new(Source {
            link,
            announced: incoming.size_hint().exact(),
            is_http2: version == Version::HTTP_2,
            incoming: incoming.into(),
            bytes: Rc::default(),
            has_ended: Cell::new(false),
            is_read: Cell::new(false),
            turn: Cell::new(0),
            reader: Cell::new(None),
            has_failed: Cell::new(false),
            kept: RefCell::new(keeps.then(Vec::new)),
            over: Notify::new(),
        })
    }

    /// To be sent, from its beginning. Whoever has sent it until now breaks off.
    pub(super) fn sent(self: &Rc<Self>) -> Sent {
        self.is_read.set(true);
        self.turn.set(self.turn.get() + 1);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Sent::Client { source: self.clone(), turn: self.turn.get(), sent: 0, gate: None }
    }

    /// Whether the client has broken it off.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// Whether more of it is to be sent.
    pub(super) fn is_under_way(&self) -> bool {
        self.is_read.get() && !self.has_ended.get()
    }

    /// Whether it can be sent from its beginning.
    pub(super) fn is_replayable(&self) -> bool {
        !self.has_failed.get() && (self.bytes.get() == 0 || self.kept.borrow().is_some())
    }

    /// All of it, once it has come, if it was kept; `None` also: the client has broken it off.
    pub(super) async fn whole(&self) -> Option<Bytes> {
        while !self.has_ended.get() {
            if self.has_failed.get() {
                return None;
            }
            self.over.notified().await;
        }
        let kept = self.kept.borrow();
        match kept.as_deref()? {
            [] => Some(Bytes::new()),
            [only] => Some(only.clone()),
            several => Some(several.concat().into()),
        }
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut incoming = self.incoming.borrow_mut();
        let mut frame =
            ready!(Pin::new(&mut *incoming).poll_frame(cx)).map(|frame| frame.map_err(BodyError::from));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.bytes.set(self.bytes.get() + data.len() as u64);
            self.link.moves();
            let mut kept = self.kept.borrow_mut();
            match self.bytes.get() > MAX_KEPT as u64 {
                true => *kept = None,
                false => kept.iter_mut().for_each(|kept| kept.push(data.clone())),
            }
        }
        // To hyper, a stream that is reset without an error is one that has ended (RST_STREAM, NO_ERROR).
        let is_whole = || match self.announced {
            Some(announced) => self.bytes.get() == announced,
            None => !self.is_http2 || incoming.is_end_stream(),
        };
        if frame.is_none() && !is_whole() {
            frame = Some(Err(BodyError::CutShort));
        }
        if matches!(frame, Some(Err(_))) {
            self.has_failed.set(true);
            self.over.notify_waiters();
        } else if frame.is_none() || incoming.is_end_stream() {
            self.has_ended.set(true);
            self.over.notify_waiters();
        }
        Poll::Ready(frame)
    }
}

/// Holds a body back until the server asks for it (`Expect: 100-continue`; RFC 9110, section 10.1.1), or for a while: many do
/// not.
pub(super) struct Gate {
    is_asked: Arc<AtomicBool>,
    patience: Pin<Box<Sleep>>,
}

impl Gate {
    /// Opened by the answer 100 to `request`.
    pub(super) fn before<B>(request: &mut http::Request<B>) -> Self {
        let is_asked = Arc::new(AtomicBool::new(false));
        let asked = is_asked.clone();
        hyper::ext::on_informational(request, move |answer| {
            if answer.status() == http::StatusCode::CONTINUE {
                asked.store(true, Relaxed);
            }
        });
        Gate { is_asked, patience: Box::pin(sleep(PATIENCE)) }
    }

    /// Whoever polls the connection polls this as well: the answer wakes it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_asked.load(Relaxed) { Poll::Ready(()) } else { self.patience.as_mut().poll(cx) }
    }
}

/// The body of a request to a server.
pub(super) enum Sent {
    /// There is none.
    Empty,
    /// That of the client's request, of which so many pieces are sent.
    Client { source: Rc<Source>, turn: u64, sent: usize, gate: Option<Gate> },
    /// This.
    Whole(Bytes),
}

impl Sent {
    /// Holds the client's body back until `gate` is open.
    pub(super) fn hold(&mut self, closed: Gate) {
        if let Sent::Client { source, gate, .. } = self {
            source.is_read.set(false);
            *gate = Some(closed);
        }
    }

    /// Makes `headers` say how long it is, whatever the client has said: a server looks for the next request where this one
    /// ends. Whether that is to be said in another way than by `Content-Length`.
    pub(super) fn announce(&self, headers: &mut HeaderMap) -> bool {
        match (self, self.size_hint().exact()) {
            (Sent::Empty, _) => {
                if headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
                    headers.remove(CONTENT_LENGTH);
                }
                false
            }
            (_, Some(length)) => {
                headers.insert(CONTENT_LENGTH, length.into());
                false
            }
            (_, None) => {
                headers.remove(CONTENT_LENGTH);
                true
            }
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Sent::Empty => Poll::Ready(None),
            Sent::Whole(bytes) => {
                let bytes = mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Sent::Client { source, turn, .. } if source.turn.get() != *turn => {
                Poll::Ready(Some(Err(BodyError::Superseded)))
            }
            Sent::Client { source, sent, gate, .. } => {
                if let Some(closed) = gate {
                    ready!(closed.poll(cx));
                    *gate = None;
                    source.is_read.set(true);
                }
                let again = source.kept.borrow().as_ref().and_then(|kept| kept.get(*sent).cloned());
                if let Some(bytes) = again {
                    *sent += 1;
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                if source.has_ended.get() {
                    return Poll::Ready(None);
                }
                let Poll::Ready(frame) = source.poll_next(cx) else {
                    source.reader.set(Some(cx.waker().clone()));
                    return Poll::Pending;
                };
                if frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_data)) {
                    *sent += 1;
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Sent::Empty => true,
            Sent::Whole(bytes) => bytes.is_empty(),
            Sent::Client { source, turn, sent, .. } => {
                source.turn.get() == *turn
                    && source.has_ended.get()
                    && source.kept.borrow().as_ref().is_none_or(|kept| kept.len() <= *sent)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Sent::Empty => SizeHint::with_exact(0),
            Sent::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Sent::Client { source, sent, .. } => {
                let kept = source.kept.borrow();
                let again = kept.iter().flatten().skip(*sent).map(|bytes| bytes.len() as u64).sum::<u64>();
                let rest = source.incoming.borrow().size_hint();
                match rest.exact() {
                    Some(rest) => SizeHint::with_exact(rest + again),
                    None => SizeHint::default(),
                }
            }
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Sent::Client { source, turn, .. } = self
            && source.turn.get() == *turn
        {
            source.is_read.set(false);
        }
    }
}

/// The body of an answer to a client.
pub(super) enum Answered {
    /// The gateway's own.
    Own(Bytes),
    /// A server's.
    Relayed(Relayed),
}

/// The body of a server's answer.
pub(super) struct Arriving {
    pub(super) incoming: Incoming,
    /// What moves it.
    pub(super) driver: Driver,
}

impl Arriving {
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if polled.is_pending() {
            // What it waits for comes by the connection, which nobody else polls.
            self.driver.poll(cx);
            polled = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        // The reason stays here: hyper would give a server's code of HTTP/2 to the client, who may ask again for it.
        let mut frame = ready!(polled).map(|frame| frame.map_err(|_| BodyError::CutShort));
        // To hyper, a stream of HTTP/2 that is reset without an error is one that has ended.
        if frame.is_none() && matches!(self.driver, Driver::Shared { .. }) && !self.has_ended() {
            frame = Some(Err(BodyError::CutShort));
        }
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut()) {
            hop::strip_trailers(trailers);
        }
        if frame.is_none() || self.has_ended() {
            self.driver.release(cx);
        }
        Poll::Ready(frame)
    }

    /// Nothing is to come any more.
    pub(super) fn has_ended(&self) -> bool {
        self.incoming.is_end_stream()
    }
}

/// One that is empty is never polled.
impl Drop for Arriving {
    fn drop(&mut self) {
        if self.has_ended() {
            self.driver.release(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// The body of a server's answer, on its way to the client.
pub(super) struct Relayed {
    pub(super) body: Arriving,
    pub(super) request: Request,
    /// When it must have come to its end.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
}

impl Relayed {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(BodyError::TimedOut)));
        }
        let frame = ready!(self.body.poll_next(cx));
        match &frame {
            Some(Ok(frame)) => self.request.sent(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => self.request.broken(),
            None => {}
        }
        if frame.is_none() || self.body.has_ended() {
            self.request.complete();
        }
        Poll::Ready(frame)
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Answered::Own(bytes) => {
                let bytes = mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Answered::Relayed(relayed) => relayed.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answered::Own(bytes) => bytes.is_empty(),
            Answered::Relayed(relayed) => relayed.body.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answered::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Answered::Relayed(relayed) => relayed.body.incoming.size_hint(),
        }
    }
}
