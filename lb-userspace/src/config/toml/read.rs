//! TOML text to a draft: which keys there are, of which type, and what each means on its own.
//!
//! Nothing here looks at two keys at once. A key whose value is wrong is reported here and [`Field::Invalid`]
//! from then on, so that one mistake is one error.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::thread;

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use super::keys::{
    ACCESS_LOG, BACKEND, BACKEND_WEIGHT, BACKLOG, BALANCES, CARRIED, CERTIFICATE, CHECK_COUNT, CHECKS,
    CLIENT_AUTH, CLIENT_AUTH_MODES, CLIENT_RATE, CONNECTIONS, ECH, ECH_MODES, EJECT, FLOWS, GATEWAY,
    GATEWAY_API, HEALTH, HEALTH_TLS, HELLO_BYTES, KEEPALIVE, KEEPALIVE_COUNT, LISTENER, LOG_FORMATS,
    MAX_KEEPALIVE_SECONDS, MIN_INTERVAL, MIN_VERSIONS, MODES, MOST_PORTS, MOST_WATCHES, ON_DOWN, ON_REMOVAL,
    PEER, PEER_ID, POOL, PORT, PROTOCOLS, PROXY_VERSIONS, REFUSALS, ROLES, ROUTE, RULE, SERVER,
    SERVER_WEIGHT, SOURCE_ADDRESSES, SOURCES, STATUS, TIERS, TLS_MODES, UPSTREAM_TLS, WORKERS,
};
use super::reader::{self, Reader, Section, Value};
use super::{identity, pieces, rule, value};
use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::draft::{
    AccessLogDraft, AuthoritiesDraft, BackendDraft, CertificateDraft, CertificateFiles, ClientAuthDraft,
    ClientAuthFiles, ClientRateDraft, Draft, EchDraft, Field, GatewayApiDraft, GatewayDraft, HealthDraft,
    HealthTlsDraft, ListenerDraft, PeerDraft, PoolDraft, RouteDraft, ServerDraft, UpstreamTlsDraft,
};
use crate::config::health::Eject;
use crate::config::model::{Interfaces, Keepalive};
use crate::config::place::Placed;
use crate::reason::Tier;

/// Of what one thread reads, at least, in bytes: less than this takes hardly longer than it takes to start one.
const SHARE: usize = 256 << 10;

/// Reads the whole text, past syntax errors too; a long one with two threads, for a start waits for it.
pub(in crate::config) fn read(text: &str, report: &mut Report) -> Draft {
    read_in_pieces(text, SHARE.max(text.len() / 2), pieces::SIZE, report)
}

/// Shares of at least `share` bytes are read at the same time, each in pieces of at least `size`.
pub(super) fn read_in_pieces(text: &str, share: usize, size: usize, report: &mut Report) -> Draft {
    let read = read_shares(text, share, size, report).unwrap_or_else(|| {
        let mut read = Tables::default();
        let whole = reader::parse(text, report);
        read.add(&whole, 0, report);
        read
    });
    let Tables { gateway, listeners, routes, pools, gateway_api } = read;
    let gateway = gateway.unwrap_or_else(|| default_gateway(report));
    Draft { gateway, listeners, routes, pools, gateway_api }
}

/// `None`: see [`pieces::each`].
fn read_shares(text: &str, share: usize, size: usize, report: &mut Report) -> Option<Tables> {
    let one = |share: Range<usize>| {
        let (mut read, mut report) = (Tables::default(), Report::default());
        let single =
            pieces::each_of(text, share, size, |table, offset| read.add(table, offset, &mut report))?;
        Some((read, report, single))
    };
    let ranges: Vec<_> = pieces::ranges(text, share).collect();
    let shares = match <[_; 1]>::try_from(ranges) {
        Ok([whole]) => vec![one(whole)],
        Err(ranges) => thread::scope(|scope| {
            let one = &one;
            let aside = |range| scope.spawn(move || one(range));
            let readers: Vec<_> = ranges.into_iter().map(aside).collect();
            // One that panicked has read nothing: the whole is read instead, and panics where it can be seen.
            readers.into_iter().map(|reader| reader.join().ok().flatten()).collect()
        }),
    };
    let (mut all, mut said, mut single) = (Tables::default(), Report::default(), HashSet::new());
    for share in shares {
        let (read, report, in_share) = share?;
        if in_share.into_iter().any(|name| !single.insert(name)) {
            return None;
        }
        all.append(read);
        said.append(report);
    }
    *report = said;
    Some(all)
}

