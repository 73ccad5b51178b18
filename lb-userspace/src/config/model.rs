//! A validated configuration. What these types hold is valid: indices are in range, names unique, addresses and patterns
//! parsed.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::SupportedProtocolVersion;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use zeroize::Zeroize as _;

use super::address::Origin;
use super::authorities::Authorities;
use super::client_auth::ClientAuth;
use super::client_rate::ClientRate;
use super::controller::GatewayApi;
use super::health::{Eject, Health, OnDown};
use super::http::Rule;
use super::san::San;
pub use super::sni::{SniPattern, SniPatterns};
use crate::ech;
use crate::reason::Tier;
use crate::sniff::{MAX_WINDOW, Starttls};
use lb_common::packet::DEFAULT_FLOWS;

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What holds for the whole process.
    pub gateway: Gateway,
    /// In the order of the file, as are the two below.
    pub listeners: Vec<Listener>,
    /// See [`Route`].
    pub routes: Vec<Route>,
    /// See [`Pool`].
    pub pools: Vec<Pool>,
    /// Present: some of them are made of objects.
    pub gateway_api: Option<GatewayApi>,
}

/// `[gateway]`: what holds for the whole process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// What only a start puts in force.
    pub fixed: FixedGateway,
    /// What a reload does, too.
    pub live: LiveGateway,
}

/// Keys of `[gateway]` that only a start puts in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedGateway {
    /// Worker threads; 0: one per core.
    pub workers: usize,
    /// The network interfaces the kernel programs are attached to.
    pub interfaces: Interfaces,
    /// Where programs and maps are pinned; absolute.
    pub bpffs: PathBuf,
    /// The admin socket and what must outlive the process; absolute, short enough for a socket in it.
    pub state_dir: PathBuf,
    /// Metrics, health and the status page; absent: off.
    pub admin: Option<SocketAddr>,
    /// Reload when the configuration file changes.
    pub watch: bool,
    /// Absent: off.
    pub access_log: Option<AccessLog>,
    /// Ports of connections to servers, in the packet tier: at least 256, none below 1024.
    pub source_ports: RangeInclusive<u16>,
    /// Entries of the packet tier's flow table, two per connection; at least 2.
    pub flow_table: u32,
}

impl Default for FixedGateway {
    fn default() -> Self {
        Self {
            workers: 0,
            interfaces: Interfaces::Auto,
            bpffs: "/sys/fs/bpf/snisplice".into(),
            state_dir: "/run/snisplice".into(),
            admin: None,
            watch: false,
            access_log: None,
            // Below those that the kernel itself hands out (from 32768 on) and those of Kubernetes' services (NodePorts,
            // 30000 to 32767).
            source_ports: 10_240..=29_999,
            flow_table: DEFAULT_FLOWS,
        }
    }
}

impl FixedGateway {
    /// The keys in which `new` differs.
    pub fn differences(&self, new: &Self) -> impl Iterator<Item = &'static str> {
        // Taken apart in full: a field that is not compared does not compile.
        let Self {
            workers,
            interfaces,
            bpffs,
            state_dir,
            admin,
            watch,
            access_log,
            source_ports,
            flow_table,
        } = self;
        let compared = [
            ("workers", *workers != new.workers),
            ("interfaces", *interfaces != new.interfaces),
            ("bpffs", *bpffs != new.bpffs),
            ("state_dir", *state_dir != new.state_dir),
            ("admin", *admin != new.admin),
            ("watch", *watch != new.watch),
            ("access_log", *access_log != new.access_log),
            ("source_ports", *source_ports != new.source_ports),
            ("flow_table", *flow_table != new.flow_table),
        ];
        compared.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key)
    }
}

/// Keys of `[gateway]` that a reload puts in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveGateway {
    /// In order of preference. No duplicates; [`Tier::Copy`], which takes every connection, is there and is last. Only a start
    /// loads the programs of the others.
    pub tiers: Vec<Tier>,
    /// Connections open at once, over all listeners; at least 1.
    pub max_connections: usize,
    /// How long a graceful stop waits for connections to end; zero: not at all.
    pub drain_timeout: Duration,
    /// Of every leg for which nothing nearer is configured.
    pub keepalive: Keepalive,
    /// The number of this gateway in the keys of PostgreSQL sessions; 0 unless given.
    pub peer_id: u16,
    /// The other gateways behind the same address; no number twice, nor that of this one.
    pub peers: Vec<Peer>,
}

/// Another gateway behind the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its `peer_id`.
    pub id: u16,
    /// One of its listeners, by an address of its own.
    pub address: SocketAddr,
}

impl Default for LiveGateway {
    fn default() -> Self {
        Self {
            tiers: vec![Tier::Packet, Tier::Copy],
            max_connections: 200_000,
            drain_timeout: Duration::from_secs(30),
            keepalive: Keepalive::default(),
            peer_id: 0,
            peers: Vec::new(),
        }
    }
}

