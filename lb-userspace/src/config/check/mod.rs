//! A draft to a validated configuration: what keys mean for each other. Every error at once.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub(super) mod certificate;
mod client_auth;
mod client_rate;
mod crl;
mod ech;
mod health;
mod http;
mod key;
mod mysql;
mod names;
mod pem;
mod source;
mod ties;
mod upstream_tls;

use std::sync::Arc;

use super::address::Origin;
use super::certificate::Loaded;
use super::controller::{GatewayApi, Mode, Settings, Source};
use super::diagnostic::{Diagnostic, Report, quote};
use super::draft::{
    AccessLogDraft, Draft, Field, From, GatewayApiDraft, GatewayDraft, ListenerDraft, PeerDraft, PoolDraft,
    RouteDraft, Tls, items, reject_repeated, values,
};
use super::files::Files;
use super::health::OnDown;
use super::model::{
    AccessLog, Action, Backend, Balance, Config, FixedGateway, Gateway, Keepalive, Listener, LiveGateway,
    OnRemoval, Peer, Pool, Protocol, Route, Server,
};
use super::place::Place;
use certificate::{Certificates, load_certificate};
use names::Names;
use rustls::pki_types::UnixTime;
use ties::Claim;

/// Looks at a draft after which an object is refused for a clash with another that is refused, too: a long chain of clashes
/// must not take time in the square of its length.
const LOOKS: usize = 8;

/// The configuration that a draft makes; to be thrown away if an error was reported that is not an object's. An object
/// with an error is left out, with all that it has added: the rest is what it would be without.
pub(super) fn check(mut draft: Draft, files: &dyn Files, now: UnixTime, report: &mut Report) -> Config {
    let certificates = &mut Certificates::new(files, now);
    let mut looks = 0;
    loop {
        let mark = report.mark();
        let config = check_once(&draft, certificates, report);
        looks += 1;
        let faulty = if looks < LOOKS { report.objects_to_blame() } else { report.faulty_objects() };
        if !draft.remove(&faulty) {
            return config;
        }
        report.refuse(&faulty, mark);
    }
}

