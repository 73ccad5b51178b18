//! TOML text to spanned values: which keys there are, of which type, and what each means on its own.
//!
//! Nothing here looks at two keys at once. A key whose value is wrong is reported here and [`Field::Invalid`]
//! from then on, so that one mistake is one error.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::diagnostic::{Diagnostic, Report, quote};
use super::value::{self, Problem};
use super::{Address, Balance, Interfaces, LogFormat, LogTarget, Protocol, ProxyVersion, SniPattern};
use crate::account::Tier;

/// The value of a key, as far as it makes sense.
#[derive(Debug)]
pub(super) enum Field<T> {
    /// The key is not there.
    Absent,
    /// It is, and what is wrong with it has been reported.
    Invalid,
    /// It is, and this is its value and where that stands.
    Given(Spanned<T>),
}

impl<T> Field<T> {
    pub(super) fn given(&self) -> Option<&Spanned<T>> {
        match self {
            Field::Given(value) => Some(value),
            Field::Absent | Field::Invalid => None,
        }
    }

    pub(super) fn span(&self) -> Option<Range<usize>> {
        self.given().map(Spanned::span)
    }

    fn into_value(self) -> Option<T> {
        match self {
            Field::Given(value) => Some(value.into_inner()),
            Field::Absent | Field::Invalid => None,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }

    pub(super) fn is_invalid(&self) -> bool {
        matches!(self, Field::Invalid)
    }
}

impl<T: Clone> Field<T> {
    /// The value; none also if it is invalid, as the configuration is refused then anyway.
    pub(super) fn get(&self) -> Option<T> {
        self.given().map(|value| value.get_ref().clone())
    }

    /// The value, or what holds without one.
    pub(super) fn or(&self, default: T) -> T {
        self.get().unwrap_or(default)
    }
}

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
    pub(super) proxy_protocol: Field<bool>,
    pub(super) trusted_proxies: Field<Vec<Spanned<IpNet>>>,
    pub(super) allow: Field<Vec<Spanned<IpNet>>>,
    pub(super) deny: Field<Vec<Spanned<IpNet>>>,
    pub(super) max_connections: Field<usize>,
    pub(super) backlog: Field<u32>,
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
    pub(super) backends: Field<Vec<Spanned<RawBackend>>>,
    pub(super) idle_timeout: Field<Duration>,
    pub(super) max_connections: Field<usize>,
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
    /// Validated; not kept, see `not_in_this_version`.
    pub(super) health: Field<()>,
    /// Validated; not kept, see `not_in_this_version`.
    pub(super) tls: Field<()>,
}

#[derive(Debug)]
pub(super) struct RawServer {
    pub(super) address: Field<Address>,
    pub(super) weight: Field<u32>,
    pub(super) backup: Field<bool>,
}

/// Reads the whole text, past syntax errors too.
pub(super) fn read(text: &str, report: &mut Report) -> RawConfig {
    let (root, errors) = DeTable::parse_recoverable(text);
    report_syntax(text, &errors, report);
    let mut root = Section::open(report, &ROOT, root.get_ref(), 0..0);
    let gateway = root.read("gateway", |r, v| r.section(v, &GATEWAY).map(gateway));
    RawConfig {
        // Without a [gateway], everything in it has its default.
        gateway: gateway
            .into_value()
            .unwrap_or_else(|| self::gateway(Section::open(root.report, &GATEWAY, &DeTable::new(), 0..0))),
        listeners: root.tables("listener", &LISTENER, listener),
        routes: root.tables("route", &ROUTE, route),
        pools: root.tables("pool", &POOL, pool),
    }
}

/// An array or inline table that is not closed swallows what follows it, with an error for each line: only the
/// first of such a run is a mistake of the user's.
fn report_syntax(text: &str, errors: &[toml::de::Error], report: &mut Report) {
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| (error.span().unwrap_or(text.len()..text.len()), error.message().replace('\n', " ")))
        .collect();
    errors.sort_by_key(|(span, _)| span.start);
    errors.dedup();
    let mut previous = None;
    for (span, message) in errors {
        let inside = RUN_ON.iter().any(|start| message.starts_with(start));
        let run_on = previous.replace(span.start).is_some_and(|start| adjacent(text, start..span.start));
        if inside && run_on {
            continue;
        }
        let not_closed = message.contains("array elements");
        let error = Diagnostic::error(span, message);
        report.push_syntax(match not_closed {
            true => error.help("if the list ends before this, close it with `]`"),
            false => error,
        });
    }
}

