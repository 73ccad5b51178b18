use super::*;

/// A Gateway of the namespace `db` with these listeners, in YAML's flow style.
fn gateway(name: &str, listeners: &str, more: &str) -> String {
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: {name}, namespace: db }}\n\
         spec: {{ gatewayClassName: edge, listeners: [{listeners}]{more} }}"
    )
}

fn set(name: &str, namespace: &str, listeners: &str) -> String {
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec: {{ parentRef: {{ name: gw, namespace: db }}, listeners: [{listeners}] }}"
    )
}

const CERT: &str = "tls: { certificateRefs: [{ name: cert }] }";
const PASS: &str = "tls: { mode: Passthrough }";

/// The reasons of `Accepted`, `Programmed`, `ResolvedRefs` and `Conflicted` of each listener.
fn reasons(statuses: &Statuses, key: &Key) -> Vec<String> {
    let listeners = match &statuses[key] {
        Status::Gateway(status) => &status.listeners,
        Status::ListenerSet(status) => &status.listeners,
        other => panic!("{other:?}"),
    };
    let shown = |each: &ListenerStatus| {
        let conditions = each.conditions.iter().take(4);
        let conditions: Vec<_> = conditions
            .map(
                |each| {
                    if each.kind == "Conflicted" { each.status.to_string() } else { each.reason.to_owned() }
                },
            )
            .collect();
        conditions.join(" ")
    };
    listeners.iter().map(shown).collect()
}

const GOOD: &str = "Accepted Programmed ResolvedRefs False";

#[test]
fn what_conflicts_within_a_gateway() {
    let host = "HostnameConflict HostnameConflict ResolvedRefs True";
    let protocol = "ProtocolConflict ProtocolConflict ResolvedRefs True";
    let tls = |name: &str, host: &str, tls: &str| {
        format!("{{ name: {name}, protocol: TLS, port: 443, hostname: {host}, {tls} }}")
    };
    let plain = |name: &str, protocol: &str, port: u16| {
        format!("{{ name: {name}, protocol: {protocol}, port: {port} }}")
    };
    let https =
        |host: &str| format!("{{ name: https, protocol: HTTPS, port: 443, hostname: {host}, {CERT} }}");
    for (listeners, expected) in [
        (vec![tls("a", "a.example", PASS), tls("b", "b.example", CERT), https("c.example")], vec![GOOD; 3]),
        (
            vec![tls("a", "a.example", PASS), tls("b", "a.example", PASS), https("c.example")],
            vec![host, host, GOOD],
        ),
        // What differs only in `tls`.
        (vec![tls("a", "a.example", PASS), tls("b", "a.example", CERT)], vec![host; 2]),
        (vec![tls("a", "a.example", PASS), https("A.Example")], vec![host; 2]),
        (
            vec![tls("a", "a.example", PASS), plain("t", "TCP", 443), plain("other", "TCP", 444)],
            vec![protocol, protocol, GOOD],
        ),
        (vec![tls("a", "a.example", PASS), plain("h", "HTTP", 443)], vec![protocol; 2]),
        (vec![plain("a", "TCP", 1), plain("b", "TCP", 1)], vec![host; 2]),
        // Nobody knows which name is meant: it is nobody's.
        (
            vec![tls("a", "\"a b\"", PASS), tls("b", "\"\"", PASS), tls("c", "-c", PASS)],
            vec![
                "UnsupportedValue Invalid ResolvedRefs False",
                GOOD,
                "UnsupportedValue Invalid ResolvedRefs False",
            ],
        ),
    ] {
        let listeners = listeners.join(", ");
        let text = BASE.to_owned() + &secret("db", "cert") + &gateway("gw", &listeners, "");
        let (_, statuses) = made(&mut index(&text));
        assert_eq!(reasons(&statuses, &key(Kind::Gateway, "db/gw")), expected, "{listeners}");
    }
}

