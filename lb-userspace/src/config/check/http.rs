//! Routes whose connections carry requests of HTTP, and their rules.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::names::Names;
use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::draft::rule::{
    Carried, MatchDraft, MirrorDraft, RedirectDraft, RetryDraft, RewriteDraft, RuleDraft, SessionDraft,
};
use crate::config::draft::{Draft, Field, RouteDraft, RulesDraft, Tls, items, values};
use crate::config::hostname;
use crate::config::http::{
    Carrier, Filters, Fraction, HeaderChanges, MAX_MATCHES, Mirror, PathMatch, PathRewrite, Persistence,
    Redirect, RequestMatch, Retry, Rewrite, Rule, RuleBackend, Timeouts,
};
use crate::config::model::{Backend, Listener, Protocol, Route, Rules, SniPattern};
use crate::config::place::{Place, Placed};
use crate::config::toml::{BACKOFF, REDIRECTION};

/// Whether a route's connections carry requests; `listener`: what clients of its listener speak first, if that is known.
pub(super) fn is_http(route: &RouteDraft, listener: Option<Protocol>) -> bool {
    match &route.protocol {
        Field::Given(carried) => carried.value == Carried::Http,
        Field::Absent => !route.http.is_absent() || listener == Some(Protocol::Http),
        Field::Invalid => false,
    }
}

/// Of each listener, whether requests may come to it.
pub(super) fn listeners_with_requests(draft: &Draft, names: &Names) -> Vec<bool> {
    let listeners = draft.listeners.iter();
    let mut found: Vec<bool> =
        listeners.map(|listener| listener.protocol.get() == Some(Protocol::Http)).collect();
    for route in draft.routes.iter().filter(|route| is_http(route, None)) {
        if let Some(index) = route.listener.given().and_then(|name| names.find(&name.value)) {
            found[index] = true;
        }
    }
    found
}

/// The rules of a route, if its connections carry requests; `listener`: its own, if that is known.
pub(super) fn rules(
    draft: &Draft,
    route: &RouteDraft,
    name: &Arc<str>,
    listener: Option<&Listener>,
    pools: &Names,
    report: &mut Report,
) -> Option<Vec<Rules>> {
    if let Some(given) = route.http.given() {
        // One of the file that has the name is another: that of the object was refused, and requests for it are answered with 500.
        let is_of_objects = |index: &usize| draft.pools[*index].place.object().is_some();
        let find = |pool: &String| pools.find(pool).filter(is_of_objects);
        let of_object = |rules: &Arc<RulesDraft>| Rules {
            list: rules.list.clone(),
            pools: rules.pools.iter().map(find).collect(),
        };
        return Some(given.value.iter().map(of_object).collect());
    }
    if !is_http(route, listener.map(|listener| listener.protocol)) {
        reject_without_requests(route, listener, report);
        return None;
    }
    if let Some(listener) = listener {
        reject_listener(route, listener.protocol, report);
    }
    reject_keys_of_bytes(route, report);
    if route.rules.is_empty() {
        let error =
            Diagnostic::error(&route.place, "[[route]] with `protocol = \"http\"`, and without a rule");
        report
            .push_absence(error.help("add a `[[route.rule]]`: with `backends` alone it takes every request"));
    }
    for rule in &route.rules {
        reject_hosts(route, rule, report);
    }
    let mut named = Vec::new();
    let of_file = |draft: &RuleDraft| {
        rule(draft, name, pools, report).with_pools(|pool| {
            named.push(Some(*pool));
            Some(named.len() - 1)
        })
    };
    let list = route.rules.iter().map(of_file).collect();
    Some(vec![Rules { list, pools: named.into() }])
}