/// What the parser says of text that it takes for the inside of an array or inline table.
const RUN_ON: [&str; 8] = [
    "missing comma between",
    "missing assignment between",
    "missing key for inline table",
    "invalid inline table element",
    "unexpected `=` in array",
    "extra comma in",
    "unclosed array,",
    "unclosed inline table",
];

/// Whether no line with anything on it lies between the lines where `range` starts and ends.
fn adjacent(text: &str, range: Range<usize>) -> bool {
    let mut lines = text.get(range).unwrap_or_default().split('\n');
    lines.next();
    lines.next_back();
    lines.map(str::trim).all(|line| line.is_empty() || line.starts_with('#'))
}

/// The keys of a table, each with an example of its value.
struct Keys {
    /// As users write it.
    header: &'static str,
    keys: &'static [(&'static str, &'static str)],
}

const ROOT: Keys = Keys {
    header: "the top level",
    keys: &[
        ("gateway", "[gateway]"),
        ("listener", "[[listener]]"),
        ("route", "[[route]]"),
        ("pool", "[[pool]]"),
    ],
};

const GATEWAY: Keys = Keys {
    header: "[gateway]",
    keys: &[
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
    ],
};

const ACCESS_LOG: Keys = Keys { header: "access_log", keys: &[("path", r#""-""#), ("format", r#""json""#)] };

const LISTENER: Keys = Keys {
    header: "[[listener]]",
    keys: &[
        ("name", r#""databases""#),
        ("bind", r#"["0.0.0.0:443", "[::]:443"]"#),
        ("protocol", r#""tls""#),
        ("hello_timeout", r#""5s""#),
        ("proxy_protocol", "true"),
        ("trusted_proxies", r#"["10.0.0.0/8"]"#),
        ("allow", r#"["10.0.0.0/8"]"#),
        ("deny", r#"["10.0.0.0/8"]"#),
        ("max_connections", "100000"),
        ("backlog", "4096"),
    ],
};

const ROUTE: Keys = Keys {
    header: "[[route]]",
    keys: &[
        ("name", r#""redis-1""#),
        ("listener", r#""databases""#),
        ("sni", r#"["redis-1.example.com"]"#),
        ("alpn", r#"["postgresql"]"#),
        ("tls", r#""terminate""#),
        ("certificate", r#"{ chain = "redis-1.crt", key = "redis-1.key" }"#),
        ("client_ca", r#""clients-ca.crt""#),
        ("backends", r#"["redis-1"]"#),
        ("idle_timeout", r#""1h""#),
        ("max_connections", "1000"),
    ],
};

const CERTIFICATE: Keys =
    Keys { header: "certificate", keys: &[("chain", r#""redis-1.crt""#), ("key", r#""redis-1.key""#)] };

const BACKEND: Keys = Keys { header: "a backend", keys: &[("pool", r#""redis-1""#), ("weight", "1")] };

const POOL: Keys = Keys {
    header: "[[pool]]",
    keys: &[
        ("name", r#""redis-1""#),
        ("balance", r#""round-robin""#),
        ("servers", r#"[{ address = "10.0.0.11:6379" }]"#),
        ("connect_timeout", r#""2s""#),
        ("send_proxy", r#""v2""#),
        ("health", r#"{ check = "tcp", interval = "5s", rise = 2, fall = 3 }"#),
        ("tls", r#"{ ca = "upstream-ca.crt", server_name = "redis.internal" }"#),
    ],
};

const SERVER: Keys = Keys {
    header: "a server",
    keys: &[("address", r#""10.0.0.11:6379""#), ("weight", "1"), ("backup", "true")],
};

const HEALTH: Keys = Keys {
    header: "health",
    keys: &[("check", r#""tcp""#), ("interval", r#""5s""#), ("rise", "2"), ("fall", "3")],
};

const UPSTREAM_TLS: Keys = Keys {
    header: "tls of a pool",
    keys: &[("ca", r#""upstream-ca.crt""#), ("server_name", r#""redis.internal""#)],
};

/// Where a key that is unknown in one table may belong.
const SECTIONS: [&Keys; 4] = [&GATEWAY, &LISTENER, &ROUTE, &POOL];

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
    }
}

/// Of any `max_connections`.
const CONNECTIONS: RangeInclusive<i64> = 1..=1_000_000_000;

fn interfaces(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Interfaces> {
    if let DeValue::String(text) = value.get_ref() {
        if text == "auto" {
            return Some(Interfaces::Auto);
        }
        let message = format!("`interfaces` must be `\"auto\"` or a list, not {}", quote(text));
        reader.report.push(Diagnostic::error(value.span(), message).help(format!("interfaces = [{text:?}]")));
        return None;
    }
    let names = reader.list(value, |r, v| r.parse(v, value::interface))?;
    reader.reject_duplicates(&names, |name| quote(name));
    Some(Interfaces::Named(names.into_iter().map(|name| name.into_inner().into()).collect()))
}

/// `copy` takes whatever reaches it, so it ends the list, written or not.
fn tiers(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Vec<Tier>> {
    let tiers = reader.list(value, |r, v| {
        r.choice(v, &[("packet", Tier::Packet), ("sockmap", Tier::Sockmap), ("copy", Tier::Copy)])
    })?;
    reader.reject_duplicates(&tiers, |tier| format!("`{tier}`"));
    let copy = tiers.iter().position(|tier| *tier.get_ref() == Tier::Copy);
    if let Some(unreached) = copy.and_then(|copy| tiers.get(copy + 1)) {
        let message = format!("the tier `{}` is never reached", unreached.get_ref());
        let warning = Diagnostic::warning(unreached.span(), message);
        reader.report.push(warning.help("put `\"copy\"` last: it takes every connection"));
    }
    let mut used: Vec<Tier> =
        tiers.into_iter().map(Spanned::into_inner).take(copy.unwrap_or(usize::MAX)).collect();
    used.push(Tier::Copy);
    Some(used)
}

fn access_log(mut s: Section<'_, '_>) -> RawAccessLog {
    RawAccessLog {
        path: s.read("path", |r, v| {
            r.parse(v, |text| match text {
                "-" => Ok(LogTarget::Stdout),
                _ => value::absolute_path(text).map(LogTarget::File).map_err(|problem| {
                    problem.help("start it with `/`, or write `\"-\"` for standard output")
                }),
            })
        }),
        format: s.read("format", |r, v| r.choice(v, &[("json", LogFormat::Json), ("text", LogFormat::Text)])),
    }
}

fn listener(mut s: Section<'_, '_>) -> RawListener {
    RawListener {
        span: s.span.clone(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        bind: s.require("bind", |r, v| r.list(v, |r, v| r.parse(v, value::socket_address))),
        protocol: s.read("protocol", |r, v| {
            r.choice(v, &[("tls", Protocol::Tls), ("postgres", Protocol::Postgres), ("tcp", Protocol::Tcp)])
        }),
        hello_timeout: s.read("hello_timeout", |r, v| r.timeout(v)),
        proxy_protocol: s.read("proxy_protocol", |r, v| r.boolean(v)),
        trusted_proxies: s.read("trusted_proxies", networks),
        allow: s.read("allow", |r, v| match v.get_ref() {
            DeValue::Array(list) if list.is_empty() => {
                let error = Diagnostic::error(v.span(), "an empty `allow` would turn every client away");
                r.report.push(error.help("leave `allow` out to let everyone in"));
                None
            }
            _ => networks(r, v),
        }),
        deny: s.read("deny", networks),
        max_connections: s.read("max_connections", |r, v| r.integer(v, CONNECTIONS)),
        backlog: s.read("backlog", |r, v| r.integer(v, 1..=i64::from(i32::MAX))),
    }
}

fn networks(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Vec<Spanned<IpNet>>> {
    let networks = reader.items(value, |r, v| r.parse(v, value::cidr))?;
    for network in &networks {
        let (net, trunc) = (network.get_ref(), network.get_ref().trunc());
        if *net != trunc {
            let message = format!("`{net}` has bits set behind its prefix");
            let help =
                format!("it is taken as `{trunc}`; for one address leave the prefix out: `{}`", net.addr());
            reader.report.push(Diagnostic::warning(network.span(), message).help(help));
        }
    }
    Some(networks.into_iter().map(|net| Spanned::new(net.span(), net.into_inner().trunc())).collect())
}

fn route(mut s: Section<'_, '_>) -> RawRoute {
    RawRoute {
        span: s.span.clone(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        listener: s.require("listener", |r, v| r.text(v)),
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
        tls: s.read("tls", |r, v| {
            r.choice(v, &[("passthrough", RawTls::Passthrough), ("terminate", RawTls::Terminate)])
        }),
        certificate: s.read("certificate", |r, v| r.section(v, &CERTIFICATE).map(certificate)),
        client_ca: s.read("client_ca", |r, v| r.parse(v, value::path)),
        backends: s.require("backends", |r, v| r.list(v, backend)),
        idle_timeout: s.read("idle_timeout", |r, v| r.timeout(v)),
        max_connections: s.read("max_connections", |r, v| r.integer(v, CONNECTIONS)),
    }
}

fn certificate(mut s: Section<'_, '_>) -> RawCertificate {
    RawCertificate {
        chain: s.require("chain", |r, v| r.parse(v, value::path)),
        key: s.require("key", |r, v| r.parse(v, value::path)),
    }
}

/// A pool's name stands for `{ pool = NAME }`.
fn backend(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<RawBackend> {
    if let DeValue::String(pool) = value.get_ref() {
        let pool = Field::Given(Spanned::new(value.span(), pool.clone().into_owned()));
        return Some(RawBackend { pool, weight: Field::Absent });
    }
    let mut s = reader.section(value, &BACKEND)?;
    Some(RawBackend {
        pool: s.require("pool", |r, v| r.text(v)),
        weight: s.read("weight", |r, v| r.integer(v, 0..=256)),
    })
}

fn pool(mut s: Section<'_, '_>) -> RawPool {
    RawPool {
        name: s.require("name", |r, v| r.parse(v, value::name)),
        balance: s.read("balance", |r, v| {
            r.choice(
                v,
                &[
                    ("round-robin", Balance::RoundRobin),
                    ("least-connections", Balance::LeastConnections),
                    ("source-hash", Balance::SourceHash),
                    ("random", Balance::Random),
                ],
            )
        }),
        servers: s.require("servers", |r, v| r.list(v, server)),
        connect_timeout: s.read("connect_timeout", |r, v| r.timeout(v)),
        send_proxy: s
            .read("send_proxy", |r, v| r.choice(v, &[("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)])),
        health: s.read("health", |r, v| r.section(v, &HEALTH).map(health)),
        tls: s.read("tls", |r, v| r.section(v, &UPSTREAM_TLS).map(upstream_tls)),
    }
}

/// An address stands for `{ address = ADDRESS }`.
fn server(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<RawServer> {
    if let DeValue::String(_) = value.get_ref() {
        let address = reader.parse(value, value::server_address)?;
        let address = Field::Given(Spanned::new(value.span(), address));
        return Some(RawServer { address, weight: Field::Absent, backup: Field::Absent });
    }
    let mut s = reader.section(value, &SERVER)?;
    Some(RawServer {
        address: s.require("address", |r, v| r.parse(v, value::server_address)),
        weight: s.read("weight", |r, v| r.integer(v, 1..=256)),
        backup: s.read("backup", |r, v| r.boolean(v)),
    })
}

fn health(mut s: Section<'_, '_>) {
    s.require("check", |r, v| r.choice(v, &[("tcp", ()), ("tls", ()), ("redis", ()), ("postgres", ())]));
    s.read("interval", |r, v| r.timeout(v));
    s.read("rise", |r, v| r.integer::<u32>(v, 1..=1000));
    s.read("fall", |r, v| r.integer::<u32>(v, 1..=1000));
}

fn upstream_tls(mut s: Section<'_, '_>) {
    s.read("ca", |r, v| r.parse(v, value::path));
    s.read("server_name", |r, v| r.parse(v, value::server_name));
}

type Value<'i> = Spanned<DeValue<'i>>;

/// A table being read: every key that is not in `keys` has been reported.
struct Section<'a, 'i> {
    report: &'a mut Report,
    keys: &'static Keys,
    table: &'a DeTable<'i>,
    /// Of the header, or of the whole table where it is written inline.
    span: Range<usize>,
}

impl<'a, 'i> Section<'a, 'i> {
    fn open(report: &'a mut Report, keys: &'static Keys, table: &'a DeTable<'i>, span: Range<usize>) -> Self {
        for key in table.keys() {
            if !keys.keys.iter().any(|(known, _)| *known == key.get_ref()) {
                report_unknown_key(report, keys, key);
            }
        }
        Self { report, keys, table, span }
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        value: impl FnOnce(&mut Reader<'_>, &Value<'i>) -> Option<T>,
    ) -> Field<T> {
        let Some(given) = self.table.get(key) else {
            return Field::Absent;
        };
        let example = self.example(key);
        let mut reader = Reader { report: self.report, key, example };
        match value(&mut reader, given) {
            Some(value) => Field::Given(Spanned::new(given.span(), value)),
            None => Field::Invalid,
        }
    }

    /// A key that is not there is as good as one that makes no sense.
    fn require<T>(
        &mut self,
        key: &'static str,
        value: impl FnOnce(&mut Reader<'_>, &Value<'i>) -> Option<T>,
    ) -> Field<T> {
        let field = self.read(key, value);
        if field.is_absent() {
            let error = Diagnostic::error(self.span.clone(), format!("{} without `{key}`", self.keys.header));
            self.report.push_absence(error.help(format!("for example `{key} = {}`", self.example(key))));
        }
        field
    }

    /// Reads each table of `[[key]]`.
    fn tables<T>(
        &mut self,
        key: &'static str,
        keys: &'static Keys,
        table: impl Fn(Section<'_, '_>) -> T,
    ) -> Vec<T> {
        let field = self.read(key, |reader, value| match value.get_ref() {
            DeValue::Array(list) => {
                let sections = list.iter().filter_map(|item| reader.section(item, keys).map(&table));
                Some(sections.collect())
            }
            DeValue::Table(_) => {
                let message = format!("`{key}` is a list of tables");
                let help = format!("write `{}`", keys.header);
                reader.report.push(Diagnostic::error(value.span(), message).help(help));
                // So that references to its name are none to nothing.
                reader.section(value, keys).map(|section| vec![table(section)])
            }
            _ => reader.wrong_type(value, "a list of tables"),
        });
        field.into_value().unwrap_or_default()
    }

    fn example(&self, key: &str) -> &'static str {
        self.keys.keys.iter().find(|(known, _)| *known == key).expect("only known keys are read").1
    }
}

/// What stands at one key, or in a list at one key.
struct Reader<'a> {
    report: &'a mut Report,
    key: &'static str,
    /// A good value of `key`.
    example: &'static str,
}

impl Reader<'_> {
    fn string<'v>(&mut self, value: &'v Value<'_>) -> Option<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => self.wrong_type(value, "a string"),
        }
    }

    fn text(&mut self, value: &Value<'_>) -> Option<String> {
        self.string(value).map(str::to_owned)
    }

    fn parse<T>(&mut self, value: &Value<'_>, meaning: impl FnOnce(&str) -> Result<T, Problem>) -> Option<T> {
        let text = self.string(value)?;
        match meaning(text) {
            Ok(meaning) => Some(meaning),
            Err(problem) => {
                self.report.push(problem.at(value.span()));
                None
            }
        }
    }

    fn timeout(&mut self, value: &Value<'_>) -> Option<Duration> {
        let duration = self.parse(value, value::duration)?;
        if duration.is_zero() {
            let error = Diagnostic::error(value.span(), format!("`{}` must not be zero", self.key));
            self.report.push(error.help(match self.key {
                "idle_timeout" => "leave it out for no timeout".to_owned(),
                _ => format!("for example `{}`", self.example),
            }));
            return None;
        }
        Some(duration)
    }

    fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            _ => self.wrong_type(value, "`true` or `false`"),
        }
    }

    /// `range` lies within `T`.
    fn integer<T: TryFrom<i64>>(&mut self, value: &Value<'_>, range: RangeInclusive<i64>) -> Option<T> {
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.wrong_type(value, "an integer");
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number =
            number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            let message = format!("`{}` must be from {} to {}", self.key, range.start(), range.end());
            self.report.push(Diagnostic::error(value.span(), message));
        }
        number
    }

    fn choice<T: Copy>(&mut self, value: &Value<'_>, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.string(value)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let help = self.report.similar(text, choices.iter().map(|(name, _)| *name)).unwrap_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("`{name:?}`")).collect();
            format!("one of {}", names.join(", "))
        });
        let message = format!("`{}` cannot be {}", self.key, quote(text));
        self.report.push(Diagnostic::error(value.span(), message).help(help));
        None
    }

    /// A list with something in it.
    fn list<T>(
        &mut self,
        value: &Value<'_>,
        item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<Spanned<T>>> {
        if let DeValue::Array(list) = value.get_ref()
            && list.is_empty()
        {
            let error = Diagnostic::error(value.span(), format!("`{}` must not be empty", self.key));
            self.report.push(error.help(format!("for example `{} = {}`", self.key, self.example)));
            return None;
        }
        self.items(value, item)
    }

    /// The items that make sense: the others have been reported.
    fn items<T>(
        &mut self,
        value: &Value<'_>,
        mut item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<Spanned<T>>> {
        let DeValue::Array(list) = value.get_ref() else {
            return self.wrong_type(value, "a list");
        };
        Some(list.iter().filter_map(|value| Some(Spanned::new(value.span(), item(self, value)?))).collect())
    }

    fn reject_duplicates<T: Eq + Hash>(&mut self, items: &[Spanned<T>], show: impl Fn(&T) -> String) {
        let mut seen = HashMap::new();
        for item in items {
            match seen.entry(item.get_ref()) {
                Entry::Vacant(entry) => _ = entry.insert(item.span()),
                Entry::Occupied(first) => {
                    let message = format!("{} is twice in `{}`", show(item.get_ref()), self.key);
                    let error =
                        Diagnostic::error(item.span(), message).related(first.get().clone(), "first here");
                    self.report.push(error.help("remove one of them"));
                }
            }
        }
    }

    fn section<'s, 'i>(&'s mut self, value: &'s Value<'i>, keys: &'static Keys) -> Option<Section<'s, 'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::open(self.report, keys, table, value.span())),
            _ => self.wrong_type(value, "a table"),
        }
    }

    fn wrong_type<T>(&mut self, value: &Value<'_>, expected: &str) -> Option<T> {
        let message = format!("`{}` must be {expected}, not {}", self.key, article(value));
        let help = match value.get_ref() {
            DeValue::String(text) if expected == "a list" => format!("`{} = [{text:?}]`", self.key),
            // Not a value of a key, but a header.
            _ if self.example == GATEWAY.header || self.example.starts_with("[[") => {
                format!("write `{}`", self.example)
            }
            _ => format!("for example `{} = {}`", self.key, self.example),
        };
        self.report.push(Diagnostic::error(value.span(), message).help(help));
        None
    }
}

fn report_unknown_key(report: &mut Report, keys: &Keys, key: &Spanned<DeString<'_>>) {
    let name = key.get_ref();
    let known = || keys.keys.iter().map(|(known, _)| *known);
    let elsewhere = SECTIONS.iter().find(|section| section.keys.iter().any(|(known, _)| known == name));
    let help = match (elsewhere, report.similar(name, known())) {
        (Some(section), _) => format!("it belongs in `{}`", section.header),
        (None, Some(similar)) => similar,
        (None, None) => format!("known are {}", known().map(quote).collect::<Vec<_>>().join(", ")),
    };
    let message = format!("unknown key {} in {}", quote(name), keys.header);
    let error = Diagnostic::error(key.span(), message).help(help);
    match elsewhere {
        // The header above it may just have been lost.
        Some(_) => report.push_absence(error),
        None => report.push(error),
    }
}

fn article(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
