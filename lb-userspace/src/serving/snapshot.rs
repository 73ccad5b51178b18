//! What a configuration becomes at run time: one immutable snapshot, swapped whole by a reload.

use super::client_limit::share;
use super::{ClientLimit, ListenerStats, Pool, RouteStats};
use crate::accept::{Acl, Bind};

use crate::config::{self, Config, Keepalive, Protocol, Termination, TlsMode};

use crate::reason::Tier;
use crate::route::{Schedule, Table};
use crate::tls::{self, Verifiers, server_config};
use ipnet::IpNet;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// rustls does not take a route's certificate.
#[derive(Debug, thiserror::Error)]
#[error("route {route}: rustls does not take its certificate")]
pub struct CertificateRefused {
    /// The route.
    route: Arc<str>,
    /// What is wrong.
    source: anyhow::Error,
}

/// Everything a new connection needs to know. A connection keeps the parts it uses, so that a reload does not
/// touch it.
pub struct Snapshot {
    /// 1 at the start, one more for each reload that took effect.
    pub generation: u64,
    /// In the order of the configuration.
    pub listeners: Vec<Arc<Listener>>,
    /// In the order of the configuration.
    pub routes: Vec<Arc<Route>>,
    /// In the order of the configuration.
    pub pools: Vec<Arc<Pool>>,
    /// Most connections at a time.
    pub max_connections: usize,
    /// The order in which tiers are tried.
    pub tiers: Vec<Tier>,
    /// Of legs whose listener or pool is not configured any more.
    pub keepalive: Keepalive,
    by_address: HashMap<SocketAddr, Arc<Listener>>,
}

/// A listener and its routes.
pub struct Listener {
    /// As configured.
    pub name: Arc<str>,
    /// Addresses it listens on.
    pub bind: Vec<SocketAddr>,
    /// What its clients speak first.
    pub protocol: Protocol,
    /// Bound on the time until the ClientHello is whole, and again until the handshake of a terminated route is.
    pub hello_timeout: Duration,
    /// Bound on the bytes of a ClientHello with its framing.
    pub hello_bytes: usize,
    /// Peers that send a PROXY header first; `None`: nobody does.
    pub trusted_proxies: Option<Vec<IpNet>>,
    /// Who may connect.
    pub acl: Acl,
    /// Most connections at a time.
    pub max_connections: Option<usize>,
    /// What one client address may have of it; `None`: there is no bound.
    pub clients: Option<ClientLimit>,
    /// Length of the accept queue asked for.
    pub backlog: u32,
    /// Of the leg to the client.
    pub keepalive: Keepalive,
    /// Whether its addresses may come later.
    pub freebind: bool,
    /// Its routes.
    pub table: Table<Arc<Route>>,
    /// Kept across reloads.
    pub stats: Arc<ListenerStats>,
}

/// A route.
pub struct Route {
    /// As configured.
    pub name: Arc<str>,
    /// The name of its listener.
    pub listener: Arc<str>,
    /// The names it covers; empty for a plain TCP listener.
    pub sni: Vec<config::SniPattern>,
    /// Ends a connection on which nothing moves; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Ends a connection so long after its accept; `None`: never.
    pub max_age: Option<Duration>,
    /// Most connections at a time.
    pub max_connections: Option<usize>,
    /// What one client address may have of it; `None`: there is no bound.
    pub clients: Option<ClientLimit>,
    /// `None`: TLS is passed through.
    pub termination: Option<TerminatedRoute>,
    /// Kept across reloads.
    pub stats: Arc<RouteStats>,
    backends: Vec<Arc<Pool>>,
    schedule: Schedule,
    choices: AtomicU64,
}

/// What a route needs to end TLS.
pub struct TerminatedRoute {
    /// rustls' side of it.
    pub config: Arc<ServerConfig>,
    source: Arc<Termination>,
    alpn: Vec<Vec<u8>>,
}

impl TerminatedRoute {
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
        tls::client_name(certificate, &self.source.client_auth.as_ref()?.allowed)
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
            acl: Acl::default(),
            max_connections: None,
            clients: None,
            backlog: 0,
            keepalive,
            freebind: false,
            table: Table::new(),
            stats: Arc::default(),
        }
    }

    /// Whether this peer sends a PROXY header first.
    pub fn trusts(&self, peer: SocketAddr) -> bool {
        let peer = peer.ip();
        self.trusted_proxies.as_ref().is_some_and(|proxies| proxies.iter().any(|net| net.contains(&peer)))
    }
}

impl Route {
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
            sni: Vec::new(),
            idle_timeout,
            max_age,
            max_connections: None,
            clients: None,
            termination: None,
            stats: Arc::default(),
            backends: Vec::new(),
            schedule: Schedule::new(&[]),
            choices: AtomicU64::new(0),
        }
    }

    /// Its pools, in the order of the configuration.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.backends.iter()
    }

    /// The pool for a new connection, by weight; `None` when every weight is 0.
    pub fn next_pool(&self) -> Option<&Arc<Pool>> {
        self.schedule.pick(self.choices.fetch_add(1, Relaxed)).map(|index| &self.backends[index])
    }
}

