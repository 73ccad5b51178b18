//! One connection, from accept to close: the seven stages in order.
//!
//! accept -> sniff -> route -> connect -> splice -> account -> close

mod mysql;
mod passage;
mod postgres;

use crate::account::{Account, Connection};
use crate::arrival::{Arrival, Bound, Routed};
use crate::clock::now_ms;
use crate::close::{LegSocket, farewell, linger};
use crate::config::{Protocol, ProxyVersion, Refuse, SourceAddress};
use crate::connect::{self, Connected, Dial, Endpoints, Greeting, Source};
use crate::ech::Split;
use crate::http::{self, Link};
use crate::kernel::tcp;
use crate::reason::{CloseReason, FallbackReason, Setback, Tier, TlsError};
use crate::running::RunningGateway;
use crate::serving::{ClientPermit, Listener, Permit, Permits, Pool, Snapshot, Terminator};
use crate::sniff::{self, ClientHello, TlsRequest};
use crate::socket::{reset_on_close, write_all};
use crate::splice;
use crate::splice::keepalive::keep_alive;
use crate::splice::ktls::Offload;
use crate::splice::packet::{PacketTier, PendingHandover, Plan, SplicedConnection};
use crate::splice::relay::relay;
use crate::splice::sockmap::Outcome;
use crate::splice::split::Failed;
use crate::splice::tls::Tls;
use crate::splice::transport::Plain;
use crate::tier::choose;
use crate::tls::{ClientTls, Dialling, HandshakeError, Serving, Session};
use crate::traffic::add;
use lb_common::packet::{PerLeg, Side};
use passage::{Passage, Unconnected, Upstream};
use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, timeout};

/// A connection that was accepted and may go on.
pub struct Accepted {
    /// The index of the worker that carries it.
    pub worker: usize,
    /// The client's socket.
    pub client: TcpStream,
    /// The client's address.
    pub peer: SocketAddr,
    /// The configuration at the time of the accept, by which it is routed.
    pub snapshot: Arc<Snapshot>,
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// Its places under `max_connections` of the gateway and of the listener.
    pub permits: [Permit; 2],
    /// Its place under `client_rate` of the listener, if that has one and the client is known.
    pub of_client: Option<ClientPermit>,
    /// The task that carries it. Set between its spawning and its first run.
    pub task: Rc<Cell<Option<AbortHandle>>>,
}

/// Carries one connection through its stages.
pub async fn serve(gateway: Arc<RunningGateway>, accepted: Accepted) {
    let Accepted { worker, client, peer, snapshot, listener, permits, of_client, task } = accepted;
    let mut arrival = Arrival::new(&gateway, LegSocket::new(client), peer, listener, of_client);
    let routed = match arrival.go(&gateway, &snapshot).await {
        Ok(Bound::Route(routed)) => routed,
        // Boxed: all other connections need not pay for its future.
        Ok(Bound::Cancel(cancel)) => {
            let settings = snapshot.gateway.clone();
            return Box::pin(postgres::cancel_in_clear_text(
                gateway,
                settings,
                worker,
                task.take(),
                arrival,
                cancel,
            ))
            .await;
        }
        Err(reason) => {
            tracing::debug!(%reason, "turned away");
            arrival.visitor.reject(&gateway.books, reason);
            let word = arrival.last_word(reason);
            return farewell(&arrival.client, &word).await;
        }
    };
    let Routed { route, permit, of_client: of_route_client } = routed;
    let routed = Instant::now();
    if arrival.hello.is_some() {
        gateway.books.histograms.sniff.observe(routed - arrival.begin);
    }
    let Arrival { visitor, client, begin, window, hello, split, of_client, .. } = arrival;
    let books = gateway.books.clone();
    let account = Account::open(books, worker, task.take(), visitor, route.clone(), hello.as_deref());
    let connection = account.connection.clone();
    tracing::debug!(id = connection.id, route = route.name(), "routed");
    let [of_gateway, of_listener] = permits;
    let max_age = route.max_age();
    let permits =
        Permits { connections: [of_gateway, of_listener, permit], clients: [of_client, of_route_client] };
    // It may be the last that keeps the routes of long ago in memory. Only now: until its account is open, whoever takes its
    // route away does not find it.
    let settings = snapshot.gateway.clone();
    drop(snapshot);
    let is_postgres = hello.as_ref().is_some_and(|hello| hello.is_postgres());
    let passage = Passage { gateway, account, client, route, routed, settings, permits, is_postgres };
    match max_age {
        None => passage.go(hello, window, split).await,
        // Boxed: connections without `max_age` need not pay for this future.
        Some(age) => {
            let mut going = Box::pin(passage.go(hello, window, split));
            tokio::select! {
                () = &mut going => {}
                // Wherever it is, its future is dropped, and both legs are reset.
                () = sleep_until((begin + age).into()) => connection.set_ending(CloseReason::MaxAge),
            }
        }
    }
}

