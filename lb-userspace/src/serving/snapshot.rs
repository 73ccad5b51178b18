//! What a configuration becomes at run time: one immutable snapshot, swapped whole by a reload.

use super::client_limit::share;
use super::http::Requests;
use super::{ClientLimit, ListenerStats, Pool, Reception, RouteStats};
use crate::accept::{Acl, Bind};
use crate::config::{
    self, ClientAuth, ClientRate, Config, Keepalive, LiveGateway, OnRemoval, Protocol, Refuse, Termination,
};
use crate::ech;
use crate::reason::RejectReason;
use crate::route::{Match, Schedule, SniMatch, Table};
use crate::sniff::POSTGRES_ALPN;
use crate::tls::{self, Verifiers, server_config};
use ipnet::IpNet;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// rustls does not take a certificate.
#[derive(Debug, thiserror::Error)]
#[error("{kind} {name}: rustls does not take its certificate")]
pub struct CertificateRefused {
    /// A route or a pool.
    kind: &'static str,
    /// Its name.
    name: Arc<str>,
    /// What is wrong.
    source: anyhow::Error,
}

/// Everything a new connection needs to know. From the choice of its route on, a connection keeps only the parts it uses:
/// a reload does not touch it, nor does it keep what was configured when it came.
pub struct Snapshot {
    /// 1 at the start, one more for each reload that took effect.
    pub generation: u64,
    /// In the order of the configuration.
    pub listeners: Vec<Arc<Listener>>,
    /// In the order of the configuration; then those of connections to listeners of HTTP.
    pub routes: Vec<Arc<Route>>,
    /// In the order of the configuration.
    pub pools: Vec<Arc<Pool>>,
    /// How many of its routes and pools the one before does not have.
    pub made: usize,
    /// What holds for all of them.
    pub gateway: Arc<LiveGateway>,
    by_address: HashMap<SocketAddr, Arc<Listener>>,
    /// The routes of each listener, by the names that its clients or their requests are for; `None`: the name is reserved, see
    /// [`config::Listener::reserved`].
    tables: Vec<Table<Option<Arc<Route>>>>,
}

/// A listener.
pub struct Listener {
    /// As configured.
    pub name: Arc<str>,
    /// Addresses it listens on.
    pub bind: Vec<SocketAddr>,
    /// The protocol of its clients.
    pub protocol: Protocol,
    /// The longest time until the ClientHello is complete, and then until the TLS handshake of a terminated route is.
    pub hello_timeout: Duration,
    /// Most bytes of a ClientHello with its framing.
    pub hello_bytes: usize,
    /// Peers that send a PROXY header first; `None`: no peer does.
    pub trusted_proxies: Option<Vec<IpNet>>,
    /// Peers that say in requests of HTTP who their clients are; none where peers send PROXY headers.
    pub trusted_forwarders: Vec<IpNet>,
    /// Who may connect.
    pub acl: Acl,
    /// Most connections at a time.
    pub max_connections: Option<usize>,
    /// What one client address may have of it; `None`: there is no bound.
    pub clients: Option<ClientLimit>,
    /// The length of the accept queue, as passed to listen(2).
    pub backlog: u32,
    /// TCP keepalive of the leg to the client.
    pub keepalive: Keepalive,
    /// Whether it listens before the machine has its addresses (IP_FREEBIND).
    pub freebind: bool,
    /// Encrypted ClientHello; `None`: it is not looked for.
    pub ech: Option<Ech>,
    /// How MySQL's clients are received; `None` unless that is the protocol.
    pub mysql: Option<Reception>,
    /// How clients are refused.
    pub refuse: Refuse,
    /// Of connections that carry requests for any of its routes, if HTTP is its protocol; called as the listener is.
    pub own: Option<Arc<Route>>,
    /// Kept across reloads.
    pub stats: Arc<ListenerStats>,
    /// Of its routes among the snapshot's `tables`.
    table: usize,
}

/// Encrypted ClientHello at a listener.
#[derive(Debug)]
pub struct Ech {
    /// At least one.
    pub keys: Arc<ech::Keys>,
    /// What the servers get.
    pub mode: ech::Mode,
    /// How many one client address may have opened.
    pub openings: ClientLimit,
}