impl Snapshot {
    /// The listener of the socket bound to `address`; `None` once it is removed.
    pub fn listener(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        self.by_address.get(&address)
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
    /// state, and unchanged certificates their tickets.
    pub fn new(config: &Config, previous: Option<&Snapshot>) -> Result<Snapshot, CertificateRefused> {
        let known_pools: HashMap<_, _> =
            previous.iter().flat_map(|old| &old.pools).map(|pool| (&*pool.name, pool)).collect();
        let known_routes: HashMap<_, _> =
            previous.iter().flat_map(|old| &old.routes).map(|route| (&*route.name, route)).collect();
        let known_listeners: HashMap<_, _> =
            previous.iter().flat_map(|old| &old.listeners).map(|old| (&*old.name, old)).collect();

        let rates = config.listeners.iter().map(|listener| listener.client_rate);
        let rates = rates.chain(config.routes.iter().map(|route| route.client_rate));
        let remembered = share(rates.flatten().count());

        let pools: Vec<_> = config
            .pools
            .iter()
            .map(|pool| Arc::new(Pool::new(pool, known_pools.get(&*pool.name).map(|pool| &***pool))))
            .collect();
        let mut routes = Vec::with_capacity(config.routes.len());
        let mut verifiers = Verifiers::default();
        for route in &config.routes {
            let known = known_routes.get(&*route.name).map(|route| &***route);
            let listener = &config.listeners[route.listener];
            routes.push(Arc::new(build_route(route, listener, &pools, &mut verifiers, remembered, known)?));
        }
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .enumerate()
            .map(|(index, listener)| {
                let mut table = Table::new();
                for (route, config) in routes.iter().zip(&config.routes).filter(|(_, c)| c.listener == index)
                {
                    match listener.protocol {
                        Protocol::Tcp => table.insert(&config::SniPattern::Any, &[], route.clone()),
                        Protocol::Tls | Protocol::Postgres => {
                            for pattern in &config.sni {
                                table.insert(pattern, &config.alpn, route.clone());
                            }
                        }
                    }
                }
                let known = known_listeners.get(&*listener.name);
                Arc::new(Listener {
                    name: listener.name.clone(),
                    bind: listener.bind.clone(),
                    protocol: listener.protocol,
                    hello_timeout: listener.hello_timeout,
                    hello_bytes: listener.hello_bytes,
                    trusted_proxies: listener.proxy_protocol.then(|| listener.trusted_proxies.clone()),
                    acl: Acl::new(&listener.allow, &listener.deny),
                    max_connections: listener.max_connections,
                    clients: listener.client_rate.map(|rate| {
                        ClientLimit::new(rate, remembered, known.and_then(|old| old.clients.as_ref()))
                    }),
                    backlog: listener.backlog,
                    keepalive: listener.keepalive,
                    freebind: listener.freebind,
                    table,
                    stats: known.map(|old| old.stats.clone()).unwrap_or_default(),
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
            max_connections: config.gateway.max_connections,
            tiers: config.gateway.tiers.clone(),
            keepalive: config.gateway.keepalive,
            by_address,
        })
    }
}

fn build_route(
    route: &config::Route,
    listener: &config::Listener,
    pools: &[Arc<Pool>],
    verifiers: &mut Verifiers,
    remembered: usize,
    known: Option<&Route>,
) -> Result<Route, CertificateRefused> {
    let termination = match &route.tls {
        TlsMode::Passthrough => None,
        TlsMode::Terminate(source) => {
            let mut alpn: Vec<Vec<u8>> = route.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            if listener.protocol == Protocol::Postgres && alpn.is_empty() {
                // A client that negotiates TLS directly insists on it (PostgreSQL 17, "SSL Session Encryption").
                alpn.push(b"postgresql".to_vec());
            }
            let kept = known
                .and_then(|old| old.termination.as_ref())
                .filter(|old| *old.source == **source && old.alpn == alpn);
            let config = match kept {
                Some(old) => old.config.clone(),
                None => server_config(source, verifiers, alpn.iter().cloned())
                    .map_err(|source| CertificateRefused { route: route.name.clone(), source })?,
            };
            Some(TerminatedRoute { config, source: source.clone(), alpn })
        }
    };
    Ok(Route {
        name: route.name.clone(),
        listener: listener.name.clone(),
        sni: route.sni.clone(),
        idle_timeout: route.idle_timeout,
        max_age: route.max_age,
        max_connections: route.max_connections,
        clients: route
            .client_rate
            .map(|rate| ClientLimit::new(rate, remembered, known.and_then(|old| old.clients.as_ref()))),
        termination,
        stats: known.map(|old| old.stats.clone()).unwrap_or_default(),
        backends: route.backends.iter().map(|backend| pools[backend.pool].clone()).collect(),
        schedule: Schedule::new(&route.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>()),
        choices: AtomicU64::new(known.map_or(0, |old| old.choices.load(Relaxed))),
    })
}