#[test]
fn a_gateway_is_accepted_while_one_listener_is() {
    let udp = "{ name: udp, protocol: UDP, port: 53 }";
    let tcp = "{ name: tcp, protocol: TCP, port: 54 }";
    for (listeners, accepted, programmed) in [
        (udp.to_owned(), "Accepted=False ListenersNotValid", "Programmed=False Invalid"),
        (format!("{udp}, {tcp}"), "Accepted=True ListenersNotValid", "Programmed=True Programmed"),
        (tcp.to_owned(), "Accepted=True Accepted", "Programmed=True Programmed"),
    ] {
        let (_, statuses) = made(&mut index(&(BASE.to_owned() + &gateway("gw", &listeners, ""))));
        let gateway = key(Kind::Gateway, "db/gw");
        assert_eq!(conditions(&statuses, &gateway, None)[..2], [accepted, programmed]);
        let Status::Gateway(status) = &statuses[&gateway] else { panic!() };
        let first = &status.listeners[0];
        if listeners.starts_with(udp) {
            assert_eq!(first.conditions[0].reason, "UnsupportedProtocol");
            assert_eq!(first.supported_kinds, []);
        }
    }
}

#[test]
fn kinds_of_routes() {
    for (protocol, kinds, expected, reason) in [
        ("TLS", "", vec!["TLSRoute"], "ResolvedRefs"),
        ("HTTP", "", vec!["HTTPRoute", "GRPCRoute"], "ResolvedRefs"),
        // An empty list is none.
        ("TLS", " ", vec!["TLSRoute"], "ResolvedRefs"),
        ("TCP", "{ kind: TCPRoute }", vec!["TCPRoute"], "ResolvedRefs"),
        ("TLS", "{ kind: TCPRoute }, { kind: TLSRoute }", vec!["TLSRoute"], "InvalidRouteKinds"),
        ("HTTP", "{ kind: Nonsense }", vec![], "InvalidRouteKinds"),
        ("HTTP", "{ group: example.com, kind: HTTPRoute }", vec![], "InvalidRouteKinds"),
        ("HTTP", "{ group: gateway.networking.k8s.io, kind: HTTPRoute }", vec!["HTTPRoute"], "ResolvedRefs"),
    ] {
        let kinds =
            if kinds.is_empty() { String::new() } else { format!("allowedRoutes: {{ kinds: [{kinds}] }}, ") };
        let listener = format!("{{ name: l, protocol: {protocol}, port: 443, {kinds}{PASS} }}");
        let (_, statuses) = made(&mut index(&(BASE.to_owned() + &gateway("gw", &listener, ""))));
        let Status::Gateway(status) = &statuses[&key(Kind::Gateway, "db/gw")] else { panic!() };
        let found: Vec<_> = status.listeners[0].supported_kinds.iter().map(|each| &*each.kind).collect();
        assert_eq!((found, status.listeners[0].conditions[2].reason), (expected, reason), "{listener}");
    }
}

#[test]
fn certificates_that_cannot_be_had() {
    let listener = |reference: &str| {
        format!("{{ name: l, protocol: HTTPS, port: 443, tls: {{ certificateRefs: [{reference}] }} }}")
    };
    let bad = secret("db", "bad").replace("tls.key: |", "tls.key: |\n    x\n  other: |");
    let opaque = secret("db", "opaque").replace("kubernetes.io/tls", "Opaque");
    for (reference, reason, programmed) in [
        ("{ name: cert }", "ResolvedRefs", "Programmed"),
        ("{ name: none }", "InvalidCertificateRef", "Invalid"),
        ("{ name: bad }", "InvalidCertificateRef", "Invalid"),
        ("{ name: opaque }", "InvalidCertificateRef", "Invalid"),
        ("{ name: cert, kind: ConfigMap }", "InvalidCertificateRef", "Invalid"),
        ("{ name: cert, group: example.com }", "InvalidCertificateRef", "Invalid"),
        ("{ name: cert, namespace: other }", "RefNotPermitted", "Invalid"),
        ("", "InvalidCertificateRef", "Invalid"),
        // One is enough to serve with.
        ("{ name: none }, { name: cert }", "InvalidCertificateRef", "Programmed"),
    ] {
        let text = BASE.to_owned()
            + &secret("db", "cert")
            + &secret("other", "cert")
            + &bad
            + &opaque
            + &gateway("gw", &listener(reference), "");
        let mut index = index(&text);
        let (config, statuses) = made(&mut index);
        let found = reasons(&statuses, &key(Kind::Gateway, "db/gw"));
        assert_eq!(found, [format!("Accepted {programmed} {reason} False")], "{reference}");
        // Without a certificate the name is reserved: no wider listener has its clients.
        assert_eq!(config.routes.len(), usize::from(programmed == "Programmed"));
        assert_eq!(listener_of(&config).reserved.len(), usize::from(programmed != "Programmed"));
    }
    let granted = BASE.to_owned()
        + &secret("other", "cert")
        + &grant("other", ("Gateway", "db"), "Secret")
        + &gateway("gw", &listener("{ name: cert, namespace: other }"), "");
    assert_eq!(reasons(&made(&mut index(&granted)).1, &key(Kind::Gateway, "db/gw")), [GOOD]);
}

