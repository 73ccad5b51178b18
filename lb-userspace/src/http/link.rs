//! A client's connection, as its requests see it.

use super::framing::Framing;
use super::leg::{Far, Meter};
use super::upstream;
use crate::account::Connection;
use crate::clock::now_ms;
use crate::reason::HttpAnswer;
use crate::running::RunningGateway;
use crate::serving::{Listener, Route, ServerGuard, Snapshot};
use crate::splice::transport::Failure;
use crate::tls::ClientTls;
use crate::traffic::add;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long a connection without a request is kept, unless its route has an `idle_timeout`.
const KEEP: Duration = Duration::from_secs(60);

/// Between two looks at what bounds a connection.
const LOOK: Duration = Duration::from_secs(5);

/// A client's connection.
pub(crate) struct Link {
    pub(super) gateway: Arc<RunningGateway>,
    pub(super) connection: Arc<Connection>,
    /// Where the client connected to.
    pub(super) local: Option<SocketAddr>,
    /// Present: the gateway has ended its TLS.
    pub(super) tls: Option<ClientTls>,
    scope: RefCell<Option<Scope>>,
    is_http1: Cell<bool>,
    /// Requests that are not answered to the end.
    in_flight: Cell<usize>,
    has_asked: Cell<bool>,
    /// When the last answer was over.
    quiet_ms: Cell<u64>,
    /// When the first byte came after that; 0: none has.
    head_ms: Cell<u64>,
    /// What the head that comes has of `Content-Length` and `Transfer-Encoding`.
    framing: Cell<Framing>,
    /// What bounds its requests' silence.
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
    /// End at once: nothing moves any more.
    Cut,
}

impl Link {
    pub(crate) fn new(
        gateway: Arc<RunningGateway>,
        connection: Arc<Connection>,
        local: Option<SocketAddr>,
        tls: Option<ClientTls>,
    ) -> Rc<Self> {
        let idle = connection.route.idle_timeout.into();
        Rc::new(Link {
            gateway,
            connection,
            local,
            tls,
            scope: RefCell::default(),
            is_http1: Cell::new(true),
            in_flight: Cell::new(0),
            has_asked: Cell::new(false),
            quiet_ms: now_ms().into(),
            head_ms: Cell::new(0),
            framing: Cell::default(),
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
                (route.http.is_some() && is_let_in).then(|| Scope {
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

    /// A request has come.
    pub(super) fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.has_asked.set(true);
        self.head_ms.set(0);
    }

    /// Whether the head of the request that has come says twice where its body ends (RFC 9112, section 6.3), as far as it was
    /// looked at: of requests that come while others are under way, hyper passes on `Transfer-Encoding` alone.
    pub(super) fn take_doubt(&self) -> bool {
        self.framing.take().is_doubtful()
    }

    /// It goes to this route.
    pub(super) fn routed(&self, route: &Route) {
        self.idle.set(route.idle_timeout);
    }

    /// How long nothing may move while a request is under way, or what has come of it.
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

    /// Waits until there is something to do. `is_leaving`: it is to be cut, or nothing.
    pub(super) async fn due(&self, is_leaving: bool) -> Due {
        let mut changes = self.gateway.notice.subscribe();
        loop {
            let is_stopping = changes.borrow_and_update().is_stopping;
            let is_gone = || !self.is_young() && self.scope(&self.gateway.snapshot.load()).is_none();
            if !is_leaving && (is_stopping || is_gone()) {
                return Due::Leave;
            }
            let left = match self.bound(is_leaving) {
                None => LOOK,
                Some((at_ms, due)) => match at_ms.checked_sub(now_ms()).filter(|left| *left > 0) {
                    None => return due,
                    Some(left) => LOOK.min(Duration::from_millis(left)),
                },
            };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// It has not asked for anything yet.
    fn is_young(&self) -> bool {
        !self.has_asked.get()
    }

    /// When what is to be done, if nothing happens before.
    fn bound(&self, is_leaving: bool) -> Option<(u64, Due)> {
        let after = |since_ms: u64, bound: Duration| since_ms + bound.as_millis() as u64;
        let hello = self.connection.listener.hello_timeout;
        if self.in_flight.get() > 0 {
            let active_ms = self.connection.traffic.active_ms.load(Relaxed);
            return Some((after(active_ms, self.idle.get()?), Due::Cut));
        }
        let (quiet_ms, head_ms) = (self.quiet_ms.get(), self.head_ms.get());
        Some(if self.is_young() || is_leaving {
            (after(quiet_ms, hello), Due::Cut)
        } else if head_ms > 0 && self.is_http1.get() {
            (after(head_ms, hello), Due::Cut)
        } else {
            (after(quiet_ms, self.idle.get().unwrap_or(KEEP)), Due::Leave)
        })
    }

    fn moved(&self) -> u64 {
        let now_ms = now_ms();
        self.connection.traffic.active_ms.store(now_ms, Relaxed);
        now_ms
    }
}

/// Whoever opens a connection for it alone holds it: none is opened after this.
impl Drop for Link {
    fn drop(&mut self) {
        if self.has_own.get() {
            upstream::forget(self.connection.id);
        }
    }
}

impl Meter for Rc<Link> {
    fn delivered(&self) -> &AtomicU64 {
        &self.connection.traffic.bytes_out
    }

    fn received(&self, bytes: &[u8]) {
        add(&self.connection.traffic.bytes_in, bytes.len());
        let now_ms = self.moved();
        if self.in_flight.get() == 0 {
            if self.head_ms.get() == 0 {
                self.head_ms.set(now_ms);
            }
            if self.is_http1.get() {
                self.framing.set(self.framing.get().and(bytes));
            }
        }
    }

    fn written(&self) {
        self.moved();
    }

    fn ended(&self, how: Result<(), Failure>) {
        self.ended.set(Some(how));
    }
}
