//! What operators see of a gateway: the types behind `status --json`, `connections --json` and `/metrics`.
//!
//! The JSON names are an interface; `docs/admin.md` describes them. A field may be added, none may change.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::histogram::HistogramSnapshot;
use crate::reason::{
    CloseReason, EchResult, FallbackReason, HttpAnswer, OddName, RejectReason, Tier, TlsError,
};
use crate::state::{PacketTierState, ServerState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// `status --json`. Totals count since the process started and survive a reload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Since the process started.
    pub uptime_seconds: f64,
    /// Worker threads, one listening socket each.
    pub workers: usize,
    /// 1 for the configuration the process started with, one more for each successful reload.
    pub config_generation: u64,
    /// Connections by where their bytes flow.
    pub tiers: Tiers,
    /// Why connections did not get an earlier tier: reason to connections.
    pub tier_fallbacks: BTreeMap<String, u64>,
    /// The packet tier; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<PacketTier>,
    /// In the order of the configuration.
    pub listeners: Vec<Listener>,
    /// In the order of the configuration.
    pub routes: Vec<Route>,
    /// In the order of the configuration.
    pub pools: Vec<Pool>,
    /// Of the Gateway API; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<Object>,
    /// Processes before this one that still carry connections; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<Draining>,
    /// Since when they are not those of the API server any more (RFC 3339): it does not answer. Absent: they are, or there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_stale_since: Option<String>,
    /// What the API server does not let this gateway watch, and what follows from it, in words; absent where there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects_denied: Vec<String>,
}

/// A process that was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Its process id, in its own namespace.
    pub process: u32,
    /// Those that it still carries.
    pub connections: usize,
}

/// An object of the Gateway API, or what was meant to be one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// `TLSRoute`; empty: that cannot be told.
    pub kind: String,
    /// Empty: of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// File and line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Why it is not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// As the API has it; absent for kinds without one, and for objects of other controllers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// Counts per tier; every tier is always listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiers {
    /// Forwarded packet by packet in the kernel.
    pub packet: Count,
    /// Moved from socket to socket in the kernel.
    pub sockmap: Count,
    /// Relayed by userspace, in TLS records that the kernel makes. Absent in an earlier version.
    #[serde(default)]
    pub ktls: Count,
    /// Relayed by userspace.
    pub copy: Count,
}

impl Tiers {
    /// With their names, in order of preference.
    pub fn named(&self) -> [(&'static str, Count); 4] {
        [
            (Tier::Packet.name(), self.packet),
            (Tier::Sockmap.name(), self.sockmap),
            (Tier::Ktls.name(), self.ktls),
            (Tier::Copy.name(), self.copy),
        ]
    }
}

/// The packet tier, and its counters of packets, by reason, if not 0. The programs' counters outlive the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketTier {
    /// Whether it takes new connections. Absent in an earlier version, whose programs are loaded before it serves.
    #[serde(default)]
    pub state: PacketTierState,
    /// Dropped: reason to packets.
    pub drops: BTreeMap<String, u64>,
    /// What else is worth a look: note to packets.
    pub notes: BTreeMap<String, u64>,
}

impl PacketTier {
    /// The tier with this state and these counts.
    pub fn new(state: PacketTierState, counts: PacketCounts) -> Self {
        let occurred = |counts: Vec<(&str, u64)>| {
            counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
        };
        Self { state, drops: occurred(counts.drops), notes: occurred(counts.notes) }
    }
}

/// Connections now, and ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Open now.
    pub active: u64,
    /// Since the process started, the open ones included.
    pub total: u64,
}

/// One `[[listener]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// The addresses it listens on.
    pub bind: Vec<String>,
    /// Accepted connections that are open now.
    pub active: u64,
    /// Accepted connections, the rejected ones included.
    pub total: u64,
    /// Clients turned away before they had a route: [`RejectReason`] to connections.
    pub rejects: BTreeMap<String, u64>,
    /// Clients whose server name is no DNS host name, with or without a route: [`OddName`] to connections.
    #[serde(default)]
    pub odd_names: BTreeMap<String, u64>,
    /// What MySQL's clients are greeted with; absent if that is not the protocol, or no server was heard yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mysql: Option<MysqlGreeting>,
}

/// What the clients of a MySQL listener are greeted with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MysqlGreeting {
    /// The version, escaped: text that a server has chosen, unless the listener names it.
    pub version: String,
    /// Servers of MySQL and of MariaDB are behind it, which some clients do not bear.
    pub mixed_families: bool,
}