fn listener_of(config: &Config) -> &Listener {
    listener(config, "gateway:443")
}

#[test]
fn a_secret_that_changes_asks_for_a_build_and_what_is_wanted_is_known() {
    let text =
        BASE.to_owned() + &gateway("gw", &format!("{{ name: l, protocol: HTTPS, port: 443, {CERT} }}"), "");
    let mut index = index(&text);
    made(&mut index);
    let wanted: Vec<_> = index.wanted().collect();
    assert_eq!(wanted, [Wanted { kind: Kind::Secret, namespace: "db".into(), name: Some("cert".into()) }]);
    assert_eq!(index.apply(objects(&secret("db", "cert")).remove(0)), Change::All);
    assert_eq!(index.apply(objects(&secret("db", "cert")).remove(0)), Change::Nothing);
    assert_eq!(index.apply(objects(&secret("db", "other")).remove(0)), Change::Nothing);
    assert_eq!(index.delete(&key(Kind::Secret, "db/cert")), Change::All);
}

#[test]
fn client_certificates() {
    let authority = |name: &str, text: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {name}, namespace: db }}\ndata:\n  ca.crt: |{}\n",
            text.lines().map(|line| format!("\n    {line}")).collect::<String>()
        )
    };
    let listeners = format!(
        "{{ name: https, protocol: HTTPS, port: 443, {CERT} }}, {{ name: tls, protocol: TLS, port: 8443, {CERT} }}, \
         {{ name: pass, protocol: TLS, port: 9443, {PASS} }}, {{ name: http, protocol: HTTP, port: 80 }}"
    );
    let frontend = |default: &str, per_port: &str| {
        format!(", tls: {{ frontend: {{ default: {{ validation: {default} }}, perPort: [{per_port}] }} }}")
    };
    let refs = |name: &str| format!("{{ caCertificateRefs: [{{ kind: ConfigMap, name: {name} }}] }}");
    let bad = |refs: &str| format!("NoValidCACertificate Invalid {refs} False");
    for (more, https, tls) in [
        (frontend(&refs("ca"), ""), GOOD.to_owned(), GOOD.to_owned()),
        (frontend(&refs("none"), ""), bad("InvalidCACertificateRef"), bad("InvalidCACertificateRef")),
        (frontend(&refs("broken"), ""), bad("InvalidCACertificateRef"), bad("InvalidCACertificateRef")),
        (
            frontend(&refs("ca").replace("ConfigMap", "Secret"), ""),
            bad("InvalidCACertificateKind"),
            bad("InvalidCACertificateKind"),
        ),
        (frontend(&refs("ca, namespace: other"), ""), bad("RefNotPermitted"), bad("RefNotPermitted")),
        (
            frontend(&refs("ca"), &format!("{{ port: 8443, tls: {{ validation: {} }} }}", refs("none"))),
            GOOD.to_owned(),
            bad("InvalidCACertificateRef"),
        ),
    ] {
        let text = BASE.to_owned()
            + &secret("db", "cert")
            + &authority("ca", &CERTIFICATE.0)
            + &authority("broken", "nothing")
            + &gateway("gw", &listeners, &more);
        let (config, statuses) = made(&mut index(&text));
        let found = reasons(&statuses, &key(Kind::Gateway, "db/gw"));
        assert_eq!(found, [https.as_str(), &tls, GOOD, GOOD], "{more}");
        for route in &config.routes {
            let Action::Terminate(termination) = &route.action else { continue };
            assert!(termination.client_auth.as_ref().is_some_and(|auth| auth.required), "{more}");
        }
    }
    let insecure = frontend(&refs("ca").replace("caCert", "mode: AllowInsecureFallback, caCert"), "");
    let text = BASE.to_owned()
        + &secret("db", "cert")
        + &authority("ca", &CERTIFICATE.0)
        + &gateway("gw", &listeners, &insecure);
    let (config, statuses) = made(&mut index(&text));
    let gateway = key(Kind::Gateway, "db/gw");
    let expected = "InsecureFrontendValidationMode=True ConfigurationChanged";
    assert_eq!(conditions(&statuses, &gateway, None).last().map(String::as_str), Some(expected));
    for route in &config.routes {
        let Action::Terminate(termination) = &route.action else { continue };
        // Asked for, and whatever it is let in.
        let auth = termination.client_auth.as_ref().unwrap();
        assert!(auth.unverified && !auth.required);
    }
}