/// A route.
pub struct Route {
    /// As configured.
    pub name: Arc<str>,
    /// The name of its listener.
    pub listener: Arc<str>,
    /// The names it covers; empty for a plain TCP listener.
    pub sni: config::SniPatterns,
    /// After how long without a byte in either direction a connection is ended; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// `None`: it has none. Few routes have any.
    bounds: Option<Box<Bounds>>,
    /// What becomes of its connections.
    pub action: Action,
    /// Present: they carry requests of HTTP, for which these rules are.
    pub http: Option<Box<Requests>>,
    /// Kept across reloads.
    pub stats: RouteStats,
    /// What becomes of its open connections when it is gone.
    pub on_removal: OnRemoval,
    backends: Backends,
}

// Of routes there may be very many.
const _: () = assert!(size_of::<Route>() <= 136);

/// What bounds the connections of a route.
#[derive(Default)]
struct Bounds {
    /// How long after its accept a connection is ended; `None`: never.
    max_age: Option<Duration>,
    /// Most connections at a time.
    max_connections: Option<usize>,
    /// What one client address may have of it; `None`: there is no bound.
    clients: Option<ClientLimit>,
}

impl Bounds {
    fn boxed(self) -> Option<Box<Self>> {
        let Self { max_age, max_connections, clients } = &self;
        let is_any = max_age.is_some() || max_connections.is_some() || clients.is_some();
        is_any.then(|| Box::new(self))
    }
}

/// Where the connections of a route go.
enum Backends {
    /// As those of nearly every route do, of which there may be very many.
    One(Arc<Pool>),
    Several(Box<Shares>),
}

/// Pools with their shares of a route's connections.
#[derive(Default)]
struct Shares {
    pools: Box<[Arc<Pool>]>,
    /// Where no server of one pool can be reached, the next is tried.
    retry_other_pool: bool,
    schedule: Schedule,
    choices: AtomicU64,
}

impl Shares {
    /// The pools for the connection with this ticket.
    fn pools_for(&self, ticket: u64) -> impl Iterator<Item = &Arc<Pool>> {
        let first = self.schedule.pick(ticket);
        let others = self.retry_other_pool.then(|| {
            let mut seen = Vec::from_iter(first);
            self.schedule.order(ticket).filter(move |index| {
                let is_new = !seen.contains(index);
                seen.extend(is_new.then_some(*index));
                is_new
            })
        });
        first.into_iter().chain(others.into_iter().flatten()).map(|index| &self.pools[index])
    }
}

impl Backends {
    fn new(route: &config::Route, pools: &[Arc<Pool>], known: Option<&Route>) -> Self {
        if let [only] = route.backends.as_slice() {
            return Backends::One(pools[only.pool].clone());
        }
        let choices = match known.map(|known| &known.backends) {
            Some(Backends::Several(shares)) => shares.choices.load(Relaxed),
            Some(Backends::One(_)) | None => 0,
        };
        let weights: Vec<_> = route.backends.iter().map(|backend| backend.weight).collect();
        Backends::Several(Box::new(Shares {
            pools: route.backends.iter().map(|backend| pools[backend.pool].clone()).collect(),
            retry_other_pool: route.retry_other_pool,
            schedule: Schedule::new(&weights),
            choices: choices.into(),
        }))
    }

    /// Whether they would be made the same of this.
    fn are_of(&self, route: &config::Route, pools: &[Arc<Pool>]) -> bool {
        let is = |(pool, backend): (&Arc<Pool>, &config::Backend)| Arc::ptr_eq(pool, &pools[backend.pool]);
        match (self, route.backends.as_slice()) {
            (Backends::One(pool), [only]) => is((pool, only)),
            (Backends::One(_), _) | (Backends::Several(_), [_]) => false,
            (Backends::Several(shares), backends) => {
                let weights: Vec<_> = backends.iter().map(|backend| backend.weight).collect();
                shares.pools.len() == backends.len()
                    && shares.pools.iter().zip(backends).all(is)
                    && shares.retry_other_pool == route.retry_other_pool
                    && shares.schedule == Schedule::new(&weights)
            }
        }
    }
}

/// What a route does with a connection, and what it needs for that.
pub enum Action {
    /// Passes its bytes on as they are.
    Pass,
    /// Ends its TLS.
    Terminate(Box<Terminator>),
}

/// What it takes to end TLS for a route.
pub struct Terminator {
    /// rustls' side of it.
    config: Arc<ServerConfig>,
    source: Arc<Termination>,
    alpn: Vec<Vec<u8>>,
}

