//! What operators see and do: the snapshot and the counters as the admin side's views, and its commands.

use super::shown::Shown;
use super::take_over::Elsewhere;
use super::{ReloadRequest, drained};
use crate::account::Connection;
use crate::admin::{self, view};
use crate::clock::{now_ms, uptime_ms};
use crate::reason::{
    CloseReason, DownReason, EchResult, FallbackReason, HttpAnswer, OddName, RejectReason, Tier, TlsError,
};
use crate::running::RunningGateway;
use crate::serving::{
    Listener, PerReason, Pool, Route, RouteCounts, RouteStats, Server, Snapshot, Terminator, TierStats,
};
use crate::splice::packet::{Loss, PacketTier};
use crate::state::{Availability, PacketTierState, ServerState};
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Bytes of live connections, from clients and to clients, by the counters of their route.
type LiveBytes = HashMap<*const RouteCounts, (u64, u64)>;

/// The close reasons that every route shows in `/metrics` from the start, with zeros, so that `rate()` sees the first
/// occurrence: the ordinary ends, and those that alerts are for. The others are shown once they have occurred: all of them
/// would be two thirds of a scrape, 1.7 million samples for 100 000 routes, and most of them always zero.
const ALWAYS_SHOWN: [CloseReason; 8] = [
    CloseReason::ClientClosed,
    CloseReason::ServerClosed,
    CloseReason::ServerReset,
    CloseReason::NoServer,
    CloseReason::PoolDown,
    CloseReason::ConnectFailed,
    CloseReason::ConnectTimeout,
    CloseReason::TlsHandshakeFailed,
];

/// What the admin side asks of the gateway and has it do.
pub(super) struct AdminSide {
    pub(super) gateway: Arc<RunningGateway>,
    /// How many workers there are.
    pub(super) workers: usize,
    /// Where it is kept what is drained.
    pub(super) state_dir: PathBuf,
    /// The gateway accepts no more and is about to end.
    pub(super) stopping: AtomicBool,
    pub(super) reloads: mpsc::UnboundedSender<ReloadRequest>,
    /// The objects of the Gateway API, as they are shown.
    pub(super) objects: ArcSwap<Shown>,
    /// Connections that processes before this one still carry.
    pub(super) elsewhere: Arc<Elsewhere>,
    /// Processes that want to take over.
    pub(super) successors: mpsc::UnboundedSender<UnixStream>,
}

impl AdminSide {
    /// The bytes of each route, from clients and to them. No connection can end meanwhile, so that every byte counts once;
    /// workers wait for this, and for nothing else that a report takes.
    fn bytes(&self, snapshot: &Snapshot) -> Vec<(u64, u64)> {
        self.refresh();
        self.gateway.books.ledger.read(|connections| {
            let mut live = LiveBytes::new();
            for connection in connections {
                let bytes = live.entry(ptr::from_ref(connection.route.stats.counting())).or_default();
                bytes.0 += connection.traffic.bytes_in.load(Relaxed);
                bytes.1 += connection.traffic.bytes_out.load(Relaxed);
            }
            snapshot.routes.iter().map(|route| bytes_of(&route.stats, &live)).collect()
        })
    }

    /// As RFC 3339 has it.
    fn stale_since(&self) -> Option<String> {
        let since = self.objects.load().stale_since()?;
        Some(humantime::format_rfc3339_seconds(since).to_string())
    }

    /// Brings the counters of connections up to date whose bytes the kernel moves. Those of the sockmap tier are updated
    /// when their workers next run, so a reader may still see the older counts.
    fn refresh(&self) {
        if let Ok(packet) = self.gateway.packet() {
            packet.refresh();
        }
        if let Some(sockmap) = self.gateway.sockmap() {
            sockmap.refresh();
        }
    }
}