/// One `[[route]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its name.
    pub name: String,
    /// The listener it belongs to.
    pub listener: String,
    /// The server names it covers, as configured; empty for a plain TCP listener.
    pub sni: Vec<String>,
    /// The pools it sends connections to.
    pub pools: Vec<String>,
    /// Open now.
    pub active: u64,
    /// Connections that were given this route.
    pub total: u64,
    /// Bytes from clients, those of open connections included.
    pub bytes_in: u64,
    /// Bytes to clients, those of open connections included.
    pub bytes_out: u64,
}

/// One `[[pool]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Connections that wait for a place with a server: each has as many as it may have.
    pub waiting: u64,
    /// In the order of the configuration.
    pub servers: Vec<Server>,
}

/// One server of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// As configured: `ADDRESS:PORT` or `NAME:PORT`.
    pub address: String,
    /// Whether it takes new connections.
    pub state: ServerState,
    /// Why it is [`ServerState::Down`]: a [`DownReason`](crate::reason::DownReason). `unchecked` also where it is up until
    /// its first check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since it is in this state.
    #[serde(default)]
    pub state_seconds: f64,
    /// Open now.
    pub active: u64,
    /// Connections that reached it.
    pub total: u64,
}

/// One element of `connections --json`. Every key is always there; `null` means not (yet) known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Unique among the live connections of this host; what `snisplice kill` takes.
    pub id: u64,
    /// The client, behind a trusted proxy the address that proxy announced.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: String,
    /// What the client asked for: text it chose.
    pub sni: Option<String>,
    /// Its route.
    pub route: Option<String>,
    /// The pool chosen.
    pub pool: Option<String>,
    /// The server chosen, as configured.
    pub server: Option<String>,
    /// Where its bytes flow.
    pub tier: Option<String>,
    /// Why not in an earlier tier.
    pub tier_reason: Option<String>,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Since it was accepted.
    pub age_seconds: f64,
    /// Since the last byte in either direction.
    pub idle_seconds: f64,
}

/// Which connections to list; an absent field matches all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionFilter {
    /// The route's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The server name the client sent, in any case, with or without a trailing dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
}

impl ConnectionFilter {
    /// Whether to list a connection with this route and this server name.
    pub fn matches(&self, route: Option<&str>, sni: Option<&str>) -> bool {
        let bare = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.route.as_deref().is_none_or(|wanted| route == Some(wanted))
            && self.sni.as_deref().is_none_or(|wanted| sni.map(bare) == Some(bare(wanted)))
    }
}

/// What a successful reload put in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// See [`Status::config_generation`].
    pub config_generation: u64,
    /// Listeners of the new configuration.
    pub listeners: usize,
    /// Routes of the new configuration.
    pub routes: usize,
    /// Pools of the new configuration.
    pub pools: usize,
    /// What the operator should know though the reload succeeded.
    pub warnings: Vec<String>,
}

/// Requests of HTTP of a route.
#[derive(Clone, Debug)]
pub struct RouteRequests {
    /// The route.
    pub route: String,
    /// By the class of the status of their answer (`2xx`), or `none`.
    pub by_code: Vec<(&'static str, u64)>,
    /// Those that the gateway has answered itself, or broken off.
    pub answers: Vec<(HttpAnswer, u64)>,
    /// From the head of the request to the end of the answer.
    pub seconds: HistogramSnapshot,
}

/// What `/metrics` shows. The names are those of the configuration: no text a client chose belongs here.
/// An entry with a zero is shown as a zero; what is not listed is not shown.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Connections per listener, route and tier.
    pub connections: Vec<RouteTier>,
    /// Bytes per route.
    pub bytes: Vec<RouteBytes>,
    /// Clients turned away, per listener.
    pub rejects: Vec<(String, RejectReason, u64)>,
    /// Clients whose server name is no DNS host name, per listener.
    pub odd_names: Vec<(String, OddName, u64)>,
    /// Clients that a `client_rate` has forgotten too early, per listener that has one, with its routes.
    pub clients_forgotten: Vec<(String, u64)>,
    /// What became of clients' Encrypted ClientHellos, on listeners with keys for it.
    pub ech: Vec<(String, EchResult, u64)>,
    /// Ended connections, per route.
    pub closes: Vec<(String, CloseReason, u64)>,
    /// Why TLS with clients failed, per route.
    pub tls_errors: Vec<(String, TlsError, u64)>,
    /// Of routes that have had requests of HTTP.
    pub requests: Vec<RouteRequests>,
    /// Connections that did not get an earlier tier.
    pub fallbacks: Vec<(FallbackReason, u64)>,
    /// Whether a server takes new connections.
    pub servers: Vec<ServerUp>,
    /// Of each pool whose servers have a `max_connections`: connections that wait for a place.
    pub waiting: Vec<(String, u64)>,
    /// Objects of the Gateway API by kind and by a condition that they have.
    pub objects: Vec<(String, String, u64)>,
    /// Reloads that put a new configuration in place.
    pub reloads_succeeded: u64,
    /// Reloads that changed nothing.
    pub reloads_failed: u64,
    /// When each terminated route's certificate expires, in seconds since 1970.
    pub certificates: Vec<(String, i64)>,
    /// When the first CRL of each route that has some expires, in seconds since 1970.
    pub crls: Vec<(String, i64)>,
    /// From accept to a whole ClientHello.
    pub sniff: HistogramSnapshot,
    /// From the first dial to a connected server.
    pub connect: HistogramSnapshot,
    /// From a known route to flows in the kernel.
    pub handover: HistogramSnapshot,
    /// Packets counted by the packet tier. Absent while no packet tier is loaded.
    pub packets: Option<PacketCounts>,
    /// Absent while no packet tier is loaded.
    pub flow_table: Option<FlowTable>,
}

