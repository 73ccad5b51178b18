//! TOML text to spanned values: which keys there are, of which type, and what each means on its own.
//!
//! Nothing here looks at two keys at once. A key whose value is wrong is reported here and [`Field::Invalid`]
//! from then on, so that one mistake is one error.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Report, quote};
use super::reader::{Field, Keys, Reader, Section, Value};
use super::{
    Balance, Interfaces, Keepalive, LogFormat, LogTarget, Origin, Protocol, ProxyVersion, San, SniPattern,
};
use super::{identity, reader, value};
use crate::reason::Tier;
use crate::sniff::MAX_WINDOW;

#[derive(Debug)]
pub(super) struct RawConfig {
    pub(super) gateway: RawGateway,
    pub(super) listeners: Vec<RawListener>,
    pub(super) routes: Vec<RawRoute>,
    pub(super) pools: Vec<RawPool>,
}

#[derive(Debug)]
pub(super) struct RawGateway {
    pub(super) workers: Field<usize>,
    pub(super) interfaces: Field<Interfaces>,
    pub(super) tiers: Field<Vec<Tier>>,
    pub(super) bpffs: Field<PathBuf>,
    pub(super) state_dir: Field<PathBuf>,
    pub(super) admin: Field<SocketAddr>,
    pub(super) watch: Field<bool>,
    pub(super) access_log: Field<RawAccessLog>,
    pub(super) max_connections: Field<usize>,
    pub(super) drain_timeout: Field<Duration>,
    pub(super) source_ports: Field<RangeInclusive<u16>>,
    pub(super) flow_table: Field<u32>,
    pub(super) keepalive: Field<Keepalive>,
}

#[derive(Debug)]
pub(super) struct RawAccessLog {
    pub(super) path: Field<LogTarget>,
    pub(super) format: Field<LogFormat>,
}

#[derive(Debug)]
pub(super) struct RawListener {
    /// Of the header, or of the whole table where it is written inline.
    pub(super) span: Range<usize>,
    pub(super) name: Field<Box<str>>,
    pub(super) bind: Field<Vec<Spanned<SocketAddr>>>,
    pub(super) protocol: Field<Protocol>,
    pub(super) hello_timeout: Field<Duration>,
    pub(super) hello_bytes: Field<usize>,
    pub(super) proxy_protocol: Field<bool>,
    pub(super) trusted_proxies: Field<Vec<Spanned<IpNet>>>,
    pub(super) allow: Field<Vec<Spanned<IpNet>>>,
    pub(super) deny: Field<Vec<Spanned<IpNet>>>,
    pub(super) max_connections: Field<usize>,
    pub(super) client_rate: Field<RawClientRate>,
    pub(super) backlog: Field<u32>,
    pub(super) keepalive: Field<Keepalive>,
    pub(super) freebind: Field<bool>,
}

#[derive(Debug)]
pub(super) struct RawRoute {
    pub(super) span: Range<usize>,
    pub(super) name: Field<Box<str>>,
    pub(super) listener: Field<String>,
    pub(super) sni: Field<Vec<Spanned<SniPattern>>>,
    pub(super) alpn: Field<Vec<Spanned<Box<str>>>>,
    pub(super) tls: Field<RawTls>,
    pub(super) certificate: Field<RawCertificate>,
    pub(super) client_ca: Field<PathBuf>,
    pub(super) client_auth: Field<RawClientAuth>,
    pub(super) backends: Field<Vec<Spanned<RawBackend>>>,
    pub(super) idle_timeout: Field<Duration>,
    pub(super) max_age: Field<Duration>,
    pub(super) max_connections: Field<usize>,
    pub(super) client_rate: Field<RawClientRate>,
}

