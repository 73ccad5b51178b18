use super::*;

/// A Gateway with TLS listeners of these names and modes on port 443; a mode with a Secret ends TLS.
fn gateway(listeners: &[(&str, &str, &str)]) -> String {
    let mut text = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: gw, namespace: db }\n\
                    spec:\n  gatewayClassName: edge\n  listeners:\n"
        .to_owned();
    for (name, host, mode) in listeners {
        let host = if host.is_empty() { String::new() } else { format!("hostname: \"{host}\", ") };
        let tls = match *mode {
            "Passthrough" => "{ mode: Passthrough }".to_owned(),
            secret => format!("{{ mode: Terminate, certificateRefs: [{{ name: {secret} }}] }}"),
        };
        text += &format!("    - {{ name: {name}, protocol: TLS, port: 443, {host}tls: {tls} }}\n");
    }
    text
}

fn tls_route(name: &str, hosts: &[&str], section: Option<&str>, backends: &str) -> String {
    let hosts = hosts.iter().map(|host| format!("\"{host}\"")).collect::<Vec<_>>().join(", ");
    let section = section.map(|section| format!(", sectionName: {section}")).unwrap_or_default();
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{ name: {name}, namespace: db }}\n\
         spec:\n  parentRefs: [{{ name: gw{section} }}]\n  hostnames: [{hosts}]\n  rules: [{{ backendRefs: [{backends}] }}]\n"
    )
}

const REDIS: &str = "{ name: redis, port: 6379 }";

#[test]
fn passed_through_and_ended_on_one_port() {
    let text = BASE.to_owned()
        + &gateway(&[("pass", "a.example.com", "Passthrough"), ("end", "*.example.org", "cert")])
        + &secret("db", "cert")
        + &tls_route("one", &["a.example.com"], None, REDIS)
        + &tls_route("two", &["b.example.org", "c.example.net"], None, REDIS);
    let (config, statuses) = made(&mut index(&text));
    let port = listener(&config, "gateway:443");
    assert_eq!(port.bind.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0:443", "[::]:443"]);
    let pool = "db.redis:6379=1".to_owned();
    assert_eq!(
        routes(&config, "gateway:443"),
        [("a.example.com".into(), false, pool.clone()), ("b.example.org".into(), true, pool)]
    );
    assert_eq!(port.reserved, [SniPattern::Wildcard("example.org".into())]);
    assert_eq!(servers(&config, "db.redis:6379"), ["10.0.0.11:6379", "10.0.0.12:6379"]);
    let gateway = key(Kind::Gateway, "db/gw");
    let all_good = ["Accepted=True Accepted", "Programmed=True Programmed", "ResolvedRefs=True ResolvedRefs"];
    assert_eq!(conditions(&statuses, &gateway, None), all_good);
    for part in ["listener pass", "listener end"] {
        let mut good = all_good.to_vec();
        good.push("Conflicted=False NoConflicts");
        assert_eq!(conditions(&statuses, &gateway, Some(part)), good);
    }
    let route = key(Kind::TlsRoute, "db/two");
    assert_eq!(
        conditions(&statuses, &route, Some("Gateway gw")),
        ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]
    );
}

#[test]
fn only_routes_of_the_narrowest_listener_count() {
    let text = BASE.to_owned()
        + &gateway(&[
            ("any", "", "Passthrough"),
            ("wide", "*.example.com", "Passthrough"),
            ("narrow", "*.b.example.com", "Passthrough"),
        ])
        + &tls_route(
            "wide",
            &["*.example.com", "x.b.example.com", "*.y.b.example.com", "z.example.com"],
            Some("wide"),
            REDIS,
        )
        + &tls_route("any", &["x.example.com", "other.example"], Some("any"), REDIS);
    let (config, _) = made(&mut index(&text));
    let names: Vec<_> = routes(&config, "gateway:443").into_iter().map(|(names, ..)| names).collect();
    assert_eq!(names, ["*.example.com z.example.com", "other.example"]);
    let mut reserved: Vec<_> =
        listener(&config, "gateway:443").reserved.iter().map(ToString::to_string).collect();
    reserved.sort();
    assert_eq!(reserved, ["*", "*.b.example.com"]);
}

