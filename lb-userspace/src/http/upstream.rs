//! Connections to servers: of HTTP/1.1 for one request at a time, of HTTP/2 for several.
//!
//! A connection of HTTP/1.1 has no task of its own: whoever has a request on it polls it, and while it is kept nobody does.

use super::exec::Carried;
use super::leg::{Far, Io, Silent};
use super::sent::Sent;
use super::watch::Watched;
use crate::clock::now_ms;
use crate::close::LegSocket;
use crate::connect::{Connected, SourcePort};
use crate::serving::{Pool, Server, ServerGuard};
use crate::splice::keepalive::keep_alive;
use crate::splice::tls::Tls;
use crate::splice::transport::Plain;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioTimer;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::cell::Cell;
use std::error::Error as _;
use std::future::poll_fn;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::timeout;

/// Requests on one connection of HTTP/2, unless the server allows less.
const MOST_STREAMS: usize = 100;

/// Bytes of the head of an answer; in HTTP/2 as RFC 9113, section 6.5.2, counts them.
const MAX_HEAD: usize = 64 * 1024;

/// The windows of HTTP/2 toward clients, in bytes: of a connection and of each request on it. The first bounds what the gateway
/// keeps for a client whose uploads their servers do not take. A few of those stop its other ones, and nobody else's.
pub(super) const WINDOWS: (u32, u32) = (1024 * 1024, 256 * 1024);

/// The same toward servers, where many clients share a connection. What one of them does not read keeps its part of the
/// connection's window, so that has room for the windows of all requests: nobody can stop the others. It bounds what the gateway
/// keeps if nobody reads, 25 MiB. Smaller windows of requests would bound the speed of each: there is one in a round trip, 256 MB/s
/// where that takes 1 ms.
///
/// h2 ends a connection that has too many unread pieces: one of less than 256 bytes counts with what it lacks to 256, and half of
/// the connection's window is too much. That is some 55 000 messages of 20 bytes, and five requests' windows have room for them:
/// only the route's `idle_timeout` gives such clients up before.
const WINDOWS_TO_SERVERS: (u32, u32) = (MOST_STREAMS as u32 * WINDOWS.1, WINDOWS.1);

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
    pub(super) http2: bool,
    /// The client's connection for which it was opened; 0: it may carry anybody's requests.
    pub(super) owner: u64,
    /// The server's, when it was chosen.
    pub(super) epoch: u64,
}

impl Key {
    /// `owner`: as in the key.
    pub(super) fn new(pool: &Pool, server: &Server, owner: u64) -> Self {
        Key {
            record: Arc::as_ptr(&server.state) as usize,
            tls: pool.tls.as_ref().map_or(0, |tls| Arc::as_ptr(tls) as usize),
            http2: pool.http2,
            owner,
            epoch: server.state.epoch.current(),
        }
    }
}

/// What a connection keeps: its place in the pool is known by the addresses of these.
struct Kinship {
    key: Key,
    _pool: Arc<Pool>,
    server: Arc<Server>,
}

impl Kinship {
    /// Whether all connections to the server were ended since it was chosen.
    fn is_ended(&self) -> bool {
        self.server.state.epoch.current() != self.key.epoch
    }
}

/// A connection of HTTP/1.1.
pub(super) struct H1 {
    sender: http1::SendRequest<Sent>,
    connection: http1::Connection<Leg, Sent>,
    is_over: bool,
    /// The server answers in HTTP/1.0. hyper would send the next request in that as well, without a body that has no length.
    is_old: bool,
    kinship: Kinship,
    /// Of `connection`.
    socket: RawFd,
    /// Freed after the socket.
    port: Option<SourcePort>,
}

/// A share in a connection of HTTP/2.
#[derive(Clone)]
pub(super) struct H2 {
    sender: http2::SendRequest<Sent>,
    usage: Rc<Usage>,
}

