//! One connection, from accept to close: the seven stages in order.
//!
//! accept -> sniff -> route -> connect -> splice -> account -> close

use crate::accept;
use crate::account::{Account, Connection, Visitor};
use crate::clock::now_ms;
use crate::close::{Leg, farewell};
use crate::config::{LiveGateway, Protocol};
use crate::connect::{self, Endpoints, Source, SourcePort};
use crate::gateway::Gateway;
use crate::reason::{CloseReason, FallbackReason, OddName, RejectReason, Setback, Tier};
use crate::serving::{Action, Listener, Permit, Route, ServerGuard, Snapshot};
use crate::sniff::{self, ClientHello, Input, Output, Preamble, Sniffer};
use crate::socket::{canonical, read_some, reset_on_close, write_all};
use crate::splice;
use crate::splice::keepalive::keep_alive;
use crate::splice::packet::{Begun, Live, PacketTier, Plan};
use crate::splice::sockmap::Outcome;
use crate::splice::terminate::{self, HandshakeError, Session};
use crate::tier::choose;
use crate::traffic::add;
use rustls::ServerConfig;
use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, timeout, timeout_at};

/// A connection that was accepted and may go on.
pub struct Accepted {
    /// The worker that carries it.
    pub worker: usize,
    /// The client's socket.
    pub client: TcpStream,
    /// The client's address.
    pub peer: SocketAddr,
    /// The configuration at the moment of accept, by which it is routed.
    pub snapshot: Arc<Snapshot>,
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Its places in the gateway's and the listener's `max_connections`.
    pub permits: [Permit; 2],
    /// The task that carries it, once it is spawned: before it runs.
    pub task: Rc<Cell<Option<AbortHandle>>>,
}

/// Carries one connection through its stages.
pub async fn serve(gateway: Arc<Gateway>, accepted: Accepted) {
    let Accepted { worker, client, peer, snapshot, listener, permits, task } = accepted;
    let mut arrival = Arrival::new(&gateway, Leg::new(client), peer, listener);
    let (route, permit) = match arrival.go(&gateway, &snapshot).await {
        Ok(routed) => routed,
        Err(reason) => {
            tracing::debug!(%reason, "turned away");
            arrival.visitor.reject(&gateway.books, reason);
            let word = arrival.last_word(reason);
            return farewell(&arrival.client, &word).await;
        }
    };
    let routed = Instant::now();
    if arrival.hello.is_some() {
        gateway.books.histograms.sniff.observe(routed - arrival.begin);
    }
    let Arrival { visitor, client, begin, window, hello } = arrival;
    let books = gateway.books.clone();
    let account = Account::open(books, worker, task.take(), visitor, route.clone(), hello.as_deref());
    let connection = account.connection.clone();
    tracing::debug!(id = connection.id, route = %route.name, "routed");
    let [of_gateway, of_listener] = permits;
    let max_age = route.max_age;
    let permits = [of_gateway, of_listener, permit];
    // It may be the last that keeps the routes of long ago in memory. Only now: until its account is open, whoever takes its
    // route away does not find it.
    let settings = snapshot.gateway.clone();
    drop(snapshot);
    let passage = Passage { gateway, account, client, route, routed, settings, permits };
    match max_age {
        None => passage.go(hello, window).await,
        // Boxed: connections without an end to their time need not pay for its clock.
        Some(age) => {
            let mut going = Box::pin(passage.go(hello, window));
            tokio::select! {
                () = &mut going => {}
                // In the middle of whatever it did, it is dropped: it ends with a reset.
                () = sleep_until((begin + age).into()) => connection.set_ending(CloseReason::MaxAge),
            }
        }
    }
}

/// A client before it has a route.
struct Arrival {
    visitor: Visitor,
    client: Leg,
    begin: Instant,
    /// Bytes received and not consumed; they go to the server, or into the handshake.
    window: Vec<u8>,
    hello: Option<Box<ClientHello>>,
}

impl Arrival {
    fn new(gateway: &Gateway, client: Leg, peer: SocketAddr, listener: Arc<Listener>) -> Self {
        let visitor = Visitor::new(&gateway.books, listener, peer, now_ms());
        Arrival { visitor, client, begin: Instant::now(), window: Vec::new(), hello: None }
    }

    /// accept, sniff, route.
    async fn go(
        &mut self,
        gateway: &Gateway,
        snapshot: &Snapshot,
    ) -> Result<(Arc<Route>, Permit), RejectReason> {
        if self.visitor.listener.trusts(self.visitor.client) {
            self.read_proxy_header().await?;
        }
        match self.visitor.listener.protocol {
            Protocol::Tcp => {}
            Protocol::Tls => self.sniff(Preamble::Tls).await?,
            Protocol::Postgres => self.sniff(Preamble::Postgres).await?,
        }
        self.route(gateway, snapshot)
    }