#[test]
fn the_certificate_toward_servers() {
    for (reference, reason) in [
        ("{ name: cert }", "ResolvedRefs=True ResolvedRefs"),
        ("{ name: none }", "ResolvedRefs=False InvalidClientCertificateRef"),
        ("{ name: cert, kind: ConfigMap }", "ResolvedRefs=False InvalidClientCertificateRef"),
        ("{ name: cert, namespace: other }", "ResolvedRefs=False RefNotPermitted"),
    ] {
        let more = format!(", tls: {{ backend: {{ clientCertificateRef: {reference} }} }}");
        let listener = "{ name: tcp, protocol: TCP, port: 1 }";
        let text = BASE.to_owned() + &secret("db", "cert") + &gateway("gw", listener, &more);
        let (_, statuses) = made(&mut index(&text));
        let found = conditions(&statuses, &key(Kind::Gateway, "db/gw"), None);
        assert_eq!(found, ["Accepted=True Accepted", "Programmed=True Programmed", reason]);
    }
}

#[test]
fn listener_sets() {
    let tcp = |name: &str, port: u16| format!("{{ name: {name}, protocol: TCP, port: {port} }}");
    let http =
        |name: &str, host: &str| format!("{{ name: {name}, protocol: HTTP, port: 80, hostname: {host} }}");
    let own = http("own", "own.example");
    let all = ", allowedListeners: { namespaces: { from: All } }";
    let statuses_of = |more: &str, sets: &[String]| {
        let text = BASE.to_owned() + &gateway("gw", &own, more) + &sets.concat();
        made(&mut index(&text))
    };
    // Not allowed unless the Gateway says so.
    for (more, allowed) in [
        ("", false),
        (", allowedListeners: { namespaces: { from: Same } }", false),
        (", allowedListeners: { namespaces: { from: None } }", false),
        // No selector selects nothing, an empty one everything.
        (", allowedListeners: { namespaces: { from: Selector } }", false),
        (", allowedListeners: { namespaces: { from: Selector, selector: {} } }", true),
        (
            ", allowedListeners: { namespaces: { from: Selector, selector: { matchLabels: { kubernetes.io/metadata.name: team } } } }",
            true,
        ),
        (
            ", allowedListeners: { namespaces: { from: Selector, selector: { matchLabels: { team: a } } } }",
            false,
        ),
        (all, true),
    ] {
        let (config, statuses) = statuses_of(more, &[set("set", "team", &tcp("t", 7000))]);
        let set = key(Kind::ListenerSet, "team/set");
        let expected = match allowed {
            true => ["Accepted=True Accepted", "Programmed=True Programmed"],
            false => ["Accepted=False NotAllowed", "Programmed=False NotAllowed"],
        };
        assert_eq!(conditions(&statuses, &set, None), expected, "{more}");
        assert_eq!(config.listeners.len(), 1 + usize::from(allowed));
        let Status::Gateway(gateway) = &statuses[&key(Kind::Gateway, "db/gw")] else { panic!() };
        assert_eq!(gateway.attached_listener_sets, usize::from(allowed));
    }
    // The Gateway comes first, then one set after the other.
    let sets = [
        set("a", "db", &[http("one", "a.example"), http("two", "own.example"), tcp("three", 80)].join(", ")),
        set("b", "db", &http("one", "a.example")),
    ];
    let (_, statuses) = statuses_of(all, &sets);
    let hostname = "HostnameConflict HostnameConflict ResolvedRefs True";
    let protocol = "ProtocolConflict ProtocolConflict ResolvedRefs True";
    assert_eq!(reasons(&statuses, &key(Kind::Gateway, "db/gw")), [GOOD]);
    assert_eq!(reasons(&statuses, &key(Kind::ListenerSet, "db/a")), [GOOD, hostname, protocol]);
    assert_eq!(reasons(&statuses, &key(Kind::ListenerSet, "db/b")), [hostname]);
    let a = conditions(&statuses, &key(Kind::ListenerSet, "db/a"), None);
    assert_eq!(a, ["Accepted=True ListenersNotValid", "Programmed=True Programmed"]);
    let b = conditions(&statuses, &key(Kind::ListenerSet, "db/b"), None);
    assert_eq!(b, ["Accepted=False ListenersNotValid", "Programmed=False ListenersNotValid"]);
}