#[derive(Debug)]
pub(super) struct RawClientRate {
    pub(super) connections: Field<u32>,
    pub(super) per: Field<Duration>,
    pub(super) open: Field<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawTls {
    Passthrough,
    Terminate,
}

#[derive(Debug)]
pub(super) struct RawCertificate {
    pub(super) chain: Field<PathBuf>,
    pub(super) key: Field<PathBuf>,
    pub(super) passphrase_file: Field<PathBuf>,
}

#[derive(Debug)]
pub(super) struct RawClientAuth {
    pub(super) ca: Field<Vec<Spanned<PathBuf>>>,
    pub(super) crl: Field<Vec<Spanned<PathBuf>>>,
    /// Whether clients must have a certificate.
    pub(super) mode: Field<bool>,
    pub(super) subjects: Field<Vec<Spanned<Box<str>>>>,
    pub(super) sans: Field<Vec<Spanned<San>>>,
}

#[derive(Debug)]
pub(super) struct RawBackend {
    pub(super) pool: Field<String>,
    pub(super) weight: Field<u32>,
}

#[derive(Debug)]
pub(super) struct RawPool {
    pub(super) name: Field<Box<str>>,
    pub(super) balance: Field<Balance>,
    pub(super) servers: Field<Vec<Spanned<RawServer>>>,
    pub(super) connect_timeout: Field<Duration>,
    pub(super) send_proxy: Field<ProxyVersion>,
    pub(super) keepalive: Field<Keepalive>,
    /// Validated; not kept, see `not_in_this_version`.
    pub(super) health: Field<()>,
    /// Validated; not kept, see `not_in_this_version`.
    pub(super) tls: Field<()>,
}

#[derive(Debug)]
pub(super) struct RawServer {
    pub(super) address: Field<Origin>,
    pub(super) weight: Field<u32>,
    pub(super) backup: Field<bool>,
}

/// Reads the whole text, past syntax errors too.
pub(super) fn read(text: &str, report: &mut Report) -> RawConfig {
    let root = reader::parse(text, report);
    let mut root = Section::open(report, &ROOT, &root, 0..0);
    RawConfig {
        gateway: gateway_of(&mut root),
        listeners: root.tables("listener", &LISTENER, listener),
        routes: root.tables("route", &ROUTE, route),
        pools: root.tables("pool", &POOL, pool),
    }
}

/// Reads no more than `[gateway]`; syntax errors anywhere count, as they may hide it.
pub(super) fn read_gateway(text: &str, report: &mut Report) -> RawGateway {
    let mut all = reader::parse(text, report);
    let alone: DeTable<'_> = all.remove_entry("gateway").into_iter().collect();
    gateway_of(&mut Section::open(report, &ROOT, &alone, 0..0))
}

/// Without a `[gateway]`, everything in it has its default.
fn gateway_of(root: &mut Section<'_, '_>) -> RawGateway {
    let given = root.read("gateway", |r, v| r.section(v, &GATEWAY).map(gateway));
    given.into_value().unwrap_or_else(|| gateway(Section::open(root.report, &GATEWAY, &DeTable::new(), 0..0)))
}

/// What there is, by how users write it.
const ROOT: Keys = Keys {
    header: "the top level",
    examples: &[
        ("gateway", "[gateway]"),
        ("listener", "[[listener]]"),
        ("route", "[[route]]"),
        ("pool", "[[pool]]"),
    ],
};

const GATEWAY: Keys = Keys {
    header: "[gateway]",
    examples: &[
        ("workers", "0"),
        ("interfaces", r#"["eth0"]"#),
        ("tiers", r#"["packet", "copy"]"#),
        ("bpffs", r#""/sys/fs/bpf/snisplice""#),
        ("state_dir", r#""/run/snisplice""#),
        ("admin", r#""127.0.0.1:9900""#),
        ("watch", "true"),
        ("access_log", r#"{ path = "-", format = "json" }"#),
        ("max_connections", "200000"),
        ("drain_timeout", r#""30s""#),
        ("source_ports", r#""10240-29999""#),
        ("flow_table", "1048576"),
        ("keepalive", KEEPALIVE_EXAMPLE),
    ],
};

const ACCESS_LOG: Keys =
    Keys { header: "access_log", examples: &[("path", r#""-""#), ("format", r#""json""#)] };

const KEEPALIVE_EXAMPLE: &str = r#"{ idle = "60s", interval = "15s", count = 4 }"#;

const KEEPALIVE: Keys =
    Keys { header: "keepalive", examples: &[("idle", r#""60s""#), ("interval", r#""15s""#), ("count", "4")] };

pub(super) const CLIENT_RATE_EXAMPLE: &str = r#"{ connections = 50, per = "1s", open = 500 }"#;

const CLIENT_RATE: Keys =
    Keys { header: "client_rate", examples: &[("connections", "50"), ("per", r#""1s""#), ("open", "500")] };

const LISTENER: Keys = Keys {
    header: "[[listener]]",
    examples: &[
        ("name", r#""databases""#),
        ("bind", r#"["0.0.0.0:443", "[::]:443"]"#),
        ("protocol", r#""tls""#),
        ("hello_timeout", r#""5s""#),
        ("hello_bytes", "16384"),
        ("proxy_protocol", "true"),
        ("trusted_proxies", r#"["10.0.0.0/8"]"#),
        ("allow", r#"["10.0.0.0/8"]"#),
        ("deny", r#"["10.0.0.0/8"]"#),
        ("max_connections", "100000"),
        ("client_rate", CLIENT_RATE_EXAMPLE),
        ("backlog", "4096"),
        ("keepalive", KEEPALIVE_EXAMPLE),
        ("freebind", "true"),
    ],
};

const ROUTE: Keys = Keys {
    header: "[[route]]",
    examples: &[
        ("name", r#""redis-1""#),
        ("listener", r#""databases""#),
        ("sni", r#"["redis-1.example.com"]"#),
        ("alpn", r#"["postgresql"]"#),
        ("tls", r#""terminate""#),
        ("certificate", r#"{ chain = "redis-1.crt", key = "redis-1.key" }"#),
        ("client_ca", r#""clients-ca.crt""#),
        ("client_auth", r#"{ ca = ["clients-ca.crt"], crl = ["clients.crl"] }"#),
        ("backends", r#"["redis-1"]"#),
        ("idle_timeout", r#""1h""#),
        ("max_age", r#""24h""#),
        ("max_connections", "1000"),
        ("client_rate", CLIENT_RATE_EXAMPLE),
    ],
};

const CERTIFICATE: Keys = Keys {
    header: "certificate",
    examples: &[
        ("chain", r#""redis-1.crt""#),
        ("key", r#""redis-1.key""#),
        ("passphrase_file", r#""redis-1.pass""#),
    ],
};

const CLIENT_AUTH: Keys = Keys {
    header: "client_auth",
    examples: &[
        ("ca", r#"["clients-ca.crt"]"#),
        ("crl", r#"["clients.crl"]"#),
        ("mode", r#""required""#),
        ("subjects", r#"["CN=app1,O=Example"]"#),
        ("sans", r#"["DNS:app1.example.com"]"#),
    ],
};

const BACKEND: Keys = Keys { header: "a backend", examples: &[("pool", r#""redis-1""#), ("weight", "1")] };

const POOL: Keys = Keys {
    header: "[[pool]]",
    examples: &[
        ("name", r#""redis-1""#),
        ("balance", r#""round-robin""#),
        ("servers", r#"["10.0.0.11:6379"]"#),
        ("connect_timeout", r#""2s""#),
        ("send_proxy", r#""v2""#),
        ("keepalive", KEEPALIVE_EXAMPLE),
        ("health", r#"{ check = "tcp", interval = "5s", rise = 2, fall = 3 }"#),
        ("tls", r#"{ ca = "upstream-ca.crt", server_name = "redis.internal" }"#),
    ],
};

const SERVER: Keys = Keys {
    header: "a server",
    examples: &[("address", r#""10.0.0.11:6379""#), ("weight", "1"), ("backup", "true")],
};

const HEALTH: Keys = Keys {
    header: "health",
    examples: &[("check", r#""tcp""#), ("interval", r#""5s""#), ("rise", "2"), ("fall", "3")],
};

const UPSTREAM_TLS: Keys = Keys {
    header: "tls of a pool",
    examples: &[("ca", r#""upstream-ca.crt""#), ("server_name", r#""redis.internal""#)],
};

/// Where a key that is unknown in one table may belong.
pub(super) const SECTIONS: [&Keys; 4] = [&GATEWAY, &LISTENER, &ROUTE, &POOL];

fn gateway(mut s: Section<'_, '_>) -> RawGateway {
    RawGateway {
        workers: s.read("workers", |r, v| r.integer(v, 0..=1024)),
        interfaces: s.read("interfaces", interfaces),
        tiers: s.read("tiers", tiers),
        bpffs: s.read("bpffs", |r, v| r.parse(v, value::absolute_path)),
        state_dir: s.read("state_dir", |r, v| r.parse(v, value::state_dir)),
        admin: s.read("admin", |r, v| r.parse(v, value::socket_address)),
        watch: s.read("watch", |r, v| r.boolean(v)),
        access_log: s.read("access_log", |r, v| r.section(v, &ACCESS_LOG).map(access_log)),
        max_connections: s.read("max_connections", |r, v| r.integer(v, CONNECTIONS)),
        drain_timeout: s.read("drain_timeout", |r, v| r.parse(v, value::duration)),
        source_ports: s.read("source_ports", |r, v| r.parse(v, value::source_ports)),
        flow_table: s.read("flow_table", |r, v| r.integer(v, FLOWS)),
        keepalive: s.read("keepalive", |r, v| r.section(v, &KEEPALIVE).map(keepalive)),
    }
}

/// Of `flow_table`: two per connection. The upper end is where a flow table would be larger than most machines.
const FLOWS: RangeInclusive<i64> = 2..=100_000_000;

/// Of `hello_bytes`: clients of today send up to 2 kB.
const HELLO_BYTES: RangeInclusive<i64> = 512..=MAX_WINDOW as i64;

/// Of any `max_connections`.
const CONNECTIONS: RangeInclusive<i64> = 1..=1_000_000_000;

fn interfaces(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Interfaces> {
    match v.get_ref() {
        DeValue::String(text) if text == "auto" => Some(Interfaces::Auto),
        DeValue::String(text) => {
            let message = format!("`interfaces` must be `\"auto\"` or a list, not {}", quote(text));
            r.error(v, message, format!("`interfaces = [{text:?}]`"))
        }
        _ => {
            let names = r.list(v, |r, v| r.parse(v, value::interface))?;
            r.reject_duplicates(&names, |name| quote(name));
            let names = names.into_iter().map(Spanned::into_inner);
            Some(Interfaces::Named(names.collect()))
        }
    }
}

const TIERS: [(&str, Tier); 3] = [("packet", Tier::Packet), ("sockmap", Tier::Sockmap), ("copy", Tier::Copy)];

/// `copy` takes whatever reaches it, so it ends the list, written or not.
fn tiers(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Vec<Tier>> {
    let tiers = r.list(v, |r, v| r.choice(v, &TIERS))?;
    r.reject_duplicates(&tiers, |tier| format!("`{tier}`"));
    let mut reached = Vec::new();
    for tier in tiers {
        // A duplicate, which was reported.
        if reached.contains(tier.get_ref()) {
            continue;
        }
        if reached.contains(&Tier::Copy) {
            let message = format!("the tier `{}` is never reached", tier.get_ref());
            let warning = Diagnostic::warning(tier.span(), message);
            let help = "put `\"copy\"` last: it takes every connection";
            r.report.push(warning.help(help));
            continue;
        }
        reached.push(tier.into_inner());
    }
    if !reached.contains(&Tier::Copy) {
        reached.push(Tier::Copy);
    }
    Some(reached)
}

const LOG_FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];

fn access_log(mut s: Section<'_, '_>) -> RawAccessLog {
    RawAccessLog {
        path: s.read("path", |r, v| r.parse(v, value::log_target)),
        format: s.read("format", |r, v| r.choice(v, &LOG_FORMATS)),
    }
}

/// linux/tcp.h: MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, in seconds.
const MAX_KEEPALIVE_SECONDS: u16 = 32_767;
/// linux/tcp.h: MAX_TCP_KEEPCNT.
const MAX_KEEPALIVE_COUNT: i64 = 127;

fn keepalive(mut s: Section<'_, '_>) -> Keepalive {
    let seconds = |r: &mut Reader<'_>, v: &Value<'_>| r.seconds(v, MAX_KEEPALIVE_SECONDS);
    Keepalive {
        idle: s.read("idle", seconds).get(),
        interval: s.read("interval", seconds).get(),
        count: s.read("count", |r, v| r.integer(v, 1..=MAX_KEEPALIVE_COUNT)).get(),
    }
}

const PROTOCOLS: [(&str, Protocol); 3] =
    [("tls", Protocol::Tls), ("postgres", Protocol::Postgres), ("tcp", Protocol::Tcp)];

fn listener(mut s: Section<'_, '_>) -> RawListener {
    RawListener {
        span: s.span.clone(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        bind: s.require("bind", |r, v| r.list(v, |r, v| r.parse(v, value::socket_address))),
        protocol: s.read("protocol", |r, v| r.choice(v, &PROTOCOLS)),
        hello_timeout: s.read("hello_timeout", |r, v| r.timeout(v)),
        hello_bytes: s.read("hello_bytes", |r, v| r.integer(v, HELLO_BYTES)),
        proxy_protocol: s.read("proxy_protocol", |r, v| r.boolean(v)),
        trusted_proxies: s.read("trusted_proxies", networks),
        allow: s.read("allow", |r, v| match v.get_ref() {
            DeValue::Array(list) if list.is_empty() => r.error(
                v,
                "an empty `allow` would turn every client away",
                "leave `allow` out to let everyone in",
            ),
            _ => networks(r, v),
        }),
        deny: s.read("deny", networks),
        max_connections: s.read("max_connections", |r, v| r.integer(v, CONNECTIONS)),
        client_rate: s.read("client_rate", |r, v| r.section(v, &CLIENT_RATE).map(client_rate)),
        backlog: s.read("backlog", |r, v| r.integer(v, 1..=i64::from(i32::MAX))),
        keepalive: s.read("keepalive", |r, v| r.section(v, &KEEPALIVE).map(keepalive)),
        freebind: s.read("freebind", |r, v| r.boolean(v)),
    }
}

/// Without host bits.
fn networks(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Vec<Spanned<IpNet>>> {
    r.items(v, |r, v| {
        let network = r.parse(v, value::cidr)?;
        let bare = network.trunc();
        if network != bare {
            let message = format!("`{network}` has bits set behind its prefix");
            let address = network.addr();
            let help = format!("it is taken as `{bare}`; for one address leave the prefix out: `{address}`");
            r.report.push(Diagnostic::warning(v.span(), message).help(help));
        }
        Some(bare)
    })
}

const TLS_MODES: [(&str, RawTls); 2] =
    [("passthrough", RawTls::Passthrough), ("terminate", RawTls::Terminate)];

fn route(mut s: Section<'_, '_>) -> RawRoute {
    RawRoute {
        span: s.span.clone(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        listener: s.require("listener", |r, v| r.string(v).map(str::to_owned)),
        sni: s.read("sni", |r, v| {
            let patterns = r.list(v, |r, v| r.parse(v, value::sni_pattern))?;
            r.reject_duplicates(&patterns, |pattern| quote(&pattern.to_string()));
            Some(patterns)
        }),
        alpn: s.read("alpn", |r, v| {
            let protocols = r.items(v, |r, v| r.parse(v, value::alpn))?;
            r.reject_duplicates(&protocols, |protocol| quote(protocol));
            Some(protocols)
        }),
        tls: s.read("tls", |r, v| r.choice(v, &TLS_MODES)),
        certificate: s.read("certificate", |r, v| r.section(v, &CERTIFICATE).map(certificate)),
        client_ca: s.read("client_ca", |r, v| r.parse(v, value::path)),
        client_auth: s.read("client_auth", |r, v| r.section(v, &CLIENT_AUTH).map(client_auth)),
        backends: s.require("backends", |r, v| r.list(v, backend)),
        idle_timeout: s.read("idle_timeout", |r, v| r.timeout(v)),
        max_age: s.read("max_age", |r, v| r.timeout(v)),
        max_connections: s.read("max_connections", |r, v| r.integer(v, CONNECTIONS)),
        client_rate: s.read("client_rate", |r, v| r.section(v, &CLIENT_RATE).map(client_rate)),
    }
}

fn client_rate(mut s: Section<'_, '_>) -> RawClientRate {
    RawClientRate {
        connections: s.read("connections", |r, v| r.integer(v, CONNECTIONS)),
        per: s.read("per", |r, v| r.timeout(v)),
        open: s.read("open", |r, v| r.integer(v, CONNECTIONS)),
    }
}

fn certificate(mut s: Section<'_, '_>) -> RawCertificate {
    RawCertificate {
        chain: s.require("chain", |r, v| r.parse(v, value::path)),
        key: s.require("key", |r, v| r.parse(v, value::path)),
        passphrase_file: s.read("passphrase_file", |r, v| r.parse(v, value::path)),
    }
}

const CLIENT_AUTH_MODES: [(&str, bool); 2] = [("required", true), ("optional", false)];

fn client_auth(mut s: Section<'_, '_>) -> RawClientAuth {
    RawClientAuth {
        ca: s.require("ca", |r, v| r.list(v, |r, v| r.parse(v, value::path))),
        crl: s.read("crl", |r, v| r.items(v, |r, v| r.parse(v, value::path))),
        mode: s.read("mode", |r, v| r.choice(v, &CLIENT_AUTH_MODES)),
        subjects: s.read("subjects", |r, v| r.items(v, |r, v| r.parse(v, identity::subject))),
        sans: s.read("sans", |r, v| r.items(v, |r, v| r.parse(v, identity::san))),
    }
}

/// A pool's name stands for `{ pool = NAME }`.
fn backend(r: &mut Reader<'_>, v: &Value<'_>) -> Option<RawBackend> {
    if let DeValue::String(pool) = v.get_ref() {
        let pool = Field::Given(Spanned::new(v.span(), pool.clone().into_owned()));
        return Some(RawBackend { pool, weight: Field::Absent });
    }
    let mut s = r.section(v, &BACKEND)?;
    Some(RawBackend {
        pool: s.require("pool", |r, v| r.string(v).map(str::to_owned)),
        weight: s.read("weight", |r, v| r.integer(v, 0..=256)),
    })
}

const BALANCES: [(&str, Balance); 4] = [
    ("round-robin", Balance::RoundRobin),
    ("least-connections", Balance::LeastConnections),
    ("source-hash", Balance::SourceHash),
    ("random", Balance::Random),
];

const PROXY_VERSIONS: [(&str, ProxyVersion); 2] = [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];

fn pool(mut s: Section<'_, '_>) -> RawPool {
    RawPool {
        name: s.require("name", |r, v| r.parse(v, value::name)),
        balance: s.read("balance", |r, v| r.choice(v, &BALANCES)),
        servers: s.require("servers", |r, v| r.list(v, server)),
        connect_timeout: s.read("connect_timeout", |r, v| r.timeout(v)),
        send_proxy: s.read("send_proxy", |r, v| r.choice(v, &PROXY_VERSIONS)),
        keepalive: s.read("keepalive", |r, v| r.section(v, &KEEPALIVE).map(keepalive)),
        health: s.read("health", |r, v| r.section(v, &HEALTH).map(health)),
        tls: s.read("tls", |r, v| r.section(v, &UPSTREAM_TLS).map(upstream_tls)),
    }
}

/// An address, or a service, stands for `{ address = … }`.
fn server(r: &mut Reader<'_>, v: &Value<'_>) -> Option<RawServer> {
    if let DeValue::String(_) = v.get_ref() {
        let address = r.parse(v, value::server_origin)?;
        let address = Field::Given(Spanned::new(v.span(), address));
        return Some(RawServer { address, weight: Field::Absent, backup: Field::Absent });
    }
    let mut s = r.section(v, &SERVER)?;
    Some(RawServer {
        address: s.require("address", |r, v| r.parse(v, value::server_origin)),
        weight: s.read("weight", |r, v| r.integer(v, 1..=256)),
        backup: s.read("backup", |r, v| r.boolean(v)),
    })
}

const CHECKS: [(&str, ()); 4] = [("tcp", ()), ("tls", ()), ("redis", ()), ("postgres", ())];

fn health(mut s: Section<'_, '_>) {
    s.read("check", |r, v| r.choice(v, &CHECKS));
    s.read("interval", |r, v| r.timeout(v));
    s.read("rise", |r, v| r.integer::<u32>(v, 1..=1000));
    s.read("fall", |r, v| r.integer::<u32>(v, 1..=1000));
}

fn upstream_tls(mut s: Section<'_, '_>) {
    s.read("ca", |r, v| r.parse(v, value::path));
    s.read("server_name", |r, v| r.parse(v, value::server_name));
}