    fn deadline(&self) -> tokio::time::Instant {
        (self.begin + self.visitor.listener.hello_timeout).into()
    }

    /// accept: the client is who the trusted proxy says it is.
    async fn read_proxy_header(&mut self) -> Result<(), RejectReason> {
        loop {
            if let Some(header) = accept::read_header(&self.window)? {
                self.window.drain(..header.length);
                // It may have been of 64 KiB, and what the rest grows to is kept for as long as it waits.
                self.window.shrink_to_fit();
                if let Some((client, local)) = header.endpoints {
                    self.visitor.client = canonical(client);
                    self.visitor.local = Some(Box::new(local));
                }
                return Ok(());
            }
            match timeout_at(self.deadline(), read_some(&self.client, &mut self.window)).await {
                Err(_) => return Err(RejectReason::HelloTimeout),
                Ok(Ok(read)) if read > 0 => {}
                Ok(_) if self.window.is_empty() => return Err(RejectReason::ClosedBeforeData),
                Ok(_) => return Err(RejectReason::ProxyHeaderMalformed),
            }
        }
    }

    /// sniff: what does it want?
    async fn sniff(&mut self, preamble: Preamble) -> Result<(), RejectReason> {
        let mut sniffer = Sniffer::new(preamble);
        let mut closed = None;
        loop {
            match sniffer.handle(closed.take().unwrap_or(Input::Bytes(&self.window))) {
                Output::NeedMore => {}
                Output::Answer { reply, consumed } => {
                    self.window.drain(..consumed);
                    if write_all(&self.client, reply).await.is_err() {
                        closed = Some(Input::Closed);
                    }
                    continue;
                }
                Output::Hello(hello) => {
                    self.visitor.sniffed(&hello, &self.window);
                    let sni = hello.sni.as_ref().map(|name| name.as_str());
                    tracing::debug!(sni, version = %hello.version, bytes = self.window.len(), "sniffed");
                    self.hello = Some(hello);
                    return Ok(());
                }
                Output::Reject(reason) => return Err(reason),
            }
            closed = match timeout_at(self.deadline(), read_some(&self.client, &mut self.window)).await {
                Err(_) => Some(Input::Timeout),
                Ok(Ok(read)) if read > 0 => None,
                Ok(_) => Some(Input::Closed),
            };
        }
    }

    /// route: where to?
    fn route(&self, gateway: &Gateway, snapshot: &Snapshot) -> Result<(Arc<Route>, Permit), RejectReason> {
        let hello = self.hello.as_deref();
        let sni = hello.and_then(|hello| hello.sni.as_ref()).map(|name| name.as_str());
        let offers = |protocol: &str| hello.is_some_and(|hello| hello.alpn.offers(protocol.as_bytes()));
        let found = snapshot.route(&self.visitor.listener, sni, offers);
        let (route, _) = found.map_err(|reason| match hello.and_then(|hello| hello.odd_name) {
            Some(OddName::NotAName) if reason == RejectReason::NoSni => RejectReason::SniInvalid,
            _ => reason,
        })?;
        let permit = gateway.acquire(&route.stats.live, route.max_connections);
        let permit = permit.ok_or(RejectReason::RouteFull)?;
        Ok((route.clone(), permit))
    }

    /// What the client is told in its own protocol.
    fn last_word(&self, reason: RejectReason) -> Cow<'static, [u8]> {
        let (setbacks, client) = (&self.visitor.listener.stats.setbacks, self.visitor.client.ip());
        let alert = match self.visitor.listener.protocol {
            Protocol::Tcp => None,
            Protocol::Postgres if reason == RejectReason::PostgresCleartext => {
                return sniff::cleartext_error(setbacks.recent(client, now_ms())).into();
            }
            Protocol::Tls | Protocol::Postgres => sniff::alert(reason),
        };
        if alert.is_some() && self.visitor.listener.protocol == Protocol::Postgres {
            setbacks.note(client, Setback::Rejected(reason), now_ms());
        }
        alert.unwrap_or_default().into()
    }
}

/// A connection with a route.
struct Passage {
    gateway: Arc<Gateway>,
    account: Account,
    client: Leg,
    route: Arc<Route>,
    /// When the route was known.
    routed: Instant,
    settings: Arc<LiveGateway>,
    /// Its places in the `max_connections` of the gateway, the listener and the route.
    permits: [Permit; 3],
}