#[test]
fn of_two_routes_for_a_name_the_older_has_it() {
    let with_time = |text: String, time: &str| {
        text.replace(
            "namespace: db }\nspec:\n  parentRefs",
            &format!("namespace: db, creationTimestamp: \"{time}\" }}\nspec:\n  parentRefs"),
        )
    };
    let text = BASE.to_owned()
        + &gateway(&[("pass", "", "Passthrough")])
        + &with_time(
            tls_route("a", &["a.example.com", "c.example.com"], None, REDIS),
            "2026-02-01T00:00:00Z",
        )
        + &with_time(
            tls_route("b", &["a.example.com", "b.example.com"], None, "{ name: redis, port: 80 }"),
            "2026-01-01T00:00:00Z",
        );
    let (config, statuses) = made(&mut index(&text));
    let found: Vec<_> =
        routes(&config, "gateway:443").into_iter().map(|(names, _, pools)| names + " " + &pools).collect();
    assert_eq!(found, ["a.example.com b.example.com db.redis:80=1", "c.example.com db.redis:6379=1"]);
    for route in ["db/a", "db/b"] {
        let found = conditions(&statuses, &key(Kind::TlsRoute, route), Some("Gateway gw"));
        assert_eq!(found[0], "Accepted=True Accepted");
    }
}

#[test]
fn why_a_route_is_not_accepted() {
    let base = BASE.to_owned() + &gateway(&[("pass", "*.example.com", "Passthrough")]);
    let tcp = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: { name: r, namespace: db }\n\
               spec: { parentRefs: [{ name: gw }], rules: [{ backendRefs: [{ name: redis, port: 6379 }] }] }";
    let elsewhere = tls_route("r", &["a.example.com"], None, REDIS).replace(
        "namespace: db }\nspec:\n  parentRefs: [{ name: gw",
        "namespace: other }\nspec:\n  parentRefs: [{ name: gw, namespace: db",
    );
    for (route, kind, name, reason) in [
        (tls_route("r", &["a.example.com"], Some("none"), REDIS), Kind::TlsRoute, "db/r", "NoMatchingParent"),
        (
            tls_route("r", &["a.example.org"], None, REDIS),
            Kind::TlsRoute,
            "db/r",
            "NoMatchingListenerHostname",
        ),
        (tls_route("r", &["a..b"], None, REDIS), Kind::TlsRoute, "db/r", "UnsupportedValue"),
        (tcp.to_owned(), Kind::TcpRoute, "db/r", "NotAllowedByListeners"),
        (elsewhere, Kind::TlsRoute, "other/r", "NotAllowedByListeners"),
    ] {
        let (config, statuses) = made(&mut index(&(base.clone() + &route)));
        let key = key(kind, name);
        let Status::Route(status) = &statuses[&key] else { panic!() };
        assert_eq!((status.parents.len(), status.parents[0].conditions[0].reason), (1, reason));
        assert_eq!(status.parents[0].conditions[1].kind, "ResolvedRefs");
        assert_eq!(config.routes.len(), 0, "{reason}");
        let Status::Gateway(gateway) = &statuses[&super::key(Kind::Gateway, "db/gw")] else { panic!() };
        assert_eq!(gateway.listeners[0].attached_routes, 0);
    }
}

