//! Rules of requests: HTTPRoute and GRPCRoute.

use super::*;
use crate::config::http::{Carrier, PathRewrite};
use std::time::Duration;

const GATEWAY: &str = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: gw, namespace: db }
spec: { gatewayClassName: edge, listeners: [{ name: web, protocol: HTTP, port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: shop, namespace: db }
spec:
  ports:
    - { name: plain, port: 80 }
    - { name: two, port: 81, appProtocol: kubernetes.io/h2c }
    - { name: ws, port: 82, appProtocol: kubernetes.io/ws }
"#;

fn route(kind: &str, name: &str, rules: &str) -> String {
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: db }}\n\
         spec: {{ parentRefs: [{{ name: gw }}], rules: [{rules}] }}\n"
    )
}

/// What rules make, and what is told of them.
fn of(kind: &str, rules_of_it: &str) -> (Config, Vec<String>, String) {
    let text = BASE.to_owned() + GATEWAY + &route(kind, "r", rules_of_it);
    let (config, statuses) = made(&mut index(&text));
    let kind = Kind::of(GROUP, kind).unwrap();
    let conditions = conditions(&statuses, &Key::new(kind, "db", "r"), Some("Gateway gw"));
    let Status::Route(status) = &statuses[&Key::new(kind, "db", "r")] else { panic!() };
    let messages: Vec<_> = status.parents[0]
        .conditions
        .iter()
        .map(|condition| &*condition.message)
        .filter(|text| !text.is_empty())
        .collect();
    (config, conditions, messages.join("; "))
}

fn http(rules_of_it: &str) -> (Vec<String>, Vec<String>, String) {
    let (config, conditions, messages) = of("HTTPRoute", rules_of_it);
    (rules(&config, "http@db.gw.web"), conditions, messages)
}

const GOOD: [&str; 2] = ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"];
const TO_SHOP: &str = "backendRefs: [{ name: shop, port: 80 }]";

#[test]
fn matches() {
    for (matches, shown) in [
        ("", "/"),
        ("matches: [{}], ", "/"),
        ("matches: [{ path: { type: Exact, value: /a } }], ", "=/a"),
        ("matches: [{ path: { value: /a/ } }], ", "/a"),
        ("matches: [{ path: { type: PathPrefix, value: // } }], ", "/"),
        ("matches: [{ path: { type: RegularExpression, value: \"/v[0-9]+\" } }], ", "~/v[0-9]+"),
        ("matches: [{ method: PATCH }, { path: { value: /b } }], ", "PATCH / | /b"),
        // Of one name the first counts.
        (
            "matches: [{ headers: [{ name: Magic, value: Foo }, { name: magic, value: bar }] }], ",
            "/ magic:=Foo",
        ),
        (
            "matches: [{ headers: [{ type: RegularExpression, name: a, value: x+ }], queryParams: [{ name: A, value: b }, { name: a, value: c }] }], ",
            "/ a:~x+ ?A=b ?a=c",
        ),
    ] {
        let (rules, conditions, told) = http(&format!("{{ {matches}{TO_SHOP} }}"));
        assert_eq!((rules, told), (vec![format!("* {shown} -> db.shop:80=1")], String::new()), "{matches}");
        assert_eq!(conditions, GOOD);
    }
}

#[test]
fn calls() {
    for (matches, shown) in [
        ("", ""),
        ("matches: [{ method: { service: a.B, method: C } }], ", "=/a.B/C"),
        ("matches: [{ method: { service: a.B } }], ", "/a.B"),
        ("matches: [{ method: { method: C.D } }], ", r"~/[^/]+/C\.D"),
        (
            "matches: [{ method: { type: RegularExpression, service: \"a|b\", method: \"C.*\" } }], ",
            "~/(?:a|b)/(?:C.*)",
        ),
        ("matches: [{ method: { type: RegularExpression, method: C } }], ", "~/(?:[^/]+)/(?:C)"),
        ("matches: [{ headers: [{ name: V, value: x }] }], ", " v:=x"),
    ] {
        let (config, conditions, told) = of("GRPCRoute", &format!("{{ {matches}{TO_SHOP} }}"));
        let found = rules(&config, "http@db.gw.web");
        assert_eq!(
            (found, told),
            (vec![format!("* {shown} -> db.shop:80+h2=1")], String::new()),
            "{matches}"
        );
        assert_eq!(conditions, GOOD);
        assert!(config.routes[0].rules()[0].grpc);
    }
}