/// A handover that is under way: dropped, both ends are reset.
struct Unfinished<'a>(Option<(&'a Arc<PacketTier>, &'a Connection)>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some((packet, connection)) = self.0 {
            packet.end(connection.id, connection.ending().unwrap_or(CloseReason::Shutdown));
            // It may have ended by itself before.
            packet.kernel().end_handover(connection.id);
            connection.leave_task();
        }
    }
}

/// A connected server.
struct Upstream {
    socket: Leg,
    guard: ServerGuard,
    port: Option<SourcePort>,
}

impl Passage {
    /// connect, splice, close.
    async fn go(mut self, hello: Option<Box<ClientHello>>, window: Vec<u8>) {
        let reason = match &self.route.action {
            Action::Pass => {
                let plan = self.plan();
                let asks_for_tls = hello.is_some_and(|hello| hello.postgres);
                match self.connect(plan.ok(), asks_for_tls).await {
                    Ok(server) => return self.pass_through(plan, server, window).await,
                    Err(reason) => {
                        self.note_setback(reason);
                        reason
                    }
                }
            }
            Action::Terminate(terminator) => {
                let config = terminator.config.clone();
                // Boxed: its future holds a TLS session, which a connection that is passed through need not pay for.
                Box::pin(self.terminate(config, window)).await
            }
        };
        self.close(reason);
    }

    fn close(self, reason: CloseReason) {
        self.client.clean();
        self.account.close(reason);
    }

    /// Whether the kernel may forward the connection, as far as the client's handshake tells.
    fn plan(&self) -> Result<Plan, FallbackReason> {
        if !self.settings.tiers.contains(&Tier::Packet) {
            return Err(FallbackReason::PacketUnavailable);
        }
        self.gateway.packet()?.plan(&self.client, self.account.connection.opened_ms)
    }

    /// splice: TLS goes through untouched.
    async fn pass_through(self, plan: Result<Plan, FallbackReason>, server: Upstream, window: Vec<u8>) {
        let mut begun = None;
        let choice = self.gateway.choose_tier(&self.settings.tiers, || {
            self.begin(&plan?, &server, window.len()).map(|flows| begun = Some(flows))
        });
        self.account.spliced(choice);
        if let Some(begun) = begun {
            // Boxed: the copy tier's connections need not pay for its future.
            return Box::pin(self.hand_over(begun, server, window)).await;
        }
        self.keep_alive(&server.socket);
        let reason = self.splice(choice.tier, &server.socket, window).await;
        server.socket.clean();
        self.close(reason);
    }

    /// Has the kernel find out whether both ends are still there: of sockets that are to stay.
    fn keep_alive(&self, server: &TcpStream) {
        let [of_client, of_server] = self.account.connection.keepalives();
        keep_alive(&self.client, of_client);
        keep_alive(server, of_server);
    }

    /// Puts the flows in.
    fn begin(&self, plan: &Plan, server: &Upstream, held: usize) -> Result<Begun, FallbackReason> {
        if server.port.is_none() {
            return Err(FallbackReason::NoSourcePort);
        }
        let packet = self.gateway.packet()?;
        let begun =
            packet.begin(plan, &self.client, &server.socket, held, &self.account).map_err(|refusal| {
                if let Some(mss) = refusal.clamp {
                    self.gateway.clamp_mss(&self.account.connection.listener, mss);
                }
                refusal.reason
            })?;
        self.gateway.books.histograms.handover.observe(self.routed.elapsed());
        Ok(begun)
    }

    /// splice: the kernel forwards packets; this task still carries over what the sockets hold, and closes them.
    async fn hand_over(self, begun: Begun, server: Upstream, window: Vec<u8>) {
        let Self { gateway, account, client, permits, .. } = self;
        let Upstream { socket: server, guard, port } = server;
        let connection = account.connection.clone();
        let Ok(packet) = gateway.packet() else { return };
        packet.enter(Live::new(account, guard, permits, port, begun.place()), begun.asked());
        // Cut short at any point, what the sockets still hold is lost, and the connection must not go on without.
        let mut unfinished = Unfinished(Some((packet, &connection)));
        if let Err(reason) = packet.finish(begun, [&client, &server], window).await {
            connection.set_ending(reason);
            return;
        }
        unfinished.0 = None;
        client.clean();
        server.clean();
        connection.leave_task();
    }

