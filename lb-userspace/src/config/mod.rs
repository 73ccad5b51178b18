//! Config: the TOML file, read and validated as a whole before anything uses it.
//!
//! `raw` turns text into spanned values (keys, types, one value at a time), `check` turns those into the types
//! below (references, combinations, certificates). Every problem of a file is reported at once, each with its
//! position. What these types hold is valid: indices are in range, names unique, addresses and patterns parsed.

mod certificate;
mod check;
mod client_auth;
mod client_rate;
mod crl;
mod diagnostic;
mod identity;
mod key;
mod mend;
mod names;
mod overlap;
mod pem;
mod raw;
mod reader;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_clients;
#[cfg(test)]
mod tests_hints;
mod value;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use sha2::{Digest as _, Sha256};

use crate::reason::Tier;

pub use check::{Checked, check, check_gateway};
pub use client_auth::{Allowed, ClientAuth, San};
pub use client_rate::{ClientRate, NewConnections};
pub use diagnostic::{Diagnostic, Diagnostics, Severity, Warnings};

/// [`Gateway::source_ports`] of a file that says nothing of them: below those that the kernel itself hands out (from
/// 32768 on) and those of Kubernetes' services (NodePorts, 30000 to 32767).
pub const SOURCE_PORTS: RangeInclusive<u16> = 10_240..=29_999;

/// Upper bound on the size of the configuration file, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// Upper bound on the size of a certificate, key or passphrase file, in bytes.
pub const MAX_PEM_BYTES: u64 = 4 << 20;

/// SHA-256 of a file's content.
pub type Digest = [u8; 32];

/// The files of a configuration, by what was read of them; `None`: nothing, or not the same each time.
pub type Sources = BTreeMap<PathBuf, Option<Digest>>;

/// Reads and validates the file at `path`; the files it names are looked for beside it. A change of one of the files
/// that were read is a change of the configuration.
pub fn load(path: &Path) -> (Checked, Sources) {
    let directory =
        Directory { path: path.parent().unwrap_or(Path::new("")).to_owned(), sources: RefCell::default() };
    let bytes = directory.read_noting(path.to_owned(), MAX_CONFIG_BYTES);
    let checked = text(path, bytes).and_then(|(name, text)| check(&text, &name, &directory, UnixTime::now()));
    (checked, directory.sources.into_inner())
}

/// Reads `[gateway]` of the file at `path`, for those who look for a gateway that runs with it: its routes may be
/// many, or have become wrong since.
pub fn load_gateway(path: &Path) -> Result<(Gateway, Warnings), Diagnostics> {
    let (name, text) = text(path, read_bounded(path, MAX_CONFIG_BYTES))?;
    check_gateway(&text, &name)
}

/// SHA-256 of what is in the file at `path` now; `None`: it cannot be read.
pub fn digest(path: &Path) -> Option<Digest> {
    Some(digest_of(&read_bounded(path, MAX_CONFIG_BYTES).ok()?))
}

fn digest_of(content: &[u8]) -> Digest {
    Sha256::digest(content).into()
}

/// What diagnostics call the configuration file, and its text.
fn text(path: &Path, bytes: io::Result<Vec<u8>>) -> Result<(String, String), Diagnostics> {
    let name = path.display().to_string();
    let bytes = bytes.map_err(|error| Diagnostics::unreadable(&name, &error))?;
    let text = String::from_utf8(bytes).map_err(|error| Diagnostics::not_utf8(&name, &error))?;
    Ok((name, text))
}

/// Where the files come from that a configuration names.
pub trait Files {
    /// The whole content of `path`; a relative path starts at the configuration file's directory.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// The disk, seen from the directory of the configuration file.
struct Directory {
    path: PathBuf,
    sources: RefCell<Sources>,
}

impl Directory {
    fn read_noting(&self, path: PathBuf, limit: u64) -> io::Result<Vec<u8>> {
        let content = read_bounded(&path, limit);
        let digest = content.as_ref().ok().map(|content| digest_of(content));
        // Several routes may name a file, which may be replaced between two readings.
        let agree = |known: &mut Option<Digest>| *known = known.filter(|known| Some(*known) == digest);
        self.sources.borrow_mut().entry(path).and_modify(agree).or_insert(digest);
        content
    }
}

impl Files for Directory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.read_noting(self.path.join(path), MAX_PEM_BYTES)
    }
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than the limit tells "just fits" from "too large".
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {} MiB", limit >> 20)));
    }
    Ok(content)
}

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
}