/// What a connection of HTTP/2 carries.
struct Usage {
    kinship: Kinship,
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

impl Lost {
    /// Whether the server has said that it has not begun with the request (RFC 9113, section 8.7).
    pub(super) fn is_refused(&self) -> bool {
        let cause = self.error.as_ref().and_then(|error| error.source()?.downcast_ref::<h2::Error>());
        cause.is_some_and(|cause| cause.reason() == Some(h2::Reason::REFUSED_STREAM))
    }
}

impl H1 {
    /// Moves what is on it. Ready: it is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_over && self.connection.poll_without_shutdown(cx).is_ready() {
            self.is_over = true;
        }
        if self.is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Sends a request, and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Sent>) -> Result<Response<Incoming>, Lost> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let answered = poll_fn(|cx| {
            let is_over = self.poll(cx).is_ready();
            match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer.map_err(Lost::from)),
                Poll::Pending if is_over => Poll::Ready(Err(Lost { unsent: None, error: None })),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        self.is_old = answered.as_ref().is_ok_and(|answer| answer.version() == Version::HTTP_10);
        answered
    }

    /// The leg, once the server has gone over to another protocol, and its port, which is to be kept as long.
    pub(super) async fn into_leg(mut self: Box<Self>) -> (Far, Option<SourcePort>) {
        poll_fn(|cx| self.poll(cx)).await;
        let parts = self.connection.into_parts();
        (parts.io.into_leg(&parts.read_buf), self.port)
    }

    /// Whether nothing of an answer has come that is still to be read. The connection ends.
    pub(super) fn is_silent(self: Box<Self>) -> bool {
        self.connection.into_parts().read_buf.is_empty()
    }

    /// Whether the server has neither closed it nor sent what nobody has asked for. What the kernel has got since the worker
    /// last waited for news, `poll` does not see.
    pub(super) fn is_quiet(&self) -> bool {
        // SAFETY: it is the descriptor of the socket that `connection` owns, which is not closed before `self` is dropped or
        // taken apart.
        let socket = unsafe { BorrowedFd::borrow_raw(self.socket) };
        let peeked = recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(Errno::AGAIN))
    }

    /// Whether it can carry another request, as far as is known.
    pub(super) fn is_ready(&self) -> bool {
        self.is_idle() && !self.is_old && !self.kinship.is_ended()
    }

    /// Whether its request is sent, and the answer to it has come.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_over && self.sender.is_ready()
    }

    pub(super) fn key(&self) -> &Key {
        &self.kinship.key
    }

    /// Ends it: no request is on it. A server whose connections are ended gets a reset.
    pub(super) fn retire(self: Box<Self>) {
        if self.kinship.is_ended() {
            return;
        }
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
        self.sender.is_closed() || self.usage.kinship.is_ended()
    }

    /// For how many milliseconds it has carried nothing; `None`: it carries something.
    pub(super) fn quiet_for(&self, now_ms: u64) -> Option<u64> {
        (self.usage.streams.get() == 0).then(|| now_ms.saturating_sub(self.usage.quiet_ms.get()))
    }

    pub(super) fn key(&self) -> &Key {
        &self.usage.kinship.key
    }

    /// Whether it takes another request.
    pub(super) fn has_room(&self) -> bool {
        !self.is_over() && self.usage.streams.get() < self.usage.most.get().min(MOST_STREAMS)
    }
}

/// Why a connection that was opened is none of HTTP.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadStart {
    #[error(transparent)]
    Failed(#[from] hyper::Error),
    /// Its SETTINGS have not come in time, or allow no request.
    #[error("the server of HTTP/2 allows no request")]
    NoSettings,
}

/// Makes a connection of HTTP of one that has just been opened to the server of `key`.
pub(super) async fn begin(
    pool: &Arc<Pool>,
    connected: Connected,
    key: Key,
) -> Result<(Upstream, ServerGuard), BadStart> {
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
    let kinship = Kinship { key, _pool: pool.clone(), server: guard.server().clone() };
    if is_http2 {
        let begun = timeout(pool.connect_timeout, begin_http2(far, port, kinship)).await;
        return Ok((Upstream::H2(begun.unwrap_or(Err(BadStart::NoSettings))?), guard));
    }
    let io = Io::new(far, Silent::default());
    let (sender, connection) = http1::Builder::new().max_header_size(MAX_HEAD).handshake(io).await?;
    let h1 = Box::new(H1 { sender, connection, is_over: false, is_old: false, kinship, socket: fd, port });
    Ok((Upstream::H1(h1), guard))
}

/// Waits for the server's SETTINGS: until then nobody knows how many requests it takes, and all would wait in one queue.
async fn begin_http2(far: Far, port: Option<SourcePort>, kinship: Kinship) -> Result<H2, BadStart> {
    far.clean();
    let io = Io::new(far, Silent::default());
    let carried = Carried::default();
    let (sender, mut connection) = http2::Builder::new(carried.clone())
        .timer(TokioTimer::new())
        .initial_max_send_streams(0)
        .initial_connection_window_size(WINDOWS_TO_SERVERS.0)
        .initial_stream_window_size(WINDOWS_TO_SERVERS.1)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_header_list_size(MAX_HEAD as u32)
        .handshake::<_, Sent>(io)
        .await?;
    let settings = carried.until(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
        Poll::Ready(Ok(())) => Poll::Ready(Err(BadStart::NoSettings)),
        Poll::Pending if connection.current_max_send_streams() == 0 => Poll::Pending,
        Poll::Pending => Poll::Ready(Ok(())),
    });
    settings.await?;
    let watch = Watched::new();
    watch.has_server(kinship.server.clone(), kinship.key.epoch);
    let usage = Rc::new(Usage {
        kinship,
        streams: Cell::new(0),
        most: Cell::new(connection.current_max_send_streams()),
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
        tokio::select! {
            biased;
            _ = watch.broken_off() => carried.end(),
            end = over => if let Err(error) = end {
                tracing::debug!(%error, "a connection of HTTP/2 to a server has ended");
            }
        }
    });
    Ok(h2)
}