/// Reads no more than `[gateway]`; syntax errors anywhere count, as they may hide it.
pub(in crate::config) fn read_gateway(text: &str, report: &mut Report) -> GatewayDraft {
    let (mut read, mut piecewise) = (None, Report::default());
    let only = |table: &DeTable<'_>, offset: usize, report: &mut Report| {
        let alone: DeTable<'_> =
            table.get_key_value("gateway").map(|(k, v)| (k.clone(), v.clone())).into_iter().collect();
        gateway_of(&mut Section::root(report, &alone, offset))
    };
    let found = pieces::each(text, pieces::SIZE, |table, offset| {
        read = read.take().or(only(table, offset, &mut piecewise));
    });
    if found.is_some() {
        *report = piecewise;
    } else {
        let whole = reader::parse(text, report);
        read = only(&whole, 0, report);
    }
    read.unwrap_or_else(|| default_gateway(report))
}

/// What is read of a file so far.
#[derive(Default)]
struct Tables {
    gateway: Option<GatewayDraft>,
    listeners: Vec<ListenerDraft>,
    routes: Vec<Arc<RouteDraft>>,
    pools: Vec<Arc<PoolDraft>>,
    gateway_api: Field<GatewayApiDraft>,
}

impl Tables {
    /// Reads the file, or the piece of it that begins at `offset`.
    fn add(&mut self, table: &DeTable<'_>, offset: usize, report: &mut Report) {
        let mut root = Section::root(report, table, offset);
        if let Some(gateway) = gateway_of(&mut root) {
            self.gateway = Some(gateway);
        }
        let api = root.read("gateway_api", |r, v| r.section(v, &GATEWAY_API).map(gateway_api));
        if !api.is_absent() {
            self.gateway_api = api;
        }
        self.listeners.extend(root.tables("listener", &LISTENER, listener));
        self.routes.extend(root.tables("route", &ROUTE, route).into_iter().map(Arc::new));
        self.pools.extend(root.tables("pool", &POOL, pool).into_iter().map(Arc::new));
    }

    /// What stands behind it in the file.
    fn append(&mut self, mut next: Self) {
        self.gateway = self.gateway.take().or(next.gateway);
        if self.gateway_api.is_absent() {
            self.gateway_api = next.gateway_api;
        }
        self.listeners.append(&mut next.listeners);
        self.routes.append(&mut next.routes);
        self.pools.append(&mut next.pools);
    }
}

/// `None` also if it is no table.
fn gateway_of(root: &mut Section<'_, '_>) -> Option<GatewayDraft> {
    root.read("gateway", |r, v| r.section(v, &GATEWAY).map(gateway)).into_value()
}

/// Without a `[gateway]`, everything in it has its default.
fn default_gateway(report: &mut Report) -> GatewayDraft {
    gateway(Section::open(report, &GATEWAY, &DeTable::new(), 0..0, 0))
}

fn gateway(mut s: Section<'_, '_>) -> GatewayDraft {
    GatewayDraft {
        workers: s.read("workers", |r, v| r.integer(v, WORKERS)),
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
        peer_id: s.read("peer_id", |r, v| r.integer(v, PEER_ID)),
        peers: s.read("peers", |r, v| r.list(v, |r, v| r.section(v, &PEER).map(peer))),
    }
}

fn peer(mut s: Section<'_, '_>) -> PeerDraft {
    PeerDraft {
        id: s.read("id", |r, v| r.integer(v, PEER_ID)),
        address: s.read("address", |r, v| r.parse(v, value::socket_address)),
    }
}