/// `[gateway]`: what holds for the whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Worker threads; 0: one per core.
    pub workers: usize,
    /// The network interfaces the kernel programs are attached to.
    pub interfaces: Interfaces,
    /// In order of preference. No duplicates; [`Tier::Copy`], which takes every connection, is there and is last.
    pub tiers: Vec<Tier>,
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
    /// Connections open at once, over all listeners; at least 1.
    pub max_connections: usize,
    /// How long a graceful stop waits for connections to end; zero: not at all.
    pub drain_timeout: Duration,
    /// Ports of connections to servers, in the packet tier: at least 256, none below 1024.
    pub source_ports: RangeInclusive<u16>,
    /// Entries of the packet tier's flow table, two per connection; at least 2.
    pub flow_table: u32,
    /// Of every leg for which nothing nearer is configured.
    pub keepalive: Keepalive,
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
    fn or(self, farther: Self) -> Self {
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
    /// What a client may send until its ClientHello is whole, but for a PROXY header: 512 to
    /// [`MAX_WINDOW`](crate::sniff::MAX_WINDOW) bytes.
    pub hello_bytes: usize,
    /// Expect a PROXY header (v1 or v2) from the peers in `trusted_proxies`.
    pub proxy_protocol: bool,
    /// Not empty where `proxy_protocol` is set, empty where it is not.
    pub trusted_proxies: Vec<IpNet>,
    /// Empty: everyone.
    pub allow: Vec<IpNet>,
    /// Wins over `allow`.
    pub deny: Vec<IpNet>,
    /// Connections open at once; at least 1; absent: the gateway's bound alone.
    pub max_connections: Option<usize>,
    /// Of one client address; absent: no bound of its own.
    pub client_rate: Option<ClientRate>,
    /// Connections the kernel holds until they are accepted; at least 1. The kernel caps it at `somaxconn`.
    pub backlog: u32,
    /// Of the leg to the client; what the file leaves out here is the gateway's.
    pub keepalive: Keepalive,
    /// Listen also while the machine does not have the addresses.
    pub freebind: bool,
}

/// What clients of a listener speak first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A ClientHello.
    Tls,
    /// PostgreSQL's SSLRequest (or a ClientHello at once), then TLS.
    Postgres,
    /// Anything: bytes are passed on unseen, and the listener has exactly one route.
    Tcp,
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
    pub sni: Vec<SniPattern>,
    /// Protocol names of 1 to 255 bytes, no duplicates; empty: any. A route that lists the protocol beats one
    /// of the same pattern that takes any.
    pub alpn: Vec<Box<str>>,
    /// Who ends the client's TLS; [`TlsMode::Passthrough`] on a `tcp` listener.
    pub tls: TlsMode,
    /// Not empty; at least one weight is above 0.
    pub backends: Vec<Backend>,
    /// Without a byte in either direction; not zero; absent: none.
    pub idle_timeout: Option<Duration>,
    /// Since its accept, whatever it does; not zero; absent: none.
    pub max_age: Option<Duration>,
    /// Connections open at once; at least 1; absent: no bound of its own.
    pub max_connections: Option<usize>,
    /// Of one client address; absent: no bound of its own.
    pub client_rate: Option<ClientRate>,
}

/// The server names a route covers: lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SniPattern {
    /// This name.
    Exact(Box<str>),
    /// `example.com` for `*.example.com`: one or more labels, then this name.
    Wildcard(Box<str>),
    /// `*`: every name, and clients that send none.
    Any,
}

impl fmt::Display for SniPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SniPattern::Exact(name) => f.write_str(name),
            SniPattern::Wildcard(parent) => write!(f, "*.{parent}"),
            SniPattern::Any => f.write_str("*"),
        }
    }
}

/// Who ends the client's TLS.
#[derive(Clone, Debug)]
pub enum TlsMode {
    /// The server: the gateway passes the bytes on.
    Passthrough,
    /// The gateway: the server sees plain text. Routes with the same files share one.
    Terminate(Arc<Termination>),
}

/// What it takes to end TLS at the gateway.
#[derive(PartialEq, Eq)]
pub struct Termination {
    /// Leaf first; not empty; the leaf's public key is that of `key`.
    pub chain: Vec<CertificateDer<'static>>,
    /// Supported by the crypto provider.
    pub key: PrivateKeyDer<'static>,
    /// Absent: no client is asked for a certificate. Routes with the same files share one.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// When the leaf expires, in seconds since the Unix epoch.
    pub not_after: u64,
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
    /// 0 to 256, as a share of the sum over the route's backends; 0 takes none.
    pub weight: u32,
}

/// `[[pool]]`: servers that stand for one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Unique among pools.
    pub name: Arc<str>,
    /// How a server is chosen.
    pub balance: Balance,
    /// Not empty; no address and no service twice.
    pub servers: Vec<Server>,
    /// For one attempt at one server; not zero.
    pub connect_timeout: Duration,
    /// The PROXY header sent to servers; absent: none.
    pub send_proxy: Option<ProxyVersion>,
    /// Of the leg to the server; what the file leaves out here is the gateway's.
    pub keepalive: Keepalive,
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
    /// Any.
    Random,
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
}

/// What an entry of a pool's `servers` stands for. Displayed as it is written in the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// One server.
    Address(Address),
    /// The servers that the SRV records of this name have (RFC 2782): lower case; a trailing dot is kept.
    Service(Box<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Address(address) => address.fmt(f),
            Origin::Service(name) => write!(f, "{SERVICE}{name}"),
        }
    }
}

/// What stands before the name of a service.
const SERVICE: &str = "srv:";

/// Where a server listens. Displayed as it is written in the file: `10.0.0.11:6379`, `[::1]:6379`, `name:6379`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// An address, or a name for DNS.
    pub host: Host,
    /// Not 0.
    pub port: u16,
}

/// The host of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Used as it is.
    Ip(IpAddr),
    /// Looked up in DNS; lower case; a trailing dot is kept (it turns the search list off).
    Name(Box<str>),
}

impl Address {
    /// A host by its name, which may come from DNS; `None`: it cannot be one, or the port is 0.
    pub fn of_host(name: &str, port: u16) -> Option<Self> {
        let name = value::dns_name(name).ok()?;
        (port != 0).then_some(Address { host: Host::Name(name), port })
    }

    /// As it is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        value::server_address(text).ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}
