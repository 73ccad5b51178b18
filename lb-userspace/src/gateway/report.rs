//! What operators see: the snapshot and the counters, as the admin side's views.

use super::{Gateway, drained};
use crate::account::Connection;
use crate::admin::{self, view};
use crate::clock::{now_ms, uptime_ms};

use crate::reason::{CloseReason, FallbackReason, OddName, RejectReason, Tier, TlsError};
use crate::serving::{Action, Listener, PerReason, Pool, Route, RouteStats, Server, Snapshot, TierStats};
use crate::splice::packet::{Loss, PacketTier};
use crate::state::ServerState;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::oneshot;

/// Bytes of live connections, client to server and back, by the counters of their route.
type LiveBytes = HashMap<*const RouteStats, (u64, u64)>;

/// The close reasons that every route shows in `/metrics` from the start, with zeros, so that the first one is a growth that
/// `rate()` sees: the ordinary ends, and those that alerts are for. The others are shown once they have occurred: all of
/// them would be two thirds of a scrape, 1.7 million samples for 100 000 routes, most of them zeros for ever.
const ALWAYS_SHOWN: [CloseReason; 7] = [
    CloseReason::ClientClosed,
    CloseReason::ServerClosed,
    CloseReason::ServerReset,
    CloseReason::NoServer,
    CloseReason::ConnectFailed,
    CloseReason::ConnectTimeout,
    CloseReason::TlsHandshakeFailed,
];

impl Gateway {
    /// Calls `read` with the bytes of the live connections while none of them can end, so that its sums with the
    /// routes' counters count every byte once.
    fn with_live_bytes<R>(&self, read: impl FnOnce(&LiveBytes) -> R) -> R {
        self.refresh();
        self.books.ledger.read(|connections| {
            let mut live = LiveBytes::new();
            for connection in connections {
                let bytes = live.entry(Arc::as_ptr(&connection.route.stats)).or_default();
                bytes.0 += connection.traffic.bytes_in.load(Relaxed);
                bytes.1 += connection.traffic.bytes_out.load(Relaxed);
            }
            read(&live)
        })
    }

    /// Asks the connections whose bytes the kernel moves to note them. They do so when their workers next run:
    /// this look may still see the count of the one before.
    fn refresh(&self) {
        if let Ok(packet) = self.packet() {
            packet.refresh();
        }
        if let Some(sockmap) = self.sockmap() {
            sockmap.refresh();
        }
    }

    /// Resets a connection, in whatever tier it is.
    pub(super) fn end(&self, connection: &Connection, reason: CloseReason) {
        connection.end(reason);
        if let Ok(packet) = self.packet() {
            packet.end(connection.id, reason);
        }
    }
}