fn check_once(draft: &Draft, certificates: &mut Certificates<'_>, report: &mut Report) -> Config {
    let gateway_api = gateway_api(draft, report);
    if draft.listeners.is_empty() && draft.gateway_api.is_absent() {
        let error = Diagnostic::error(0..0, "no listener: there is nothing to do");
        report.push_absence(error.help("add a `[[listener]]`, a `[[route]]` and a `[[pool]]`"));
    }
    let binds = draft.listeners.iter().flat_map(|listener| items(&listener.bind));
    let addresses = binds.chain(draft.gateway.admin.given());
    reject_repeated(addresses, |address| format!("`{address}` is listened on twice"), report);
    let names = draft.listeners.iter().map(|listener| (&listener.name, None));
    let listener_names = Names::new("listener", names, report);
    let names = draft.routes.iter().map(|route| (&route.name, first_sni(route)));
    let route_names = Names::new("route", names, report);
    let names = draft.pools.iter().map(|pool| (&pool.name, None));
    let pool_names = Names::new("pool", names, report);

    reject_peers_alike(&draft.gateway, report);
    let gateway = gateway(&draft.gateway);
    let listeners = draft.listeners.iter().zip(&listener_names.list);
    let with_requests = http::listeners_with_requests(draft, &listener_names);
    let listeners: Vec<_> = listeners
        .zip(with_requests)
        .map(|((draft, name), with_requests)| {
            listener(draft, name, with_requests, &gateway.live, certificates, report)
        })
        .collect();
    let pools = draft.pools.iter().zip(&pool_names.list);
    let pools: Vec<_> =
        pools.map(|(draft, name)| pool(draft, name, gateway.live.keepalive, certificates, report)).collect();
    let mut routes = Vec::with_capacity(draft.routes.len());
    let mut claims = Vec::with_capacity(draft.routes.len());
    for (route, name) in draft.routes.iter().zip(&route_names.list) {
        let listener = listener_names.resolve(&route.listener, report);
        // A protocol that is invalid says nothing about what the route may have.
        let known = listener.filter(|index| !draft.listeners[*index].protocol.is_invalid());
        let certificate = known.and_then(|index| match listeners[index].protocol {
            Protocol::Tcp => {
                reject_keys("tcp", [("sni", route.sni.place())], report);
                reject_tls_keys("tcp", route, report)
            }
            // Objects say in their rules what they take.
            Protocol::Http if !route.http.is_absent() => None,
            Protocol::Http => {
                require_sni(route, report);
                reject_tls_keys("http", route, report)
            }
            Protocol::Tls | Protocol::Postgres | Protocol::Mysql | Protocol::Starttls(_) => {
                tls_keys(route, certificates, report)
            }
        });
        if let Some(index) = known {
            upstream_tls::reject_passed_through(draft, route, listeners[index].protocol, &pool_names, report);
            source::reject_other_families(draft, route, &listeners[index], &pool_names, report);
            if listeners[index].protocol == Protocol::Mysql {
                mysql::check_pools(draft, route, &pool_names, report);
            }
        }
        let rules =
            http::rules(draft, route, name, known.map(|index| &listeners[index]), &pool_names, report);
        let carries_requests = rules.is_some();
        // A route that names no listener was reported: any index will do.
        routes.push(Route {
            name: name.clone(),
            listener: listener.unwrap_or(0),
            sni: items(&route.sni).iter().map(|pattern| pattern.value.copied()).collect(),
            alpn: values(&route.alpn),
            action: match &certificate {
                Some((_, loaded)) => Action::Terminate(loaded.termination.clone()),
                None => Action::Pass,
            },
            http: rules,
            backends: if carries_requests { Vec::new() } else { backends(route, &pool_names, report) },
            retry_other_pool: route.retry_other_pool.or(false),
            idle_timeout: route.idle_timeout.get(),
            max_age: route.max_age.get(),
            max_connections: route.max_connections.get(),
            client_rate: client_rate::check(
                &route.client_rate,
                route.max_connections.or(gateway.live.max_connections),
                report,
            ),
            on_removal: route.on_removal.or(OnRemoval::default()),
        });
        if let (Some(listener), Some(reference)) = (listener, route.listener.given()) {
            let alpn = items(&route.alpn).iter();
            claims.push(Claim {
                name,
                listener,
                reference: &reference.place,
                sni: items(&route.sni),
                alpn: alpn.map(|protocol| &*protocol.value).collect(),
                http: carries_requests,
                certificate,
            });
        }
    }
    reject_tcp_route_counts(draft, &listeners, &claims, report);
    ties::report_ties(&claims, report);
    ties::warn_of_uncovered_names(&claims, report);
    // The rest compares what there is with what there is not, which may merely have been misspelt.
    if !report.has_errors() {
        ties::warn_of_coalescing(&claims, report);
        ech::warn_of_names(draft, &listeners, &routes, report);
        warn_of_idle_listeners(draft, &listeners, &routes, report);
        warn_of_unused_pools(draft, &routes, report);
        http::warn_of_repeated(draft, &routes, report);
        http::warn_of_pools_without_requests(draft, &routes, report);
    }
    Config { gateway, listeners, routes, pools, gateway_api }
}