/// A handover that is under way. If this is dropped before it is done, both ends are reset.
struct UnfinishedHandover<'a>(Option<(&'a Arc<PacketTier>, &'a Connection)>);

impl Drop for UnfinishedHandover<'_> {
    fn drop(&mut self) {
        if let Some((packet, connection)) = self.0 {
            packet.end(connection.id, connection.ending().unwrap_or(CloseReason::Shutdown));
            // The connection may have ended by itself before.
            packet.kernel().end_handover(connection.id);
            connection.leave_task();
        }
    }
}

impl Passage {
    /// connect, splice, close.
    async fn go(mut self, hello: Option<Box<ClientHello>>, window: Vec<u8>, split: Option<Box<Split>>) {
        let route = self.route.clone();
        let request = hello.and_then(|hello| hello.request);
        let reason = match route.terminator() {
            // Boxed: connections without requests of HTTP need not pay for this future.
            None if route.http().is_some() => {
                let end = Box::pin(self.requests(Plain::new(&*self.client, window), None)).await;
                self.relayed(end)
            }
            None => {
                let plan = self.plan();
                match self.connect(plan.ok(), request, None, !window.is_empty(), route.draw()).await {
                    Ok(Upstream { socket, session: Some(session), guard: _guard, .. }) => {
                        // Boxed: its future holds a TLS session, for which connections without need not pay.
                        Box::pin(self.encrypt(socket, *session, window)).await
                    }
                    Ok(server) => return self.pass_through(plan, server, window, split).await,
                    Err(Unconnected { reason, .. }) => {
                        self.note_setback(reason);
                        reason
                    }
                }
            }
            Some(terminator) => {
                // Boxed: its future holds a TLS session, for which passthrough connections need not pay.
                Box::pin(self.terminate(terminator, request, window)).await
            }
        };
        self.close(reason);
    }

    fn close(self, reason: CloseReason) {
        self.client.clean();
        self.account.close(reason);
    }

    /// Whether the connection can go to the packet tier, as far as the client's SYN tells.
    fn plan(&self) -> Result<Plan, FallbackReason> {
        if !self.settings.tiers.contains(&Tier::Packet) {
            return Err(FallbackReason::PacketUnavailable);
        }
        self.gateway.packet()?.plan(&self.client, self.account.connection.opened_ms)
    }

    /// splice: what the client says goes to the server inside TLS.
    async fn encrypt(
        &mut self,
        server: LegSocket,
        session: Session<Dialling>,
        window: Vec<u8>,
    ) -> CloseReason {
        self.copy_for(FallbackReason::ServerTls);
        self.keep_alive(&server);
        let (near, far) = (Plain::new(&*self.client, window), Tls::new(session, &*server));
        let end = relay(near, far, &self.account.connection.traffic, self.route.idle_timeout()).await;
        server.clean();
        self.relayed(end)
    }

    /// The copy tier carries it, as no other could.
    fn copy_for(&self, reason: FallbackReason) {
        self.account.spliced(choose(&self.settings.tiers, |tier| match tier {
            Tier::Copy => None,
            Tier::Ktls => Some(FallbackReason::KtlsLater),
            Tier::Packet | Tier::Sockmap => Some(reason),
        }));
    }

    /// How the kernel may take over the records of the client's leg, if that is configured.
    fn offload(&self) -> Option<Offload> {
        let Account { books, connection, .. } = &self.account;
        let is_wanted = self.settings.tiers.contains(&Tier::Ktls);
        is_wanted.then(|| Offload { books: books.clone(), connection: connection.clone() })
    }