    /// splice: bytes flow, in the tier chosen, or in `copy` when that one gives the connection back.
    async fn splice(&self, tier: Tier, server: &TcpStream, mut prefix: Vec<u8>) -> CloseReason {
        let (traffic, idle) = (&self.account.connection.traffic, self.route.idle_timeout);
        if tier == Tier::Sockmap
            && let Some(sockmap) = self.gateway.sockmap()
        {
            if write_all(server, &prefix).await.is_err() {
                reset_on_close(&self.client);
                return CloseReason::ServerReset;
            }
            add(&traffic.bytes_in, std::mem::take(&mut prefix).len());
            // Boxed: the copy tier's connections need not pay for its future.
            match Box::pin(splice::sockmap::splice(sockmap, &self.client, server, traffic, idle)).await {
                Outcome::Closed(reason) => return reason,
                Outcome::Demoted(reason) => self.account.demoted(reason),
            }
        }
        splice::copy::relay(&self.client, server, prefix, traffic, idle).await
    }

    /// connect, splice: TLS ends here.
    async fn terminate(&mut self, config: Arc<ServerConfig>, window: Vec<u8>) -> CloseReason {
        let mut session = match self.handshake(config, window).await {
            Ok(session) => session,
            Err(error) => {
                tracing::debug!(client = %self.account.connection.client, %error, "TLS handshake failed");
                self.account.tls_failed(error.cause());
                self.note_setback(CloseReason::TlsHandshakeFailed);
                return CloseReason::TlsHandshakeFailed;
            }
        };
        let Upstream { socket: server, guard: _guard, .. } = match self.connect(None, false).await {
            Ok(connected) => connected,
            Err(reason) => {
                let setback = self.note_setback(reason);
                let error = setback.map(sniff::encrypted_error).unwrap_or_default();
                farewell(&self.client, &session.last_word(&error)).await;
                return reason;
            }
        };
        let choice = choose(&self.settings.tiers, |tier| match tier {
            Tier::Copy => None,
            Tier::Packet | Tier::Sockmap => Some(FallbackReason::TlsTerminated),
        });
        self.account.spliced(choice);
        self.keep_alive(&server);
        let traffic = &self.account.connection.traffic;
        let end = terminate::relay(session, &self.client, &server, traffic, self.route.idle_timeout).await;
        server.clean();
        end.unwrap_or_else(|cause| {
            self.account.tls_failed(cause);
            CloseReason::TlsError
        })
    }

    /// Remembers why a PostgreSQL client got nowhere: its next attempt may be one without TLS, and can be told.
    fn note_setback(&self, reason: CloseReason) -> Option<Setback> {
        let connection = &self.account.connection;
        let setback = Setback::Closed(reason);
        (connection.listener.protocol == Protocol::Postgres).then(|| {
            connection.listener.stats.setbacks.note(connection.client.ip(), setback, now_ms());
            setback
        })
    }

    async fn handshake(
        &mut self,
        config: Arc<ServerConfig>,
        hello: Vec<u8>,
    ) -> Result<Session, HandshakeError> {
        let accept = Session::accept(&self.client, hello, config);
        let bound = self.account.connection.listener.hello_timeout;
        let session = timeout(bound, accept).await.unwrap_or(Err(HandshakeError::TimedOut))?;
        self.account.negotiated(session.version());
        Ok(session)
    }

    /// connect: a server of the route's pool, told what it expects before the client's bytes. `asks_for_tls`: with
    /// PostgreSQL's request, before a ClientHello that the server is to get.
    async fn connect(&mut self, plan: Option<Plan>, asks_for_tls: bool) -> Result<Upstream, CloseReason> {
        let begin = Instant::now();
        let pool = self.route.next_pool().ok_or(CloseReason::NoServer)?.clone();
        let gateway = self.gateway.clone();
        let source = plan.and_then(|plan| {
            let ports = gateway.packet().ok()?.ports();
            Some(Source { ports, mss: plan.mss(), ipv4: plan.is_ipv4() })
        });
        let (server, port, guard) =
            connect::connect(&pool, self.account.connection.client.ip(), source).await?;
        let mut server = Leg::new(server);
        self.account.connected(&pool, &guard);
        tracing::debug!(pool = %pool.name, server = %guard.server().address, "connected");
        if let Some(version) = pool.send_proxy {
            let sni = self.account.connection.sni.as_deref();
            let header = connect::proxy_header(version, self.endpoints()?, sni);
            write_all(&server, &header).await.map_err(|_| CloseReason::ServerReset)?;
        }
        if asks_for_tls {
            connect::request_tls(&mut server, pool.connect_timeout).await?;
        }
        self.gateway.books.histograms.connect.observe(begin.elapsed());
        Ok(Upstream { socket: server, guard, port })
    }

    fn endpoints(&self) -> Result<Endpoints, CloseReason> {
        let local = match &self.account.local {
            Some(local) => **local,
            None => self.client.local_addr().map_err(|_| CloseReason::ClientReset)?,
        };
        Ok(Endpoints { client: self.account.connection.client, local })
    }
}