/// TCP keepalive of a leg: when a silent peer is probed, and when it is given up. What is absent is the system's
/// (`net.ipv4.tcp_keepalive_time`, `_intvl` and `_probes`, tcp(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe, in seconds: 1 to 32767, as TCP_KEEPIDLE takes them.
    pub idle: Option<u16>,
    /// Between two probes, in seconds: 1 to 32767.
    pub interval: Option<u16>,
    /// Unanswered probes after which the peer is given up: 1 to 127.
    pub count: Option<u8>,
}

impl Keepalive {
    /// This one, with what it lacks taken from one that is farther from the leg.
    pub(super) fn or(self, farther: Self) -> Self {
        Self {
            idle: self.idle.or(farther.idle),
            interval: self.interval.or(farther.interval),
            count: self.count.or(farther.count),
        }
    }
}

/// The network interfaces the kernel programs are attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// All where packets reach this host's IP: see [`relevant`](crate::kernel::devices::relevant).
    Auto,
    /// Exactly these; not empty, no duplicates.
    Named(Vec<String>),
}

/// One line per connection, at its close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where the lines go.
    pub target: LogTarget,
    /// How a line is written.
    pub format: LogFormat,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { target: LogTarget::Stdout, format: LogFormat::Json }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Written as `"-"`.
    Stdout,
    /// Appended to; absolute.
    File(PathBuf),
}

/// How a line of the access log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object.
    Json,
    /// `key=value` pairs.
    Text,
}

/// `[[listener]]`: addresses on which clients arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique among listeners; "listener-N" unless given, N counting from 1.
    pub name: Arc<str>,
    /// Not empty; no address occurs twice in a configuration; no port is 0.
    pub bind: Vec<SocketAddr>,
    /// What clients speak first.
    pub protocol: Protocol,
    /// From accept to a whole ClientHello, with all that precedes it; not zero.
    pub hello_timeout: Duration,
    /// Most bytes of the records of a ClientHello, their headers included: 512 to [`MAX_WINDOW`].
    pub hello_bytes: usize,
    /// Expect a PROXY header (v1 or v2) from the peers in `trusted_proxies`.
    pub proxy_protocol: bool,
    /// Not empty where `proxy_protocol` is set; elsewhere of listeners with requests of HTTP alone: what they say of a client is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Empty: everyone.
    pub allow: Vec<IpNet>,
    /// Wins over `allow`.
    pub deny: Vec<IpNet>,
    /// Connections open at once; at least 1; absent: the gateway's bound alone.
    pub max_connections: Option<usize>,
    /// What one client address may have of it; absent: there is no bound.
    pub client_rate: Option<ClientRate>,
    /// Connections the kernel holds until they are accepted; at least 1. The kernel caps it at `somaxconn`.
    pub backlog: u32,
    /// Of the leg to the client; what the file leaves out here is the gateway's.
    pub keepalive: Keepalive,
    /// Listen also while the machine does not have the addresses.
    pub freebind: bool,
    /// The version that MySQL clients are greeted with, 1 to 64 printable bytes; absent: that of the servers.
    pub version: Option<Box<str>>,
    /// The plugin that MySQL clients are told to log in with, 1 to 64 printable bytes; absent: `caching_sha2_password`.
    pub plugin: Option<Box<str>>,
    /// Encrypted ClientHello; absent: none is looked for.
    pub ech: Option<Ech>,
    /// How clients are refused.
    pub refuse: Refuse,
    /// Names for which no wider pattern of a route counts: their clients are refused unless a route has the very pattern.
    pub reserved: Vec<SniPattern>,
}

/// How a TLS client without a route is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refuse {
    /// With a TLS alert that says why.
    #[default]
    Alert,
    /// By nothing but the end of the connection. Where a pool has no server, TLS is not even begun.
    Close,
}

/// Encrypted ClientHello at a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ech {
    /// At least one, and no two of the same number.
    pub keys: Arc<ech::Keys>,
    /// What the servers get.
    pub mode: ech::Mode,
    /// How many are opened for one client address per second.
    pub openings: NonZeroU32,
}

impl Ech {
    /// For one address without a word in the file: 35 ms of a core in each second.
    pub const OPENINGS: NonZeroU32 = NonZeroU32::new(500).unwrap();
}

impl Listener {
    /// One with the defaults of all other keys.
    pub fn new(name: Arc<str>, bind: Vec<SocketAddr>) -> Self {
        Self {
            name,
            bind,
            protocol: Protocol::Tls,
            hello_timeout: Duration::from_secs(5),
            hello_bytes: MAX_WINDOW,
            proxy_protocol: false,
            trusted_proxies: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            max_connections: None,
            client_rate: None,
            backlog: 4096,
            keepalive: Keepalive::default(),
            freebind: false,
            version: None,
            plugin: None,
            ech: None,
            refuse: Refuse::default(),
            reserved: Vec::new(),
        }
    }
}

