//! Spanned values to a validated configuration: what keys mean for each other. Every error at once.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::num::NonZeroU32;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use toml::Spanned;

use super::certificate::{Certificates, ClientPaths, Loaded, Paths};
use super::diagnostic::{Diagnostic, Diagnostics, Report, Warnings, quote};
use super::names::Names;
use super::overlap::{self, Claim};
use super::pem::Part;
use super::raw::{
    self, CLIENT_RATE_EXAMPLE, RawClientRate, RawConfig, RawGateway, RawListener, RawPool, RawRoute, RawTls,
};
use super::reader::{Field, reject_repeated};
use super::value::Problem;
use super::{
    AccessLog, Allowed, Backend, Balance, ClientRate, Config, Files, Gateway, Interfaces, Keepalive,
    Listener, LogFormat, LogTarget, NewConnections, Origin, Pool, Protocol, Route, SOURCE_PORTS, Server,
    TlsMode,
};
use crate::reason::Tier;
use crate::sniff::MAX_WINDOW;

/// A configuration with its warnings, or everything that is wrong with it.
pub type Checked = Result<(Config, Warnings), Diagnostics>;

/// Validates `text`. `file_name` is what diagnostics call it; `now` is what certificates are dated against.
pub fn check(text: &str, file_name: &str, files: &dyn Files, now: UnixTime) -> Checked {
    let mut report = Report::default();
    let raw = raw::read(text, &mut report);
    not_in_this_version(&raw, &mut report);
    let config = config(&raw, &mut Certificates::new(files, now), &mut report);
    conclude(config, report, file_name, text)
}

/// Validates `[gateway]` alone; whatever else is wrong with `text`, but for its syntax, is not asked.
pub fn check_gateway(text: &str, file_name: &str) -> Result<(Gateway, Warnings), Diagnostics> {
    let mut report = Report::default();
    let gateway = gateway(&raw::read_gateway(text, &mut report));
    conclude(gateway, report, file_name, text)
}

/// What was read with its warnings, or, if an error was reported, everything that is wrong with it.
fn conclude<T>(read: T, report: Report, file_name: &str, text: &str) -> Result<(T, Warnings), Diagnostics> {
    let refused = report.has_errors();
    let diagnostics = report.finish(file_name, text);
    if refused { Err(diagnostics) } else { Ok((read, diagnostics)) }
}

/// What the format has and this version lacks. Delete a line when its feature is there.
fn not_in_this_version(raw: &RawConfig, report: &mut Report) {
    for pool in &raw.pools {
        for (key, field, help) in [
            (
                "health",
                &pool.health,
                "leave it out: a server that refuses a connection is passed over even so",
            ),
            (
                "tls",
                &pool.tls,
                "leave it out; a server that wants TLS can have it from the client, passed through",
            ),
        ] {
            if let Some(given) = field.given() {
                let message = format!("`{key}` of a pool is not in this version");
                report.push(Diagnostic::error(given.span(), message).help(help));
            }
        }
    }
}