/// What only requests have.
fn reject_without_requests(route: &RouteDraft, listener: Option<&Listener>, report: &mut Report) {
    if route.protocol.is_invalid() {
        return;
    }
    if let (Some(carried), Some(Protocol::Http)) =
        (route.protocol.given(), listener.map(|listener| listener.protocol))
    {
        let message = "a route of an `http` listener carries requests";
        report.push(Diagnostic::error(&carried.place, message).help("take it out, or make it `\"http\"`"));
    }
    // A listener that is not known may be one of requests.
    for rule in route.rules.iter().take(1).filter(|_| listener.is_some()) {
        let message = "a rule for requests, in a route that does not look for any";
        report.push(Diagnostic::error(&rule.place, message).help("add `protocol = \"http\"` to the route"));
    }
    let is_object = route.place.object().is_some();
    if route.backends.is_absent() && !is_object && route.rules.is_empty() {
        let error = Diagnostic::error(&route.place, "[[route]] without `backends`");
        report.push_absence(error.help("for example `backends = [\"redis-1\"]`"));
    }
}

/// Requests are seen where nothing is around them, or where TLS ends.
fn reject_listener(route: &RouteDraft, listener: Protocol, report: &mut Report) {
    let Some(carried) = route.protocol.given() else { return };
    let terminates = match &route.tls {
        Field::Given(tls) => tls.value == Tls::Terminate,
        Field::Absent => false,
        Field::Invalid => true,
    };
    match listener {
        Protocol::Http => {}
        Protocol::Tls if terminates => {}
        Protocol::Tls => {
            let error = Diagnostic::error(&carried.place, "requests are seen only where TLS ends");
            report.push(error.help("add `tls = \"terminate\"` and a `certificate`"));
        }
        Protocol::Postgres | Protocol::Mysql | Protocol::Starttls(_) | Protocol::Tcp => {
            let error =
                Diagnostic::error(&carried.place, "clients of this listener send no requests of HTTP");
            report
                .push(error.help("make the listener's `protocol` `\"tls\"` or `\"http\"`, or take this out"));
        }
    }
    for protocol in
        items(&route.alpn).iter().filter(|protocol| !matches!(&*protocol.value, "h2" | "http/1.1"))
    {
        let message = format!("{} is no HTTP that is spoken here", quote(&protocol.value));
        report.push(
            Diagnostic::error(&protocol.place, message)
                .help("`\"h2\"` and `\"http/1.1\"` are; without `alpn` both"),
        );
    }
}

/// What routes have that pass on bytes.
fn reject_keys_of_bytes(route: &RouteDraft, report: &mut Report) {
    for (key, place, help) in [
        ("backends", route.backends.place(), "a `[[route.rule]]` has them"),
        ("retry_other_pool", route.retry_other_pool.place(), "`retry` of a rule is what requests have"),
    ] {
        if let Some(place) = place {
            let error = Diagnostic::error(place, format!("a route of requests has no `{key}`"));
            report.push(error.help(help));
        }
    }
}

/// A rule for hosts that never get to it.
fn reject_hosts(route: &RouteDraft, rule: &RuleDraft, report: &mut Report) {
    let names = items(&route.sni);
    let is_of_route =
        |host: &SniPattern| names.iter().any(|name| hostname::intersection(&name.value, host).is_some());
    for host in items(&rule.hosts).iter().filter(|host| !names.is_empty() && !is_of_route(&host.value)) {
        let message = format!("the route does not take `{}`", host.value);
        report.push(
            Diagnostic::error(&host.place, message).help("add it to the route's `sni`, or take it out"),
        );
    }
}

