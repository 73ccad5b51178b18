//! Connections to servers. A worker keeps those that can carry another request: of HTTP/1.1 the idle ones, of HTTP/2 those that
//! several requests share.
//!
//! A connection of HTTP/1.1 has no task of its own: whoever has a request on it polls it, and while it is kept nobody does.

use super::body::Sent;
use super::exec::Local;
use super::leg::{Far, Io, Silent};
use crate::clock::now_ms;
use crate::close::LegSocket;
use crate::connect::{Connected, SourcePort};
use crate::serving::{Pool, Server, ServerGuard};
use crate::splice::keepalive::keep_alive;
use crate::splice::tls::Tls;
use crate::splice::transport::Plain;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioTimer;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// How long an idle connection is kept: less than most servers do, so that few are closed at the moment of their next request.
const KEEP: Duration = Duration::from_secs(30);

/// Between two looks for idle connections whose time is over, or that their servers have closed.
const SWEEP: Duration = Duration::from_secs(5);

/// Idle connections that a worker keeps to one server.
const MOST_IDLE: usize = 128;

/// How long a request's body may still be sent when its answer is there.
const LINGER: Duration = Duration::from_secs(15);

/// Requests on one connection of HTTP/2, unless the server allows less.
const MOST_STREAMS: usize = 100;

/// Bytes of the head of an answer; in HTTP/2 as RFC 9113, section 6.5.2, counts them.
const MAX_HEAD: usize = 64 * 1024;

/// The windows of HTTP/2, in bytes: of a connection and of each request on it.
pub(super) const WINDOWS: (u32, u32) = (1024 * 1024, 256 * 1024);

/// Between two pings of a connection of HTTP/2 that requests are on, and how long the answer may take.
pub(super) const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));

type Leg = Io<Far, Silent>;

/// Which connections are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The address of the server's record, which each of them keeps.
    record: usize,
    /// That of the pool's TLS, which they keep as well; 0: there is none.
    tls: usize,
    http2: bool,
    /// The client's connection for which it was opened; 0: it may carry anybody's requests.
    owner: u64,
}

impl Key {
    /// `owner`: as in the key.
    pub(super) fn new(pool: &Pool, server: &Server, owner: u64) -> Self {
        Key {
            record: Arc::as_ptr(&server.state) as usize,
            tls: pool.tls.as_ref().map_or(0, |tls| Arc::as_ptr(tls) as usize),
            http2: pool.http2,
            owner,
        }
    }
}

/// What a connection keeps: its place in the pool is known by the addresses of these.
struct Kinship {
    key: Key,
    _pool: Arc<Pool>,
    _server: Arc<Server>,
}

/// A connection of HTTP/1.1.
pub(super) struct H1 {
    sender: http1::SendRequest<Sent>,
    connection: http1::Connection<Leg, Sent>,
    is_over: bool,
    kinship: Kinship,
    /// Of `connection`.
    socket: RawFd,
    _port: Option<SourcePort>,
}

/// A share in a connection of HTTP/2.
#[derive(Clone)]
pub(super) struct H2 {
    sender: http2::SendRequest<Sent>,
    usage: Rc<Usage>,
}

/// What a connection of HTTP/2 carries.
struct Usage {
    streams: Cell<usize>,
    /// As many as the server allows (SETTINGS_MAX_CONCURRENT_STREAMS).
    most: Cell<usize>,
    /// When the last request was over.
    quiet_ms: Cell<u64>,
}

/// One request on a connection of HTTP/2.
pub(super) struct Stream(Rc<Usage>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.quiet_ms.set(now_ms());
    }
}

/// A connection to send a request on.
pub(super) enum Upstream {
    H1(Box<H1>),
    H2(H2),
}

/// A request got no answer.
pub(super) struct Lost {
    /// Present: nothing of it was sent.
    pub(super) unsent: Option<Box<Request<Sent>>>,
    /// Absent: the connection was closed.
    pub(super) error: Option<hyper::Error>,
}

impl From<TrySendError<Request<Sent>>> for Lost {
    fn from(mut error: TrySendError<Request<Sent>>) -> Self {
        Lost { unsent: error.take_message().map(Box::new), error: Some(error.into_error()) }
    }
}