#[test]
fn rules_that_cannot_be_read_are_left_out_and_what_is_not_served_answers_500() {
    let fine = "{ matches: [{ path: { value: /fine } }], backendRefs: [{ name: shop, port: 80 }] }";
    for (rule, told) in [
        (
            "matches: [{ path: { type: RegularExpression, value: \"(\" } }], ",
            "Dropped Rule spec.rules[1]: `(`: unclosed group",
        ),
        (
            "matches: [{ path: { type: Exact, value: a } }], ",
            "Dropped Rule spec.rules[1]: the path `a` does not begin with a `/`",
        ),
        (
            "matches: [{ path: { type: Other, value: /a } }], ",
            "Dropped Rule spec.rules[1]: `Other` is no type of a path",
        ),
        ("matches: [{ method: \"A B\" }], ", "Dropped Rule spec.rules[1]: `A B` is no method"),
        (
            "matches: [{ headers: [{ name: \"a b\", value: x }] }], ",
            "Dropped Rule spec.rules[1]: `a b` is no name of a header",
        ),
        (
            "filters: [{ type: ExtensionRef, extensionRef: { group: a, kind: B, name: c } }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters[0]: the filter `ExtensionRef` is not served",
        ),
        (
            "filters: [{ type: ExternalAuth, externalAuth: { protocol: HTTP } }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters[0]: the filter `ExternalAuth` is not served",
        ),
        (
            "filters: [{ type: RequestRedirect, requestRedirect: { scheme: ftp } }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters[0]: `ftp` is no scheme of a redirect",
        ),
        (
            "filters: [{ type: RequestRedirect, requestRedirect: {} }, { type: URLRewrite, urlRewrite: {} }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters: RequestRedirect excludes URLRewrite",
        ),
        (
            "matches: [{ path: { type: Exact, value: /a } }], filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters[0]: only what has matched a PathPrefix can be replaced",
        ),
        (
            "filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: shop, port: 80 }, percent: 101 } }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters[0]: a share of more than all",
        ),
        (
            "timeouts: { request: 1d }, ",
            "spec.rules[1] answers with 500: timeouts.request: `1d` is no duration such as `10s`",
        ),
        (
            "filters: [{ type: RequestRedirect, requestRedirect: { path: { type: ReplaceFullPath, replaceFullPath: .example.org/ } } }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters[0]: `.example.org/` is no path that begins with a `/`",
        ),
        (
            "filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: a } } }], ",
            "spec.rules[1] answers with 500: spec.rules[1].filters[0]: `a` is no path that begins with a `/`",
        ),
        ("retry: { codes: [200] }, ", "spec.rules[1] answers with 500: retry: 200 is no status of an error"),
        (
            "sessionPersistence: { idleTimeout: 1s }, ",
            "spec.rules[1] answers with 500: sessionPersistence.idleTimeout is not served",
        ),
    ] {
        let rule = format!("{{ {rule}{TO_SHOP} }}");
        let (rules, conditions, found) = http(&format!("{fine}, {rule}"));
        assert_eq!(found, told);
        assert_eq!(conditions, [GOOD[0], GOOD[1], "PartiallyInvalid=True UnsupportedValue"]);
        assert_eq!(rules[0], "* /fine -> db.shop:80=1");
        let is_dropped = told.starts_with("Dropped");
        assert_eq!(rules.len(), if is_dropped { 1 } else { 2 }, "{told}");
        assert!(rules.get(1).is_none_or(|rule| rule.ends_with(" -> ")), "{rules:?}");
        // Alone it is nothing that could be accepted; its requests are nobody else's for that.
        let (rules, conditions, _) = http(&rule);
        assert_eq!(conditions, ["Accepted=False UnsupportedValue", GOOD[1]], "{told}");
        assert_eq!(rules.len(), if is_dropped { 0 } else { 1 }, "{told}");
        assert!(rules.iter().all(|rule| rule.ends_with(" -> ")), "{rules:?}");
    }
}