/// What clients of a listener speak first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A ClientHello.
    Tls,
    /// PostgreSQL's SSLRequest (or a ClientHello at once), then TLS.
    Postgres,
    /// MySQL's SSLRequest in answer to a greeting, then TLS.
    Mysql,
    /// Clear text of this protocol, until a command for TLS.
    Starttls(Starttls),
    /// Anything: bytes are passed on unseen, and the listener has exactly one route.
    Tcp,
    /// Requests of HTTP; the SNI patterns of its routes are those of hosts.
    Http,
}

/// `[[route]]`: which connections of a listener go to which pools.
#[derive(Clone, Debug)]
pub struct Route {
    /// Unique among routes; the first SNI, or "route-N", unless given.
    pub name: Arc<str>,
    /// Index into [`Config::listeners`].
    pub listener: usize,
    /// Not empty and without duplicates; empty on a `tcp` listener. No two routes of a listener have both a
    /// pattern and an ALPN protocol (or "any") in common.
    pub sni: SniPatterns,
    /// Protocol names of 1 to 255 bytes, no duplicates; empty: any. A route that lists the protocol beats one
    /// of the same pattern that takes any.
    pub alpn: Vec<Box<str>>,
    /// What becomes of its connections; [`Action::Pass`] on a `tcp` listener.
    pub action: Action,
    /// Present: its connections carry requests of HTTP, for which these rules are; of two that match a request equally well the
    /// first counts. Requests without a rule are answered with 404.
    pub http: Option<Vec<Rules>>,
    /// At least one weight is above 0; empty with `http`.
    pub backends: Vec<Backend>,
    /// If no server of the chosen pool can be reached, another of `backends` is tried.
    pub retry_other_pool: bool,
    /// Without a byte in either direction; not zero; absent: none.
    pub idle_timeout: Option<Duration>,
    /// Since its accept, whatever it does; not zero; absent: none.
    pub max_age: Option<Duration>,
    /// Connections open at once; at least 1; absent: no bound of its own.
    pub max_connections: Option<usize>,
    /// What one client address may have of it; absent: there is no bound.
    pub client_rate: Option<ClientRate>,
    /// What becomes of those that are open when the route is gone.
    pub on_removal: OnRemoval,
}

/// Rules of a route, one after the other. Which pools they name is said beside them, so that they are the same whatever other
/// pools there are.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Pools are indices into `pools`.
    pub list: Arc<[Rule<usize>]>,
    /// Indices into [`Config::pools`]; absent: it is not to be had.
    pub pools: Box<[Option<usize>]>,
}

#[cfg(test)]
impl Rules {
    /// With indices into [`Config::pools`].
    pub fn resolved(&self) -> impl Iterator<Item = Rule<usize>> {
        self.list.iter().map(|rule| rule.with_pools(|pool| self.pools[*pool]))
    }
}

#[cfg(test)]
impl Route {
    /// All rules, with indices into [`Config::pools`].
    pub fn rules(&self) -> Vec<Rule<usize>> {
        self.http.iter().flatten().flat_map(Rules::resolved).collect()
    }
}

/// What becomes of a route's open connections when a reload takes it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnRemoval {
    /// They go on to their end.
    #[default]
    Keep,
    /// They may end by themselves within the gateway's `drain_timeout`, then they are reset.
    Drain,
    /// They are reset at once.
    Kill,
}

/// What a route does with a connection.
#[derive(Clone, Debug)]
pub enum Action {
    /// Passes its bytes on as they are: if there is TLS in them, the server ends it.
    Pass,
    /// Ends its TLS: the server sees plain text. Routes with the same files share one termination.
    Terminate(Arc<Termination>),
}

/// What it takes to end TLS at the gateway; or, without `client_ca`, to be a client with a certificate.
#[derive(PartialEq, Eq)]
pub struct Termination {
    /// Leaf first; not empty; the leaf's public key is that of `key`.
    pub chain: Vec<CertificateDer<'static>>,
    /// Supported by the crypto provider.
    pub key: PrivateKeyDer<'static>,
    /// What clients' certificates are held against; absent: clients are asked for none.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// When the leaf expires, in seconds since the Unix epoch; of several the first that does.
    pub not_after: u64,
    /// DNS names of the leaf, lower case; a wildcard covers exactly one label here.
    pub names: BTreeSet<Box<str>>,
    /// Others to choose from, by the names that they are for, without client authentication of their own: the one with the
    /// longest name that covers the client's.
    pub more: Vec<Arc<Termination>>,
}