/// `[gateway_api]`: where objects come from, which the sources know.
fn gateway_api(draft: &Draft, report: &mut Report) -> Option<GatewayApi> {
    let given = draft.gateway_api.given()?;
    let GatewayApiDraft {
        from,
        directory,
        kubeconfig,
        keep_objects,
        controller,
        mode,
        attach,
        merge,
        load_balancer_class,
        addresses,
        external_names,
        auto_passthrough,
        max_ports,
        max_watches,
        namespaces,
        istio,
    } = &given.value;
    let from = from.given()?;
    if from.value == From::Directory && directory.is_absent() {
        let error = Diagnostic::error(&from.place, "`from = \"directory\"` without `directory`");
        report.push_absence(error.help("for example `directory = \"/etc/snisplice/manifests\"`"));
    }
    if let Some(mode) = mode.given().filter(|mode| mode.value != Mode::Node) {
        let name = if mode.value == Mode::Pool { "pool" } else { "service" };
        if from.value != From::Cluster {
            let error = Diagnostic::error(&mode.place, format!("`mode = \"{name}\"` without an API server"));
            report.push(error.help("`from = \"cluster\"`: the API server keeps who has which address"));
        }
        if mode.value == Mode::Pool && addresses.is_absent() {
            let error = Diagnostic::error(&mode.place, "`mode = \"pool\"` without `addresses`");
            report.push_absence(error.help("for example `addresses = [\"198.51.100.16/28\"]`"));
        }
    }
    reject_what_the_mode_does_not_use(&given.value, report);
    let default = Settings::default();
    Some(GatewayApi {
        source: match from.value {
            From::Directory => Source::Directory(directory.get()?),
            From::Cluster => Source::Cluster { kubeconfig: kubeconfig.get(), keep: keep_objects.or(true) },
        },
        settings: Settings {
            controller: controller.get().map_or(default.controller, Arc::from),
            mode: mode.or(default.mode),
            attach: attach.get().unwrap_or(default.attach),
            merge: merge.or(default.merge),
            load_balancer_class: load_balancer_class.get(),
            addresses: values(addresses),
            external_names: external_names.or(default.external_names),
            auto_passthrough: auto_passthrough.or(default.auto_passthrough),
            max_ports: max_ports.or(default.max_ports),
            max_watches: match from.value {
                // They are read anyway.
                From::Directory => usize::MAX,
                From::Cluster => max_watches.or(default.max_watches),
            },
            namespaces: items(namespaces).iter().map(|name| Arc::from(&*name.value)).collect(),
            istio: values(istio),
        },
    })
}

/// Keys of `[gateway_api]` that another mode has.
fn reject_what_the_mode_does_not_use(api: &GatewayApiDraft, report: &mut Report) {
    let mode = api.mode.or(Settings::default().mode);
    let mut reject = |place: Option<&Place>, key: &str, modes: &str, help: &str| {
        if let Some(place) = place {
            report.push(Diagnostic::error(place, format!("`{key}` without {modes}")).help(help));
        }
    };
    if mode == Mode::Node {
        let attach = api.attach.given().map(|attach| &attach.place);
        let help = "with `node` Gateways have the addresses that this machine has anyway";
        reject(attach, "attach", "`mode = \"pool\"` or `\"service\"`", help);
    }
    if mode != Mode::Service {
        let class = api.load_balancer_class.given().map(|class| &class.place);
        let help = "only then are there Services that a load balancer could take";
        reject(class, "load_balancer_class", "`mode = \"service\"`", help);
    }
}

/// `[gateway]`, whose values do not depend on one another.
pub(super) fn gateway(draft: &GatewayDraft) -> Gateway {
    let default = Gateway::default();
    let (fixed, live) = (default.fixed, default.live);
    Gateway {
        fixed: FixedGateway {
            workers: draft.workers.or(fixed.workers),
            interfaces: draft.interfaces.or(fixed.interfaces),
            bpffs: draft.bpffs.or(fixed.bpffs),
            state_dir: draft.state_dir.or(fixed.state_dir),
            admin: draft.admin.get().or(fixed.admin),
            watch: draft.watch.or(fixed.watch),
            access_log: draft.access_log.given().map(|log| access_log(&log.value)).or(fixed.access_log),
            source_ports: draft.source_ports.or(fixed.source_ports),
            flow_table: draft.flow_table.or(fixed.flow_table),
        },
        live: LiveGateway {
            tiers: draft.tiers.or(live.tiers),
            max_connections: draft.max_connections.or(live.max_connections),
            drain_timeout: draft.drain_timeout.or(live.drain_timeout),
            keepalive: draft.keepalive.or(live.keepalive),
            peer_id: draft.peer_id.or(live.peer_id),
            peers: items(&draft.peers).iter().filter_map(|peer| peer_of(&peer.value)).collect(),
        },
    }
}

fn peer_of(draft: &PeerDraft) -> Option<Peer> {
    Some(Peer { id: draft.id.get()?, address: draft.address.get()? })
}