#[test]
fn routes_and_grants_of_a_listener_set_are_its_own() {
    let listener = format!("{{ name: end, protocol: TLS, port: 443, hostname: a.example, {CERT} }}")
        .replace("name: cert", "name: cert, namespace: db");
    let route = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: r, namespace: team }\n\
                 spec: { parentRefs: [{ name: gw, namespace: db, sectionName: end }, { kind: ListenerSet, name: set }], hostnames: [a.example], \
                 rules: [{ backendRefs: [{ name: x, port: 1 }] }] }";
    let base = BASE.to_owned()
        + &secret("db", "cert")
        + &gateway(
            "gw",
            "{ name: own, protocol: TCP, port: 1 }",
            ", allowedListeners: { namespaces: { from: All } }",
        )
        + &set("set", "team", &listener)
        + route;
    let set = key(Kind::ListenerSet, "team/set");
    for (grant, expected) in [
        (String::new(), "Accepted Invalid RefNotPermitted False"),
        (grant("db", ("Gateway", "db"), "Secret"), "Accepted Invalid RefNotPermitted False"),
        (grant("db", ("ListenerSet", "team"), "Secret"), GOOD),
    ] {
        let (_, statuses) = made(&mut index(&(base.clone() + &grant)));
        assert_eq!(reasons(&statuses, &set), [expected]);
        let route = key(Kind::TlsRoute, "team/r");
        let of_gateway = conditions(&statuses, &route, Some("Gateway db/gw listener end"));
        assert_eq!(of_gateway[0], "Accepted=False NoMatchingParent");
        assert_eq!(conditions(&statuses, &route, Some("ListenerSet set"))[0], "Accepted=True Accepted");
    }
}

#[test]
fn gateways_of_one_node_share_ports_and_the_older_wins() {
    let tls = |host: &str| format!("{{ name: l, protocol: TLS, port: 443, hostname: {host}, {PASS} }}");
    let text = BASE.to_owned()
        + &gateway("b", &tls("b.example"), "")
        + &gateway("a", &tls("a.example"), "")
        + &gateway("c", &tls("a.example"), "")
        + &gateway("d", "{ name: l, protocol: TCP, port: 443 }", "");
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(config.listeners.len(), 1);
    let mut reserved: Vec<_> = listener_of(&config).reserved.iter().map(ToString::to_string).collect();
    reserved.sort();
    assert_eq!(reserved, ["a.example", "b.example"]);
    for (name, expected) in [
        ("db/a", GOOD),
        ("db/b", GOOD),
        ("db/c", "HostnameConflict HostnameConflict ResolvedRefs True"),
        ("db/d", "ProtocolConflict ProtocolConflict ResolvedRefs True"),
    ] {
        assert_eq!(reasons(&statuses, &key(Kind::Gateway, name)), [expected], "{name}");
    }
}