impl Terminator {
    /// The one of `known`, the route of the same name before a reload, is kept with its tickets unless something about
    /// it has changed.
    fn new(
        source: &Arc<Termination>,
        route: &config::Route,
        protocol: Protocol,
        verifiers: &mut Verifiers,
        known: Option<&Route>,
    ) -> Result<Self, CertificateRefused> {
        let alpn = alpn_of(route, protocol);
        let config = match known.map(|known| &known.action) {
            Some(Action::Terminate(old)) if *old.source == **source && old.alpn == alpn => old.config.clone(),
            _ => server_config(source, verifiers, alpn.iter().cloned())
                .map_err(|source| CertificateRefused { kind: "route", name: route.name.clone(), source })?,
        };
        Ok(Terminator { config, source: source.clone(), alpn })
    }

    /// rustls' side of it. A PostgreSQL client that negotiates TLS directly insists on its protocol (PostgreSQL 17, "SSL
    /// Session Encryption"); others would be refused if only that could be selected.
    pub fn config(&self, is_postgres: bool) -> Arc<ServerConfig> {
        if !is_postgres || !self.alpn.is_empty() {
            return self.config.clone();
        }
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![POSTGRES_ALPN.to_vec()];
        Arc::new(config)
    }

    /// When the certificate expires, in Unix seconds.
    pub fn not_after(&self) -> u64 {
        self.source.not_after
    }

    /// When the first CRL of its clients' certificates expires, in Unix seconds.
    pub fn crl_expiry(&self) -> Option<u64> {
        self.source.client_auth.as_ref()?.crl_expiry
    }

    /// Who a client is that was let in with this certificate.
    pub fn client_name(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        let auth = self.source.client_auth.as_ref().filter(|auth| !auth.unverified)?;
        tls::client_name(certificate, &auth.allowed)
    }
}

impl Listener {
    /// A listener that is not configured any more; connections that came in by it still live.
    pub fn retired(name: &str, keepalive: Keepalive) -> Self {
        Listener {
            name: name.into(),
            bind: Vec::new(),
            protocol: Protocol::Tcp,
            hello_timeout: Duration::ZERO,
            hello_bytes: 0,
            trusted_proxies: None,
            trusted_forwarders: Vec::new(),
            acl: Acl::default(),
            max_connections: None,
            clients: None,
            backlog: 0,
            keepalive,
            freebind: false,
            ech: None,
            mysql: None,
            refuse: Refuse::default(),
            own: None,
            stats: Arc::default(),
            // It takes no connection.
            table: usize::MAX,
        }
    }

    /// Whether what this peer says of its clients in requests is passed on.
    pub fn is_forwarder(&self, peer: IpAddr) -> bool {
        self.trusted_forwarders.iter().any(|net| net.contains(&peer.to_canonical()))
    }

    /// Whether this peer sends a PROXY header first.
    pub fn trusts(&self, peer: SocketAddr) -> bool {
        let peer = peer.ip();
        self.trusted_proxies.as_ref().is_some_and(|proxies| proxies.iter().any(|net| net.contains(&peer)))
    }
}

impl Route {
    /// What clients' certificates are held against; `None`: they are not asked for any.
    pub fn client_auth(&self) -> Option<&ClientAuth> {
        match &self.action {
            Action::Terminate(terminator) => terminator.source.client_auth.as_deref(),
            Action::Pass => None,
        }
    }

    /// How long after its accept a connection is ended; `None`: never.
    pub fn max_age(&self) -> Option<Duration> {
        self.bounds.as_ref()?.max_age
    }

    /// Most connections at a time.
    pub fn max_connections(&self) -> Option<usize> {
        self.bounds.as_ref()?.max_connections
    }

    /// What one client address may have of it; `None`: there is no bound.
    pub fn clients(&self) -> Option<&ClientLimit> {
        self.bounds.as_ref()?.clients.as_ref()
    }

    /// A route that is not configured any more; connections that it was chosen for still live, with its bounds.
    pub fn retired(
        name: &str,
        listener: &str,
        idle_timeout: Option<Duration>,
        max_age: Option<Duration>,
    ) -> Self {
        Route {
            name: name.into(),
            listener: listener.into(),
            sni: config::SniPatterns::default(),
            idle_timeout,
            bounds: Bounds { max_age, ..Bounds::default() }.boxed(),
            action: Action::Pass,
            http: None,
            stats: RouteStats::default(),
            on_removal: OnRemoval::Keep,
            backends: Backends::Several(Box::default()),
        }
    }

