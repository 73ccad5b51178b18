//! The body of a request, on its way from the client to a server.

use super::filter::forwarded;
use super::hop;
use super::watch::Watch;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::cell::{Cell, RefCell};
use std::mem;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep, timeout};

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
}

/// The body of a client's request.
pub(super) struct Source {
    watch: Rc<Watch>,
    incoming: RefCell<Incoming>,
    /// Bytes that the client has announced.
    announced: Option<u64>,
    is_http2: bool,
    /// Bytes that have come.
    bytes: Cell<u64>,
    /// All of it has come.
    has_ended: Cell<bool>,
    /// It is being sent to a server.
    is_read: Cell<bool>,
    /// How often it was begun to be sent; the last one that did so sends it.
    turn: Cell<u64>,
    /// There as long as what sends it now.
    being_sent: RefCell<Weak<()>>,
    /// Of whoever waits for more of it to send.
    reader: Cell<Option<Waker>>,
    /// It is broken off.
    has_failed: Cell<bool>,
    /// What has come so far, for those who read it again; `None`: it is not kept, or was too long.
    kept: RefCell<Option<Vec<u8>>>,
    /// Tells when nothing more of it comes, or of what was sent until now.
    over: Notify,
}

impl Source {
    /// `version`: of the client's request; `keeps`: it may be read again.
    pub(super) fn new(incoming: Incoming, version: Version, keeps: bool, watch: Rc<Watch>) -> Rc<Self> {
        Rc::new(Source {
            watch,
            announced: incoming.size_hint().exact(),
            is_http2: version == Version::HTTP_2,
            incoming: incoming.into(),
            bytes: Cell::new(0),
            has_ended: Cell::new(false),
            is_read: Cell::new(false),
            turn: Cell::new(0),
            being_sent: RefCell::default(),
            reader: Cell::new(None),
            has_failed: Cell::new(false),
            kept: RefCell::new(keeps.then(Vec::new)),
            over: Notify::new(),
        })
    }

    /// To be sent, from its beginning. Whoever has sent it until now breaks off.
    pub(super) fn sent(self: &Rc<Self>) -> Sent {
        self.supersede();
        self.is_read.set(true);
        let alive = Rc::new(());
        self.being_sent.replace(Rc::downgrade(&alive));
        Sent::Client { source: self.clone(), turn: self.turn.get(), sent: 0, gate: None, _alive: alive }
    }

    /// How many bytes of it have come.
    pub(super) fn received(&self) -> u64 {
        self.bytes.get()
    }

    /// Its request is broken off: nobody sends it any more.
    pub(super) fn break_off(&self) {
        self.has_failed.set(true);
        self.over.notify_waiters();
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
        self.kept.borrow().as_deref().map(Bytes::copy_from_slice)
    }

    /// What is being sent of it now, if it is.
    pub(super) fn upload(self: &Rc<Self>) -> Option<Upload> {
        let sent = self.being_sent.borrow().clone();
        self.is_under_way().then(|| Upload { source: self.clone(), turn: self.turn.get(), sent })
    }

    /// Whoever has sent it until now breaks off.
    fn supersede(&self) {
        self.turn.set(self.turn.get() + 1);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        self.over.notify_waiters();
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut incoming = self.incoming.borrow_mut();
        let mut frame =
            ready!(Pin::new(&mut *incoming).poll_frame(cx)).map(|frame| frame.map_err(BodyError::from));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.bytes.set(self.bytes.get() + data.len() as u64);
            self.watch.moves();
            let mut kept = self.kept.borrow_mut();
            match self.bytes.get() > MAX_KEPT as u64 {
                true => *kept = None,
                // Copied: many small pieces would keep far more than their bytes.
                false => kept.iter_mut().for_each(|kept| kept.extend_from_slice(data)),
            }
        }
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut()) {
            hop::strip_trailers(trailers);
            forwarded::strip_words_of_proxies(trailers);
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

/// A body that is being sent to a server, until that is over or somebody else sends it.
pub(super) struct Upload {
    source: Rc<Source>,
    turn: u64,
    /// What sends it.
    sent: Weak<()>,
}

impl Upload {
    pub(super) fn is_under_way(&self) -> bool {
        self.source.turn.get() == self.turn && self.source.is_under_way() && !self.source.has_failed()
    }

    /// Waits until it is over; after `bound`, it is broken off. hyper hears of that only when the server takes more of it, and
    /// keeps the stream until then.
    pub(super) async fn ends_within(&self, bound: Duration) {
        let ended = async {
            while self.is_under_way() {
                self.source.over.notified().await;
            }
        };
        if timeout(bound, ended).await.is_err() && self.source.turn.get() == self.turn {
            self.source.supersede();
        }
        while self.sent.strong_count() > 0 {
            self.source.over.notified().await;
        }
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
    /// That of the client's request, of which so many bytes are sent.
    Client { source: Rc<Source>, turn: u64, sent: usize, gate: Option<Gate>, _alive: Rc<()> },
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
                let again = source.kept.borrow().as_ref().map(|kept| Bytes::copy_from_slice(&kept[*sent..]));
                if let Some(bytes) = again.filter(|bytes| !bytes.is_empty()) {
                    *sent += bytes.len();
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                if source.has_ended.get() {
                    return Poll::Ready(None);
                }
                let Poll::Ready(frame) = source.poll_next(cx) else {
                    source.reader.set(Some(cx.waker().clone()));
                    return Poll::Pending;
                };
                if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                    *sent += data.len();
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
                let again = source.kept.borrow().as_ref().map_or(0, |kept| kept.len() - sent) as u64;
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
        let Sent::Client { source, turn, .. } = self else { return };
        if source.turn.get() == *turn {
            source.is_read.set(false);
        }
        source.over.notify_waiters();
    }
}