/// Each gateway behind one address has a number of its own.
fn reject_peers_alike(draft: &GatewayDraft, report: &mut Report) {
    let ids = items(&draft.peers).iter().filter_map(|peer| peer.value.id.given());
    reject_repeated(
        draft.peer_id.given().into_iter().chain(ids),
        |id| format!("two gateways have the number {id}"),
        report,
    );
    if let (Some(peers), true) = (draft.peers.place(), draft.peer_id.is_absent()) {
        let error = Diagnostic::error(peers, "`peers` without a `peer_id` of this gateway");
        report.push_absence(error.help("a number that no other has: `peer_id = 1`"));
    }
}

fn access_log(draft: &AccessLogDraft) -> AccessLog {
    let default = AccessLog::default();
    AccessLog { target: draft.path.or(default.target), format: draft.format.or(default.format) }
}

fn listener(
    draft: &ListenerDraft,
    name: &Arc<str>,
    with_requests: bool,
    gateway: &LiveGateway,
    certificates: &Certificates<'_>,
    report: &mut Report,
) -> Listener {
    let proxy_protocol = draft.proxy_protocol.or(false);
    let trusted_proxies = values(&draft.trusted_proxies);
    if let Some(given) = draft.proxy_protocol.given()
        && proxy_protocol
        && trusted_proxies.is_empty()
        && !draft.trusted_proxies.is_invalid()
    {
        let error = Diagnostic::error(&given.place, "`proxy_protocol` without `trusted_proxies`");
        report.push_absence(error.help(
            "name the proxies that may speak for clients, for example `trusted_proxies = [\"10.0.0.0/8\"]`",
        ));
    }
    if let Some(given) = draft.trusted_proxies.given()
        && !proxy_protocol
        && !with_requests
        && !draft.proxy_protocol.is_invalid()
    {
        let warning =
            Diagnostic::warning(&given.place, "`trusted_proxies` has no effect without `proxy_protocol`");
        report.push(warning.help("add `proxy_protocol = true`"));
    }
    mysql::reject_greeting(draft, report);
    let default = Listener::new(name.clone(), values(&draft.bind));
    Listener {
        ech: ech::check(draft, certificates, report),
        protocol: draft.protocol.or(default.protocol),
        hello_timeout: draft.hello_timeout.or(default.hello_timeout),
        hello_bytes: draft.hello_bytes.or(default.hello_bytes),
        proxy_protocol,
        trusted_proxies: if proxy_protocol || with_requests { trusted_proxies } else { Vec::new() },
        allow: values(&draft.allow),
        deny: values(&draft.deny),
        max_connections: draft.max_connections.get().or(default.max_connections),
        client_rate: client_rate::check(
            &draft.client_rate,
            draft.max_connections.or(gateway.max_connections),
            report,
        ),
        backlog: draft.backlog.or(default.backlog),
        keepalive: draft.keepalive.or(default.keepalive).or(gateway.keepalive),
        freebind: draft.freebind.or(default.freebind),
        version: draft.version.get(),
        plugin: draft.plugin.get(),
        refuse: draft.refuse.or(default.refuse),
        reserved: values(&draft.reserved),
        ..default
    }
}

