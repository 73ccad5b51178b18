//! A gateway with two routes and three connections, for the tests of this module.

use super::Operations;
use super::view::*;
use crate::histogram::Histogram;
use crate::reason::{
    CloseReason, EchResult, FallbackReason, HttpAnswer, OddName, RejectReason, Tier, TlsError,
};
use crate::state::{PacketTierState, ServerState};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::UnixStream;

/// Answers always alike.
pub(crate) struct Fake {
    /// The first route's name.
    pub(crate) route_name: String,
    pub(crate) not_ready: Vec<String>,
    pub(crate) packets: Option<PacketCounts>,
    pub(crate) flow_table: Option<FlowTable>,
}

impl Default for Fake {
    fn default() -> Self {
        let packets = PacketCounts {
            drops: vec![("reset_outside", 7), ("syn_late", 0)],
            notes: vec![("handshake_sighted", 2400)],
        };
        Self { route_name: "redis-1".into(), not_ready: vec![], packets: Some(packets), flow_table: None }
    }
}

impl Operations for Fake {
    fn status(&self) -> Status {
        status()
    }

    fn objects(&self) -> Vec<Object> {
        Vec::new()
    }

    fn connections(&self, filter: &ConnectionFilter) -> Vec<Connection> {
        let matches = |c: &Connection| filter.matches(c.route.as_deref(), c.sni.as_deref());
        connections().into_iter().filter(matches).collect()
    }

    fn scrape(&self) -> Scrape {
        let route = || self.route_name.clone();
        let sniff = Histogram::new();
        for us in [90, 200, 200, 30_000_000] {
            sniff.observe(Duration::from_micros(us));
        }
        let count = Count { active: 2, total: 10 };
        Scrape {
            connections: vec![RouteTier {
                listener: "databases".into(),
                route: route(),
                tier: Tier::Copy,
                count,
            }],
            bytes: vec![RouteBytes { route: route(), bytes_in: 1, bytes_out: 2 }],
            rejects: vec![("databases".into(), RejectReason::UnknownSni, 1)],
            odd_names: vec![("databases".into(), OddName::IpAddress, 3)],
            clients_forgotten: vec![("databases".into(), 4)],
            ech: vec![("databases".into(), EchResult::Accepted, 5)],
            closes: vec![(route(), CloseReason::ClientClosed, 8)],
            tls_errors: vec![(route(), TlsError::UnknownCa, 2)],
            requests: vec![RouteRequests {
                route: route(),
                by_code: vec![("2xx", 7), ("4xx", 1)],
                answers: vec![(HttpAnswer::NoRule, 1)],
                seconds: sniff.snapshot(),
            }],
            fallbacks: vec![(FallbackReason::PacketUnavailable, 10)],
            servers: vec![
                ServerUp {
                    pool: "redis-1".into(),
                    server: "10.0.0.11:6379".into(),
                    up: true,
                    checks: vec![("ok", 9)],
                    tls_errors: vec![],
                },
                ServerUp {
                    pool: "redis-1".into(),
                    server: "10.0.0.12:6379".into(),
                    up: false,
                    checks: vec![("ok", 0), ("refused", 3)],
                    tls_errors: vec![(TlsError::CertificateExpired, 6)],
                },
            ],
            waiting: vec![("redis-1".into(), 2)],
            objects: vec![("TLSRoute".into(), "Accepted".into(), 3)],
            reloads_succeeded: 2,
            reloads_failed: 1,
            certificates: vec![(route(), 1_900_000_000)],
            crls: vec![(route(), 1_800_000_000)],
            sniff: sniff.snapshot(),
            connect: Histogram::new().snapshot(),
            handover: Histogram::new().snapshot(),
            packets: self.packets.clone(),
            flow_table: self.flow_table,
        }
    }

    fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        if self.not_ready.is_empty() { Ok(Vec::new()) } else { Err(self.not_ready.clone()) }
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send>> {
        let reloaded = Reloaded { config_generation: 4, listeners: 1, routes: 2, pools: 2, warnings: vec![] };
        Box::pin(async { Ok(reloaded) })
    }

    fn drain(&self, server: &str, _draining: bool) -> Result<(), String> {
        if server == "redis-1/10.0.0.11:6379" { Ok(()) } else { Err(format!("no server {server}")) }
    }