#[test]
fn a_backend_that_cannot_be_had_keeps_its_share() {
    let backends = "{ name: redis, port: 6379, weight: 3 }, { name: gone, port: 1, weight: 2 }, \
                    { name: redis, namespace: other, port: 6379 }, { name: redis, port: 6379, weight: 0 }, \
                    { name: redis, port: 80, kind: Pod }, { name: empty, port: 1 }, { name: redis, port: 81 }";
    let text = BASE.to_owned()
        + &gateway(&[("pass", "", "Passthrough")])
        + &tls_route("r", &["a.example.com"], None, backends)
        + "\n---\napiVersion: v1\nkind: Service\nmetadata: { name: empty, namespace: db }\nspec: { ports: [{ port: 1 }] }";
    let (config, statuses) = made(&mut index(&text));
    let (.., pools) = &routes(&config, "gateway:443")[0];
    assert_eq!(
        pools,
        "db.redis:6379=3 gateway:refused=2 gateway:refused=1 gateway:refused=1 db.empty:1=1 gateway:refused=1"
    );
    assert_eq!(servers(&config, "gateway:refused").len() + servers(&config, "db.empty:1").len(), 0);
    let found = conditions(&statuses, &key(Kind::TlsRoute, "db/r"), Some("Gateway gw"));
    assert_eq!(found, ["Accepted=True Accepted", "ResolvedRefs=False BackendNotFound"]);
    for (backend, reason) in [
        ("{ name: redis, port: 6379, kind: Pod }", "InvalidKind"),
        ("{ name: redis, port: 6379, group: apps }", "InvalidKind"),
        ("{ name: redis, namespace: other, port: 6379 }", "RefNotPermitted"),
        ("{ name: redis }", "BackendNotFound"),
    ] {
        let text = BASE.to_owned()
            + &gateway(&[("pass", "", "Passthrough")])
            + &tls_route("r", &["a.example.com"], None, backend);
        let (config, statuses) = made(&mut index(&text));
        let found = conditions(&statuses, &key(Kind::TlsRoute, "db/r"), Some("Gateway gw"));
        assert_eq!(found[1], format!("ResolvedRefs=False {reason}"));
        assert_eq!(routes(&config, "gateway:443")[0].2, "gateway:refused=1");
    }
}

#[test]
fn a_grant_opens_a_namespace_and_its_removal_shuts_it_at_once() {
    let text = BASE.to_owned()
        + &gateway(&[("pass", "", "Passthrough")])
            .replace("tls: {", "allowedRoutes: { namespaces: { from: All } }, tls: {")
        + &tls_route("r", &["a.example.com"], None, "{ name: redis, namespace: db, port: 6379 }").replace(
            "namespace: db }\nspec:\n  parentRefs: [{ name: gw",
            "namespace: app }\nspec:\n  parentRefs: [{ name: gw, namespace: db",
        );
    let mut index = index(&text);
    assert_eq!(routes(&made(&mut index).0, "gateway:443")[0].2, "gateway:refused=1");
    let granted = objects(&grant("db", ("TLSRoute", "app"), "Service")).remove(0);
    let granted_key = granted.key.clone();
    assert_eq!(index.apply(granted), Change::All);
    assert_eq!(routes(&made(&mut index).0, "gateway:443")[0].2, "db.redis:6379=1");
    assert_eq!(index.delete(&granted_key), Change::All);
    assert_eq!(routes(&made(&mut index).0, "gateway:443")[0].2, "gateway:refused=1");
    for (from, to) in [
        (("TCPRoute", "app"), "Service"),
        (("TLSRoute", "other"), "Service"),
        (("TLSRoute", "app"), "Secret"),
    ] {
        index.apply(objects(&grant("db", from, to)).remove(0));
        assert_eq!(routes(&made(&mut index).0, "gateway:443")[0].2, "gateway:refused=1", "{from:?} {to}");
    }
}

#[test]
fn of_two_tcp_routes_both_are_accepted_and_the_first_serves() {
    let route = |name: &str, port: u16| {
        format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{ name: {name}, namespace: db }}\n\
             spec: {{ parentRefs: [{{ name: gw, port: 7000 }}], rules: [{{ backendRefs: [{{ name: redis, port: {port} }}] }}] }}"
        )
    };
    let gateway = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: gw, namespace: db }\n\
                   spec: { gatewayClassName: edge, listeners: [{ name: tcp, protocol: TCP, port: 7000 }, { name: idle, protocol: TCP, port: 7001 }] }";
    let text = BASE.to_owned() + gateway + &route("b", 80) + &route("a", 6379);
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(routes(&config, "gateway:7000"), [(String::new(), false, "db.redis:6379=1".to_owned())]);
    assert_eq!(routes(&config, "gateway:7001"), [(String::new(), false, "gateway:refused=1".to_owned())]);
    for name in ["db/a", "db/b"] {
        let found = conditions(&statuses, &key(Kind::TcpRoute, name), Some("Gateway gw port 7000"));
        assert_eq!(found[0], "Accepted=True Accepted");
    }
    let Status::Gateway(gateway) = &statuses[&key(Kind::Gateway, "db/gw")] else { panic!() };
    assert_eq!(gateway.listeners.iter().map(|each| each.attached_routes).collect::<Vec<_>>(), [2, 0]);
}