fn rule(draft: &RuleDraft, route: &Arc<str>, pools: &Names, report: &mut Report) -> Rule<usize> {
    reject_too_little(draft, report);
    if let Some(redirect) = draft.redirect.given() {
        beside_redirect(draft, &redirect.place, report);
    }
    reject_prefixes(draft, report);
    reject_timeouts(draft, report);
    reject_cors(draft, report);
    if let Some(matches) = draft.matches.given().filter(|given| given.value.len() > MAX_MATCHES) {
        let error = Diagnostic::error(&matches.place, format!("more than {MAX_MATCHES} matches in one rule"));
        report.push(error.help("make several rules of it, or an expression: `path_regex = '/(a|b|c)'`"));
    }
    Rule {
        name: draft.name.get().map_or_else(|| route.clone(), Arc::from),
        grpc: false,
        hosts: values(&draft.hosts).into(),
        list: None,
        matches: items(&draft.matches).iter().map(|of| a_match(&of.value, report)).collect(),
        filters: Filters {
            request_headers: draft.request_headers.or(HeaderChanges::default()),
            response_headers: draft.response_headers.or(HeaderChanges::default()),
            rewrite: draft.rewrite.given().map(|given| rewrite(&given.value, report)),
            redirect: draft.redirect.given().map(|given| redirect(&given.value, report)),
            mirrors: items(&draft.mirror).iter().map(|given| mirror(&given.value, pools, report)).collect(),
            cors: draft.cors.get().map(Arc::new),
        },
        backends: backends(draft, pools, report),
        timeouts: Timeouts { request: draft.request_timeout.get(), backend: draft.backend_timeout.get() },
        retry: draft.retry.given().map(|given| retry(&given.value)),
        persistence: draft.session.given().and_then(|given| session(given, report)),
    }
}

/// A rule gives an answer, or a server does.
fn reject_too_little(draft: &RuleDraft, report: &mut Report) {
    if draft.backends.is_absent() && draft.redirect.is_absent() {
        let error = Diagnostic::error(&draft.place, "[[route.rule]] without `backends`");
        report.push_absence(error.help("for example `backends = [\"reviews\"]`; or a `redirect`"));
    }
}

/// Where there is a redirect nothing goes to a server.
fn beside_redirect(draft: &RuleDraft, redirect: &Place, report: &mut Report) {
    for (key, place) in [("backends", draft.backends.place()), ("rewrite", draft.rewrite.place())] {
        if let Some(place) = place {
            let error =
                Diagnostic::error(place, format!("`{key}` beside a `redirect`: no request goes to a server"));
            report.push(error.related(redirect, "the redirect").help("take one of them out"));
        }
    }
    for (key, place) in [
        ("request_headers", draft.request_headers.place()),
        ("mirror", draft.mirror.place()),
        ("request_timeout", draft.request_timeout.place()),
        ("backend_timeout", draft.backend_timeout.place()),
        ("retry", draft.retry.place()),
        ("session", draft.session.place()),
    ] {
        if let Some(place) = place {
            let warning = Diagnostic::warning(place, format!("`{key}` has no effect beside a `redirect`"));
            report.push(warning.related(redirect, "the redirect").help("take it out"));
        }
    }
}

/// What takes the place of a prefix needs one.
fn reject_prefixes(draft: &RuleDraft, report: &mut Report) {
    let of_rewrite = draft.rewrite.given().and_then(|given| given.value.path_prefix.place());
    let of_redirect = draft.redirect.given().and_then(|given| given.value.path_prefix.place());
    let Some(new) = of_rewrite.or(of_redirect) else { return };
    let others = items(&draft.matches).iter().map(|of| &of.value);
    let other = others.filter_map(|of| of.path.place().or(of.path_regex.place())).next();
    if let Some(other) = other {
        let error = Diagnostic::error(new, "a new `path_prefix` where not every `match` has one");
        report.push(
            error.related(other, "this has none").help("match by `path_prefix`, or give a whole new `path`"),
        );
    }
}

fn reject_timeouts(draft: &RuleDraft, report: &mut Report) {
    if let (Some(whole), Some(one)) = (draft.request_timeout.given(), draft.backend_timeout.given())
        && one.value > whole.value
    {
        let error = Diagnostic::error(&one.place, "`backend_timeout` is longer than `request_timeout`");
        report.push(error.related(&whole.place, "this one").help("one attempt is a part of the whole"));
    }
}

fn reject_cors(draft: &RuleDraft, report: &mut Report) {
    let Some(cors) = draft.cors.given() else { return };
    let lists = [
        ("origins", &cors.value.origins),
        ("methods", &cors.value.methods),
        ("headers", &cors.value.headers),
        ("exposed", &cors.value.exposed),
    ];
    for (key, list) in lists {
        if list.len() > 1 && list.iter().any(|word| **word == *"*") {
            let error = Diagnostic::error(&cors.place, format!("`\"*\"` beside others in `{key}`"));
            report.push(error.help("`\"*\"` alone is all of them"));
        }
    }
}