impl admin::Operations for AdminSide {
    fn status(&self) -> view::Status {
        let snapshot = self.gateway.snapshot.load_full();
        let bytes = self.bytes(&snapshot);
        let route = |(route, (bytes_in, bytes_out)): (&Arc<Route>, (u64, u64))| view::Route {
            name: route.name().to_owned(),
            listener: route.listener().to_owned(),
            sni: route.sni().map(str::to_owned).collect(),
            pools: route.pools().map(|pool| pool.name.to_string()).collect(),
            active: route.stats.counts().live.active() as u64,
            total: route.stats.counts().total.load(Relaxed),
            bytes_in,
            bytes_out,
        };
        view::Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: uptime_ms() as f64 / 1000.0,
            workers: self.workers,
            config_generation: snapshot.generation,
            tiers: view::Tiers {
                packet: count(&self.gateway.books.stats.tiers[Tier::Packet as usize]),
                sockmap: count(&self.gateway.books.stats.tiers[Tier::Sockmap as usize]),
                ktls: count(&self.gateway.books.stats.tiers[Tier::Ktls as usize]),
                copy: count(&self.gateway.books.stats.tiers[Tier::Copy as usize]),
            },
            tier_fallbacks: by_name(FallbackReason::ALL, |r| r.name(), &self.gateway.books.stats.fallbacks),
            packet: self
                .gateway
                .packet()
                .ok()
                .map(|packet| view::PacketTier::new(packet.state(), packet_counts(packet))),
            listeners: snapshot.listeners.iter().map(|listener| listener_view(listener)).collect(),
            routes: snapshot.routes.iter().zip(bytes).map(route).collect(),
            pools: snapshot.pools.iter().map(|pool| pool_view(pool)).collect(),
            objects: self.objects(),
            draining: self
                .elsewhere
                .by_process()
                .into_iter()
                .map(|(process, connections)| view::Draining { process, connections })
                .collect(),
            objects_stale_since: self.stale_since(),
            objects_denied: self.objects.load().denied(),
        }
    }

    fn objects(&self) -> Vec<view::Object> {
        self.objects.load_full().objects().to_vec()
    }

    fn connections(&self, filter: &view::ConnectionFilter) -> Vec<view::Connection> {
        self.refresh();
        let mut found: Vec<_> = self.gateway.books.ledger.read(|connections| {
            let wanted = |c: &&Arc<Connection>| filter.matches(Some(c.route.name()), c.sni.as_deref());
            connections.filter(wanted).cloned().collect()
        });
        found.sort_by_key(|connection| connection.id);
        let now = now_ms();
        found.iter().map(|connection| connection_view(connection, now)).collect()
    }

    fn scrape(&self) -> view::Scrape {
        let snapshot = self.gateway.snapshot.load_full();
        let bytes = snapshot.routes.iter().zip(self.bytes(&snapshot));
        let bytes = bytes.map(|(route, (bytes_in, bytes_out))| view::RouteBytes {
            route: route.name().to_owned(),
            bytes_in,
            bytes_out,
        });
        let routes = || snapshot.routes.iter();
        view::Scrape {
            connections: routes()
                .flat_map(|route| {
                    Tier::ALL.iter().map(|tier| view::RouteTier {
                        listener: route.listener().to_owned(),
                        route: route.name().to_owned(),
                        tier: *tier,
                        count: count(&route.stats.counts().tiers[*tier as usize]),
                    })
                })
                .collect(),
            bytes: bytes.collect(),
            rejects: snapshot
                .listeners
                .iter()
                .flat_map(|l| {
                    let count = |r: &RejectReason| (l.name.to_string(), *r, l.stats.rejects.get(*r as usize));
                    RejectReason::ALL.iter().map(count)
                })
                .collect(),
            ech: snapshot
                .listeners
                .iter()
                .filter(|listener| listener.ech.is_some())
                .flat_map(|listener| {
                    let count = |result: &EchResult| {
                        (listener.name.to_string(), *result, listener.stats.ech.get(*result as usize))
                    };
                    EchResult::ALL.iter().map(count)
                })
                .collect(),
            odd_names: snapshot
                .listeners
                .iter()
                .flat_map(|l| {
                    let count = |o: &OddName| (l.name.to_string(), *o, l.stats.odd_names.get(*o as usize));
                    OddName::ALL.iter().map(count)
                })
                .collect(),
            clients_forgotten: clients_forgotten(&snapshot),
            closes: routes()
                .flat_map(|route| {
                    let stats = route.stats.counts();
                    let count =
                        |r: &CloseReason| (route.name().to_owned(), *r, stats.closes.get(*r as usize));
                    let shown = |reason, count| count > 0 || ALWAYS_SHOWN.contains(&reason);
                    CloseReason::ALL
                        .iter()
                        .map(count)
                        .filter(move |(_, reason, count)| shown(*reason, *count))
                })
                .collect(),
            tls_errors: routes()
                .flat_map(|route| {
                    let errors = occurred(&route.stats.counts().tls_errors).into_iter();
                    errors.map(|(error, count)| (route.name().to_owned(), error, count))
                })
                .collect(),
            requests: routes().filter_map(|route| requests_of(route)).collect(),
            fallbacks: FallbackReason::ALL
                .iter()
                .map(|r| (*r, self.gateway.books.stats.fallbacks.get(*r as usize)))
                .collect(),
            servers: snapshot.pools.iter().flat_map(servers_up).collect(),
            objects: admin::counted(self.objects.load().objects()),
            waiting: snapshot
                .pools
                .iter()
                .filter(|pool| pool.most_waiting() > 0)
                .map(|pool| (pool.name.to_string(), pool.room().waiting() as u64))
                .collect(),
            reloads_succeeded: self.gateway.books.stats.reloads_succeeded.load(Relaxed),
            reloads_failed: self.gateway.books.stats.reloads_failed.load(Relaxed),
            certificates: expiries(&snapshot, |terminator| Some(terminator.not_after())),
            crls: expiries(&snapshot, Terminator::crl_expiry),
            sniff: self.gateway.books.histograms.sniff.snapshot(),
            connect: self.gateway.books.histograms.connect.snapshot(),
            handover: self.gateway.books.histograms.handover.snapshot(),
            packets: self.gateway.packet().ok().map(|packet| packet_counts(packet)),
            flow_table: self.gateway.packet().ok().map(|packet| view::FlowTable {
                entries: packet.entries(),
                capacity: packet.kernel().capacity().into(),
            }),
        }
    }

    fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        if self.stopping.load(Relaxed) {
            return Err(vec!["the gateway is stopping".into()]);
        }
        let snapshot = self.gateway.snapshot.load();
        // Services without endpoints are none of the gateway's own.
        let empty = snapshot.pools.iter().filter(|pool| !pool.is_available() && pool.may_have_servers());
        let mut reasons = self.objects.load().unready();
        reasons.extend(empty.map(|pool| unavailable(pool)));
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let is_loading = self.gateway.packet().is_ok_and(|packet| packet.state() == PacketTierState::Loading);
        let loading = is_loading
            .then(|| "the packet tier is loading: until it is there, connections use the next tier".into());
        let stale = |since: String| format!("the API server does not answer: objects are those of {since}");
        let stale = self.stale_since().map(stale);
        Ok(loading.into_iter().chain(stale).chain(self.objects.load().denied()).collect())
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<view::Reloaded, String>> + Send>> {
        let (answer, answered) = oneshot::channel();
        let asked = self.reloads.send(answer);
        Box::pin(async move {
            let stopping = || super::Fault::Stopping.to_string();
            asked.map_err(|_| stopping())?;
            answered.await.map_err(|_| stopping())?
        })
    }

    fn drain(&self, target: &str, draining: bool) -> Result<(), String> {
        let snapshot = self.gateway.snapshot.load_full();
        let (name, server) = drained::parts(target);
        let pool = snapshot.pools.iter().find(|pool| &*pool.name == name);
        let pool = pool.ok_or_else(|| format!("there is no pool {name:?}"))?;
        let address = server.map(|server| {
            pool.find(server).ok_or_else(|| format!("pool {} has no server {server:?}", pool.name))
        });
        if !pool.drain(address.transpose()?.as_ref(), draining) {
            return Err(format!("{target} stays drained, for its pool is: `snisplice undrain {name}`"));
        }
        drained::save(&self.state_dir, &snapshot)
            .map_err(|error| format!("done, but the next start will not know of it: {error}"))
    }

    fn kill(&self, connection: u64) -> Result<(), String> {
        let found = self
            .gateway
            .books
            .ledger
            .read(|mut connections| connections.find(|c| c.id == connection).cloned());
        let found = found.ok_or_else(|| format!("there is no connection {connection}"))?;
        self.gateway.end(&found, CloseReason::Killed);
        Ok(())
    }

    fn take_over(&self, successor: UnixStream) {
        // An error: this process is about to end, and the other one sees that.
        let _ = self.successors.send(successor);
    }
}