#[test]
fn requests_of_a_route_that_is_not_served_go_to_no_other() {
    let admin = "{ matches: [{ path: { value: /admin } }], filters: [{ type: ExternalAuth, externalAuth: { protocol: HTTP } }], backendRefs: [{ name: shop, port: 82 }] }";
    let text = BASE.to_owned()
        + GATEWAY
        + &route("HTTPRoute", "admin", admin)
        + &route("HTTPRoute", "all", &format!("{{ {TO_SHOP} }}"));
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(rules(&config, "http@db.gw.web"), ["* /admin -> ", "* / -> db.shop:80=1"]);
    let told = |name: &str| conditions(&statuses, &Key::new(Kind::HttpRoute, "db", name), Some("Gateway gw"));
    assert_eq!(told("admin")[0], "Accepted=False UnsupportedValue");
    assert_eq!(told("all"), GOOD);
    let Status::Gateway(gateway) = &statuses[&key(Kind::Gateway, "db/gw")] else { panic!() };
    assert_eq!(gateway.listeners[0].attached_routes, 1);
}

#[test]
fn the_expressions_of_an_object_are_bounded() {
    let of = |expressions: &[String]| {
        let of_path = |value: &String| {
            format!("{{ matches: [{{ path: {{ type: RegularExpression, value: '{value}' }} }}], {TO_SHOP} }}")
        };
        let all: Vec<_> = expressions.iter().map(of_path).collect();
        let (rules, conditions, told) = http(&all.join(", "));
        assert_eq!(conditions[0], GOOD[0]);
        (rules.len(), told)
    };
    let plain = |count: usize| (0..count).map(|n| format!("/{n}")).collect::<Vec<_>>();
    assert_eq!(of(&plain(64)), (64, String::new()));
    let more = "Dropped Rule spec.rules[64]: the object has more than 64 regular expressions";
    assert_eq!(of(&plain(65)), (64, more.to_owned()));
    // Each by itself is small enough.
    let large: Vec<_> = (0..60).map(|n| format!("/{n}{}", r"\w".repeat(5))).collect();
    let (served, told) = of(&large);
    assert!((1..60).contains(&served), "{served}");
    assert!(told.contains("the regular expressions of the object take more than 2 MiB"), "{told}");
}

#[test]
fn a_key_that_is_not_known_refuses_the_route() {
    for rules in [
        "{ matches: [{ cookies: [] }] }",
        "{ fault: {} }",
        "{ backendRefs: [{ name: a, port: 1, mode: x }] }",
    ] {
        let text = route("HTTPRoute", "r", rules);
        let value = files::parse(text.trim_start().trim_start_matches("---")).unwrap().unwrap();
        assert!(Object::read(value).unwrap_err().to_string().contains("unknown field"), "{rules}");
    }
}