fn a_match(draft: &MatchDraft, report: &mut Report) -> RequestMatch {
    let keys = [
        ("path", draft.path.place()),
        ("path_prefix", draft.path_prefix.place()),
        ("path_regex", draft.path_regex.place()),
    ];
    one_of(keys, report);
    let exact = || draft.path.get().map(PathMatch::Exact);
    let prefix = || draft.path_prefix.get().map(PathMatch::Prefix);
    let regex = || draft.path_regex.get().map(PathMatch::Regex);
    RequestMatch {
        path: exact().or_else(prefix).or_else(regex),
        method: draft.method.get(),
        headers: draft.headers.get().unwrap_or_default(),
        query: draft.query.get().unwrap_or_default(),
    }
}

/// Of several keys that say the same in different ways, one is enough.
fn one_of<const N: usize>(keys: [(&str, Option<&Place>); N], report: &mut Report) {
    let mut given = keys.into_iter().filter_map(|(key, place)| Some((key, place?)));
    let Some((first, place)) = given.next() else { return };
    for (other, other_place) in given {
        let error = Diagnostic::error(other_place, format!("`{other}` beside `{first}`"));
        report.push(error.related(place, "it is here").help("take one of them out"));
    }
}

fn rewrite(draft: &RewriteDraft, report: &mut Report) -> Rewrite {
    Rewrite { host: draft.host.get(), path: new_path(&draft.path, &draft.path_prefix, report) }
}

fn redirect(draft: &RedirectDraft, report: &mut Report) -> Redirect {
    Redirect {
        scheme: draft.scheme.get().map(Box::from),
        host: draft.host.get(),
        path: new_path(&draft.path, &draft.path_prefix, report),
        port: draft.port.get(),
        status: draft.status.or(REDIRECTION),
    }
}

fn new_path(path: &Field<Box<str>>, prefix: &Field<Box<str>>, report: &mut Report) -> Option<PathRewrite> {
    one_of([("path", path.place()), ("path_prefix", prefix.place())], report);
    path.get().map(PathRewrite::Full).or_else(|| prefix.get().map(PathRewrite::Prefix))
}

fn mirror(draft: &MirrorDraft, pools: &Names, report: &mut Report) -> Mirror<usize> {
    const HUNDRED: NonZeroU32 = NonZeroU32::new(100).unwrap();
    Mirror {
        pool: pools.resolve(&draft.pool, report),
        share: Fraction { numerator: draft.percent.or(HUNDRED.get()), denominator: HUNDRED },
    }
}

fn retry(draft: &RetryDraft) -> Retry {
    Retry {
        attempts: draft.attempts.or(1),
        statuses: values(&draft.statuses),
        lost: false,
        backoff: draft.backoff.or(BACKOFF),
    }
}

fn session(given: &Placed<SessionDraft>, report: &mut Report) -> Option<Persistence> {
    let SessionDraft { cookie, header, timeout, permanent } = &given.value;
    one_of([("cookie", cookie.place()), ("header", header.place())], report);
    if cookie.is_absent() && header.is_absent() {
        let error = Diagnostic::error(&given.place, "`session` without `cookie` or `header`");
        report.push_absence(error.help("for example `session = { cookie = \"server\" }`"));
    }
    let permanent = permanent.given().filter(|permanent| permanent.value);
    if let Some(permanent) = permanent {
        if cookie.is_absent() {
            let error = Diagnostic::error(&permanent.place, "`permanent` without a `cookie`");
            report.push(error.help("what is in a header lasts as long as the client repeats it"));
        } else if timeout.is_absent() {
            let error = Diagnostic::error(&permanent.place, "`permanent` without a `timeout`");
            report.push_absence(
                error.help("for example `timeout = \"24h\"`, which is how long the cookie lasts"),
            );
        }
    }
    let carrier = match (cookie.given(), permanent) {
        (None, _) => Carrier::Header,
        (Some(_), None) => Carrier::SessionCookie,
        (Some(_), Some(_)) => Carrier::PermanentCookie,
    };
    Some(Persistence { name: cookie.get().or(header.get())?, carrier, absolute_timeout: timeout.get() })
}