    /// splice: the server gets the client's ClientHellos decrypted, until no more of them can come.
    async fn split(
        &mut self,
        mut split: Split,
        server: &TcpStream,
        window: &mut Vec<u8>,
    ) -> Result<(), CloseReason> {
        let connection = self.account.connection.clone();
        let carried = splice::split::carry(&mut split, (&self.client, server), window, &connection.traffic);
        let (side, cause) = match timeout(connection.listener.hello_timeout, carried).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Failed::Reset(side))) => {
                reset_on_close(&self.client);
                return Err(CloseReason::reset_by(side));
            }
            Ok(Err(Failed::Refused(refused))) => {
                tracing::debug!(id = connection.id, %refused, "refused");
                reset_on_close(server);
                farewell(&self.client, refused.alert()).await;
                (Side::Client, TlsError::ProtocolViolation)
            }
            Err(_) if split.is_retry() => (Side::Client, TlsError::Timeout),
            Err(_) => (Side::Server, TlsError::Timeout),
        };
        self.account.tls_failed(side, cause);
        Err(match side {
            Side::Client => CloseReason::TlsHandshakeFailed,
            Side::Server => CloseReason::ServerTlsFailed,
        })
    }

    /// splice: passes the client's bytes on as they are.
    async fn pass_through(
        mut self,
        plan: Result<Plan, FallbackReason>,
        server: Upstream,
        mut window: Vec<u8>,
        split: Option<Box<Split>>,
    ) {
        if let Some(split) = split {
            // Boxed: connections without Encrypted ClientHello need not pay for its future.
            if let Err(reason) = Box::pin(self.split(*split, &server.socket, &mut window)).await {
                self.note_setback(reason);
                return self.close(reason);
            }
        }
        let mut handover = None;
        let choice = self.gateway.choose_tier(&self.settings.tiers, || {
            self.begin(&plan?, &server, window.len()).map(|begun| handover = Some(begun))
        });
        self.account.spliced(choice);
        if let Some(handover) = handover {
            // Boxed: the copy tier's connections need not pay for its future.
            return Box::pin(self.hand_over(handover, server, window)).await;
        }
        // By the first bytes, if they need not wait for room; a SYN proxy has none before it has the acknowledgement.
        let _ = tcp::flush_acknowledgement(server.socket.as_fd());
        self.keep_alive(&server.socket);
        let reason = self.splice(choice.tier, &server.socket, window).await;
        server.socket.clean();
        self.close(reason);
    }

    /// Turns on TCP keepalive of both sockets, which stay open in these tiers.
    fn keep_alive(&self, server: &TcpStream) {
        let keepalives = self.account.connection.keepalives();
        keep_alive(&self.client, keepalives.client);
        keep_alive(server, keepalives.server);
    }

    /// Enters the flows of the packet tier.
    fn begin(&self, plan: &Plan, server: &Upstream, held: usize) -> Result<PendingHandover, FallbackReason> {
        let port = server.port.as_ref().ok_or(FallbackReason::NoSourcePort)?;
        let packet = self.gateway.packet()?;
        let sockets = PerLeg::<&TcpStream> { client: &self.client, server: &server.socket };
        let begun = packet.begin(plan, sockets, port.server(), held, &self.account);
        let handover = begun.map_err(|refusal| {
            if let Some(mss) = refusal.clamp {
                self.gateway.clamp_mss(&self.account.connection.listener, mss);
            }
            refusal.reason
        })?;
        self.gateway.books.histograms.handover.observe(self.routed.elapsed());
        Ok(handover)
    }

    /// splice: the kernel forwards packets. This task still delivers what the sockets hold, and closes them.
    async fn hand_over(self, handover: PendingHandover, server: Upstream, window: Vec<u8>) {
        let Self { gateway, account, client, permits, .. } = self;
        let Upstream { socket: server, guard, port, .. } = server;
        let connection = account.connection.clone();
        let Ok(packet) = gateway.packet() else { return };
        let spliced = SplicedConnection::new(account, guard, permits, port, handover.place());
        packet.enter(spliced, handover.asked());
        // If this future is dropped, what the sockets still hold is lost, and the connection must be reset.
        let mut unfinished = UnfinishedHandover(Some((packet, &connection)));
        let sockets = PerLeg::<&TcpStream> { client: &client, server: &server };
        let handed_over = match packet.finish(handover, sockets, window).await {
            Ok(handed_over) => handed_over,
            Err(reason) => return connection.set_ending(reason),
        };
        unfinished.0 = None;
        connection.leave_task();
        packet.close(handed_over, PerLeg { client, server });
    }

    /// splice: the chosen tier carries the bytes; if it gives the connection back, the copy tier goes on.
    async fn splice(&mut self, tier: Tier, server: &TcpStream, mut prefix: Vec<u8>) -> CloseReason {
        let (traffic, idle) = (&self.account.connection.traffic, self.route.idle_timeout());
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
        let (near, far) = (Plain::new(&*self.client, prefix), Plain::new(server, Vec::new()));
        let end = relay(near, far, traffic, idle).await;
        self.relayed(end)
    }

    /// How a relayed connection ended.
    fn relayed(&mut self, end: Result<CloseReason, (Side, TlsError)>) -> CloseReason {
        end.unwrap_or_else(|(leg, cause)| {
            tracing::debug!(?leg, %cause, "TLS failed");
            self.account.tls_failed(leg, cause);
            if leg == Side::Server
                && let Some((_, server)) = self.account.connection.upstream.get()
            {
                server.state.tls_errors.add(cause as usize);
            }
            CloseReason::tls_error_of(leg)
        })
    }

    /// route, connect, splice: each of the connection's requests by itself. `tls`: of the client, if the gateway has ended it.
    async fn requests(
        &self,
        near: impl http::Leg + Unpin,
        tls: Option<ClientTls>,
    ) -> Result<CloseReason, (Side, TlsError)> {
        self.copy_for(FallbackReason::Http);
        keep_alive(&self.client, self.account.connection.listener.keepalive);
        let local = self.account.local.as_deref().copied().or_else(|| self.client.local_addr().ok());
        let link = Link::new(self.gateway.clone(), self.account.connection.clone(), local, tls);
        let end = http::serve(near, &self.client, link).await;
        if let Ok(CloseReason::ServerClosed | CloseReason::HttpError | CloseReason::Dismissed) = end {
            linger(&self.client).await;
        }
        end
    }

    /// connect, splice: TLS ends here.
    async fn terminate(
        &mut self,
        terminator: &Terminator,
        request: Option<TlsRequest>,
        window: Vec<u8>,
    ) -> CloseReason {
        let ticket = self.route.draw();
        let is_nobody_there = |pool: Option<&Arc<Pool>>| pool.is_some_and(|pool| pool.servers().is_empty());
        if self.account.connection.listener.refuse == Refuse::Close
            && is_nobody_there(self.route.pools_for(ticket).next())
        {
            return CloseReason::NoServer;
        }
        let mut session = match self.handshake(terminator, window).await {
            Ok(session) => session,
            Err(error) => {
                tracing::debug!(client = %self.account.connection.client, %error, "TLS handshake failed");
                self.account.tls_failed(Side::Client, error.cause());
                self.note_setback(CloseReason::TlsHandshakeFailed);
                return CloseReason::TlsHandshakeFailed;
            }
        };
        if self.route.http().is_some() {
            let tls = session.facts();
            // Boxed: connections without requests of HTTP need not pay for this future.
            let end = Box::pin(self.requests(Tls::new(session, &*self.client), Some(tls))).await;
            return self.relayed(end);
        }
        if let Some(TlsRequest::Mysql(asked)) = request {
            // Boxed: other protocols need not pay for its future.
            return Box::pin(self.terminate_mysql(session, asked.offer, ticket)).await;
        }
        if self.is_postgres {
            match self.opening(&mut session).await {
                Ok(None) => {}
                Ok(Some(cancel)) => return self.cancel(session, cancel).await,
                Err(HandshakeError::Closed) => return CloseReason::ClientClosed,
                Err(HandshakeError::Io(_)) => return CloseReason::ClientReset,
                Err(error) => return self.relayed(Err((Side::Client, error.cause()))),
            }
        }
        let own_request = match self.account.connection.listener.protocol {
            Protocol::Postgres => Some(TlsRequest::Postgres),
            Protocol::Tls | Protocol::Mysql | Protocol::Starttls(_) | Protocol::Tcp | Protocol::Http => None,
        };
        let request = request.or(own_request);
        let speaks = !session.early().is_empty();
        let connected = self.connect(None, request, Some(&session), speaks, ticket).await;
        // The port is given back after the socket is closed.
        let Upstream { port: _port, socket: server, session: upstream, guard: _guard, .. } = match connected {
            Ok(connected) => connected,
            Err(Unconnected { reason, .. }) => {
                let setback = self.note_setback(reason);
                let error = setback.map(sniff::encrypted_error).unwrap_or_default();
                farewell(&self.client, &session.last_word(&error)).await;
                return reason;
            }
        };
        self.copy_for(FallbackReason::TlsTerminated);
        self.keep_alive(&server);
        let (traffic, idle) = (&self.account.connection.traffic, self.route.idle_timeout());
        let near = Tls::new(session, &*self.client).offload(self.offload());
        let near = self.keyed(near, &server, request.filter(|_| upstream.is_some()));
        let end = match upstream {
            None => relay(near, Plain::new(&*server, Vec::new()), traffic, idle).await,
            // Boxed: connections without TLS toward the server need not pay for its session.
            Some(upstream) => Box::pin(relay(near, Tls::new(*upstream, &*server), traffic, idle)).await,
        };
        server.clean();
        self.relayed(end)
    }

    /// Remembers why a PostgreSQL client failed: its next attempt may be without TLS, and then gets this reason as its
    /// error.
    fn note_setback(&self, reason: CloseReason) -> Option<Setback> {
        let connection = &self.account.connection;
        let setback = Setback::Closed(reason);
        self.is_postgres.then(|| {
            connection.listener.stats.setbacks.note(connection.client.ip(), setback, now_ms());
            setback
        })
    }

    async fn handshake(
        &mut self,
        terminator: &Terminator,
        hello: Vec<u8>,
    ) -> Result<Session<Serving>, HandshakeError> {
        let accept = Session::accept(&self.client, hello, terminator.config(self.is_postgres));
        let bound = self.account.connection.listener.hello_timeout;
        let session = timeout(bound, accept).await.unwrap_or(Err(HandshakeError::TimedOut))?;
        self.account.negotiated(session.version());
        if let Some(certificate) = session.client_certificate() {
            self.account.identified(|| terminator.client_name(certificate));
        }
        Ok(session)
    }

    /// connect: connects to a server of the route's pool, and sends it what it expects before the client's bytes.
    /// `request`: before the ClientHello that the server is to get, the client's or the gateway's. `ended`: the client's TLS,
    /// if the gateway has ended that. `speaks`: bytes of the client's are there. `ticket`: what was drawn of the route.
    async fn connect(
        &mut self,
        plan: Option<Plan>,
        request: Option<TlsRequest>,
        ended: Option<&Session<Serving>>,
        speaks: bool,
        ticket: u64,
    ) -> Result<Upstream, Unconnected> {
        let mut begun = None;
        let (gateway, route) = (self.gateway.clone(), self.route.clone());
        let client = self.account.connection.client;
        let asks = matches!(request, Some(TlsRequest::Starttls(_)));
        let name = self.account.connection.sni.as_ref().filter(|_| asks).cloned();
        let greeting = Greeting { request, name, ..Greeting::default() };
        let mut dial = Dial { client: client.ip(), source: None, greeting, at_once: speaks };
        let (mut reason, mut tls_error) = (CloseReason::NoServer, None);
        let (mut words, mut reached) = (None, None);
        for pool in route.pools_for(ticket) {
            // What the gateway encrypts is not spliced.
            let plan = plan.filter(|_| pool.tls.is_none());
            let client = (pool.source == SourceAddress::Client).then_some(client);
            let ipv4 = client.map(|client| client.is_ipv4()).or(plan.map(|plan| plan.is_ipv4()));
            dial.source = ipv4.map(|ipv4| Source {
                ports: gateway.ports(),
                client,
                mss: plan.and_then(|plan| plan.mss()),
                ipv4,
            });
            dial.greeting.tls = ended.is_none() || pool.tls.is_some();
            dial.greeting.header = match pool.send_proxy {
                Some(version) => {
                    let sni = self.account.connection.sni.as_deref();
                    let tls = ended.filter(|_| version == ProxyVersion::V2).map(Session::facts);
                    connect::proxy_header(version, self.endpoints()?, sni, tls.as_ref())
                }
                None => Vec::new(),
            };
            match connect::connect(pool, &dial, &mut begun).await {
                Ok(Connected { socket, session, thread, port, guard }) => {
                    self.account.connected(pool, guard.server());
                    tracing::debug!(pool = %pool.name, server = %guard.server().address, "connected");
                    if let Some(begun) = begun {
                        self.gateway.books.histograms.connect.observe(begun.elapsed());
                    }
                    return Ok(Upstream { socket: LegSocket::new(socket), session, thread, guard, port });
                }
                Err(failure) => {
                    (reason, tls_error, words) = (failure.reason, failure.tls_error, failure.words);
                    reached = failure.server.map(|server| (pool, server)).or(reached);
                }
            }
        }
        if let Some((pool, server)) = reached {
            self.account.connected(pool, &server);
        }
        if let Some(cause) = tls_error {
            self.account.tls_failed(Side::Server, cause);
        }
        Err(Unconnected { reason, words })
    }

    fn endpoints(&self) -> Result<Endpoints, CloseReason> {
        let (client, local) = (self.account.connection.client, self.account.local.as_deref());
        Endpoints::of(client, local, &self.client).ok_or(CloseReason::ClientReset)
    }
}