#[test]
fn filters() {
    let (config, conditions, told) = of(
        "HTTPRoute",
        "{ name: all, matches: [{ path: { value: /a } }], filters: [\
           { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: A, value: b }, { name: a, value: late }], add: [{ name: c, value: d }, { name: C, value: late }], remove: [E] } }, \
           { type: ResponseHeaderModifier, responseHeaderModifier: { remove: [x] } }, \
           { type: URLRewrite, urlRewrite: { hostname: Other.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: /b } } }, \
           { type: RequestMirror, requestMirror: { backendRef: { name: redis, port: 80 }, percent: 42 } }, \
           { type: RequestMirror, requestMirror: { backendRef: { name: gone, port: 80 }, fraction: { numerator: 1, denominator: 3 } } }, \
           { type: CORS, cors: { allowOrigins: [\"https://a.example\"], allowCredentials: true } }], \
          backendRefs: [{ name: shop, port: 80, weight: 0, filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { remove: [y] } }] }, { name: shop, port: 82, weight: 1000000 }], \
          timeouts: { request: 10s, backendRequest: 0s }, retry: { codes: [500, 503], attempts: 3, backoff: 100ms }, \
          sessionPersistence: { type: Cookie, absoluteTimeout: 1h, cookieConfig: { lifetimeType: Permanent } } }, \
         { matches: [{ path: { value: /r } }], filters: [{ type: RequestRedirect, requestRedirect: { scheme: https, hostname: b.example, port: 8443, path: { type: ReplaceFullPath, replaceFullPath: /x }, statusCode: 308 } }] }",
    );
    assert_eq!(conditions, ["Accepted=True Accepted", "ResolvedRefs=False BackendNotFound"]);
    assert_eq!(told, "there is no Service db/gone");
    assert_eq!(rules(&config, "http@db.gw.web"), ["* /a -> db.shop:80=0 db.shop:82=1000000", "* /r -> "]);
    let all = config.routes[0].rules();
    let (rule, filters) = (&all[0], &all[0].filters);
    assert_eq!(&*rule.name, "HTTPRoute.db.r.all");
    assert_eq!(
        format!("{:?}", filters.request_headers),
        r#"HeaderChanges { set: [("a", "b")], add: [("c", "d")], remove: ["e"] }"#
    );
    assert_eq!(
        format!("{:?}", filters.response_headers),
        r#"HeaderChanges { set: [], add: [], remove: ["x"] }"#
    );
    let rewrite = filters.rewrite.as_ref().unwrap();
    assert_eq!(rewrite.host.as_ref().unwrap(), "other.example");
    assert_eq!(rewrite.path, Some(PathRewrite::Prefix("/b".into())));
    let mirrors: Vec<_> = filters
        .mirrors
        .iter()
        .map(|mirror| {
            (
                mirror.pool.map(|pool| &*config.pools[pool].name),
                mirror.share.numerator,
                mirror.share.denominator.get(),
            )
        })
        .collect();
    assert_eq!(mirrors, [(Some("db.redis:80"), 42, 100), (None, 1, 3)]);
    let cors = filters.cors.as_ref().unwrap();
    assert_eq!((cors.origins.len(), cors.credentials, cors.max_age), (1, true, 5));
    assert_eq!(rule.backends[0].filters.request_headers.remove, ["y"]);
    assert_eq!((rule.timeouts.request, rule.timeouts.backend), (Some(Duration::from_secs(10)), None));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.statuses.len(), retry.backoff), (3, 2, Duration::from_millis(100)));
    let persistence = rule.persistence.as_ref().unwrap();
    assert!(persistence.name.starts_with("session-"), "{}", persistence.name);
    assert_eq!(
        (persistence.carrier, persistence.absolute_timeout),
        (Carrier::PermanentCookie, Some(Duration::from_secs(3600)))
    );
    let redirect = all[1].filters.redirect.as_ref().unwrap();
    assert_eq!(
        (redirect.scheme.as_deref(), redirect.host.as_deref(), redirect.port),
        (Some("https"), Some("b.example"), Some(8443))
    );
    assert_eq!(
        (redirect.path.clone(), redirect.status.as_u16()),
        (Some(PathRewrite::Full("/x".into())), 308)
    );
    assert_eq!(&*all[1].name, "HTTPRoute.db.r.1");
}

#[test]
fn backends_that_cannot_be_had_keep_their_share_and_the_reason_is_told() {
    for (backends, shown, reason) in [
        ("", "", "ResolvedRefs=True ResolvedRefs"),
        (
            "{ name: shop, port: 80, weight: 3 }, { name: gone, port: 80 }",
            "db.shop:80=3 500=1",
            "ResolvedRefs=False BackendNotFound",
        ),
        ("{ name: shop, port: 99 }", "500=1", "ResolvedRefs=False BackendNotFound"),
        ("{ name: shop }", "500=1", "ResolvedRefs=False BackendNotFound"),
        ("{ name: shop, kind: Thing, port: 80 }", "500=1", "ResolvedRefs=False InvalidKind"),
        ("{ name: shop, namespace: other, port: 80 }", "500=1", "ResolvedRefs=False RefNotPermitted"),
        (
            "{ name: shop, port: 81 }, { name: shop, port: 82 }",
            "db.shop:81+h2=1 db.shop:82=1",
            "ResolvedRefs=True ResolvedRefs",
        ),
    ] {
        let (rules, conditions, _) = http(&format!("{{ backendRefs: [{backends}] }}"));
        assert_eq!((rules[0].as_str(), conditions[1].as_str()), (format!("* / -> {shown}").as_str(), reason));
    }
    let (config, ..) =
        of("HTTPRoute", "{ backendRefs: [{ name: shop, port: 80 }, { name: shop, port: 81 }] }");
    // Without endpoints there is a pool without servers, and of those that speak HTTP/2 it says so.
    let pools: Vec<_> =
        config.pools.iter().map(|pool| (&*pool.name, pool.http2, pool.servers.len())).collect();
    assert_eq!(pools, [("db.shop:80", false, 0), ("db.shop:81+h2", true, 0)]);
}