    /// Of the connections of a listener of HTTP.
    fn of_listener(listener: &config::Listener, stats: RouteStats) -> Self {
        Route {
            http: Some(Box::new(Requests::new(&[], &[], None))),
            stats,
            ..Route::retired(&listener.name, &listener.name, None, None)
        }
    }

    /// Whether it would be made the same of this.
    fn is_of(&self, route: &config::Route, of: &config::Listener, with: &[Arc<Pool>]) -> bool {
        // Taken apart in full: a field that is not compared does not compile.
        let Self { name, listener, sni, idle_timeout, bounds, action, http, stats: _, on_removal, backends } =
            self;
        let unbounded = Bounds::default();
        let Bounds { max_age, max_connections, clients } = bounds.as_deref().unwrap_or(&unbounded);
        let is_same_action = match (action, &route.action) {
            (Action::Pass, config::Action::Pass) => true,
            (Action::Terminate(known), config::Action::Terminate(source)) => {
                known.source == *source && known.alpn == alpn_of(route, of.protocol)
            }
            (Action::Pass, _) | (Action::Terminate(_), _) => false,
        };
        let is_same_http = match (http, &route.http) {
            (Some(known), Some(rules)) => known.are_of(rules, with),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        // How many clients a limit remembers depends on how many limits there are.
        *name == route.name
            && *listener == of.name
            && *sni == route.sni
            && *idle_timeout == route.idle_timeout
            && *max_age == route.max_age
            && *max_connections == route.max_connections
            && clients.is_none()
            && route.client_rate.is_none()
            && is_same_action
            && is_same_http
            && *on_removal == route.on_removal
            && backends.are_of(route, with)
    }

    /// Its pools, in the order of the configuration.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        let pools = match &self.backends {
            Backends::One(pool) => std::slice::from_ref(pool),
            Backends::Several(shares) => &shares.pools,
        };
        pools.iter()
    }

    /// For a new connection: see [`pools_for`](Self::pools_for).
    pub fn draw(&self) -> u64 {
        match &self.backends {
            Backends::One(_) => 0,
            Backends::Several(shares) => shares.choices.fetch_add(1, Relaxed),
        }
    }

    /// The pool for a connection that has drawn this ticket, by weight, and then those to try where it has no server that can
    /// be reached; none when every weight is 0.
    pub fn pools_for(&self, ticket: u64) -> impl Iterator<Item = &Arc<Pool>> {
        let (only, shares) = match &self.backends {
            Backends::One(pool) => (Some(pool), None),
            Backends::Several(shares) => (None, Some(&**shares)),
        };
        only.into_iter().chain(shares.into_iter().flat_map(move |shares| shares.pools_for(ticket)))
    }
}

impl Snapshot {
    /// The listener of the socket bound to `address`; `None` once it is removed.
    pub fn listener(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        self.by_address.get(&address)
    }

    /// The route of a client of a listener of this snapshot: see [`Table::lookup`].
    pub fn route(
        &self,
        listener: &Listener,
        sni: Option<&str>,
        offers: impl Fn(&str) -> bool,
    ) -> Result<(&Arc<Route>, Match), RejectReason> {
        let own = self.listeners.get(listener.table).and_then(|listener| listener.own.as_ref());
        own.map_or_else(
            || self.route_of_name(listener, sni, offers),
            |own| Ok((own, Match { sni: SniMatch::Any, alpn: false })),
        )
    }

    /// The listener of this snapshot that has taken the place of this one.
    pub fn successor(&self, of: &Listener) -> Option<&Arc<Listener>> {
        of.bind.iter().find_map(|bind| self.listener(*bind)).filter(|now| now.protocol == of.protocol)
    }

    /// The route of a request for this name, which came in by a listener of this snapshot.
    pub fn route_of_name(
        &self,
        listener: &Listener,
        sni: Option<&str>,
        offers: impl Fn(&str) -> bool,
    ) -> Result<(&Arc<Route>, Match), RejectReason> {
        let (route, found) = self.tables[listener.table].lookup(sni, offers)?;
        let nobody = if sni.is_some() { RejectReason::UnknownSni } else { RejectReason::NoSni };
        Ok((route.as_ref().ok_or(nobody)?, found))
    }

