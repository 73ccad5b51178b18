//! A client's connection, as its requests see it.

use super::filter::forwarded::Origin;
use super::framing::Framing;
use super::kept;
use super::leg::{Far, Meter};
use super::watch::Watched;
use crate::account::Connection;
use crate::clock::now_ms;
use crate::config::SourceAddress;
use crate::connect::SourcePort;
use crate::reason::{CloseReason, HttpAnswer};
use crate::running::RunningGateway;
use crate::serving::{Listener, Pool, Route, ServerGuard, Snapshot};
use crate::splice::transport::Failure;
use crate::tls::ClientTls;
use crate::traffic::add;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How long a connection without a request is kept, unless its route has an `idle_timeout`.
const KEEP: Duration = Duration::from_secs(60);

/// Between two looks at what bounds a connection.
const LOOK: Duration = Duration::from_secs(5);

/// How long nothing may move while a client of HTTP/1.1 waits for an answer and sends nothing more. Most that have sent a FIN
/// are gone, and what they have asked for is given up; but some only end what they send, and wait (`nc -N`, scripts).
const HALF_CLOSED: Duration = Duration::from_secs(5);

/// What is written to a client of HTTP/2 counts as movement of its connection in steps of so many bytes: less may be the
/// connection's own (acknowledgements of PING, WINDOW_UPDATE).
const STEP: usize = 4096;

/// A client's connection.
pub(crate) struct Link {
    pub(super) gateway: Arc<RunningGateway>,
    pub(super) connection: Arc<Connection>,
    /// Where the client connected to.
    pub(super) local: Option<SocketAddr>,
    /// Present: the gateway has ended its TLS.
    pub(super) tls: Option<ClientTls>,
    /// Of the connection's task, which carries its requests if they are of HTTP/1.1.
    pub(super) watch: Watched,
    scope: RefCell<Option<Scope>>,
    /// Of its last request.
    origin: RefCell<Option<Rc<Origin>>>,
    is_http1: Cell<bool>,
    /// Requests that are not answered to the end.
    in_flight: Cell<usize>,
    has_asked: Cell<bool>,
    /// When the last answer was over.
    quiet_ms: Cell<u64>,
    /// When the first byte of the next head of HTTP/1.1 came after that; 0: none has.
    head_ms: Cell<u64>,
    /// Where the requests of HTTP/1.1 end.
    framing: RefCell<Framing>,
    /// Bytes that were written since it moved last.
    written: Cell<usize>,
    /// Since when it is to end; 0: it is not.
    leaving_ms: Cell<u64>,
    /// What bounds its silence: its last request's.
    idle: Cell<Option<Duration>>,
    /// Connections to servers were opened for it alone.
    pub(super) has_own: Cell<bool>,
    /// How its leg has ended.
    pub(super) ended: Cell<Option<Result<(), Failure>>>,
    /// It has gone over to another protocol.
    pub(super) upgraded: RefCell<Option<Upgraded>>,
}

/// Where a connection goes on that is no longer one of HTTP.
pub(super) struct Upgraded {
    pub(super) far: Far,
    pub(super) _guard: ServerGuard,
    /// Freed after the leg.
    pub(super) _port: Option<SourcePort>,
}

/// What the configuration of a time has for a connection.
#[derive(Clone)]
struct Scope {
    generation: u64,
    listener: Arc<Listener>,
    /// Of its server name, or the listener's own.
    route: Arc<Route>,
}

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// End when nothing is under way.
    Leave,
    /// End at once: nothing moves any more, or the client is gone.
    Cut(CloseReason),
}

impl Link {
    pub(crate) fn new(
        gateway: Arc<RunningGateway>,
        connection: Arc<Connection>,
        local: Option<SocketAddr>,
        tls: Option<ClientTls>,
    ) -> Rc<Self> {
        let idle = connection.route.idle_timeout().into();
        Rc::new(Link {
            gateway,
            connection,
            local,
            tls,
            watch: Watched::new(),
            scope: RefCell::default(),
            origin: RefCell::default(),
            is_http1: Cell::new(true),
            in_flight: Cell::new(0),
            has_asked: Cell::new(false),
            quiet_ms: now_ms().into(),
            head_ms: Cell::new(0),
            framing: RefCell::default(),
            written: Cell::new(0),
            leaving_ms: Cell::new(0),
            idle,
            has_own: Cell::new(false),
            ended: Cell::default(),
            upgraded: RefCell::default(),
        })
    }