fn pool(
    draft: &PoolDraft,
    name: &Arc<str>,
    keepalive: Keepalive,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Pool {
    let servers = || items(&draft.servers).iter().map(|item| &item.value);
    let addresses = servers().filter_map(|server| server.address.given());
    let repeated = |address: &_| format!("pool {} has the server `{address}` twice", quote(name));
    reject_repeated(addresses, repeated, report);
    for server in servers() {
        if let (Some(Origin::Service(_)), Some(weight)) = (server.address.get(), server.weight.given()) {
            let error =
                Diagnostic::error(&weight.place, "a service has no `weight`: its SRV records have them");
            report.push(error.help("take it out"));
        }
    }
    let mut found = Vec::with_capacity(items(&draft.servers).len());
    found.extend(servers().filter_map(|server| {
        let default = Server::new(server.address.get()?);
        Some(Server {
            weight: server.weight.or(default.weight),
            backup: server.backup.or(default.backup),
            max_connections: server.max_connections.get(),
            ..default
        })
    }));
    if let (Some(given), Some(Balance::SourceHash)) = (draft.slow_start.given(), draft.balance.get()) {
        let message = "`slow_start` has no effect with `source-hash`: a client keeps its server";
        report.push(Diagnostic::warning(&given.place, message).help("take one of them out"));
    }
    if let Some(on_down) = draft.on_down.given()
        && on_down.value == OnDown::Kill
        && draft.health.is_absent()
    {
        let error = Diagnostic::error(&on_down.place, "`on_down` without `health`: nobody would notice");
        report.push_absence(error.help("add `health = { check = \"tcp\" }`, or take it out"));
    }
    health::warn_of_http2(draft, report);
    source::warn(draft, report);
    let tls = upstream_tls::check(draft, certificates, report);
    // Nobody is spoken to in the clear instead.
    let is_closed = tls.is_none() && !draft.tls.is_absent();
    if is_closed {
        found.clear();
    }
    let default = Pool::new(name.clone(), found);
    Pool {
        tls: tls.or(default.tls),
        is_closed,
        slow_start: draft.slow_start.or(default.slow_start),
        balance: draft.balance.or(default.balance),
        connect_timeout: draft.connect_timeout.or(default.connect_timeout),
        send_proxy: draft.send_proxy.get().or(default.send_proxy),
        source: draft.source.or(default.source),
        health: draft.health.given().and_then(|draft| health::check(&draft.value, certificates, report)),
        eject: draft.eject.get(),
        on_down: draft.on_down.or(default.on_down),
        http2: draft.http2.or(default.http2),
        keepalive: draft.keepalive.or(default.keepalive).or(keepalive),
        ..default
    }
}

fn backends(draft: &RouteDraft, pools: &Names, report: &mut Report) -> Vec<Backend> {
    let Some(given) = draft.backends.given() else {
        return Vec::new();
    };
    let backends = || given.value.iter().map(|item| &item.value);
    if backends().next().is_some() && backends().all(|backend| backend.weight.get() == Some(0)) {
        let message = "every backend has weight 0: no connection can go anywhere";
        let error = Diagnostic::error(&given.place, message);
        report.push(error.help("give one of them a weight from 1 to 256"));
    }
    let used = backends().filter(|backend| backend.weight.get() != Some(0)).count();
    if let Some(retry) = draft.retry_other_pool.given().filter(|retry| retry.value && used == 1) {
        let message = "`retry_other_pool` has no effect: no other backend takes connections";
        report.push(Diagnostic::warning(&retry.place, message).help("give `backends` another pool"));
    }
    let mut found = Vec::with_capacity(given.value.len());
    found.extend(backends().filter_map(|backend| {
        let pool = pools.resolve(&backend.pool, report)?;
        let default = Backend::new(pool);
        Some(Backend { weight: backend.weight.or(default.weight), ..default })
    }));
    found
}

/// What a route of a TLS listener needs; the certificate, and where it is named, if it terminates.
fn tls_keys<'r>(
    draft: &'r RouteDraft,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<(&'r Place, Arc<Loaded>)> {
    require_sni(draft, report);
    match &draft.tls {
        Field::Invalid => None,
        Field::Given(tls) if tls.value == Tls::Terminate => {
            if draft.certificate.is_absent() {
                let error = Diagnostic::error(&tls.place, "`terminate` needs a `certificate`");
                let example = "`certificate = { chain = \"FILE.crt\", key = \"FILE.key\" }`";
                report.push_absence(error.help(example));
            }
            load_certificate(&draft.certificate, client_auth::check(draft, report), certificates, report)
        }
        Field::Given(_) | Field::Absent => reject_termination_keys(draft, report),
    }
}

fn require_sni(draft: &RouteDraft, report: &mut Report) {
    if draft.sni.is_absent() {
        let error = Diagnostic::error(&draft.place, "[[route]] without `sni`");
        report.push_absence(error.help(
            "for example `sni = [\"redis-1.example.com\"]`; `sni = [\"*\"]` takes every name, and clients without one",
        ));
    }
}

/// A passthrough route has nothing to do with certificates.
fn reject_termination_keys<T>(draft: &RouteDraft, report: &mut Report) -> Option<T> {
    for (key, place) in [
        ("certificate", draft.certificate.place()),
        ("client_ca", draft.client_ca.place()),
        ("client_auth", draft.client_auth.place()),
    ] {
        if let Some(place) = place {
            let error = Diagnostic::error(place, format!("a route that passes TLS through has no `{key}`"));
            report.push(error.help("add `tls = \"terminate\"`, or take it out"));
        }
    }
    None
}