fn gateway_api(mut s: Section<'_, '_>) -> GatewayApiDraft {
    GatewayApiDraft {
        from: s.read("from", |r, v| r.choice(v, &SOURCES)),
        directory: s.read("directory", |r, v| r.parse(v, value::path)),
        kubeconfig: s.read("kubeconfig", |r, v| r.parse(v, value::path)),
        keep_objects: s.read("keep_objects", |r, v| r.boolean(v)),
        controller: s.read("controller", |r, v| r.parse(v, value::controller)),
        mode: s.read("mode", |r, v| r.choice(v, &MODES)),
        attach: s.read("attach", |r, v| r.parse(v, value::attach)),
        merge: s.read("merge", |r, v| r.boolean(v)),
        load_balancer_class: s.read("load_balancer_class", |r, v| r.parse(v, value::load_balancer_class)),
        addresses: s.read("addresses", |r, v| r.items(v, |r, v| r.parse(v, value::address_range))),
        external_names: s.read("external_names", |r, v| r.boolean(v)),
        auto_passthrough: s.read("auto_passthrough", |r, v| r.boolean(v)),
        max_ports: s.read("max_ports", |r, v| r.integer(v, MOST_PORTS)),
        max_watches: s.read("max_watches", |r, v| r.integer(v, MOST_WATCHES)),
        namespaces: s.read("namespaces", |r, v| r.items(v, |r, v| r.parse(v, value::namespace))),
        istio: s.read("istio", |r, v| r.items(v, |r, v| r.parse(v, value::labels))),
    }
}

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
            let names = names.into_iter().map(|name| name.value);
            Some(Interfaces::Named(names.collect()))
        }
    }
}