#[test]
fn http_routes_are_attached_and_counted() {
    let gateway = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: gw, namespace: db }\n\
                   spec:\n  gatewayClassName: edge\n  listeners:\n    - { name: web, protocol: HTTP, port: 80 }\n    \
                   - { name: safe, protocol: HTTPS, port: 443, hostname: a.example.com, tls: { certificateRefs: [{ name: cert }] } }\n";
    let route = |kind: &str, name: &str, host: &str| {
        let matches = if kind == "HTTPRoute" { "matches: [{ path: { value: /x } }], " } else { "" };
        format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: db }}\n\
             spec: {{ parentRefs: [{{ name: gw }}], hostnames: [\"{host}\"], rules: [{{ {matches}\
             backendRefs: [{{ name: redis, port: 80 }}] }}] }}"
        )
    };
    let text = BASE.to_owned()
        + gateway
        + &secret("db", "cert")
        + &route("HTTPRoute", "a", "a.example.com")
        + &route("GRPCRoute", "b", "*.example.com")
        + &route("GRPCRoute", "c", "c.example.com");
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(routes(&config, "gateway:80"), [("*".to_owned(), false, "http".to_owned())]);
    assert_eq!(routes(&config, "gateway:443"), [("a.example.com".to_owned(), true, "http".to_owned())]);
    assert_eq!(
        rules(&config, "http@db.gw.web"),
        ["a.example.com /x -> db.redis:80=1", "c.example.com  -> db.redis:80+h2=1"]
    );
    assert_eq!(rules(&config, "https@db.gw.safe"), ["a.example.com /x -> db.redis:80=1"]);
    let Status::Gateway(gateway) = &statuses[&key(Kind::Gateway, "db/gw")] else { panic!() };
    assert_eq!(gateway.listeners.iter().map(|each| each.attached_routes).collect::<Vec<_>>(), [2, 1]);
    let reason = |kind, name| conditions(&statuses, &key(kind, name), Some("Gateway gw"))[0].clone();
    assert_eq!(reason(Kind::HttpRoute, "db/a"), "Accepted=True Accepted");
    assert_eq!(reason(Kind::GrpcRoute, "db/b"), "Accepted=False NotAllowedByListeners");
    assert_eq!(reason(Kind::GrpcRoute, "db/c"), "Accepted=True Accepted");
}

/// An auto-passthrough listener.
fn auto_passthrough() -> String {
    gateway(&[("cross", "*.local", "Passthrough")]).replace(
        "{ mode: Passthrough }",
        "{ mode: Passthrough, options: { gateway.istio.io/listener-protocol: auto-passthrough } }",
    )
}

#[test]
fn auto_passthrough_has_a_route_for_each_port_of_each_service() {
    let mut index = index_with(
        Settings { auto_passthrough: true, ..Settings::default() },
        &(BASE.to_owned() + &auto_passthrough()),
    );
    let name = |port: u16, service: &str| format!("outbound_.{port}_._.{service}.db.svc.cluster.local");
    let made_routes = |index: &mut Index| {
        routes(&made(index).0, "gateway:443")
            .into_iter()
            .map(|(name, _, pool)| (name, pool))
            .collect::<Vec<_>>()
    };
    let redis = [
        (name(6379, "redis"), "db.redis:6379=1".to_owned()),
        (name(80, "redis"), "db.redis:80=1".to_owned()),
    ];
    assert_eq!(made_routes(&mut index), redis);
    let new = "apiVersion: v1\nkind: Service\nmetadata: { name: new, namespace: db }\nspec: { ports: [{ port: 1 }, { port: 2, protocol: UDP }] }";
    assert_eq!(index.apply(objects(new).remove(0)), Change::All);
    let [first, second] = redis;
    assert_eq!(made_routes(&mut index), [(name(1, "new"), "db.new:1=1".to_owned()), first, second]);
}

#[test]
fn only_whoever_runs_the_gateway_lets_a_listener_reach_all_services() {
    let (config, statuses) = made(&mut index(&(BASE.to_owned() + &auto_passthrough())));
    assert!(config.listeners.is_empty() && config.routes.is_empty() && config.pools.is_empty());
    let listener = conditions(&statuses, &key(Kind::Gateway, "db/gw"), Some("listener cross"));
    assert_eq!(listener[..2], ["Accepted=False UnsupportedValue", "Programmed=False Invalid"]);
}