#[test]
fn a_listener_set_is_as_old_as_itself_or_its_gateway_whichever_is_younger() {
    let tls = |host: &str| format!("{{ name: l, protocol: TLS, port: 443, hostname: {host}, {PASS} }}");
    let since = |text: String, year: u16| {
        text.replacen("namespace: db", &format!("namespace: db, creationTimestamp: \"{year}\""), 1)
    };
    let all = ", allowedListeners: { namespaces: { from: All } }";
    let conflict = "HostnameConflict HostnameConflict ResolvedRefs True";
    for (of_set, of_other, expected) in
        [(2026, 2025, [conflict, GOOD]), (2021, 2025, [GOOD, conflict]), (2019, 2025, [GOOD, conflict])]
    {
        let text = BASE.to_owned()
            + &since(gateway("gw", &tls("own.example"), all), 2020)
            + &since(set("set", "db", &tls("a.example")), of_set)
            + &since(gateway("other", &tls("a.example"), ""), of_other);
        let (_, statuses) = made(&mut index(&text));
        let found = [key(Kind::ListenerSet, "db/set"), key(Kind::Gateway, "db/other")];
        let found = found.map(|key| reasons(&statuses, &key).remove(0));
        assert_eq!(found, expected, "{of_set}");
    }
}

#[test]
fn no_two_listeners_have_one_name() {
    let listener = |name: &str, port: u16| format!("{{ name: {name}, protocol: HTTP, port: {port} }}");
    let text = BASE.to_owned()
        + &gateway("a.b", &listener("c", 81), "")
        + &gateway("a", &listener("b.c", 82), "")
        + &gateway("gw", &listener("own", 83), ", allowedListeners: { namespaces: { from: All } }")
        + &set("x", "db", &listener("l", 84))
        + &gateway("db", &listener("x.l", 85), "").replace("namespace: db", "namespace: set");
    let (config, _) = made(&mut index(&text));
    let mut found = names(&config);
    found.sort_unstable();
    assert_eq!(
        found,
        ["http@db.a.b_c", "http@db.a_b.c", "http@db.gw.own", "http@set.db.x.l", "http@set.db.x_l"]
    );
}

/// Gateways of several namespaces, the oldest first: whose, and with which host name and further fields.
fn of_namespaces(gateways: &[(&str, &str, &str)]) -> String {
    let mut text = BASE.to_owned();
    for (number, (namespace, host, more)) in gateways.iter().enumerate() {
        let host = if host.is_empty() { String::new() } else { format!("hostname: \"{host}\", ") };
        let listener = format!("{{ name: l, protocol: TLS, port: 443, {host}{PASS} }}");
        text += &gateway(&format!("gw{number}"), &listener, more).replace(
            "namespace: db",
            &format!("namespace: {namespace}, creationTimestamp: 2026-01-0{}", number + 1),
        );
    }
    text
}

#[test]
fn no_other_namespace_takes_part_of_a_wildcard_unless_it_is_let_in() {
    let conflict = "HostnameConflict HostnameConflict ResolvedRefs True";
    let lets_in = ", allowedListeners: { namespaces: { from: All } }";
    for (gateways, expected) in [
        (vec![("a", "*.example.com", ""), ("b", "x.example.com", "")], vec![GOOD, conflict]),
        (vec![("a", "", ""), ("b", "x.example.com", "")], vec![GOOD, conflict]),
        (vec![("a", "*.example.com", ""), ("a", "x.example.com", "")], vec![GOOD, GOOD]),
        (vec![("a", "*.example.com", lets_in), ("b", "x.example.com", "")], vec![GOOD, GOOD]),
        // What the older one does not have, or the younger has the wildcard.
        (vec![("a", "*.example.com", ""), ("b", "*.example.org", "")], vec![GOOD, GOOD]),
        (vec![("a", "x.example.com", ""), ("b", "*.example.com", "")], vec![GOOD, GOOD]),
        // Whoever has the narrower wildcard has a part of it, though a third one has a wider one.
        (vec![("a", "*.example.com", ""), ("b", "", ""), ("a", "x.example.com", "")], vec![GOOD, GOOD, GOOD]),
        (
            vec![("a", "", lets_in), ("b", "*.example.com", ""), ("c", "x.example.com", "")],
            vec![GOOD, GOOD, conflict],
        ),
    ] {
        let (_, statuses) = made(&mut index(&of_namespaces(&gateways)));
        for (number, (namespace, ..)) in gateways.iter().enumerate() {
            let key = key(Kind::Gateway, &format!("{namespace}/gw{number}"));
            assert_eq!(reasons(&statuses, &key), [expected[number]], "{key} of {gateways:?}");
        }
    }
}