impl Snapshot {
    /// The answer to a reload: how many listeners, routes and pools there are.
    pub(super) fn reloaded(&self, warnings: Vec<String>) -> view::Reloaded {
        view::Reloaded {
            config_generation: self.generation,
            listeners: self.listeners.len(),
            routes: self.routes.len(),
            pools: self.pools.len(),
            warnings,
        }
    }
}

fn bytes_of(stats: &RouteStats, live: &LiveBytes) -> (u64, u64) {
    let ended = stats.counts();
    let live = live.get(&ptr::from_ref(ended)).copied().unwrap_or_default();
    (ended.bytes_in.load(Relaxed) + live.0, ended.bytes_out.load(Relaxed) + live.1)
}

fn listener_view(listener: &Listener) -> view::Listener {
    view::Listener {
        name: listener.name.to_string(),
        bind: listener.bind.iter().map(SocketAddr::to_string).collect(),
        active: listener.stats.live.active() as u64,
        total: listener.stats.total.load(Relaxed),
        rejects: by_name(RejectReason::ALL, |r| r.name(), &listener.stats.rejects),
        odd_names: by_name(OddName::ALL, |o| o.name(), &listener.stats.odd_names),
        mysql: listener.mysql.as_ref().and_then(|reception| reception.announcement(&listener.name)).map(
            |announcement| view::MysqlGreeting {
                version: announcement.version.escape_ascii().to_string(),
                mixed_families: announcement.mixed,
            },
        ),
    }
}