/// There is no TLS on listeners of these protocols.
fn reject_tls_keys<T>(protocol: &str, draft: &RouteDraft, report: &mut Report) -> Option<T> {
    let keys = [
        ("alpn", draft.alpn.place()),
        ("tls", draft.tls.place()),
        ("certificate", draft.certificate.place()),
        ("client_ca", draft.client_ca.place()),
        ("client_auth", draft.client_auth.place()),
    ];
    reject_keys(protocol, keys, report);
    None
}

fn reject_keys<const N: usize>(protocol: &str, keys: [(&str, Option<&Place>); N], report: &mut Report) {
    for (key, place) in keys.into_iter().filter_map(|(key, place)| Some((key, place?))) {
        let error = Diagnostic::error(place, format!("a route of a `{protocol}` listener has no `{key}`"));
        report.push(error.help("take it out, or make the listener's `protocol` `\"tls\"`"));
    }
}

/// A `tcp` listener has exactly one route.
fn reject_tcp_route_counts(draft: &Draft, listeners: &[Listener], claims: &[Claim<'_>], report: &mut Report) {
    let mut first: Vec<Option<&Claim<'_>>> = vec![None; listeners.len()];
    let is_tcp = |index: usize| listeners[index].protocol == Protocol::Tcp;
    for claim in claims.iter().filter(|claim| is_tcp(claim.listener)) {
        let Some(earlier) = first[claim.listener] else {
            first[claim.listener] = Some(claim);
            continue;
        };
        let name = quote(&listeners[claim.listener].name);
        let message = format!("the `tcp` listener {name} has more than one route");
        let error = Diagnostic::error(claim.reference, message);
        let error = error.related(earlier.reference, "the first is here");
        report.push(error.help("one route with several `backends` shares connections out by weight"));
    }
    // A route that leads nowhere may have been meant for such a listener.
    if claims.len() < draft.routes.len() {
        return;
    }
    for (index, draft) in draft.listeners.iter().enumerate() {
        if is_tcp(index) && first[index].is_none() {
            let name = &listeners[index].name;
            let message = format!("the `tcp` listener {} has no route", quote(name));
            let error = Diagnostic::error(&draft.place, message);
            report.push_absence(error.help(format!("add a `[[route]]` with `listener = {name:?}`")));
        }
    }
}

fn warn_of_idle_listeners(draft: &Draft, listeners: &[Listener], routes: &[Route], report: &mut Report) {
    let mut used = vec![false; listeners.len()];
    for route in routes {
        used[route.listener] = true;
    }
    // Of objects, others may come at any time.
    let of_file = |draft: &ListenerDraft| draft.place.object().is_none();
    let idle = draft.listeners.iter().enumerate().filter(|(index, draft)| !used[*index] && of_file(draft));
    for (index, draft) in idle {
        let name = &listeners[index].name;
        let message = format!("no route is on the listener {}: it turns every client away", quote(name));
        let warning = Diagnostic::warning(&draft.place, message);
        report.push(warning.help(format!("add a `[[route]]` with `listener = {name:?}`")));
    }
}

fn warn_of_unused_pools(draft: &Draft, routes: &[Route], report: &mut Report) {
    let mut used = vec![false; draft.pools.len()];
    for backend in routes.iter().flat_map(|route| &route.backends) {
        used[backend.pool] = true;
    }
    let of_rules = routes.iter().flat_map(|route| &route.http).flatten();
    for pool in of_rules.flat_map(|rules| &rules.pools).flatten() {
        used[*pool] = true;
    }
    for (pool, _) in draft.pools.iter().zip(used).filter(|(_, used)| !used) {
        if let Some(name) = pool.name.given() {
            let message = format!("no route uses the pool {}", quote(&name.value));
            report
                .push(Diagnostic::warning(&name.place, message).help("name it in the `backends` of a route"));
        }
    }
}

fn first_sni(draft: &RouteDraft) -> Option<String> {
    Some(items(&draft.sni).first()?.value.to_string())
}