/// A key that is used no more is wiped from memory.
impl Drop for Termination {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Termination")
            .field("chain", &self.chain.len())
            .field("client_auth", &self.client_auth)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A route's share for one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Index into [`Config::pools`].
    pub pool: usize,
    /// 0 to [`MAX_WEIGHT`], as a share of the sum over the route's backends; 0 takes none.
    pub weight: u32,
}

/// Of a backend.
pub const MAX_WEIGHT: u32 = 256;

impl Backend {
    /// One with the defaults of all other keys.
    pub fn new(pool: usize) -> Self {
        Self { pool, weight: 1 }
    }
}

/// `[[pool]]`: servers that stand for one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Unique among pools.
    pub name: Arc<str>,
    /// How a server is chosen.
    pub balance: Balance,
    /// No address and no service twice. Empty: clients are refused.
    pub servers: Vec<Server>,
    /// Time in which a server that gets connections again comes to its whole share; zero: at once.
    pub slow_start: Duration,
    /// For one attempt at one server; not zero.
    pub connect_timeout: Duration,
    /// The PROXY header sent to servers; absent: none.
    pub send_proxy: Option<ProxyVersion>,
    /// Whose address servers see.
    pub source: SourceAddress,
    /// Of the leg to the server; what the file leaves out here is the gateway's.
    pub keepalive: Keepalive,
    /// How its servers are checked; absent: not at all.
    pub health: Option<Arc<Health>>,
    /// When a server that fails connections gets none for a while; absent: never.
    pub eject: Option<Eject>,
    /// What becomes of open connections to a server that its checks find down.
    pub on_down: OnDown,
    /// Servers of requests are spoken to in HTTP/2: without TLS by prior knowledge (RFC 9113, section 3.3).
    pub http2: bool,
    /// Present: the gateway speaks TLS to the servers. Never of a pool whose connections may be TLS that is passed through.
    pub tls: Option<Arc<UpstreamTls>>,
    /// There was to be TLS, and cannot be: it has no servers, and gets none.
    pub is_closed: bool,
}

impl Pool {
    /// One with the defaults of all other keys.
    pub fn new(name: Arc<str>, servers: Vec<Server>) -> Self {
        Self {
            name,
            balance: Balance::RoundRobin,
            servers,
            slow_start: Duration::ZERO,
            connect_timeout: Duration::from_secs(2),
            send_proxy: None,
            source: SourceAddress::default(),
            keepalive: Keepalive::default(),
            health: None,
            eject: None,
            on_down: OnDown::default(),
            http2: false,
            tls: None,
            is_closed: false,
        }
    }
}

/// `tls` of a pool: TLS toward its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// What a server's certificate must lead to.
    pub authorities: Arc<Authorities>,
    /// What servers are called (SNI, if it is no IP address) and, without `san`, have a certificate for; absent: each its
    /// own host.
    pub server_name: Option<ServerName<'static>>,
    /// Of which a server's certificate must have one; empty: the name that the server is called.
    pub san: Vec<San>,
    /// Shown to servers that ask for one.
    pub certificate: Option<Arc<Termination>>,
    /// Offered in order of preference; empty: the extension is not sent. Protocol names of 1 to 255 bytes, no duplicates.
    pub alpn: Vec<Box<str>>,
    /// The oldest version that is offered.
    pub min_version: MinVersion,
}

/// The oldest version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl MinVersion {
    /// This version, and those after it.
    pub fn and_later(self) -> &'static [&'static SupportedProtocolVersion] {
        static NEWEST: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        match self {
            MinVersion::Tls12 => rustls::ALL_VERSIONS,
            MinVersion::Tls13 => &NEWEST,
        }
    }
}

/// How a pool chooses a server, among those that are up, by weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// One after another.
    RoundRobin,
    /// The one with the fewest connections.
    LeastConnections,
    /// The same server for the same client address.
    SourceHash,
    /// The one with fewer connections of two that are drawn at random.
    Random,
}

/// Whose address a server sees as the source of a client's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceAddress {
    /// The gateway's, which the route to the server has.
    #[default]
    Gateway,
    /// The client's, or what a trusted proxy said it is. The servers' answers must be routed through the gateway.
    Client,
}

/// The form of the PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// One entry of a pool's `servers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Unique in its pool.
    pub origin: Origin,
    /// 1 to 256, relative to the other servers of the pool; 1 for a service, whose records have the weights.
    pub weight: u32,
    /// Used only while no server without this mark can be.
    pub backup: bool,
    /// Connections open at once, of each server of a service; at least 1; absent: no bound.
    pub max_connections: Option<usize>,
}

impl Server {
    /// One with the defaults of all other keys.
    pub fn new(origin: Origin) -> Self {
        Self { origin, weight: 1, backup: false, max_connections: None }
    }
}