impl H1 {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_over && self.connection.poll_without_shutdown(cx).is_ready() {
            self.is_over = true;
        }
        if self.is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Sends a request, and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Sent>) -> Result<Response<Incoming>, Lost> {
        let mut answer = pin!(self.sender.try_send_request(request));
        poll_fn(|cx| {
            let is_over = self.poll(cx).is_ready();
            match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer.map_err(Lost::from)),
                Poll::Pending if is_over => Poll::Ready(Err(Lost { unsent: None, error: None })),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// The leg, once the server has gone over to another protocol.
    pub(super) async fn into_leg(mut self: Box<Self>) -> Far {
        poll_fn(|cx| self.poll(cx)).await;
        let parts = self.connection.into_parts();
        parts.io.into_leg(&parts.read_buf)
    }

    /// Whether nothing of an answer has come that is still to be read. The connection ends.
    pub(super) fn is_silent(self: Box<Self>) -> bool {
        self.connection.into_parts().read_buf.is_empty()
    }

    /// Whether the server has neither closed it nor sent what nobody has asked for. What the kernel has got since the worker
    /// last waited for news, `poll` does not see.
    fn is_quiet(&self) -> bool {
        // SAFETY: it is the descriptor of the socket that `connection` owns, which is not closed before `self` is dropped or
        // taken apart.
        let socket = unsafe { BorrowedFd::borrow_raw(self.socket) };
        let peeked = recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(Errno::AGAIN))
    }

    /// Keeps it for another request, if it can carry one.
    fn put_back(self: Box<Self>) {
        match !self.is_over && self.sender.is_ready() {
            true => KEPT.with_borrow_mut(|kept| kept.keep(self)),
            false => self.retire(),
        }
    }

    /// Ends it: no request is on it.
    fn retire(self: Box<Self>) {
        let mut io = self.connection.into_parts().io;
        io.leg().clean();
        // What the socket does not take now, the server need not hear.
        let _ = io.poll_finish(&mut Context::from_waker(Waker::noop()));
    }
}

impl H2 {
    /// Sends a request, and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Sent>) -> Result<Response<Incoming>, Lost> {
        Ok(self.sender.try_send_request(request).await?)
    }

    /// Counts a request on it.
    pub(super) fn stream(&self) -> Stream {
        self.usage.streams.set(self.usage.streams.get() + 1);
        Stream(self.usage.clone())
    }

    /// Whether it carries no request any more.
    pub(super) fn is_over(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether it has carried nothing for so long that it is to be closed.
    fn is_idle(&self, now_ms: u64) -> bool {
        self.usage.streams.get() == 0
            && now_ms.saturating_sub(self.usage.quiet_ms.get()) > KEEP.as_millis() as u64
    }

    fn has_room(&self) -> bool {
        !self.is_over() && self.usage.streams.get() < self.usage.most.get().min(MOST_STREAMS)
    }
}

/// What moves the body of an answer, and counts as a connection of its server meanwhile.
pub(super) enum Driver {
    /// Whoever waits for it.
    Own { h1: Box<H1>, _guard: ServerGuard },
    /// A task. It is told when the answer is there; if this is dropped before, it gives up.
    Apart(oneshot::Sender<()>),
    /// The task of the connection that the request shares.
    Shared { _stream: Stream, _guard: ServerGuard },
    /// It is there.
    Done,
}

impl Driver {
    /// Of an answer on `h1`. `is_under_way`: more of the request is to be sent, even if nobody takes the answer.
    pub(super) fn new(h1: Box<H1>, guard: ServerGuard, is_under_way: bool) -> Self {
        if !is_under_way {
            return Driver::Own { h1, _guard: guard };
        }
        let (answered, is_answered) = oneshot::channel();
        let mut h1 = h1;
        tokio::task::spawn_local(async move {
            let _guard = guard;
            let mut over = poll_fn(|cx| {
                if h1.poll(cx).is_ready() || h1.sender.is_ready() { Poll::Ready(()) } else { Poll::Pending }
            });
            let is_over = tokio::select! {
                biased;
                () = &mut over => true,
                answered = is_answered => answered.is_ok() && timeout(LINGER, over).await.is_ok(),
            };
            if is_over {
                h1.put_back();
            }
        });
        Driver::Apart(answered)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if let Driver::Own { h1, .. } = self {
            let _ = h1.poll(cx);
        }
    }