#[test]
fn there_is_a_bound_on_the_ports_of_all_gateways_and_the_older_come_first() {
    let tcp = |port: u16| format!("{{ name: l{port}, protocol: TCP, port: {port} }}");
    let tls = format!("{{ name: l, protocol: TLS, port: 443, hostname: a.example, {PASS} }}");
    let text = BASE.to_owned()
        + &gateway("a", &[tcp(1), tls.clone()].join(", "), "")
        + &gateway("b", &[tcp(2), tcp(3), tls.replace("a.example", "b.example")].join(", "), "");
    let (config, statuses) = made(&mut index_with(Settings { max_ports: 3, ..Settings::default() }, &text));
    assert_eq!(config.listeners.len(), 3);
    assert_eq!(reasons(&statuses, &key(Kind::Gateway, "db/a")), [GOOD, GOOD]);
    let refused = "PortUnavailable Invalid ResolvedRefs False";
    assert_eq!(reasons(&statuses, &key(Kind::Gateway, "db/b")), [GOOD, refused, GOOD]);
}

#[test]
fn overlapping_names_of_https_listeners_are_told() {
    let https = |name: &str, host: &str| {
        format!("{{ name: {name}, protocol: HTTPS, port: 443, hostname: \"{host}\", {CERT} }}")
    };
    let listeners =
        [https("a", "a.example.com"), https("b", "*.example.com"), https("c", "c.example.org")].join(", ");
    let (_, statuses) =
        made(&mut index(&(BASE.to_owned() + &secret("db", "cert") + &gateway("gw", &listeners, ""))));
    let overlapping = |part: &str| {
        let found = conditions(&statuses, &key(Kind::Gateway, "db/gw"), Some(part));
        found.iter().any(|each| each == "OverlappingTLSConfig=True OverlappingHostnames")
    };
    assert_eq!(["listener a", "listener b", "listener c"].map(overlapping), [true, true, false]);
}

#[test]
fn classes() {
    let class = |name: &str, more: &str| {
        format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{ name: {name} }}\nspec: {{ {more} }}"
        )
    };
    let text = BASE.to_owned()
        + &class("second", "controllerName: snisplice.dev/gateway")
        + &class("other", "controllerName: example.com/other")
        + &class(
            "bad",
            "controllerName: snisplice.dev/gateway, parametersRef: { group: x, kind: y, name: z }",
        )
        + &gateway("gw", "{ name: l, protocol: TCP, port: 1 }", "").replace("edge", "second")
        + &gateway("not-ours", "{ name: l, protocol: TCP, port: 2 }", "").replace("edge", "other")
        + &gateway("of-bad", "{ name: l, protocol: TCP, port: 3 }", "").replace("edge", "bad");
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(config.listeners.iter().map(|each| &*each.name).collect::<Vec<_>>(), ["gateway:1"]);
    let shown = |name: &str| conditions(&statuses, &key(Kind::GatewayClass, name), None).join(" ");
    assert_eq!(shown("second"), "Accepted=True Accepted");
    let Status::Class(class) = &statuses[&key(Kind::GatewayClass, "second")] else { panic!() };
    assert!(class.supported_features.iter().any(|feature| feature.name == "TLSRoute"));
    assert!(class.supported_features.is_sorted_by_key(|feature| feature.name));
    assert_eq!(shown("bad"), "Accepted=False InvalidParameters");
    for absent in [key(Kind::GatewayClass, "other"), key(Kind::Gateway, "db/not-ours")] {
        assert!(!statuses.contains_key(&absent));
    }
}