fn seconds_since(ms: u64) -> f64 {
    now_ms().saturating_sub(ms) as f64 / 1000.0
}

fn pool_view(pool: &Pool) -> view::Pool {
    let server = |server: &Arc<Server>| {
        let Availability { state, reason, since_ms } = server.availability();
        view::Server {
            address: server.address.to_string(),
            state,
            reason: reason.map(|reason| reason.name().into()),
            state_seconds: seconds_since(since_ms),
            active: server.state.active.load(Relaxed) as u64,
            total: server.state.total.load(Relaxed),
        }
    };
    let mut servers: Vec<_> = pool.servers().iter().map(server).collect();
    // A service without servers is shown itself.
    servers.extend(pool.services().into_iter().filter(|service| !service.has_servers).map(|service| {
        view::Server {
            address: service.origin().to_string(),
            state: ServerState::Unresolved,
            reason: None,
            state_seconds: uptime_ms() as f64 / 1000.0,
            active: 0,
            total: 0,
        }
    }));
    view::Pool { name: pool.name.to_string(), waiting: pool.room().waiting() as u64, servers }
}

fn servers_up(pool: &Arc<Pool>) -> Vec<view::ServerUp> {
    let up = |server: &Arc<Server>| view::ServerUp {
        pool: pool.name.to_string(),
        server: server.address.to_string(),
        up: server.availability().state == ServerState::Up,
        checks: if pool.health.is_some() { checks(server) } else { Vec::new() },
        tls_errors: occurred(&server.state.tls_errors),
    };
    let services = pool.services().into_iter().filter(|service| !service.has_servers);
    let absent = services.map(|service| view::ServerUp {
        pool: pool.name.to_string(),
        server: service.origin().to_string(),
        up: false,
        checks: Vec::new(),
        tls_errors: Vec::new(),
    });
    pool.servers().iter().map(up).chain(absent).collect()
}

/// Why TLS failed, and how often.
fn occurred(errors: &PerReason<{ TlsError::ALL.len() }>) -> Vec<(TlsError, u64)> {
    let count = |error: &TlsError| (*error, errors.get(*error as usize));
    TlsError::ALL.iter().map(count).filter(|(_, count)| *count > 0).collect()
}

/// Requests of HTTP, if it has had any.
fn requests_of(route: &Route) -> Option<view::RouteRequests> {
    const CODES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
    let counts = route.stats.counts().http()?;
    let by_code = CODES.into_iter().zip(&counts.by_class).map(|(code, count)| (code, count.load(Relaxed)));
    let answers = HttpAnswer::ALL.iter().map(|reason| (*reason, counts.answers.get(*reason as usize)));
    Some(view::RouteRequests {
        route: route.name().to_owned(),
        by_code: by_code.filter(|(_, count)| *count > 0).collect(),
        answers: answers.filter(|(_, count)| *count > 0).collect(),
        seconds: counts.seconds.snapshot(),
    })
}