    /// Until then it is taken for one of HTTP/1.1.
    pub(super) fn speaks_http2(&self) {
        self.is_http1.set(false);
    }

    /// The protocol that was agreed on in the TLS handshake.
    fn alpn(&self) -> Option<&[u8]> {
        self.tls.as_ref()?.alpn.as_deref()
    }

    fn offers(&self, protocol: &str) -> bool {
        self.alpn() == Some(protocol.as_bytes())
    }

    /// What `snapshot` has for it; `None`: nothing any more, or only for clients that have shown another certificate.
    fn scope(&self, snapshot: &Snapshot) -> Option<Scope> {
        let mut scope = self.scope.borrow_mut();
        if scope.as_ref().is_none_or(|scope| scope.generation != snapshot.generation) {
            *scope = snapshot.successor(&self.connection.listener).and_then(|listener| {
                let found = snapshot.route(listener, self.connection.sni.as_deref(), |p| self.offers(p));
                let (route, _) = found.ok()?;
                // Its certificate was asked for, and judged, in its handshake only.
                let is_let_in = route.client_auth() == self.connection.route.client_auth();
                (route.http().is_some() && is_let_in).then(|| Scope {
                    generation: snapshot.generation,
                    listener: listener.clone(),
                    route: route.clone(),
                })
            });
        }
        scope.clone()
    }

    /// The route of a request for this host (`None`: it names none), as it is configured now.
    pub(super) fn route(&self, snapshot: &Snapshot, host: Option<&str>) -> Result<Arc<Route>, HttpAnswer> {
        let Scope { listener, route, .. } = self.scope(snapshot).ok_or(HttpAnswer::Misdirected)?;
        if listener.own.is_none() && host.is_some() && host == self.connection.sni.as_deref() {
            return Ok(route);
        }
        let found = snapshot.route_of_name(&listener, host, |protocol| self.offers(protocol));
        let (found, _) = found.map_err(|_| HttpAnswer::NoRoute)?;
        if listener.own.is_none() && !Arc::ptr_eq(found, &route) {
            return Err(HttpAnswer::Misdirected);
        }
        Ok(found.clone())
    }

    /// What servers are told of where a request for this host comes from; `None`: it cannot be said.
    pub(super) fn origin(&self, host: &str) -> Option<Rc<Origin>> {
        let mut origin = self.origin.borrow_mut();
        if origin.as_ref().is_none_or(|origin| !origin.is_of(host)) {
            *origin = Origin::new(self.connection.client.ip(), self.tls.is_some(), host).map(Rc::new);
        }
        origin.clone()
    }