fn backends(draft: &RuleDraft, pools: &Names, report: &mut Report) -> Vec<RuleBackend<usize>> {
    let backends = || items(&draft.backends).iter().map(|item| &item.value);
    if let Some(given) = draft.backends.given()
        && !given.value.is_empty()
        && backends().all(|backend| backend.weight.get() == Some(0))
    {
        let error = Diagnostic::error(&given.place, "every backend has weight 0: no request can go anywhere");
        report.push(error.help("give one of them a weight from 1 to 256"));
    }
    let found = backends().map(|backend| RuleBackend {
        pool: pools.resolve(&backend.pool, report),
        weight: backend.weight.or(Backend::new(0).weight),
        filters: Filters {
            request_headers: backend.request_headers.or(HeaderChanges::default()),
            response_headers: backend.response_headers.or(HeaderChanges::default()),
            ..Filters::default()
        },
    });
    found.collect()
}

/// Of two matches of a route that are the same, the first takes all requests.
pub(super) fn warn_of_repeated(draft: &Draft, routes: &[Route], report: &mut Report) {
    for (draft, route) in draft.routes.iter().zip(routes) {
        let mut seen = HashMap::new();
        let rules = route.http.iter().flatten().flat_map(|rules| &*rules.list);
        for (draft, rule) in draft.rules.iter().zip(rules) {
            warn_of_repeated_in(draft, rule, &mut seen, report);
        }
    }
}

fn warn_of_repeated_in<'d>(
    draft: &'d RuleDraft,
    rule: &Rule<usize>,
    seen: &mut HashMap<String, &'d Place>,
    report: &mut Report,
) {
    let hosts = if rule.hosts.is_empty() { &[SniPattern::Any] } else { &rule.hosts[..] };
    let any = RequestMatch::default();
    let places = items(&draft.matches).iter().map(|of| &of.place);
    let mut matches: Vec<_> = rule.matches.iter().zip(places).collect();
    if matches.is_empty() {
        matches.push((&any, &draft.place));
    }
    for (of, place) in matches {
        let of = told_apart(of);
        let earlier: Vec<_> =
            hosts.iter().map(|host| *seen.entry(format!("{host} {of:?}")).or_insert(place)).collect();
        if let Some(first) = earlier.first().filter(|_| earlier.iter().all(|earlier| *earlier != place)) {
            let warning =
                Diagnostic::warning(place, "no request ever gets here: an earlier match is the same");
            report.push(warning.related(*first, "this one").help("take one of them out"));
        }
    }
}

/// The match with all that is the same written the same.
fn told_apart(of: &RequestMatch) -> RequestMatch {
    let mut of = of.clone();
    of.headers.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    of.query.sort_by(|(one, _), (other, _)| one.cmp(other));
    of.path = of.path.filter(|path| !matches!(path, PathMatch::Prefix(prefix) if **prefix == *"/"));
    of
}

/// Pools that say how requests are sent and get none.
pub(super) fn warn_of_pools_without_requests(draft: &Draft, routes: &[Route], report: &mut Report) {
    let rules = routes.iter().flat_map(|route| &route.http).flatten();
    let used: HashSet<usize> = rules.flat_map(|rules| &rules.pools).flatten().copied().collect();
    let unused = draft.pools.iter().enumerate().filter(|(index, _)| !used.contains(index));
    for (_, pool) in unused {
        if let Some(http2) = pool.http2.given().filter(|http2| http2.value && pool.place.object().is_none()) {
            let name = pool.name.get().unwrap_or_default();
            let message = format!("`http2` has no effect: no rule names the pool {}", quote(&name));
            report.push(
                Diagnostic::warning(&http2.place, message).help("what is passed on is not looked into"),
            );
        }
    }
}