    /// The answer is there: the connection may carry another request.
    pub(super) fn release(&mut self, cx: &mut Context<'_>) {
        match std::mem::replace(self, Driver::Done) {
            Driver::Own { mut h1, .. } => {
                let _ = h1.poll(cx);
                h1.put_back();
            }
            Driver::Apart(answered) => _ = answered.send(()),
            Driver::Shared { .. } | Driver::Done => {}
        }
    }
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// The connections that a worker keeps.
#[derive(Default)]
struct Kept {
    idle: HashMap<Key, Vec<Idle>>,
    shared: HashMap<Key, Shared>,
    /// A task looks after them.
    is_swept: bool,
}

struct Idle {
    h1: Box<H1>,
    since_ms: u64,
}

#[derive(Default)]
struct Shared {
    open: Vec<(H2, Kinship)>,
    /// Present: one is being opened; it tells when that is over.
    opening: Option<Rc<Notify>>,
}

impl Kept {
    fn keep(&mut self, h1: Box<H1>) {
        let idle = self.idle.entry(h1.kinship.key).or_default();
        if idle.len() >= MOST_IDLE {
            return h1.retire();
        }
        idle.push(Idle { h1, since_ms: now_ms() });
        self.see_to_sweeps();
    }

    fn see_to_sweeps(&mut self) {
        if !std::mem::replace(&mut self.is_swept, true) {
            tokio::task::spawn_local(async {
                loop {
                    tokio::time::sleep(SWEEP).await;
                    let gone = KEPT.with_borrow_mut(Kept::sweep);
                    // Not while they are borrowed.
                    gone.into_iter().for_each(|idle| idle.h1.retire());
                    if !KEPT.with_borrow(|kept| kept.is_swept) {
                        return;
                    }
                }
            });
        }
    }

    /// Takes out what is not to be kept any longer.
    fn sweep(&mut self) -> Vec<Idle> {
        let (mut gone, now_ms) = (Vec::new(), now_ms());
        let mut cx = Context::from_waker(Waker::noop());
        self.idle.retain(|_, idle| {
            let mut is_over = |idle: &mut Idle| {
                now_ms.saturating_sub(idle.since_ms) > KEEP.as_millis() as u64
                    || idle.h1.poll(&mut cx).is_ready()
            };
            gone.extend(idle.extract_if(.., |idle| is_over(idle)));
            !idle.is_empty()
        });
        self.shared.retain(|_, shared| {
            shared.open.retain(|(h2, _)| !h2.is_over() && !h2.is_idle(now_ms));
            !shared.open.is_empty() || shared.opening.is_some()
        });
        self.is_swept = !self.idle.is_empty() || !self.shared.is_empty();
        gone
    }