    /// A request has come.
    pub(super) fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.has_asked.set(true);
        self.head_ms.set(0);
    }

    /// For whom connections to the servers of a pool are opened: for this client alone, if they are told who it is; 0: for all.
    pub(super) fn owner(&self, pool: &Pool) -> u64 {
        let is_told = pool.send_proxy.is_some() || pool.source == SourceAddress::Client;
        self.has_own.set(self.has_own.get() || is_told);
        if is_told { self.connection.id } else { 0 }
    }

    fn moves(&self) {
        self.watch.moves();
        self.written.set(0);
    }

    /// hyper has the head of a request of HTTP/1.1, and says of how many bytes its body is (`None`: of chunks). Whether the head
    /// says that in one way only.
    pub(super) fn has_head(&self, body: Option<u64>) -> bool {
        self.framing.borrow_mut().has_head(body)
    }

    /// It goes over to another protocol.
    pub(super) fn has_upgraded(&self) -> bool {
        self.upgraded.borrow().is_some()
    }

    /// It goes to this route.
    pub(super) fn routed(&self, route: &Route) {
        self.idle.set(route.idle_timeout());
    }

    /// How long nothing may move of what has come of its last request.
    pub(super) fn idle(&self) -> Option<Duration> {
        self.idle.get()
    }

    /// One is answered, or given up.
    pub(super) fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.quiet_ms.set(now_ms());
        }
    }

    /// Whether requests are not answered to the end.
    pub(super) fn has_requests(&self) -> bool {
        self.in_flight.get() > 0
    }

    /// It was told to [leave](Due::Leave).
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving_ms.get() > 0
    }

    /// Waits until there is something to do. `client`: its socket.
    pub(super) async fn due(&self, client: &TcpStream) -> Due {
        let due = self.next_due(client).await;
        if due == Due::Leave {
            self.leaving_ms.set(now_ms());
        }
        due
    }

    async fn next_due(&self, client: &TcpStream) -> Due {
        loop {
            let is_stopping = self.gateway.notice.borrow().is_stopping;
            let is_gone = || !self.is_young() && self.scope(&self.gateway.snapshot.load()).is_none();
            if !self.is_leaving() && (is_stopping || is_gone()) {
                return Due::Leave;
            }
            let left = match self.bound(client) {
                None => LOOK,
                Some((at_ms, due)) => match at_ms.checked_sub(now_ms()).filter(|left| *left > 0) {
                    None => return due,
                    Some(left) => LOOK.min(Duration::from_millis(left)),
                },
            };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = poll_fn(|cx| self.watch.poll_news(cx)) => {}
                // A reset. While an answer is awaited, nobody reads.
                _ = client.ready(Interest::ERROR) => return Due::Cut(CloseReason::ClientReset),
            }
        }
    }

    /// It has not asked for anything yet.
    fn is_young(&self) -> bool {
        !self.has_asked.get()
    }

    /// When what is to be done, if nothing happens before.
    fn bound(&self, client: &TcpStream) -> Option<(u64, Due)> {
        let after = |since_ms: u64, bound: Duration| since_ms + bound.as_millis() as u64;
        let hello = self.connection.listener.hello_timeout;
        if self.in_flight.get() > 0 {
            let is_gone = self.is_http1.get() && sends_no_more(client);
            let at_ms = after(self.watch.moved_ms(), HALF_CLOSED);
            return is_gone.then_some((at_ms, Due::Cut(CloseReason::ClientClosed)));
        }
        let cut = Due::Cut(CloseReason::IdleTimeout);
        let (quiet_ms, head_ms) = (self.quiet_ms.get(), self.head_ms.get());
        // The end of the last answer may still be on its way to the client.
        let moved_ms = self.watch.moved_ms();
        Some(if self.is_leaving() {
            (after(moved_ms.max(self.leaving_ms.get()), hello), cut)
        } else if self.is_young() {
            (after(quiet_ms, hello), cut)
        } else if head_ms > 0 {
            (after(head_ms, hello), cut)
        } else {
            (after(moved_ms.max(quiet_ms), self.idle.get().unwrap_or(KEEP)), Due::Leave)
        })
    }

    fn is_active(&self) {
        self.connection.traffic.active_ms.store(now_ms(), Relaxed);
    }
}

/// Whoever opens a connection for it alone holds it: none is opened after this.
impl Drop for Link {
    fn drop(&mut self) {
        if self.has_own.get() {
            kept::forget(self.connection.id);
        }
    }
}

/// Whether the client has ended what it sends.
fn sends_no_more(client: &TcpStream) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

impl Meter for Rc<Link> {
    // Its requests say how long they are.
    const IS_CUT_BY_FIN: bool = false;

    fn delivered(&self) -> &AtomicU64 {
        &self.connection.traffic.bytes_out
    }

    fn received(&self, bytes: &[u8]) {
        add(&self.connection.traffic.bytes_in, bytes.len());
        self.is_active();
        if self.is_http1.get() && self.in_flight.get() > 0 {
            self.moves();
        }
    }

    fn passes(&self, bytes: &[u8]) -> usize {
        if !self.is_http1.get() {
            return bytes.len();
        }
        let mut framing = self.framing.borrow_mut();
        // The rest of a body may come behind its answer.
        if framing.is_in_head() && self.in_flight.get() == 0 && self.head_ms.get() == 0 {
            self.head_ms.set(now_ms());
        }
        framing.next(bytes)
    }

    // If a body ends behind its answer, hyper reads on before the answer is sent, and puts what it says itself about the next
    // head (100, 400) in front of the answer's rest.
    fn waits(&self) -> bool {
        self.is_http1.get() && self.framing.borrow().is_in_head()
    }

    fn written(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.is_active();
        let written = self.written.get() + bytes;
        match self.is_http1.get() || written >= STEP {
            true => self.moves(),
            false => self.written.set(written),
        }
    }

    fn ended(&self, how: Result<(), Failure>) {
        self.ended.set(Some(how));
    }
}