/// Those that passed, be there none, and those that failed, by reason.
fn checks(server: &Server) -> Vec<(&'static str, u32)> {
    let name = |reason: Option<DownReason>| reason.map_or("ok", DownReason::name);
    let checks = server.state.health.checks().filter(|(reason, n)| reason.is_none() || *n > 0);
    checks.map(|(reason, n)| (name(reason), n)).collect()
}

/// Why a pool has no server, by what its servers are.
fn unavailable(pool: &Pool) -> String {
    let mut states = BTreeMap::new();
    for server in pool_view(pool).servers {
        let state = server.reason.map_or(server.state.name().into(), |reason| format!("down, {reason}"));
        *states.entry(state).or_insert(0) += 1;
    }
    let states: Vec<_> = states.into_iter().map(|(state, n)| format!("{n} {state}")).collect();
    format!("pool {} has no usable server: {}", pool.name, states.join("; "))
}

fn connection_view(connection: &Connection, now: u64) -> view::Connection {
    let upstream = connection.upstream.get();
    let choice = connection.choice();
    let seconds_since = |ms: u64| now.saturating_sub(ms) as f64 / 1000.0;
    view::Connection {
        id: connection.id,
        client: connection.client,
        listener: connection.listener.name.to_string(),
        sni: connection.sni.as_deref().map(Into::into),
        route: Some(connection.route.name().to_owned()),
        pool: upstream.map(|(pool, _)| pool.name.to_string()),
        server: upstream.map(|(_, server)| server.address.to_string()),
        tier: choice.map(|choice| choice.tier.name().into()),
        tier_reason: choice.and_then(|choice| choice.reason).map(|reason| reason.name().into()),
        bytes_in: connection.traffic.bytes_in.load(Relaxed),
        bytes_out: connection.traffic.bytes_out.load(Relaxed),
        age_seconds: seconds_since(connection.opened_ms),
        idle_seconds: seconds_since(connection.traffic.active_ms.load(Relaxed)),
    }
}

/// By listener, those of its routes included; of those that have a limit of clients.
fn clients_forgotten(snapshot: &Snapshot) -> Vec<(String, u64)> {
    let of_listeners = snapshot.listeners.iter().flat_map(|listener| {
        let openings = listener.ech.as_ref().map(|ech| &ech.openings);
        [listener.clients.as_ref(), openings].map(|limit| (&*listener.name, limit))
    });
    let of_routes = snapshot.routes.iter().map(|route| (route.listener(), route.clients()));
    let mut forgotten = BTreeMap::<&str, u64>::new();
    for (listener, limit) in of_listeners.chain(of_routes) {
        if let Some(limit) = limit {
            *forgotten.entry(listener).or_default() += limit.forgotten();
        }
    }
    forgotten.into_iter().map(|(listener, number)| (listener.to_owned(), number)).collect()
}

/// What expires of each terminated route that has it, and when.
fn expiries(snapshot: &Snapshot, of: impl Fn(&Terminator) -> Option<u64>) -> Vec<(String, i64)> {
    let expiry = |route: &Arc<Route>| {
        let expiry = of(route.terminator()?)?;
        Some((route.name().to_owned(), i64::try_from(expiry).unwrap_or(i64::MAX)))
    };
    snapshot.routes.iter().filter_map(expiry).collect()
}

fn packet_counts(packet: &PacketTier) -> view::PacketCounts {
    let named = |drops: bool| {
        let counts = packet.kernel().counts().into_iter();
        counts.filter(move |(what, _)| what.is_drop() == drops).map(|(what, n)| (what.name(), n))
    };
    let lost = Loss::ALL.map(|loss| (loss.name(), packet.losses().get(loss)));
    view::PacketCounts { drops: named(true).chain(lost).collect(), notes: named(false).collect() }
}

fn count(stats: &TierStats) -> view::Count {
    view::Count { active: stats.active.load(Relaxed), total: stats.total.load(Relaxed) }
}

/// The counts of the reasons that have occurred, by name. `all[i]` has index `i`.
fn by_name<R, const N: usize>(
    all: &[R],
    name: impl Fn(&R) -> &'static str,
    counts: &PerReason<N>,
) -> BTreeMap<String, u64> {
    let counted = all.iter().enumerate().map(|(index, reason)| (name(reason).to_string(), counts.get(index)));
    counted.filter(|(_, count)| *count > 0).collect()
}