    fn take_idle(&mut self, key: &Key) -> Option<Box<H1>> {
        let idle = self.idle.get_mut(key)?;
        let last = idle.pop();
        last.map(|idle| idle.h1)
    }
}

/// Where a request may go.
pub(super) enum Way {
    /// On a kept connection.
    Kept(Upstream),
    /// On one that is to be opened.
    New(Option<Opening>),
}

/// A kept connection that can carry a request: an idle one, or one with room that others share. If one to share is being opened,
/// waits for that, which `connect_timeout` bounds.
pub(super) async fn find(key: &Key) -> Way {
    loop {
        if let Some(h1) = poll_fn(|cx| Poll::Ready(idle(key, cx))).await {
            return Way::Kept(Upstream::H1(h1));
        }
        let found = KEPT.with_borrow_mut(|kept| {
            if !key.http2 && !kept.shared.contains_key(key) {
                return Ok(Way::New(None));
            }
            let shared = kept.shared.entry(*key).or_default();
            shared.open.retain(|(h2, _)| !h2.is_over());
            if let Some((h2, _)) = shared.open.iter().find(|(h2, _)| h2.has_room()) {
                return Ok(Way::Kept(Upstream::H2(h2.clone())));
            }
            match &shared.opening {
                Some(opening) => Err(opening.clone()),
                None => {
                    shared.opening = Some(Rc::default());
                    Ok(Way::New(Some(Opening(*key))))
                }
            }
        });
        match found {
            Ok(way) => return way,
            Err(opening) => opening.notified().await,
        }
    }
}

/// The idle connection that was used last, of those that can carry a request.
fn idle(key: &Key, cx: &mut Context<'_>) -> Option<Box<H1>> {
    while let Some(mut h1) = KEPT.with_borrow_mut(|kept| kept.take_idle(key)) {
        if h1.poll(cx).is_pending() && h1.sender.is_ready() && h1.is_quiet() {
            return Some(h1);
        }
        h1.retire();
    }
    None
}

/// One of HTTP/2 is to be opened, for all who wait for it. Dropped when that is over, whatever came of it.
pub(super) struct Opening(Key);

impl Drop for Opening {
    fn drop(&mut self) {
        let opening = KEPT.with_borrow_mut(|kept| {
            let shared = kept.shared.get_mut(&self.0)?;
            let opening = shared.opening.take();
            if shared.open.is_empty() {
                kept.shared.remove(&self.0);
            }
            opening
        });
        if let Some(opening) = opening {
            opening.notify_waiters();
        }
    }
}

/// Makes a connection of HTTP of one that has just been opened.
pub(super) async fn begin(
    pool: &Arc<Pool>,
    connected: Connected,
    key: Key,
) -> Result<(Upstream, ServerGuard), hyper::Error> {
    let Connected { socket, session, port, guard, .. } = connected;
    keep_alive(&socket, pool.keepalive);
    let is_http2 = match &session {
        Some(session) => pool.http2 || session.alpn() == Some(b"h2"),
        None => pool.http2,
    };
    let fd = socket.as_raw_fd();
    let socket = LegSocket::new(socket);
    let far = match session {
        Some(session) => Far::Tls(Box::new(Tls::new(*session, socket))),
        None => Far::Plain(Plain::new(socket, Vec::new())),
    };
    let kinship = Kinship { key, _pool: pool.clone(), _server: guard.server().clone() };
    if !is_http2 {
        let io = Io::new(far, Silent::default());
        let (sender, connection) =
            http1::Builder::new().max_headers(128).max_header_size(MAX_HEAD).handshake(io).await?;
        let h1 = Box::new(H1 { sender, connection, is_over: false, kinship, socket: fd, _port: port });
        return Ok((Upstream::H1(h1), guard));
    }
    far.clean();
    let io = Io::new(far, Silent::default());
    let (sender, connection) = http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .initial_connection_window_size(WINDOWS.0)
        .initial_stream_window_size(WINDOWS.1)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_header_list_size(MAX_HEAD as u32)
        .handshake(io)
        .await?;
    let usage = Rc::new(Usage {
        streams: Cell::new(0),
        most: Cell::new(MOST_STREAMS),
        quiet_ms: Cell::new(now_ms()),
    });
    let h2 = H2 { sender, usage: usage.clone() };
    tokio::task::spawn_local(async move {
        // It is the connection's until that is closed, which is after nobody can use it any more.
        let _port = port;
        let mut connection = pin!(connection);
        let over = poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            usage.most.set(connection.current_max_send_streams());
            polled
        });
        if let Err(error) = over.await {
            tracing::debug!(%error, "a connection of HTTP/2 to a server has ended");
        }
    });
    KEPT.with_borrow_mut(|kept| {
        kept.shared.entry(key).or_default().open.push((h2.clone(), kinship));
        kept.see_to_sweeps();
    });
    Ok((Upstream::H2(h2), guard))
}

/// The client's connection with this number has ended, with all its requests: what was opened for it alone is of no use any more.
pub(super) fn forget(owner: u64) {
    let gone = KEPT.with_borrow_mut(|kept| {
        kept.shared.retain(|key, _| key.owner != owner);
        let gone = kept.idle.extract_if(|key, _| key.owner == owner);
        gone.flat_map(|(_, idle)| idle).collect::<Vec<_>>()
    });
    gone.into_iter().for_each(|idle| idle.h1.retire());
}