impl admin::Gateway for Gateway {
    fn status(&self) -> view::Status {
        let snapshot = self.snapshot.load_full();
        let routes = self.with_live_bytes(|live| {
            let route = |route: &Arc<Route>| {
                let bytes = bytes_of(&route.stats, live);
                view::Route {
                    name: route.name.to_string(),
                    listener: route.listener.to_string(),
                    sni: route.sni.iter().map(ToString::to_string).collect(),
                    pools: route.pools().map(|pool| pool.name.to_string()).collect(),
                    active: route.stats.live.active() as u64,
                    total: route.stats.total.load(Relaxed),
                    bytes_in: bytes.0,
                    bytes_out: bytes.1,
                }
            };
            snapshot.routes.iter().map(route).collect()
        });
        view::Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: uptime_ms() as f64 / 1000.0,
            workers: self.workers,
            config_generation: snapshot.generation,
            tiers: view::Tiers {
                packet: count(&self.books.stats.tiers[Tier::Packet as usize]),
                sockmap: count(&self.books.stats.tiers[Tier::Sockmap as usize]),
                copy: count(&self.books.stats.tiers[Tier::Copy as usize]),
            },
            tier_fallbacks: by_name(FallbackReason::ALL, |r| r.name(), &self.books.stats.fallbacks),
            packet: self
                .packet()
                .ok()
                .map(|packet| view::PacketTier::new(packet.state(), packet_counts(packet))),
            listeners: snapshot.listeners.iter().map(|listener| listener_view(listener)).collect(),
            routes,
            pools: snapshot.pools.iter().map(|pool| pool_view(pool)).collect(),
        }
    }

    fn connections(&self, filter: &view::ConnectionFilter) -> Vec<view::Connection> {
        self.refresh();
        let mut found: Vec<_> = self.books.ledger.read(|connections| {
            let wanted = |c: &&Arc<Connection>| filter.matches(Some(&c.route.name), c.sni.as_deref());
            connections.filter(wanted).cloned().collect()
        });
        found.sort_by_key(|connection| connection.id);
        let now = now_ms();
        found.iter().map(|connection| connection_view(connection, now)).collect()
    }

    fn scrape(&self) -> view::Scrape {
        let snapshot = self.snapshot.load_full();
        let bytes = self.with_live_bytes(|live| {
            let bytes = |route: &Arc<Route>| {
                let (bytes_in, bytes_out) = bytes_of(&route.stats, live);
                view::RouteBytes { route: route.name.to_string(), bytes_in, bytes_out }
            };
            snapshot.routes.iter().map(bytes).collect()
        });
        let routes = || snapshot.routes.iter();
        view::Scrape {
            connections: routes()
                .flat_map(|route| {
                    Tier::ALL.iter().map(|tier| view::RouteTier {
                        listener: route.listener.to_string(),
                        route: route.name.to_string(),
                        tier: *tier,
                        count: count(&route.stats.tiers[*tier as usize]),
                    })
                })
                .collect(),
            bytes,
            rejects: snapshot
                .listeners
                .iter()
                .flat_map(|l| {
                    let count = |r: &RejectReason| (l.name.to_string(), *r, l.stats.rejects.get(*r as usize));
                    RejectReason::ALL.iter().map(count)
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
            closes: routes()
                .flat_map(|route| {
                    let stats = &route.stats;
                    let count = |r: &CloseReason| (route.name.to_string(), *r, stats.closes.get(*r as usize));
                    let shown = |reason, count| count > 0 || ALWAYS_SHOWN.contains(&reason);
                    CloseReason::ALL
                        .iter()
                        .map(count)
                        .filter(move |(_, reason, count)| shown(*reason, *count))
                })
                .collect(),
            tls_errors: routes()
                .flat_map(|route| {
                    let stats = &route.stats;
                    let count =
                        |e: &TlsError| (route.name.to_string(), *e, stats.tls_errors.get(*e as usize));
                    TlsError::ALL.iter().map(count).filter(|(_, _, count)| *count > 0)
                })
                .collect(),
            fallbacks: FallbackReason::ALL
                .iter()
                .map(|r| (*r, self.books.stats.fallbacks.get(*r as usize)))
                .collect(),
            servers: snapshot
                .pools
                .iter()
                .flat_map(|pool| {
                    pool_view(pool).servers.into_iter().map(|server| view::ServerUp {
                        pool: pool.name.to_string(),
                        server: server.address,
                        up: server.state == ServerState::Up,
                    })
                })
                .collect(),
            reloads_succeeded: self.books.stats.reloads_succeeded.load(Relaxed),
            reloads_failed: self.books.stats.reloads_failed.load(Relaxed),
            certificates: routes()
                .filter_map(|route| {
                    let Action::Terminate(terminator) = &route.action else { return None };
                    let expiry = terminator.not_after();
                    Some((route.name.to_string(), i64::try_from(expiry).unwrap_or(i64::MAX)))
                })
                .collect(),
            sniff: self.books.histograms.sniff.snapshot(),
            connect: self.books.histograms.connect.snapshot(),
            handover: self.books.histograms.handover.snapshot(),
            packets: self.packet().ok().map(|packet| packet_counts(packet)),
            flow_table: self.packet().ok().map(|packet| view::FlowTable {
                entries: packet.entries(),
                capacity: packet.kernel().capacity().into(),
            }),
        }
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        if self.stopping.load(Relaxed) {
            return Err(vec!["the gateway is stopping".into()]);
        }
        let snapshot = self.snapshot.load();
        let empty = snapshot.pools.iter().filter(|pool| !pool.servers().iter().any(|server| server.usable()));
        let reasons: Vec<_> = empty.map(|pool| format!("pool {} has no usable server", pool.name)).collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
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
        let snapshot = self.snapshot.load_full();
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
        let found =
            self.books.ledger.read(|mut connections| connections.find(|c| c.id == connection).cloned());
        let found = found.ok_or_else(|| format!("there is no connection {connection}"))?;
        self.end(&found, CloseReason::Killed);
        Ok(())
    }
}

impl Snapshot {
    /// How many of each there are, for the answer to a reload.
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

fn bytes_of(stats: &Arc<RouteStats>, live: &LiveBytes) -> (u64, u64) {
    let live = live.get(&Arc::as_ptr(stats)).copied().unwrap_or_default();
    (stats.bytes_in.load(Relaxed) + live.0, stats.bytes_out.load(Relaxed) + live.1)
}

fn listener_view(listener: &Listener) -> view::Listener {
    view::Listener {
        name: listener.name.to_string(),
        bind: listener.bind.iter().map(SocketAddr::to_string).collect(),
        active: listener.stats.live.active() as u64,
        total: listener.stats.total.load(Relaxed),
        rejects: by_name(RejectReason::ALL, |r| r.name(), &listener.stats.rejects),
        odd_names: by_name(OddName::ALL, |o| o.name(), &listener.stats.odd_names),
    }
}

fn pool_view(pool: &Pool) -> view::Pool {
    let server = |server: &Arc<Server>| view::Server {
        address: server.address.to_string(),
        state: server.availability(),
        active: server.state.active.load(Relaxed) as u64,
        total: server.state.total.load(Relaxed),
    };
    let mut servers: Vec<_> = pool.servers().iter().map(server).collect();
    // One that DNS has no servers of stands for itself.
    servers.extend(pool.services().into_iter().filter(|service| !service.has_servers).map(|service| {
        view::Server {
            address: service.origin().to_string(),
            state: ServerState::Unresolved,
            active: 0,
            total: 0,
        }
    }));
    view::Pool { name: pool.name.to_string(), servers }
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
        route: Some(connection.route.name.to_string()),
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

/// The reasons that have occurred, with their counts. `all[i]` has index `i`.
fn by_name<R, const N: usize>(
    all: &[R],
    name: impl Fn(&R) -> &'static str,
    counts: &PerReason<N>,
) -> BTreeMap<String, u64> {
    let counted = all.iter().enumerate().map(|(index, reason)| (name(reason).to_string(), counts.get(index)));
    counted.filter(|(_, count)| *count > 0).collect()
}