    fn kill(&self, connection: u64) -> Result<(), String> {
        if connection == 1 { Ok(()) } else { Err(format!("no connection {connection}")) }
    }

    fn take_over(&self, _successor: UnixStream) {}
}

/// What [`Fake`] says.
pub(crate) fn status() -> Status {
    let server = |address: &str, state, active, total| Server {
        address: address.into(),
        state,
        reason: (state == ServerState::Down).then(|| "refused".into()),
        state_seconds: 93.5,
        active,
        total,
    };
    let route = |name: &str, sni: &str, active, total, bytes_in, bytes_out| Route {
        name: name.into(),
        listener: "databases".into(),
        sni: vec![sni.into()],
        pools: vec![name.into()],
        active,
        total,
        bytes_in,
        bytes_out,
    };
    Status {
        objects: Vec::new(),
        objects_stale_since: None,
        objects_denied: Vec::new(),
        draining: Vec::new(),
        version: "0.1.0".into(),
        uptime_seconds: 7384.5,
        workers: 2,
        config_generation: 3,
        tiers: Tiers { copy: Count { active: 3, total: 1234 }, ..Tiers::default() },
        tier_fallbacks: [("packet_unavailable".into(), 1200), ("tls_terminated".into(), 34)].into(),
        packet: Some(PacketTier {
            state: PacketTierState::Ready,
            drops: [("reset_outside".into(), 7), ("syn_late".into(), 1)].into(),
            notes: [("handshake_sighted".into(), 2400)].into(),
        }),
        listeners: vec![Listener {
            name: "databases".into(),
            bind: vec!["0.0.0.0:443".into(), "[::]:443".into()],
            active: 3,
            total: 1241,
            rejects: [("not_tls".into(), 2), ("unknown_sni".into(), 5)].into(),
            odd_names: [("ip_address".into(), 3)].into(),
            mysql: None,
        }],
        routes: vec![
            route("redis-1", "app1.redis.example.com", 2, 1200, 1536, 5_368_709_120),
            route("pg", "*.pg.example.com", 1, 34, 999, 0),
        ],
        pools: vec![
            Pool {
                name: "redis-1".into(),
                waiting: 0,
                servers: vec![
                    server("10.0.0.11:6379", ServerState::Up, 2, 1200),
                    server("10.0.0.12:6379", ServerState::Down, 0, 0),
                ],
            },
            Pool {
                name: "pg".into(),
                waiting: 0,
                servers: vec![server("pg.internal:5432", ServerState::Draining, 1, 34)],
            },
        ],
    }
}

/// What [`Fake`] says when nothing is filtered: one connection as usual, one terminated, one not routed yet.
pub(crate) fn connections() -> Vec<Connection> {
    let some = |text: &str| Some(text.to_owned());
    let usual = Connection {
        id: 1,
        client: "192.0.2.7:50123".parse().unwrap(),
        listener: "databases".into(),
        sni: some("app1.redis.example.com"),
        route: some("redis-1"),
        pool: some("redis-1"),
        server: some("10.0.0.11:6379"),
        tier: some("copy"),
        tier_reason: some("packet_unavailable"),
        bytes_in: 1536,
        bytes_out: 5_368_709_120,
        age_seconds: 93784.0,
        idle_seconds: 0.25,
    };
    let terminated = Connection {
        id: 4_294_967_298,
        client: "[2001:db8::1]:40000".parse().unwrap(),
        sni: some("a.pg.example.com"),
        route: some("pg"),
        pool: some("pg"),
        server: some("pg.internal:5432"),
        tier_reason: some("tls_terminated"),
        bytes_in: 999,
        bytes_out: 0,
        age_seconds: 61.0,
        idle_seconds: 61.0,
        ..usual.clone()
    };
    let sniffing = Connection {
        id: 3,
        client: "192.0.2.8:1024".parse().unwrap(),
        listener: "databases".into(),
        sni: None,
        route: None,
        pool: None,
        server: None,
        tier: None,
        tier_reason: None,
        bytes_in: 0,
        bytes_out: 0,
        age_seconds: 0.0,
        idle_seconds: 0.0,
    };
    vec![usual, terminated, sniffing]
}

/// A directory of one test, removed on drop.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("snisplice-admin-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}