#[test]
fn a_pool_of_the_file_with_the_name_takes_no_requests_of_objects() {
    let shop = "[[pool]]\nname = 'db.shop:80'\nservers = ['10.9.9.9:1']\n";
    let text = BASE.to_owned()
        + GATEWAY
        + &route(
            "HTTPRoute",
            "r",
            "{ backendRefs: [{ name: shop, port: 80 }, { name: shop, port: 81 }, { name: redis, port: 80 }] }",
        );
    let (config, _, refusals) = made_beside(shop, &mut index(&text), &context(), &NoFiles);
    let refused: Vec<_> = refusals.keys().map(String::as_str).collect();
    assert_eq!(refused, ["Service db/shop"]);
    assert_eq!(rules(&config, "http@db.gw.web"), ["* / -> 500=1 500=1 db.redis:80=1"]);
}

#[test]
fn a_grant_that_goes_takes_the_backend_at_once() {
    let rule = "{ backendRefs: [{ name: redis, namespace: db, port: 80 }] }";
    let text = BASE.to_owned()
        + &GATEWAY.replace(
            "port: 80 }] }\n---\napiVersion: v1",
            "port: 80, allowedRoutes: { namespaces: { from: All } } }] }\n---\napiVersion: v1",
        )
        + &route("HTTPRoute", "r", rule).replace(
            "namespace: db }\nspec: { parentRefs: [{ name: gw }]",
            "namespace: web }\nspec: { parentRefs: [{ name: gw, namespace: db }]",
        )
        + &grant("db", ("HTTPRoute", "web"), "Service");
    let mut index = index(&text);
    let shown = |index: &mut Index| rules(&made(index).0, "http@db.gw.web");
    assert_eq!(shown(&mut index), ["* / -> db.redis:80=1"]);
    assert_eq!(index.delete(&key(Kind::ReferenceGrant, "db/grant")), Change::All);
    assert_eq!(shown(&mut index), ["* / -> 500=1"]);
}

#[test]
fn each_listener_has_the_rules_for_its_own_hosts_in_the_order_of_age() {
    let listeners = "{ name: any, protocol: HTTP, port: 80 }, { name: wide, protocol: HTTP, port: 80, hostname: \"*.example.com\" }, \
                     { name: one, protocol: HTTP, port: 80, hostname: a.example.com }";
    let old = |text: String, year: u16| {
        text.replace(
            "namespace: db }\nspec: { parentRefs",
            &format!("namespace: db, creationTimestamp: \"{year}-01-01T00:00:00Z\" }}\nspec: {{ parentRefs"),
        )
    };
    let hosts = |text: String, hosts: &str| text.replace("rules:", &format!("hostnames: [{hosts}], rules:"));
    let path = |path: &str| format!("{{ matches: [{{ path: {{ value: {path} }} }}] }}");
    let text = BASE.to_owned()
        + &GATEWAY.replace("{ name: web, protocol: HTTP, port: 80 }", listeners)
        + &old(route("HTTPRoute", "a", &path("/young")), 2025)
        + &old(
            hosts(route("HTTPRoute", "b", &path("/old")), "a.example.com, \"*.b.example.com\", other.org"),
            2020,
        )
        + &old(route("HTTPRoute", "c", &format!("{}, {}", path("/one"), path("/two"))), 2025);
    let (config, _) = made(&mut index(&text));
    assert_eq!(
        rules(&config, "http@db.gw.any"),
        ["*.b.example.com,a.example.com,other.org /old -> ", "* /young -> ", "* /one -> ", "* /two -> "]
    );
    assert_eq!(
        rules(&config, "http@db.gw.wide"),
        [
            "*.b.example.com,a.example.com /old -> ",
            "*.example.com /young -> ",
            "*.example.com /one -> ",
            "*.example.com /two -> "
        ]
    );
    assert_eq!(
        rules(&config, "http@db.gw.one"),
        [
            "a.example.com /old -> ",
            "a.example.com /young -> ",
            "a.example.com /one -> ",
            "a.example.com /two -> "
        ]
    );
    let shown = routes(&config, "gateway:80").into_iter().map(|(hosts, ..)| hosts).collect::<Vec<_>>();
    assert_eq!(shown, ["*", "*.example.com", "a.example.com"]);
}