/// Connections of one listener, route and tier.
#[derive(Clone, Debug)]
pub struct RouteTier {
    /// The listener's name.
    pub listener: String,
    /// The route's name.
    pub route: String,
    /// Where the bytes flow.
    pub tier: Tier,
    /// How many.
    pub count: Count,
}

/// Bytes of one route, those of open connections included.
#[derive(Clone, Debug)]
pub struct RouteBytes {
    /// The route's name.
    pub route: String,
    /// From clients.
    pub bytes_in: u64,
    /// To clients.
    pub bytes_out: u64,
}

/// One server for `snisplice_server_up`.
#[derive(Clone, Debug)]
pub struct ServerUp {
    /// The pool's name.
    pub pool: String,
    /// As configured.
    pub server: String,
    /// Whether it is [`ServerState::Up`].
    pub up: bool,
    /// Its health checks so far: `ok`, or a [`DownReason`](crate::reason::DownReason), and how many. Empty: it is not
    /// checked.
    pub checks: Vec<(&'static str, u32)>,
    /// Why TLS with it failed, and how often, if it did.
    pub tls_errors: Vec<(TlsError, u64)>,
}

/// What the packet tier counts, each with its number of packets.
#[derive(Clone, Debug, Default)]
pub struct PacketCounts {
    /// Reasons for a drop.
    pub drops: Vec<(&'static str, u64)>,
    /// What else is worth a look.
    pub notes: Vec<(&'static str, u64)>,
}

/// How full the packet tier's flow table is.
#[derive(Clone, Copy, Debug)]
pub struct FlowTable {
    /// Flows in it, two per connection.
    pub entries: u64,
    /// Flows it can hold.
    pub capacity: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;
    use serde_json::Value;
    use std::collections::BTreeSet;

    /// The example of the interface, word for word.
    const STATUS: &str = r#"
{ "version": "…", "uptime_seconds": 1.0,
  "tiers": { "packet": {"active": 2, "total": 10}, "sockmap": {"active": 0, "total": 0}, "copy": {"active": 0, "total": 1} },
  "tier_fallbacks": { "no_syn_seen": 1 },
  "listeners": [ {"name": "databases", "bind": ["0.0.0.0:443"], "active": 2, "total": 11, "rejects": {"unknown_sni": 1}} ],
  "routes": [ {"name": "redis-1", "active": 2, "total": 10, "bytes_in": 1, "bytes_out": 1} ],
  "pools": [ {"name": "redis-1", "servers": [ {"address": "10.0.0.11:6379", "state": "up", "active": 2, "total": 10} ]} ] }"#;

    /// What this program adds to the interface.
    const ADDED: [&str; 14] = [
        "config_generation",
        "listeners[].odd_names",
        "packet.drops",
        "packet.notes",
        "packet.state",
        "pools[].servers[].reason",
        "pools[].servers[].state_seconds",
        "pools[].waiting",
        "routes[].listener",
        "routes[].pools[]",
        "routes[].sni[]",
        "tiers.ktls.active",
        "tiers.ktls.total",
        "workers",
    ];

    /// From reason to count.
    const MAPS: [&str; 5] =
        ["tier_fallbacks", "listeners[].odd_names", "listeners[].rejects", "packet.drops", "packet.notes"];

    /// The keys of a document, as paths with the type of each leaf; the reason names in maps are data, not keys.
    fn shape(path: &str, value: &Value, into: &mut BTreeSet<(String, &'static str)>) {
        match value {
            Value::Object(map) if MAPS.contains(&path) => {
                assert!(map.values().all(Value::is_u64), "{path}: reason to count");
                into.insert((path.into(), "map"));
            }
            Value::Object(map) => {
                for (key, value) in map {
                    let dot = if path.is_empty() { "" } else { "." };
                    shape(&format!("{path}{dot}{key}"), value, into);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| shape(&format!("{path}[]"), item, into)),
            Value::String(_) => _ = into.insert((path.into(), "string")),
            Value::Number(n) if n.is_f64() => _ = into.insert((path.into(), "float")),
            Value::Number(_) => _ = into.insert((path.into(), "integer")),
            Value::Bool(_) => _ = into.insert((path.into(), "bool")),
            Value::Null => _ = into.insert((path.into(), "null")),
        }
    }

    #[test]
    fn status_has_the_keys_and_types_of_the_interface_and_the_documented_additions() {
        let (mut expected, mut actual) = (BTreeSet::new(), BTreeSet::new());
        shape("", &serde_json::from_str(STATUS).unwrap(), &mut expected);
        shape("", &serde_json::to_value(fake::status()).unwrap(), &mut actual);
        let missing: Vec<_> = expected.difference(&actual).collect();
        assert_eq!(missing, Vec::<&(String, &str)>::new());
        let added: Vec<_> = actual.difference(&expected).map(|(path, _)| path.as_str()).collect();
        assert_eq!(added, ADDED);
    }

    #[test]
    fn a_connection_has_the_keys_of_the_interface_whether_known_or_not() {
        let keys = "id, client, listener, sni, route, pool, server, tier, tier_reason,
                    bytes_in, bytes_out, age_seconds, idle_seconds";
        let expected: BTreeSet<&str> = keys.split(',').map(str::trim).collect();
        for connection in fake::connections() {
            let Value::Object(map) = serde_json::to_value(&connection).unwrap() else { panic!("an object") };
            assert_eq!(map.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
            assert!(map["id"].is_u64() && map["client"].is_string());
        }
    }

    #[test]
    fn both_documents_survive_a_round_trip() {
        let status = fake::status();
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        let connections = fake::connections();
        let text = serde_json::to_string(&connections).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Connection>>(&text).unwrap(), connections);
    }

    #[test]
    fn without_a_packet_tier_nothing_is_said_of_its_packets() {
        let status = Status { packet: None, ..fake::status() };
        let text = serde_json::to_string(&status).unwrap();
        assert!(!text.contains(r#""drops""#), "{text}");
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }

    #[test]
    fn of_packets_zeros_are_left_out() {
        let counts = PacketCounts {
            drops: vec![("reset_outside", 7), ("syn_late", 0)],
            notes: vec![("near", 0), ("handshake_sighted", 5)],
        };
        let packets = PacketTier::new(PacketTierState::Ready, counts);
        assert_eq!(packets.drops, [("reset_outside".into(), 7)].into());
        assert_eq!(packets.notes, [("handshake_sighted".into(), 5)].into());
    }

    #[test]
    fn a_server_state_is_named_alike_in_json_and_in_tables() {
        for state in [ServerState::Up, ServerState::Down, ServerState::Draining, ServerState::Unresolved] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }

    #[test]
    fn a_filter_compares_routes_exactly_and_server_names_as_dns_does() {
        let filter = |route: Option<&str>, sni: Option<&str>| ConnectionFilter {
            route: route.map(Into::into),
            sni: sni.map(Into::into),
        };
        assert!(filter(None, None).matches(None, None));
        assert!(filter(Some("a"), None).matches(Some("a"), None));
        assert!(!filter(Some("a"), None).matches(Some("A"), None));
        assert!(!filter(Some("a"), None).matches(None, None));
        assert!(filter(None, Some("DB.example.com.")).matches(Some("a"), Some("db.Example.com")));
        assert!(!filter(None, Some("db.example.com")).matches(Some("a"), None));
        assert!(!filter(Some("b"), Some("db.example.com")).matches(Some("a"), Some("db.example.com")));
    }
}