/// The configuration; to be thrown away if an error was reported.
fn config(raw: &RawConfig, certificates: &mut Certificates<'_>, report: &mut Report) -> Config {
    if raw.listeners.is_empty() {
        let error = Diagnostic::error(0..0, "no listener: there is nothing to do");
        report.push_absence(error.help("add a `[[listener]]`, a `[[route]]` and a `[[pool]]`"));
    }
    let binds = raw.listeners.iter().flat_map(|raw| items(&raw.bind));
    let addresses = binds.chain(raw.gateway.admin.given());
    reject_repeated(addresses, |address| format!("`{address}` is listened on twice"), report);
    let names = raw.listeners.iter().map(|raw| (&raw.name, None));
    let listener_names = Names::new("listener", names, report);
    let names = raw.routes.iter().map(|raw| (&raw.name, first_sni(raw)));
    let route_names = Names::new("route", names, report);
    let names = raw.pools.iter().map(|raw| (&raw.name, None));
    let pool_names = Names::new("pool", names, report);

    let gateway = gateway(&raw.gateway);
    let listeners = raw.listeners.iter().zip(&listener_names.list);
    let listeners: Vec<_> = listeners.map(|(raw, name)| listener(raw, name, &gateway, report)).collect();
    let pools = raw.pools.iter().zip(&pool_names.list);
    let pools = pools.map(|(raw, name)| pool(raw, name, gateway.keepalive, report)).collect();
    let (mut routes, mut claims) = (Vec::new(), Vec::new());
    for (raw_route, name) in raw.routes.iter().zip(&route_names.list) {
        let listener = listener_names.resolve(&raw_route.listener, report);
        // A protocol that is invalid says nothing about what the route may have.
        let known = listener.filter(|index| !raw.listeners[*index].protocol.is_invalid());
        let certificate = known.and_then(|index| match listeners[index].protocol {
            Protocol::Tcp => reject_tls_keys(raw_route, report),
            Protocol::Tls | Protocol::Postgres => tls_keys(raw_route, certificates, report),
        });
        // A route that names no listener was reported: any index will do.
        routes.push(Route {
            name: name.clone(),
            listener: listener.unwrap_or(0),
            sni: values(&raw_route.sni),
            alpn: values(&raw_route.alpn),
            tls: match &certificate {
                Some((_, loaded)) => TlsMode::Terminate(loaded.termination.clone()),
                None => TlsMode::Passthrough,
            },
            backends: backends(raw_route, &pool_names, report),
            idle_timeout: raw_route.idle_timeout.get(),
            max_age: raw_route.max_age.get(),
            max_connections: raw_route.max_connections.get(),
            client_rate: client_rate(
                &raw_route.client_rate,
                raw_route.max_connections.or(gateway.max_connections),
                report,
            ),
        });
        if let (Some(listener), Some(reference)) = (listener, raw_route.listener.given()) {
            let alpn = items(&raw_route.alpn).iter();
            claims.push(Claim {
                name,
                listener,
                reference: reference.span(),
                sni: items(&raw_route.sni),
                alpn: alpn.map(|protocol| &**protocol.get_ref()).collect(),
                certificate,
            });
        }
    }
    reject_tcp_route_counts(raw, &listeners, &claims, report);
    overlap::report_ties(&claims, report);
    overlap::warn_of_uncovered_names(&claims, report);
    // The rest compares what there is with what there is not, which may merely have been misspelt.
    if !report.has_errors() {
        overlap::warn_of_coalescing(&claims, report);
        warn_of_idle_listeners(raw, &listeners, &routes, report);
        warn_of_unused_pools(raw, &routes, report);
    }
    Config { gateway, listeners, routes, pools }
}

fn gateway(raw: &RawGateway) -> Gateway {
    Gateway {
        workers: raw.workers.or(0),
        interfaces: raw.interfaces.or(Interfaces::Auto),
        tiers: raw.tiers.or(vec![Tier::Packet, Tier::Copy]),
        bpffs: raw.bpffs.or(PathBuf::from("/sys/fs/bpf/snisplice")),
        state_dir: raw.state_dir.or(PathBuf::from("/run/snisplice")),
        admin: raw.admin.get(),
        watch: raw.watch.or(false),
        access_log: raw.access_log.given().map(|log| AccessLog {
            target: log.get_ref().path.or(LogTarget::Stdout),
            format: log.get_ref().format.or(LogFormat::Json),
        }),
        max_connections: raw.max_connections.or(200_000),
        drain_timeout: raw.drain_timeout.or(Duration::from_secs(30)),
        source_ports: raw.source_ports.or(SOURCE_PORTS),
        flow_table: raw.flow_table.or(1 << 20),
        keepalive: raw.keepalive.or(Keepalive::default()),
    }
}