#[test]
fn versions_of_the_definitions() {
    let definition = |name: &str, version: Option<&str>| {
        (Box::from(name), Definition { version: version.map(Box::from), is_experimental: false })
    };
    for (others, expected) in [
        (Some("v1.6.3"), "True SupportedVersion"),
        (Some("v1.0.0-rc1"), "True SupportedVersion"),
        (Some("v1.7.0"), "False UnsupportedVersion"),
        (Some("v2.0.0"), "False UnsupportedVersion"),
        (Some("v0.8.1"), "False UnsupportedVersion"),
        (Some("1.6.3"), "False UnsupportedVersion"),
        (Some("v1"), "False UnsupportedVersion"),
        (Some(""), "False UnsupportedVersion"),
        (None, "False UnsupportedVersion"),
    ] {
        let definitions = [definition("gateways", Some("v1.6.3")), definition("tlsroutes", others)].into();
        let (_, statuses) = made_in(&mut index(BASE), &Context { definitions, ..context() });
        let found = conditions(&statuses, &key(Kind::GatewayClass, "edge"), None);
        assert_eq!(
            found,
            ["Accepted=True Accepted".to_owned(), format!("SupportedVersion={expected}")],
            "{others:?}"
        );
    }
}

#[test]
fn a_port_that_another_machine_cannot_give_is_seen_and_the_rest_is_served() {
    let tcp = |name: &str, port: u16| format!("{{ name: {name}, protocol: TCP, port: {port} }}");
    let text = BASE.to_owned() + &gateway("gw", &[tcp("a", 1), tcp("b", 2)].join(", "), "");
    let gateway = key(Kind::Gateway, "db/gw");
    let lacking: Lacking = [(gateway.clone(), [("a".into(), "node-2: in use".into())].into())].into();
    let context = Context { elsewhere: lacking, ..context() };
    let mut index = index(&text);
    let (config, statuses) = made_in(&mut index, &context);
    assert_eq!(config.listeners.len(), 2);
    assert_eq!(reasons(&statuses, &gateway), ["PortUnavailable Invalid ResolvedRefs False", GOOD]);
    assert_eq!(
        conditions(&statuses, &gateway, None)[..2],
        ["Accepted=True ListenersNotValid", "Programmed=True Programmed"]
    );
    // It is not this machine that lacks it.
    assert_eq!(index.build(&context).lacking, Lacking::new());
    let unavailable = [((2, "0.0.0.0".parse().unwrap()), "in use here".into())].into();
    let context = Context { unavailable, ..context };
    assert_eq!(
        index.build(&context).lacking,
        [(gateway.clone(), [("b".into(), "in use here".into())].into())].into()
    );
    // Where there are several, a status says which one does.
    let message = |name: Option<&str>| {
        let context = Context { name: name.map(Into::into), ..context.clone() };
        let (_, statuses) = made_in(&mut self::index(&text), &context);
        let Status::Gateway(status) = &statuses[&gateway] else { panic!() };
        status.listeners[1].conditions[0].message.to_string()
    };
    assert_eq!(message(None), "in use here");
    assert_eq!(message(Some("node-1")), "node-1: in use here");
}

#[test]
fn what_is_not_everywhere_yet_is_not_programmed() {
    let text = BASE.to_owned()
        + &gateway("gw", "{ name: a, protocol: TCP, port: 1 }, { name: b, protocol: X, port: 2 }", "");
    let (_, mut statuses) = made(&mut index(&text));
    let gateway = key(Kind::Gateway, "db/gw");
    statuses.get_mut(&gateway).unwrap().wait("not on node-2 yet");
    assert_eq!(
        conditions(&statuses, &gateway, None)[..2],
        ["Accepted=True ListenersNotValid", "Programmed=False Pending"]
    );
    let unsupported = "UnsupportedProtocol Invalid ResolvedRefs False";
    assert_eq!(reasons(&statuses, &gateway), ["Accepted Pending ResolvedRefs False", unsupported]);
}