#[test]
fn whatever_stands_in_a_field_of_a_rule_nothing_falls_over() {
    let text = BASE.to_owned()
        + GATEWAY
        + &route(
            "HTTPRoute",
            "r",
            "{ name: n, matches: [{ path: { type: Exact, value: /a }, headers: [{ type: Exact, name: a, value: b }], queryParams: [{ name: a, value: b }], method: GET }], \
               filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: a, value: b }] } }, \
                 { type: RequestMirror, requestMirror: { backendRef: { name: shop, port: 80 }, fraction: { numerator: 1, denominator: 2 } } }], \
               backendRefs: [{ name: shop, port: 80, weight: 1, filters: [{ type: URLRewrite, urlRewrite: { hostname: a.b, path: { type: ReplaceFullPath, replaceFullPath: / } } }] }], \
               timeouts: { request: 1s }, retry: { codes: [500], attempts: 1, backoff: 1s }, sessionPersistence: { sessionName: a, type: Cookie } }",
        )
        + &route(
            "GRPCRoute",
            "g",
            "{ matches: [{ method: { type: Exact, service: a, method: b }, headers: [{ name: a, value: b }] }] }",
        );
    let (taken, refused) = super::manifests::with_every_field_changed(&text, index(&text));
    assert!(taken > 200 && refused > 200, "{taken} and {refused}");
}

/// Of very many routes, one that changes has nothing to do with those of other listeners, nor with other rules of its own.
#[test]
fn rules_that_nothing_has_changed_of_are_the_same_at_run_time() {
    use crate::route::http::RequestParts;
    use crate::serving::{HttpRule, Snapshot};
    use std::sync::Arc;
    let other = GATEWAY.replace("name: gw", "name: other").replace("port: 80 }]", "port: 8080 }]");
    let of = |name: &str, gateway: &str, path: &str, port: u16| {
        let rule = format!(
            "{{ matches: [{{ path: {{ value: {path} }} }}], backendRefs: [{{ name: shop, port: {port} }}] }}"
        );
        route("HTTPRoute", name, &rule).replace("name: gw", &format!("name: {gateway}"))
    };
    let text = BASE.to_owned()
        + GATEWAY
        + other.split("---\napiVersion: v1").next().unwrap()
        + &of("a", "gw", "/a", 80)
        + &of("b", "gw", "/b", 81)
        + &of("c", "other", "/c", 81);
    let mut index = index(&text);
    let before = Snapshot::new(&made(&mut index).0, None).unwrap();
    let rule = |snapshot: &Snapshot, of: &str, path: &str| -> Arc<HttpRule> {
        let route = snapshot.routes.iter().find(|route| route.name() == of).unwrap();
        let (host, query, method, headers) = ("", None, &::http::Method::GET, &::http::HeaderMap::new());
        let parts = RequestParts { host, method, path, query, headers };
        route.http().unwrap().lookup(&parts).unwrap().0.clone()
    };
    let same = |one: &Snapshot, two: &Snapshot| {
        let rules = [("http@db.gw.web", "/a"), ("http@db.gw.web", "/b"), ("http@db.other.web", "/c")];
        rules.map(|(of, path)| Arc::ptr_eq(&rule(one, of, path), &rule(two, of, path)))
    };
    index.apply(objects(&of("a", "gw", "/a", 82)).remove(0));
    let after = Snapshot::new(&made(&mut index).0, Some(&before)).unwrap();
    assert_eq!(same(&before, &after), [false, true, true]);
    // The pool of port 82, and the route of the listener.
    assert_eq!(after.made, 2);
    // Another pool under the same name.
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: { name: shop-1, namespace: db, labels: { kubernetes.io/service-name: shop } }\naddressType: IPv4\n\
                 ports: [{ name: two, port: 81 }]\nendpoints: [{ addresses: [10.0.0.31] }]";
    index.apply(objects(slice).remove(0));
    let last = Snapshot::new(&made(&mut index).0, Some(&after)).unwrap();
    assert_eq!(same(&after, &last), [true, false, false]);
    let pool = last.pools.iter().find(|pool| &*pool.name == "db.shop:81+h2").unwrap();
    let leads = |rule: Arc<HttpRule>| rule.rule.pools().all(|own| Arc::ptr_eq(own, pool));
    assert!(leads(rule(&last, "http@db.gw.web", "/b")) && leads(rule(&last, "http@db.other.web", "/c")));
}