    /// The pools whose servers speak MySQL, each once.
    pub fn mysql_pools(&self) -> Vec<Arc<Pool>> {
        let mut seen = HashSet::new();
        let receptions = self.listeners.iter().filter_map(|listener| listener.mysql.as_ref());
        let pools = receptions.flat_map(Reception::pools).filter(|pool| seen.insert(Arc::as_ptr(pool)));
        pools.cloned().collect()
    }

    /// Every address to listen on.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.binds().map(|bind| bind.address)
    }

    /// The same, and how.
    pub fn binds(&self) -> impl Iterator<Item = Bind> {
        self.listeners.iter().flat_map(|listener| {
            let Listener { backlog, freebind, .. } = **listener;
            listener.bind.iter().map(move |&address| Bind { address, backlog, freebind })
        })
    }

    /// Builds the snapshot of `config`. What `previous` has under the same name keeps its counters, servers their
    /// state, and unchanged certificates their tickets; a route or a pool of which nothing has changed is the same one.
    pub fn new(config: &Config, previous: Option<&Snapshot>) -> Result<Snapshot, CertificateRefused> {
        let known_pools: HashMap<_, _> =
            previous.iter().flat_map(|old| &old.pools).map(|pool| (&*pool.name, pool)).collect();
        let known_routes: HashMap<_, _> =
            previous.iter().flat_map(|old| &old.routes).map(|route| (&*route.name, route)).collect();
        let known_listeners: HashMap<_, _> =
            previous.iter().flat_map(|old| &old.listeners).map(|old| (&*old.name, old)).collect();

        let rates = config.listeners.iter().map(|listener| listener.client_rate);
        let rates = rates.chain(config.routes.iter().map(|route| route.client_rate));
        let openings = config.listeners.iter().filter(|listener| listener.ech.is_some());
        let remembered = share(rates.flatten().count() + openings.count());

        let mut made = 0;
        let mut pools = Vec::with_capacity(config.pools.len());
        for pool in &config.pools {
            let known = known_pools.get(&*pool.name).copied();
            let refused = |source| CertificateRefused { kind: "pool", name: pool.name.clone(), source };
            pools.push(match known.filter(|known| known.is_of(pool)) {
                Some(known) => known.clone(),
                None => {
                    made += 1;
                    Arc::new(Pool::new(pool, known.map(|known| &**known)).map_err(refused)?)
                }
            });
        }
        let mut routes = Vec::with_capacity(config.routes.len());
        let mut sizes = vec![0; config.listeners.len()];
        config.routes.iter().for_each(|route| sizes[route.listener] += route.sni.len());
        let mut tables: Vec<_> = sizes.into_iter().map(Table::with_capacity).collect();
        let mut verifiers = Verifiers::default();
        let is_new = |route: &&config::Route| !known_routes.contains_key(&*route.name);
        let mut stats = RouteStats::of_new(config.routes.iter().filter(is_new).count());
        for route in &config.routes {
            let known = known_routes.get(&*route.name).copied();
            let listener = &config.listeners[route.listener];
            let built = match known.filter(|known| known.is_of(route, listener, &pools)) {
                Some(known) => known.clone(),
                None => {
                    made += 1;
                    let known = known.map(|known| &**known);
                    let stats =
                        known.map(|old| old.stats.clone()).or_else(|| stats.next()).unwrap_or_default();
                    Arc::new(build_route(route, listener, &pools, &mut verifiers, remembered, known, stats)?)
                }
            };
            let table = &mut tables[route.listener];
            match listener.protocol {
                Protocol::Tcp => table.insert(&config::SniPattern::Any, &[], Some(built.clone())),
                Protocol::Tls
                | Protocol::Postgres
                | Protocol::Mysql
                | Protocol::Starttls(_)
                | Protocol::Http => {
                    for pattern in &*route.sni {
                        table.insert(pattern, &route.alpn, Some(built.clone()));
                    }
                }
            }
            routes.push(built);
        }
        for (listener, table) in config.listeners.iter().zip(&mut tables) {
            // A route with the very pattern comes first: it was inserted before, and takes any ALPN.
            listener.reserved.iter().for_each(|pattern| table.insert(pattern, &[], None));
        }
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .enumerate()
            .map(|(index, listener)| {
                let known = known_listeners.get(&*listener.name);
                let own = (listener.protocol == Protocol::Http).then(|| {
                    // What they count is told of their name.
                    let namesake = routes.iter().find(|route| route.name == listener.name);
                    let stats = namesake.map(|route| route.stats.clone());
                    let known = || Some(known_routes.get(&*listener.name)?.stats.clone());
                    let own = Arc::new(Route::of_listener(
                        listener,
                        stats.clone().or_else(known).unwrap_or_default(),
                    ));
                    routes.extend(stats.is_none().then(|| own.clone()));
                    own
                });
                Arc::new(Listener {
                    name: listener.name.clone(),
                    bind: listener.bind.clone(),
                    protocol: listener.protocol,
                    hello_timeout: listener.hello_timeout,
                    hello_bytes: listener.hello_bytes,
                    trusted_proxies: listener.proxy_protocol.then(|| listener.trusted_proxies.clone()),
                    trusted_forwarders: match listener.proxy_protocol {
                        true => Vec::new(),
                        false => listener.trusted_proxies.clone(),
                    },
                    acl: Acl::new(&listener.allow, &listener.deny),
                    max_connections: listener.max_connections,
                    clients: listener.client_rate.map(|rate| {
                        ClientLimit::new(rate, remembered, known.and_then(|old| old.clients.as_ref()))
                    }),
                    backlog: listener.backlog,
                    keepalive: listener.keepalive,
                    freebind: listener.freebind,
                    ech: listener.ech.as_ref().map(|ech| Ech {
                        keys: ech.keys.clone(),
                        mode: ech.mode,
                        openings: ClientLimit::new(
                            ClientRate::per_second(ech.openings),
                            remembered,
                            known.and_then(|old| Some(&old.ech.as_ref()?.openings)),
                        ),
                    }),
                    mysql: reception(index, listener, &routes, config),
                    refuse: listener.refuse,
                    own,
                    stats: known.map(|old| old.stats.clone()).unwrap_or_default(),
                    table: index,
                })
            })
            .collect();
        let by_address = listeners
            .iter()
            .flat_map(|listener| listener.bind.iter().map(|bind| (*bind, listener.clone())))
            .collect();
        Ok(Snapshot {
            generation: previous.map_or(1, |old| old.generation + 1),
            listeners,
            routes,
            pools,
            gateway: Arc::new(config.gateway.live.clone()),
            by_address,
            tables,
            made,
        })
    }
}