fn listener(raw: &RawListener, name: &Arc<str>, gateway: &Gateway, report: &mut Report) -> Listener {
    let proxy_protocol = raw.proxy_protocol.or(false);
    let trusted_proxies = values(&raw.trusted_proxies);
    if let Some(given) = raw.proxy_protocol.given()
        && proxy_protocol
        && trusted_proxies.is_empty()
        && !raw.trusted_proxies.is_invalid()
    {
        let error = Diagnostic::error(given.span(), "`proxy_protocol` without `trusted_proxies`");
        report.push_absence(error.help(
            "name the proxies that may speak for clients, for example `trusted_proxies = [\"10.0.0.0/8\"]`",
        ));
    }
    if let Some(given) = raw.trusted_proxies.given()
        && !proxy_protocol
        && !raw.proxy_protocol.is_invalid()
    {
        let warning =
            Diagnostic::warning(given.span(), "`trusted_proxies` has no effect without `proxy_protocol`");
        report.push(warning.help("add `proxy_protocol = true`"));
    }
    Listener {
        name: name.clone(),
        bind: values(&raw.bind),
        protocol: raw.protocol.or(Protocol::Tls),
        hello_timeout: raw.hello_timeout.or(Duration::from_secs(5)),
        hello_bytes: raw.hello_bytes.or(MAX_WINDOW),
        proxy_protocol,
        trusted_proxies: if proxy_protocol { trusted_proxies } else { Vec::new() },
        allow: values(&raw.allow),
        deny: values(&raw.deny),
        max_connections: raw.max_connections.get(),
        client_rate: client_rate(&raw.client_rate, raw.max_connections.or(gateway.max_connections), report),
        backlog: raw.backlog.or(4096),
        keepalive: raw.keepalive.or(Keepalive::default()).or(gateway.keepalive),
        freebind: raw.freebind.or(false),
    }
}

/// `max`: connections that all clients together may have open.
fn client_rate(raw: &Field<RawClientRate>, max: usize, report: &mut Report) -> Option<ClientRate> {
    let given = raw.given()?;
    let RawClientRate { connections, per, open } = given.get_ref();
    if let (Some(per), true) = (per.span(), connections.is_absent()) {
        let error = Diagnostic::error(per, "`per` of a `client_rate` without `connections`");
        report.push_absence(error.help("say how many in that time: `connections = 50`"));
    } else if connections.is_absent() && open.is_absent() {
        let error = Diagnostic::error(given.span(), "this `client_rate` limits nothing");
        report.push_absence(error.help(format!("for example `client_rate = {CLIENT_RATE_EXAMPLE}`")));
    }
    if let Some(open) = open.given().filter(|open| *open.get_ref() >= max) {
        let message = format!("one client may have all {max} connections that `max_connections` allows");
        report.push(Diagnostic::warning(open.span(), message).help("a smaller `open`"));
    }
    let per = per.or(Duration::from_secs(1));
    let new = connections.get().and_then(NonZeroU32::new).map(|most| NewConnections { most, per });
    Some(ClientRate { new, open: open.get() })
}

fn pool(raw: &RawPool, name: &Arc<str>, keepalive: Keepalive, report: &mut Report) -> Pool {
    let servers = || items(&raw.servers).iter().map(Spanned::get_ref);
    let addresses = servers().filter_map(|server| server.address.given());
    let repeated = |address: &_| format!("pool {} has the server `{address}` twice", quote(name));
    reject_repeated(addresses, repeated, report);
    for server in servers() {
        if let (Some(Origin::Service(_)), Some(weight)) = (server.address.get(), server.weight.given()) {
            let error =
                Diagnostic::error(weight.span(), "a service has no `weight`: its SRV records have them");
            report.push(error.help("take it out"));
        }
    }
    let servers = servers().filter_map(|server| {
        Some(Server {
            origin: server.address.get()?,
            weight: server.weight.or(1),
            backup: server.backup.or(false),
        })
    });
    Pool {
        name: name.clone(),
        balance: raw.balance.or(Balance::RoundRobin),
        servers: servers.collect(),
        connect_timeout: raw.connect_timeout.or(Duration::from_secs(2)),
        send_proxy: raw.send_proxy.get(),
        keepalive: raw.keepalive.or(Keepalive::default()).or(keepalive),
    }
}

fn backends(raw: &RawRoute, pools: &Names, report: &mut Report) -> Vec<Backend> {
    let Some(given) = raw.backends.given() else {
        return Vec::new();
    };
    let backends = || given.get_ref().iter().map(Spanned::get_ref);
    if backends().next().is_some() && backends().all(|backend| backend.weight.get() == Some(0)) {
        let message = "every backend has weight 0: no connection can go anywhere";
        let error = Diagnostic::error(given.span(), message);
        report.push(error.help("give one of them a weight from 1 to 256"));
    }
    let backends = backends().filter_map(|backend| {
        let pool = pools.resolve(&backend.pool, report)?;
        let weight = backend.weight.or(1);
        Some(Backend { pool, weight })
    });
    backends.collect()
}

