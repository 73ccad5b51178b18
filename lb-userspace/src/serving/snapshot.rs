//! What a configuration becomes at run time: one immutable snapshot, swapped whole by a reload.

use super::client_limit::share;
use super::route::{Route, Workshop};
use super::terminator::CertificateRefused;
use super::{ClientLimit, ListenerStats, Pool, Reception, RouteStats};
use crate::accept::{Acl, Bind};
use crate::config::{self, ClientRate, Config, Keepalive, LiveGateway, Protocol, Refuse, SniPattern};
use crate::ech;
use crate::reason::RejectReason;
use crate::route::{Match, Named, SniMatch, Table};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

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
    /// The routes of each listener, by the names that its clients or their requests are for.
    tables: Vec<Table<Target>>,
}

/// What a name leads to.
enum Target {
    /// This route. It has the name in its label, at the place that this says; its parts are here by themselves so that all is
    /// 16 bytes.
    Route { route: Arc<Route>, begin: u32, length: u8 },
    /// Nowhere: see [`config::Listener::reserved`].
    Reserved(Box<SniPattern>),
}

impl Named for Target {
    fn name(&self) -> &str {
        match self {
            Target::Route { route, begin, length } => route.at((*begin, *length)),
            Target::Reserved(pattern) => pattern.name(),
        }
    }
}

const _: () = assert!(size_of::<Target>() <= 16);

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
        match self.tables[listener.table].lookup(sni, offers)? {
            (Target::Route { route, .. }, found) => Ok((route, found)),
            (Target::Reserved(_), _) if sni.is_some() => Err(RejectReason::UnknownSni),
            (Target::Reserved(_), _) => Err(RejectReason::NoSni),
        }
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
            previous.iter().flat_map(|old| &old.routes).map(|route| (route.name(), route)).collect();
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
        let mut workshop = Workshop::new(&pools, remembered);
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
                    Arc::new(Route::new(route, listener, &mut workshop, known, stats)?)
                }
            };
            let table = &mut tables[route.listener];
            match listener.protocol {
                Protocol::Tcp => {
                    let target = Target::Route { route: built.clone(), begin: 0, length: 0 };
                    table.insert(&SniPattern::Any, &[], target);
                }
                Protocol::Tls
                | Protocol::Postgres
                | Protocol::Mysql
                | Protocol::Starttls(_)
                | Protocol::Http => {
                    for (pattern, (begin, length)) in route.sni.iter().zip(built.places()) {
                        let target = Target::Route { route: built.clone(), begin, length };
                        table.insert(pattern, &route.alpn, target);
                    }
                }
            }
            routes.push(built);
        }
        for (listener, table) in config.listeners.iter().zip(&mut tables) {
            // A route with the very pattern comes first: it was inserted before, and takes any ALPN.
            for pattern in &listener.reserved {
                table.insert(pattern, &[], Target::Reserved(Box::new(pattern.clone())));
            }
        }
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .enumerate()
            .map(|(index, listener)| {
                let known = known_listeners.get(&*listener.name);
                let own = (listener.protocol == Protocol::Http).then(|| {
                    // What they count is told of their name.
                    let namesake = routes.iter().find(|route| *route.name() == *listener.name);
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