/// How the clients of this listener are received, if they are MySQL's.
fn reception(
    index: usize,
    listener: &config::Listener,
    routes: &[Arc<Route>],
    config: &Config,
) -> Option<Reception> {
    if listener.protocol != Protocol::Mysql {
        return None;
    }
    let mut seen = HashSet::new();
    let own = routes.iter().zip(&config.routes).filter(|(_, source)| source.listener == index);
    let pools = own.flat_map(|(route, _)| route.pools()).filter(|pool| seen.insert(Arc::as_ptr(pool)));
    Some(Reception::new(listener.version.clone(), listener.plugin.clone(), pools.cloned().collect()))
}

/// The protocols that a terminated route selects from.
fn alpn_of(route: &config::Route, protocol: Protocol) -> Vec<Vec<u8>> {
    match route.alpn.as_slice() {
        [] if protocol == Protocol::Postgres => vec![POSTGRES_ALPN.to_vec()],
        [] if route.http.is_some() => [&b"h2"[..], b"http/1.1"].map(<[u8]>::to_vec).into(),
        given => given.iter().map(|name| name.as_bytes().to_vec()).collect(),
    }
}

fn build_route(
    route: &config::Route,
    listener: &config::Listener,
    pools: &[Arc<Pool>],
    verifiers: &mut Verifiers,
    remembered: usize,
    known: Option<&Route>,
    stats: RouteStats,
) -> Result<Route, CertificateRefused> {
    let action = match &route.action {
        config::Action::Pass => Action::Pass,
        config::Action::Terminate(source) => {
            Action::Terminate(Box::new(Terminator::new(source, route, listener.protocol, verifiers, known)?))
        }
    };
    let clients =
        route.client_rate.map(|rate| ClientLimit::new(rate, remembered, known.and_then(Route::clients)));
    Ok(Route {
        name: route.name.clone(),
        listener: listener.name.clone(),
        sni: route.sni.clone(),
        idle_timeout: route.idle_timeout,
        bounds: Bounds { max_age: route.max_age, max_connections: route.max_connections, clients }.boxed(),
        action,
        http: route.http.as_ref().map(|rules| {
            let known = known.and_then(|known| known.http.as_deref());
            Box::new(Requests::new(rules, pools, known))
        }),
        stats,
        on_removal: route.on_removal,
        backends: Backends::new(route, pools, known),
    })
}