/// What a route of a TLS listener needs; the certificate, and where it is named, if it terminates.
fn tls_keys(
    raw: &RawRoute,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<(Range<usize>, Arc<Loaded>)> {
    if raw.sni.is_absent() {
        let error = Diagnostic::error(raw.span.clone(), "[[route]] without `sni`");
        report.push_absence(error.help(
            "for example `sni = [\"redis-1.example.com\"]`; `sni = [\"*\"]` takes every name, and clients without one",
        ));
    }
    match &raw.tls {
        Field::Invalid => None,
        Field::Given(tls) if *tls.get_ref() == RawTls::Terminate => {
            if raw.certificate.is_absent() {
                let error = Diagnostic::error(tls.span(), "`terminate` needs a `certificate`");
                let example = "`certificate = { chain = \"FILE.crt\", key = \"FILE.key\" }`";
                report.push_absence(error.help(example));
            }
            load_certificate(raw, certificates, report)
        }
        Field::Given(_) | Field::Absent => reject_termination_keys(raw, report),
    }
}

fn load_certificate(
    raw: &RawRoute,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<(Range<usize>, Arc<Loaded>)> {
    let certificate = raw.certificate.given()?;
    let chain = certificate.get_ref().chain.given()?;
    let key = certificate.get_ref().key.given()?;
    let passphrase = &certificate.get_ref().passphrase_file;
    if passphrase.is_invalid() {
        return None;
    }
    let passphrase = passphrase.given();
    let (client, places) = client_auth(raw, report).unzip();
    let paths = Paths {
        chain: chain.get_ref().clone(),
        key: key.get_ref().clone(),
        passphrase: passphrase.map(|path| path.get_ref().clone()),
        client,
    };
    let at = |(part, problem): &(Part, Problem)| {
        let place = match part {
            Part::Chain => chain.span(),
            Part::Key => key.span(),
            Part::Passphrase => passphrase?.span(),
            Part::ClientCa(number) => places.as_ref()?.ca[*number].clone(),
            Part::ClientCrl(number) => places.as_ref()?.crl[*number].clone(),
        };
        Some(problem.clone().at(place))
    };
    match certificates.load(&paths) {
        Ok(loaded) => {
            let warnings = loaded.warnings.iter().filter_map(at);
            warnings.for_each(|warning| report.push(warning.into_warning()));
            Some((certificate.span(), loaded.clone()))
        }
        Err(problems) => {
            problems.iter().filter_map(at).for_each(|problem| report.push(problem));
            None
        }
    }
}

/// Where the files of `client_auth` are named.
struct ClientPlaces {
    ca: Vec<Range<usize>>,
    crl: Vec<Range<usize>>,
}

/// `client_auth`, or `client_ca`, which is short for it.
fn client_auth(raw: &RawRoute, report: &mut Report) -> Option<(ClientPaths, ClientPlaces)> {
    if let (Some(short), Some(_)) = (raw.client_ca.span(), raw.client_auth.span()) {
        let error = Diagnostic::error(short, "a route has `client_ca` or `client_auth`, not both");
        report.push(error.help("add its file to the `ca` of `client_auth`"));
        return None;
    }
    if let Some(ca) = raw.client_ca.given() {
        let paths = ClientPaths {
            ca: vec![ca.get_ref().clone()],
            crl: Vec::new(),
            required: true,
            allowed: Allowed::default(),
        };
        return Some((paths, ClientPlaces { ca: vec![ca.span()], crl: Vec::new() }));
    }
    let auth = raw.client_auth.given()?.get_ref();
    let places = |files| items(files).iter().map(Spanned::span).collect();
    let paths = ClientPaths {
        ca: values(&auth.ca),
        crl: values(&auth.crl),
        required: auth.mode.or(true),
        allowed: Allowed { subjects: values(&auth.subjects), sans: values(&auth.sans) },
    };
    Some((paths, ClientPlaces { ca: places(&auth.ca), crl: places(&auth.crl) }))
}

/// A passthrough route has nothing to do with certificates.
fn reject_termination_keys<T>(raw: &RawRoute, report: &mut Report) -> Option<T> {
    for (key, span) in [
        ("certificate", raw.certificate.span()),
        ("client_ca", raw.client_ca.span()),
        ("client_auth", raw.client_auth.span()),
    ] {
        if let Some(span) = span {
            let error = Diagnostic::error(span, format!("a route that passes TLS through has no `{key}`"));
            report.push(error.help("add `tls = \"terminate\"`, or take it out"));
        }
    }
    None
}

/// Nothing is known of a connection to a `tcp` listener but its addresses.
fn reject_tls_keys<T>(raw: &RawRoute, report: &mut Report) -> Option<T> {
    for (key, span) in [
        ("sni", raw.sni.span()),
        ("alpn", raw.alpn.span()),
        ("tls", raw.tls.span()),
        ("certificate", raw.certificate.span()),
        ("client_ca", raw.client_ca.span()),
        ("client_auth", raw.client_auth.span()),
    ] {
        if let Some(span) = span {
            let error = Diagnostic::error(span, format!("a route of a `tcp` listener has no `{key}`"));
            report.push(error.help("take it out, or make the listener's `protocol` `\"tls\"`"));
        }
    }
    None
}

/// A `tcp` listener has exactly one route.
fn reject_tcp_route_counts(
    raw: &RawConfig,
    listeners: &[Listener],
    claims: &[Claim<'_>],
    report: &mut Report,
) {
    let mut first: Vec<Option<&Claim<'_>>> = vec![None; listeners.len()];
    let is_tcp = |index: usize| listeners[index].protocol == Protocol::Tcp;
    for claim in claims.iter().filter(|claim| is_tcp(claim.listener)) {
        let Some(earlier) = first[claim.listener] else {
            first[claim.listener] = Some(claim);
            continue;
        };
        let name = quote(&listeners[claim.listener].name);
        let message = format!("the `tcp` listener {name} has more than one route");
        let error = Diagnostic::error(claim.reference.clone(), message);
        let error = error.related(earlier.reference.clone(), "the first is here");
        report.push(error.help("one route with several `backends` shares connections out by weight"));
    }
    // A route that leads nowhere may have been meant for such a listener.
    if claims.len() < raw.routes.len() {
        return;
    }
    for (index, raw) in raw.listeners.iter().enumerate() {
        if is_tcp(index) && first[index].is_none() {
            let name = &listeners[index].name;
            let message = format!("the `tcp` listener {} has no route", quote(name));
            let error = Diagnostic::error(raw.span.clone(), message);
            report.push_absence(error.help(format!("add a `[[route]]` with `listener = {name:?}`")));
        }
    }
}

fn warn_of_idle_listeners(raw: &RawConfig, listeners: &[Listener], routes: &[Route], report: &mut Report) {
    let mut used = vec![false; listeners.len()];
    for route in routes {
        used[route.listener] = true;
    }
    for (index, raw) in raw.listeners.iter().enumerate().filter(|(index, _)| !used[*index]) {
        let name = &listeners[index].name;
        let message = format!("no route is on the listener {}: it turns every client away", quote(name));
        let warning = Diagnostic::warning(raw.span.clone(), message);
        report.push(warning.help(format!("add a `[[route]]` with `listener = {name:?}`")));
    }
}

fn warn_of_unused_pools(raw: &RawConfig, routes: &[Route], report: &mut Report) {
    let mut used = vec![false; raw.pools.len()];
    for backend in routes.iter().flat_map(|route| &route.backends) {
        used[backend.pool] = true;
    }
    for (pool, _) in raw.pools.iter().zip(used).filter(|(_, used)| !used) {
        if let Some(name) = pool.name.given() {
            let message = format!("no route uses the pool {}", quote(name.get_ref()));
            report
                .push(Diagnostic::warning(name.span(), message).help("name it in the `backends` of a route"));
        }
    }
}

fn first_sni(raw: &RawRoute) -> Option<String> {
    Some(raw.sni.given()?.get_ref().first()?.get_ref().to_string())
}

/// None where the key is not there.
fn items<T>(field: &Field<Vec<Spanned<T>>>) -> &[Spanned<T>] {
    field.given().map_or(&[], |list| list.get_ref())
}

/// The items without their positions.
fn values<T: Clone>(field: &Field<Vec<Spanned<T>>>) -> Vec<T> {
    items(field).iter().map(|value| value.get_ref().clone()).collect()
}