/// `copy` takes whatever reaches it, so it ends the list, written or not.
fn tiers(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Vec<Tier>> {
    let tiers = r.list(v, |r, v| r.choice(v, &TIERS))?;
    r.reject_duplicates(&tiers, |tier| format!("`{tier}`"));
    let mut reached = Vec::new();
    for tier in tiers {
        // A duplicate, which was reported.
        if reached.contains(&tier.value) {
            continue;
        }
        if reached.contains(&Tier::Copy) {
            let message = format!("the tier `{}` is never reached", tier.value);
            let warning = Diagnostic::warning(&tier.place, message);
            let help = "put `\"copy\"` last: it takes every connection";
            r.report.push(warning.help(help));
            continue;
        }
        reached.push(tier.value);
    }
    if !reached.contains(&Tier::Copy) {
        reached.push(Tier::Copy);
    }
    Some(reached)
}

fn access_log(mut s: Section<'_, '_>) -> AccessLogDraft {
    AccessLogDraft {
        path: s.read("path", |r, v| r.parse(v, value::log_target)),
        format: s.read("format", |r, v| r.choice(v, &LOG_FORMATS)),
    }
}

fn keepalive(mut s: Section<'_, '_>) -> Keepalive {
    let seconds = |r: &mut Reader<'_>, v: &Value<'_>| r.seconds(v, MAX_KEEPALIVE_SECONDS);
    Keepalive {
        idle: s.read("idle", seconds).get(),
        interval: s.read("interval", seconds).get(),
        count: s.read("count", |r, v| r.integer(v, KEEPALIVE_COUNT)).get(),
    }
}

fn listener(mut s: Section<'_, '_>) -> ListenerDraft {
    ListenerDraft {
        place: s.span.clone().into(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        bind: s.read("bind", |r, v| r.list(v, |r, v| r.parse(v, value::socket_address))),
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
        backlog: s.read("backlog", |r, v| r.integer(v, BACKLOG)),
        keepalive: s.read("keepalive", |r, v| r.section(v, &KEEPALIVE).map(keepalive)),
        freebind: s.read("freebind", |r, v| r.boolean(v)),
        version: s.read("version", |r, v| r.parse(v, value::greeting)),
        plugin: s.read("plugin", |r, v| r.parse(v, value::greeting)),
        ech: s.read("ech", |r, v| r.section(v, &ECH).map(ech)),
        refuse: s.read("refuse", |r, v| r.choice(v, &REFUSALS)),
        reserved: Field::Absent,
    }
}

fn ech(mut s: Section<'_, '_>) -> EchDraft {
    EchDraft {
        keys: s.read("keys", |r, v| r.list(v, |r, v| r.parse(v, value::path))),
        mode: s.read("mode", |r, v| r.choice(v, &ECH_MODES)),
        openings: s.read("openings", |r, v| r.integer(v, CONNECTIONS)),
    }
}

/// Without host bits.
fn networks(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Vec<Placed<IpNet>>> {
    r.items(v, |r, v| {
        let network = r.parse(v, value::cidr)?;
        let bare = network.trunc();
        if network != bare {
            let message = format!("`{network}` has bits set behind its prefix");
            let address = network.addr();
            let help = format!("it is taken as `{bare}`; for one address leave the prefix out: `{address}`");
            r.report.push(Diagnostic::warning(r.span(v), message).help(help));
        }
        Some(bare)
    })
}

fn route(mut s: Section<'_, '_>) -> RouteDraft {
    RouteDraft {
        place: s.span.clone().into(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        listener: s.read("listener", |r, v| r.string(v).map(str::to_owned)),
        sni: s.read("sni", |r, v| {
            let patterns = r.list(v, |r, v| r.parse(v, value::sni_pattern))?;
            r.reject_duplicates(&patterns, |pattern| quote(&pattern.to_string()));
            Some(patterns)
        }),
        alpn: s.read("alpn", alpn),
        protocol: s.read("protocol", |r, v| r.choice(v, &CARRIED)),
        tls: s.read("tls", |r, v| r.choice(v, &TLS_MODES)),
        certificate: s
            .read("certificate", |r, v| r.section(v, &CERTIFICATE).map(|s| Box::new(certificate(s)))),
        client_ca: s.read("client_ca", |r, v| r.parse(v, value::path)),
        client_auth: s.read("client_auth", |r, v| r.section(v, &CLIENT_AUTH).map(client_auth)),
        backends: s.read("backends", |r, v| r.list(v, backend)),
        rules: s.tables("rule", &RULE, rule::rule),
        retry_other_pool: s.read("retry_other_pool", |r, v| r.boolean(v)),
        idle_timeout: s.read("idle_timeout", |r, v| r.timeout(v)),
        max_age: s.read("max_age", |r, v| r.timeout(v)),
        on_removal: s.read("on_removal", |r, v| r.choice(v, &ON_REMOVAL)),
        max_connections: s.read("max_connections", |r, v| r.integer(v, CONNECTIONS)),
        client_rate: s.read("client_rate", |r, v| r.section(v, &CLIENT_RATE).map(client_rate)),
        http: Field::Absent,
    }
}

fn client_rate(mut s: Section<'_, '_>) -> ClientRateDraft {
    ClientRateDraft {
        connections: s.read("connections", |r, v| r.integer(v, CONNECTIONS)),
        per: s.read("per", |r, v| r.timeout(v)),
        open: s.read("open", |r, v| r.integer(v, CONNECTIONS)),
    }
}

fn alpn(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Vec<Placed<Box<str>>>> {
    let protocols = r.items(v, |r, v| r.parse(v, value::alpn))?;
    r.reject_duplicates(&protocols, |protocol| quote(protocol));
    Some(protocols)
}

fn certificate(mut s: Section<'_, '_>) -> CertificateDraft {
    CertificateDraft::Files(CertificateFiles {
        chain: s.read("chain", |r, v| r.parse(v, value::path)),
        key: s.read("key", |r, v| r.parse(v, value::path)),
        passphrase_file: s.read("passphrase_file", |r, v| r.parse(v, value::path)),
    })
}

fn client_auth(mut s: Section<'_, '_>) -> ClientAuthDraft {
    ClientAuthDraft::Files(ClientAuthFiles {
        ca: s.read("ca", |r, v| r.list(v, |r, v| r.parse(v, value::path))),
        crl: s.read("crl", |r, v| r.items(v, |r, v| r.parse(v, value::path))),
        mode: s.read("mode", |r, v| r.choice(v, &CLIENT_AUTH_MODES)),
        subjects: s.read("subjects", |r, v| r.items(v, |r, v| r.parse(v, identity::subject))),
        sans: s.read("sans", |r, v| r.items(v, |r, v| r.parse(v, identity::san))),
    })
}

/// A pool's name stands for `{ pool = NAME }`.
fn backend(r: &mut Reader<'_>, v: &Value<'_>) -> Option<BackendDraft> {
    if let DeValue::String(pool) = v.get_ref() {
        let pool = Field::Given(Placed::new(r.span(v), pool.clone().into_owned()));
        return Some(BackendDraft { pool, weight: Field::Absent });
    }
    let mut s = r.section(v, &BACKEND)?;
    Some(BackendDraft {
        pool: s.read("pool", |r, v| r.string(v).map(str::to_owned)),
        weight: s.read("weight", |r, v| r.integer(v, BACKEND_WEIGHT)),
    })
}

fn pool(mut s: Section<'_, '_>) -> PoolDraft {
    PoolDraft {
        place: s.span.clone().into(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        balance: s.read("balance", |r, v| r.choice(v, &BALANCES)),
        servers: s.read("servers", |r, v| r.list(v, server)),
        slow_start: s.read("slow_start", |r, v| r.timeout(v)),
        connect_timeout: s.read("connect_timeout", |r, v| r.timeout(v)),
        send_proxy: s.read("send_proxy", |r, v| r.choice(v, &PROXY_VERSIONS)),
        source: s.read("source", |r, v| r.choice(v, &SOURCE_ADDRESSES)),
        keepalive: s.read("keepalive", |r, v| r.section(v, &KEEPALIVE).map(keepalive)),
        health: s.read("health", health),
        eject: s.read("eject", |r, v| r.section(v, &EJECT).map(eject)),
        on_down: s.read("on_down", |r, v| r.choice(v, &ON_DOWN)),
        http2: s.read("http2", |r, v| r.boolean(v)),
        tls: s.read("tls", |r, v| r.section(v, &UPSTREAM_TLS).map(upstream_tls)),
    }
}

/// An address, or a service, stands for `{ address = … }`.
fn server(r: &mut Reader<'_>, v: &Value<'_>) -> Option<ServerDraft> {
    if let DeValue::String(_) = v.get_ref() {
        let address = r.parse(v, value::server_origin)?;
        let address = Field::Given(Placed::new(r.span(v), address));
        return Some(ServerDraft { address, ..ServerDraft::default() });
    }
    let mut s = r.section(v, &SERVER)?;
    Some(ServerDraft {
        address: s.read("address", |r, v| r.parse(v, value::server_origin)),
        weight: s.read("weight", |r, v| r.integer(v, SERVER_WEIGHT)),
        backup: s.read("backup", |r, v| r.boolean(v)),
        max_connections: s.read("max_connections", |r, v| r.integer(v, CONNECTIONS)),
    })
}

fn health(r: &mut Reader<'_>, v: &Value<'_>) -> Option<HealthDraft> {
    let mut s = r.section(v, &HEALTH)?;
    Some(HealthDraft {
        check: s.read("check", |r, v| r.choice(v, &CHECKS)),
        interval: s.read("interval", |r, v| {
            let interval = r.timeout(v)?;
            match interval < MIN_INTERVAL {
                true => r.error(v, "`interval` must be at least 100 ms", "for example `interval = \"5s\"`"),
                false => Some(interval),
            }
        }),
        timeout: s.read("timeout", |r, v| r.timeout(v)),
        rise: s.read("rise", |r, v| r.integer(v, CHECK_COUNT)),
        fall: s.read("fall", |r, v| r.integer(v, CHECK_COUNT)),
        port: s.read("port", |r, v| r.integer(v, PORT)),
        role: s.read("role", |r, v| r.choice(v, &ROLES)),
        user: s.read("user", |r, v| r.parse(v, |text| value::word("user", text))),
        password_file: s.read("password_file", |r, v| r.parse(v, value::path)),
        database: s.read("database", |r, v| r.parse(v, |text| value::word("database", text))),
        path: s.read("path", |r, v| r.parse(v, value::http_path)),
        host: s.read("host", |r, v| r.parse(v, value::http_host)),
        status: s.read("status", |r, v| r.list(v, |r, v| r.integer(v, STATUS))),
        tls: s.read("tls", |r, v| r.section(v, &HEALTH_TLS).map(health_tls)),
    })
}

fn health_tls(mut s: Section<'_, '_>) -> HealthTlsDraft {
    HealthTlsDraft {
        ca: s.read("ca", |r, v| r.parse(v, value::path)),
        server_name: s.read("server_name", |r, v| r.parse(v, value::server_name)),
    }
}

fn eject(mut s: Section<'_, '_>) -> Eject {
    let default = Eject::default();
    Eject {
        failures: s.read("failures", |r, v| r.integer(v, CHECK_COUNT)).or(default.failures),
        time: s.read("time", |r, v| r.timeout(v)).or(default.time),
    }
}

fn upstream_tls(mut s: Section<'_, '_>) -> UpstreamTlsDraft {
    UpstreamTlsDraft {
        ca: s.read("ca", |r, v| r.parse(v, value::path).map(AuthoritiesDraft::File)),
        server_name: s.read("server_name", |r, v| r.parse(v, value::server_name)),
        san: s.read("san", |r, v| r.list(v, |r, v| r.parse(v, identity::san))),
        certificate: s
            .read("certificate", |r, v| r.section(v, &CERTIFICATE).map(|s| Box::new(certificate(s)))),
        alpn: s.read("alpn", alpn),
        min_version: s.read("min_version", |r, v| r.choice(v, &MIN_VERSIONS)),
    }
}
