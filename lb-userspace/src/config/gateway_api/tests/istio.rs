//! Istio's own objects.

use super::*;
use crate::route::http::{Given, HttpRules, RequestParts};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::time::Duration;

/// A Service with pods of two versions, one of which ends.
const HELLO: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: hello, namespace: sample }
spec: { ports: [{ name: tcp, port: 5000 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: hello-1, namespace: sample, labels: { kubernetes.io/service-name: hello } }
addressType: IPv4
ports: [{ name: tcp, port: 5000 }]
endpoints:
  - { addresses: [10.0.0.11], targetRef: { kind: Pod, name: hello-v1-a, namespace: sample } }
  - { addresses: [10.0.0.12], targetRef: { kind: Pod, name: hello-v1-b } }
  - { addresses: [10.0.0.21], targetRef: { kind: Pod, name: hello-v2-a } }
  - { addresses: [10.0.0.31] }
  - { addresses: [10.0.0.41], targetRef: { kind: Node, name: hello-v1-a } }
---
apiVersion: v1
kind: Pod
metadata: { name: hello-v1-a, namespace: sample, labels: { app: hello, version: v1 } }
---
apiVersion: v1
kind: Pod
metadata: { name: hello-v1-b, namespace: sample, labels: { app: hello, version: v1 } }
---
apiVersion: v1
kind: Pod
metadata: { name: hello-v2-a, namespace: sample, labels: { app: hello, version: v2 } }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: hello, namespace: sample }
spec: { host: hello, subsets: [{ name: v1, labels: { version: v1 } }, { name: V2, labels: { version: v2 } }, { name: all }] }
"#;

fn settings() -> Settings {
    let labels = |value: &str| [("istio".to_owned(), value.to_owned())].into();
    Settings {
        istio: vec![labels("eastwest"), labels("ingress")],
        auto_passthrough: true,
        ..Settings::default()
    }
}

fn index(yaml: &str) -> Index {
    index_with(settings(), yaml)
}

/// A Gateway of Istio's in `edge` with these servers, in YAML's flow style.
fn gateway(name: &str, servers: &[&str]) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{ name: {name}, namespace: edge }}\n\
         spec: {{ selector: {{ istio: ingress }}, servers: [{}] }}\n",
        servers.join(", ")
    )
}

fn server(protocol: &str, tls: &str, hosts: &str) -> String {
    format!(
        "{{ port: {{ number: 443, name: x, protocol: {protocol} }}, tls: {{ {tls} }}, hosts: [{hosts}] }}"
    )
}

fn virtual_service(namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {{ name: vs, namespace: {namespace} }}\n\
         spec: {{ gateways: [edge/gw], {spec} }}\n"
    )
}

/// Routes of port 443: names, and pools with their weights.
fn shown(index: &mut Index) -> Vec<String> {
    let (config, _) = made(index);
    routes(&config, "gateway:443")
        .into_iter()
        .map(|(names, ends, to)| format!("{names}{} {to}", if ends { " ends" } else { "" }))
        .collect()
}

const VIRTUAL_SERVICE: Kind = Kind::VirtualService;

fn told(index: &mut Index, namespace: &str) -> Vec<String> {
    let (_, statuses) = made(index);
    conditions(&statuses, &Key::new(VIRTUAL_SERVICE, namespace, "vs"), Some("Gateway edge/gw"))
}

#[test]
fn auto_passthrough_has_a_route_for_each_subset() {
    let cross = |hosts: &str| {
        "\n---\n".to_owned() + HELLO + &gateway("cross", &[&server("TLS", "mode: AUTO_PASSTHROUGH", hosts)])
    };
    let name = |port: u16, subset: &str, service: &str| {
        format!("outbound_.{port}_.{subset}_.{service}.svc.cluster.local")
    };
    let all = [
        format!("{} db.redis:6379=1", name(6379, "", "redis.db")),
        format!("{} db.redis:80=1", name(80, "", "redis.db")),
    ];
    let hello = ["", "all", "v1", "v2"].map(|subset| {
        let pool = if subset.is_empty() { String::new() } else { format!(":{subset}") };
        format!("{} sample.hello:5000{pool}=1", name(5000, subset, "hello.sample"))
    });
    for (hosts, expected) in [
        ("\"*.local\"", [&hello[..], &all[..]].concat()),
        ("\"*\"", [&hello[..], &all[..]].concat()),
        ("\"*.sample.svc.cluster.local\"", hello.to_vec()),
        ("hello.sample.svc.cluster.local", hello.to_vec()),
        ("other.sample.svc.cluster.local", vec![]),
    ] {
        let mut index = index(&(BASE.to_owned() + &cross(hosts)));
        let mut expected = expected;
        expected.sort();
        assert_eq!(shown(&mut index), expected, "{hosts}");
    }
    let (config, _) = made(&mut index(&(BASE.to_owned() + &cross("\"*.local\""))));
    for (pool, expected) in [
        (
            "sample.hello:5000",
            &["10.0.0.11:5000", "10.0.0.12:5000", "10.0.0.21:5000", "10.0.0.31:5000", "10.0.0.41:5000"][..],
        ),
        ("sample.hello:5000:v1", &["10.0.0.11:5000", "10.0.0.12:5000"]),
        ("sample.hello:5000:v2", &["10.0.0.21:5000"]),
    ] {
        assert_eq!(servers(&config, pool), expected, "{pool}");
    }
}

#[test]
fn only_whoever_runs_the_gateway_lets_a_server_reach_all_services() {
    let text = HELLO.to_owned() + &gateway("cross", &[&server("TLS", "mode: AUTO_PASSTHROUGH", "\"*\"")]);
    let (config, statuses) = made(&mut index_with(Settings { auto_passthrough: false, ..settings() }, &text));
    assert!(config.listeners.is_empty() && config.pools.is_empty());
    let cross = Key::new(Kind::IstioGateway, "edge", "cross");
    assert_eq!(
        conditions(&statuses, &cross, Some("listener servers-0"))[0],
        "Accepted=False UnsupportedValue"
    );
}

#[test]
fn other_labels_of_a_pod_are_other_servers_of_its_subsets() {
    let mut index =
        index(&(HELLO.to_owned() + &gateway("cross", &[&server("TLS", "mode: AUTO_PASSTHROUGH", "\"*\"")])));
    made(&mut index);
    let pods: Vec<_> = index.wanted().filter(|wanted| wanted.kind == Kind::Pod).collect();
    assert_eq!(pods, [Wanted { kind: Kind::Pod, namespace: "sample".into(), name: None }]);
    let pod = |namespace: &str, version: &str| {
        objects(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: hello-v1-b, namespace: {namespace}, labels: {{ version: {version} }} }}"
        ))
        .remove(0)
    };
    assert_eq!(index.apply(pod("other", "v2")), Change::Nothing);
    assert_eq!(index.apply(pod("sample", "v2")), Change::Servers);
    let servers = |index: &mut Index| {
        let taken = index.take_servers(&context());
        let shown = |(pool, servers): (String, Vec<crate::config::Server>)| {
            (pool, servers.iter().map(|server| server.origin.to_string()).collect::<Vec<_>>())
        };
        taken.into_iter().map(shown).collect::<std::collections::BTreeMap<_, _>>()
    };
    let changed = servers(&mut index);
    assert_eq!(changed["sample.hello:5000:v1"], ["10.0.0.11:5000"]);
    assert_eq!(changed["sample.hello:5000:v2"], ["10.0.0.12:5000", "10.0.0.21:5000"]);
    assert_eq!(index.delete(&Key::new(Kind::Pod, "sample", "hello-v2-a")), Change::Servers);
    assert_eq!(servers(&mut index)["sample.hello:5000:v2"], ["10.0.0.12:5000"]);
    // Without rules nobody asks for pods.
    assert_eq!(index.delete(&Key::new(Kind::DestinationRule, "sample", "hello")), Change::All);
    made(&mut index);
    assert_eq!(index.wanted().count(), 0);
    assert_eq!(index.apply(pod("sample", "v1")), Change::Nothing);
}

#[test]
fn rules_of_tls_choose_by_name_and_weight() {
    let rules = "hosts: [\"*.example.com\", b.example.org], tls: [\
        { match: [{ sniHosts: [a.example.com], port: 443 }, { sniHosts: [b.example.org], port: 1 }], route: [\
            { destination: { host: hello, subset: v1 }, weight: 90 }, \
            { destination: { host: hello.sample.svc.cluster.local, port: { number: 5000 }, subset: v2 }, weight: 10 }, \
            { destination: { host: hello, subset: all } }] }, \
        { match: [{ sniHosts: [\"*.example.com\", a.example.com] }], route: [{ destination: { host: hello } }] }]";
    let hosts = server("HTTPS", "mode: PASSTHROUGH", "\"*.example.com\", \"sample/b.example.org\"");
    let text = HELLO.to_owned() + &gateway("gw", &[&hosts]) + &virtual_service("sample", rules);
    let mut index = index(&text);
    assert_eq!(
        shown(&mut index),
        [
            "*.example.com sample.hello:5000=1",
            "a.example.com sample.hello:5000:v1=90 sample.hello:5000:v2=10"
        ]
    );
    let fine = [
        "Accepted=True Accepted",
        "ResolvedRefs=True ResolvedRefs",
        "PartiallyInvalid=True UnsupportedValue",
    ];
    // The match of port 1 meets no server.
    assert_eq!(told(&mut index, "sample"), fine);
}

#[test]
fn what_narrows_a_rule_and_is_not_looked_at_refuses_its_clients() {
    for (key, value) in
        [("sourceLabels", "{ app: a }"), ("destinationSubnets", "[10.0.0.0/8]"), ("sourceNamespace", "a")]
    {
        let rules = format!(
            "hosts: [a.example.com], tls: [{{ match: [{{ sniHosts: [a.example.com], {key}: {value} }}], route: [{{ destination: {{ host: hello, subset: v1 }} }}] }}, \
             {{ match: [{{ sniHosts: [a.example.com] }}], route: [{{ destination: {{ host: hello }} }}] }}]"
        );
        let text = HELLO.to_owned()
            + &gateway("gw", &[&server("TLS", "mode: PASSTHROUGH", "\"*\"")])
            + &virtual_service("sample", &rules);
        let mut index = index(&text);
        assert_eq!(shown(&mut index), ["a.example.com gateway:refused=1"], "{key}");
        assert_eq!(told(&mut index, "sample")[2], "PartiallyInvalid=True UnsupportedValue");
    }
}

#[test]
fn who_may_be_reached() {
    let to = |host: &str| {
        format!(
            "hosts: [a.example.com], tls: [{{ match: [{{ sniHosts: [a.example.com] }}], route: [{{ destination: {{ host: {host} }} }}] }}]"
        )
    };
    let hello = "hello.sample.svc.cluster.local";
    let vs_grant = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: { name: g, namespace: sample }\n\
                    spec: { from: [{ group: networking.istio.io, kind: VirtualService, namespace: other }], to: [{ group: \"\", kind: Service }] }";
    for (namespace, hosts, host, more, routed, reason) in [
        ("sample", "\"*\"", "hello", "", "sample.hello:5000", "ResolvedRefs=True ResolvedRefs"),
        ("other", "\"*\"", hello, "", "gateway:refused", "ResolvedRefs=False RefNotPermitted"),
        ("other", "\"*\"", hello, vs_grant, "sample.hello:5000", "ResolvedRefs=True ResolvedRefs"),
        ("sample", "\"*\"", "hello.sample", "", "gateway:refused", "ResolvedRefs=False InvalidKind"),
        ("sample", "\"*\"", "example.com", "", "gateway:refused", "ResolvedRefs=False InvalidKind"),
        ("sample", "\"*\"", "absent", "", "gateway:refused", "ResolvedRefs=False BackendNotFound"),
        ("sample", "\"*\"", "\"hello, subset: v9\"", "", "gateway:refused", "ResolvedRefs=False InvalidKind"),
        ("sample", "\"*\"", "hello, subset: v9", "", "gateway:refused", "ResolvedRefs=False BackendNotFound"),
        // Whose VirtualServices a server takes.
        ("sample", "\"sample/*\"", "hello", "", "sample.hello:5000", "ResolvedRefs=True ResolvedRefs"),
        ("sample", "\"./*\"", "hello", "", "", "ResolvedRefs=True ResolvedRefs"),
        ("edge", "\"./*\"", hello, "", "gateway:refused", "ResolvedRefs=False RefNotPermitted"),
        ("sample", "\"other/*\", \"~/*\"", "hello", "", "", "ResolvedRefs=True ResolvedRefs"),
        (
            "sample",
            "\"other/*\", \"*/*\"",
            "hello",
            "",
            "sample.hello:5000",
            "ResolvedRefs=True ResolvedRefs",
        ),
        ("sample", "b.example.com", "hello", "", "", "ResolvedRefs=True ResolvedRefs"),
    ] {
        let text = HELLO.to_owned()
            + &gateway("gw", &[&server("TLS", "mode: PASSTHROUGH", hosts)])
            + &virtual_service(namespace, &to(host))
            + more;
        let mut index = index(&text);
        let expected = if routed.is_empty() { vec![] } else { vec![format!("a.example.com {routed}=1")] };
        assert_eq!(shown(&mut index), expected, "{namespace} {hosts} {host}");
        let told = told(&mut index, namespace);
        let accepted =
            if routed.is_empty() { "Accepted=False UnsupportedValue" } else { "Accepted=True Accepted" };
        assert_eq!((told[0].as_str(), told[1].as_str()), (accepted, reason), "{namespace} {hosts} {host}");
    }
}

#[test]
fn tls_ends_with_the_secret_of_the_gateways_namespace() {
    let (chain, key) = &*CERTIFICATE;
    let rules = "hosts: [a.example.com], tcp: [{ route: [{ destination: { host: hello } }] }]";
    let build = |tls: &str, secrets: &str| {
        let text = HELLO.to_owned() + &gateway("gw", &[&server("TLS", tls, "a.example.com")]);
        let mut index = index(&(text + &virtual_service("sample", rules) + secrets));
        let (config, statuses) = made(&mut index);
        let gateway = Key::new(Kind::IstioGateway, "edge", "gw");
        (config, conditions(&statuses, &gateway, Some("listener servers-0")))
    };
    let pem = |pem: &str| serde_json::to_string(pem).unwrap();
    let opaque = |name: &str, parts: &[(&str, &str)]| {
        let parts: Vec<_> = parts.iter().map(|(name, text)| format!("{name}: {}", pem(text))).collect();
        format!(
            "\n---\n{{ apiVersion: v1, kind: Secret, type: Opaque, metadata: {{ name: {name}, namespace: edge }}, stringData: {{ {} }} }}",
            parts.join(", ")
        )
    };
    let pair = [("tls.crt", chain.as_str()), ("tls.key", key.as_str())];
    let old_pair = [("cert", chain.as_str()), ("key", key.as_str())];
    let with_ca = [pair[0], pair[1], ("ca.crt", chain.as_str())];
    let with_crl = [pair[0], pair[1], ("ca.crt", chain.as_str()), ("ca.crl", "x")];
    let client_auth = |config: &Config| {
        let Action::Terminate(termination) = &config.routes[0].action else { panic!("{:?}", config.routes) };
        termination.client_auth.as_ref().map(|auth| (auth.required, auth.allowed.sans.len()))
    };
    for (tls, secrets, asks) in [
        ("mode: SIMPLE, credentialName: c", secret("edge", "c"), None),
        ("mode: SIMPLE, credentialName: c", opaque("c", &pair), None),
        ("mode: SIMPLE, credentialName: c", opaque("c", &old_pair), None),
        (
            "mode: SIMPLE, credentialNames: [c], minProtocolVersion: TLSV1_2, cipherSuites: [], insecureSkipVerify: false",
            opaque("c", &pair),
            None,
        ),
        ("mode: MUTUAL, credentialName: c", opaque("c", &with_ca), Some((true, 0))),
        ("mode: OPTIONAL_MUTUAL, credentialName: c", opaque("c", &with_ca), Some((false, 0))),
        (
            "mode: MUTUAL, credentialName: c",
            opaque("c", &pair) + &opaque("c-cacert", &[("cacert", chain)]),
            Some((true, 0)),
        ),
        (
            "mode: MUTUAL, credentialName: c, caCertCredentialName: d",
            opaque("c", &with_crl) + &opaque("d", &[("ca.crt", chain)]),
            Some((true, 0)),
        ),
        (
            "mode: MUTUAL, credentialName: c, subjectAltNames: [\"spiffe://x/ns/a/sa/b\", a.example.com]",
            opaque("c", &with_ca),
            Some((true, 2)),
        ),
    ] {
        let (config, told) = build(tls, &secrets);
        assert_eq!(
            routes(&config, "gateway:443"),
            [("a.example.com".to_owned(), true, "sample.hello:5000=1".to_owned())],
            "{tls}"
        );
        assert_eq!(client_auth(&config), asks, "{tls}");
        assert_eq!(told[1], "Programmed=True Programmed", "{tls}");
    }
    for (tls, secrets, why) in [
        ("mode: SIMPLE, credentialName: c", String::new(), "ResolvedRefs=False InvalidCertificateRef"),
        (
            "mode: SIMPLE, credentialName: c",
            secret("sample", "c"),
            "ResolvedRefs=False InvalidCertificateRef",
        ),
        ("mode: SIMPLE", secret("edge", "c"), "ResolvedRefs=False InvalidCertificateRef"),
        // Without authorities nobody gets in, nor with a list of revoked certificates that is not read.
        ("mode: MUTUAL, credentialName: c", opaque("c", &pair), "ResolvedRefs=False InvalidCACertificateRef"),
        (
            "mode: MUTUAL, credentialName: c",
            opaque("c", &with_crl),
            "ResolvedRefs=False InvalidCACertificateRef",
        ),
    ] {
        let (config, told) = build(tls, &secrets);
        assert_eq!((config.routes.len(), told[2].as_str()), (0, why), "{tls}");
    }
    let c = opaque("c", &with_ca);
    for tls in [
        "mode: ISTIO_MUTUAL",
        "mode: SIMPLE, serverCertificate: /a, privateKey: /b",
        "mode: SIMPLE, credentialName: c, cipherSuites: [X]",
        "mode: SIMPLE, credentialName: c, minProtocolVersion: TLSV1_3",
        "mode: SIMPLE, credentialName: c, maxProtocolVersion: TLSV1_2",
        "mode: MUTUAL, credentialName: c, verifyCertificateHash: [aa]",
        "mode: MUTUAL, credentialName: c, subjectAltNames: [\"*.x\"]",
        "mode: MUTUAL, credentialName: c, caCrl: /x",
        "mode: MUTUAL, credentialName: c, insecureSkipVerify: true",
    ] {
        let (config, told) = build(tls, &c);
        assert_eq!(
            (config.listeners.len(), told[0].as_str()),
            (0, "Accepted=False UnsupportedValue"),
            "{tls}"
        );
    }
}

#[test]
fn plain_tcp_goes_where_the_first_rule_says() {
    let mongo = "{ port: { number: 443, protocol: MONGO, name: x }, hosts: [a.example.com, \"other/b.example.com\"] }";
    let rules = |host: &str| {
        format!(
            "hosts: [{host}], tcp: [{{ match: [{{ port: 443 }}], route: [{{ destination: {{ host: hello }} }}] }}, {{ route: [{{ destination: {{ host: hello, subset: v1 }} }}] }}]"
        )
    };
    let mut text = HELLO.to_owned() + &gateway("gw", &[mongo]);
    let served = |text: &str| shown(&mut index(text));
    assert_eq!(
        served(&(text.clone() + &virtual_service("sample", &rules("a.example.com")))),
        [" sample.hello:5000=1"]
    );
    assert_eq!(
        served(&(text.clone() + &virtual_service("sample", &rules("c.example.com")))),
        [" gateway:refused=1"]
    );
    // TLS of its own toward servers is not begun: what was to be encrypted is not sent in clear text.
    text += &virtual_service("sample", &rules("\"*\""));
    text = text.replace(
        "host: hello, subsets:",
        "host: hello, trafficPolicy: { tls: { mode: ISTIO_MUTUAL } }, subsets:",
    );
    assert_eq!(served(&text), [" gateway:refused=1"]);
    let (_, statuses) = made(&mut index(&text));
    let vs = Key::new(VIRTUAL_SERVICE, "sample", "vs");
    assert_eq!(conditions(&statuses, &vs, Some("Gateway edge/gw"))[1], "ResolvedRefs=False UnsupportedValue");
}

#[test]
fn rules_of_http_are_those_of_listeners() {
    let plain =
        "{ port: { number: 80, protocol: HTTP, name: x }, tls: { httpsRedirect: true }, hosts: [\"*\"] }";
    let https = server("HTTPS", "mode: SIMPLE, credentialName: c", "a.example.com");
    let spec = "hosts: [\"*\"], http: [{ match: [{ uri: { exact: /hello } }], route: [{ destination: { host: hello } }] }]";
    let text = HELLO.to_owned()
        + &gateway("gw", &[plain, &https])
        + &secret("edge", "c")
        + &virtual_service("sample", spec);
    let mut index = index(&text);
    let (config, _) = made(&mut index);
    assert_eq!(routes(&config, "gateway:443"), [("a.example.com".to_owned(), true, "http".to_owned())]);
    assert_eq!(routes(&config, "gateway:80"), [("*".to_owned(), false, "http".to_owned())]);
    assert_eq!(rules(&config, "http@istio.edge.gw.servers-0"), ["* =/hello -> sample.hello:5000=1"]);
    assert_eq!(
        rules(&config, "https@istio.edge.gw.servers-1"),
        ["a.example.com =/hello -> sample.hello:5000=1"]
    );
    assert_eq!(told(&mut index, "sample"), ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]);
}

/// The rules of a VirtualService with this `http` on a listener of HTTP, and what is told of it.
fn http(rules_of_http: &str) -> (Vec<String>, String) {
    let (config, told) = with_http(rules_of_http);
    (rules(&config, "http@istio.edge.gw.servers-0"), told)
}

fn with_http(rules_of_http: &str) -> (Config, String) {
    let plain = "{ port: { number: 80, protocol: HTTP, name: x }, hosts: [\"*\"] }";
    let text = HELLO.to_owned()
        + &gateway("gw", &[plain])
        + &virtual_service("sample", &format!("hosts: [a.example], http: [{rules_of_http}]"));
    let (config, statuses) = made(&mut index(&text));
    let Status::Route(status) = &statuses[&Key::new(VIRTUAL_SERVICE, "sample", "vs")] else { panic!() };
    let found = status.parents[0].conditions.iter().find(|condition| condition.kind == "PartiallyInvalid");
    let told = found.map(|condition| condition.message.to_string()).unwrap_or_default();
    (config, told)
}

#[test]
fn what_virtual_services_say_of_requests() {
    let to = "route: [{ destination: { host: hello } }]";
    for (matches, shown) in [
        ("{}", ""),
        ("{ uri: { prefix: / } }", ""),
        ("{ uri: { prefix: /v1 } }", "/v1*"),
        ("{ uri: { prefix: /v1.0/ } }", "/v1.0/*"),
        ("{ uri: { prefix: /v1.0/ }, ignoreUriCase: true }", r"~(?i)/v1\.0/.*"),
        ("{ uri: { exact: /a }, ignoreUriCase: true }", "~(?i)/a"),
        ("{ uri: { regex: \"/v[0-9]\" } }", "~/v[0-9]"),
        ("{ uri: { exact: /a }, method: { exact: GET } }", "GET =/a"),
        (
            "{ headers: { End-User: { exact: jason }, b: { prefix: x }, c: {} } }",
            " b:~(?s)x.* c:~(?s).* end-user:=jason",
        ),
        ("{ queryParams: { q: { regex: x.* }, p: { exact: y } }, name: n, statPrefix: s }", " ?p=y ?q~x.*"),
    ] {
        let (rules, told) = http(&format!("{{ match: [{matches}], {to} }}"));
        assert_eq!(
            (rules.as_slice(), told.as_str()),
            (&[format!("a.example {shown} -> sample.hello:5000=1")][..], ""),
            "{matches}"
        );
    }
    let (rules, told) = http(
        "{ route: [{ destination: { host: hello, subset: v1 }, weight: 90 }, { destination: { host: hello, subset: v2 }, weight: 10 }] }",
    );
    assert_eq!(
        (rules, told),
        (vec!["a.example  -> sample.hello:5000:v1=90 sample.hello:5000:v2=10".to_owned()], String::new())
    );
    // Requests that nobody knows to be meant, and what is not served, are refused, and told.
    for (rule, shown, told) in [
        (
            format!("{{ match: [{{ sourceLabels: {{ a: b }} }}], {to} }}"),
            "a.example  -> ",
            "spec.http[0] answers with 500: sourceLabels is not looked at",
        ),
        (
            format!("{{ fault: {{ abort: {{ httpStatus: 500 }} }}, {to} }}"),
            "a.example  -> ",
            "spec.http[0] answers with 500: fault is not served",
        ),
        (
            "{ directResponse: { status: 200 } }".to_owned(),
            "a.example  -> ",
            "spec.http[0] answers with 500: directResponse is not served",
        ),
        (
            format!(
                "{{ rewrite: {{ uri: / }}, match: [{{ uri: {{ prefix: /a }}, ignoreUriCase: true }}], {to} }}"
            ),
            "a.example ~(?i)/a.* -> ",
            "spec.http[0] answers with 500: `rewrite.uri` beside `ignoreUriCase` is not served",
        ),
        (
            format!("{{ rewrite: {{ uri: a }}, {to} }}"),
            "a.example  -> ",
            "spec.http[0] answers with 500: `a` is no path that begins with a `/`",
        ),
        (
            "{ redirect: { uri: .example.org/ } }".to_owned(),
            "a.example  -> ",
            "spec.http[0] answers with 500: `.example.org/` is no path that begins with a `/`",
        ),
    ] {
        let (rules, found) = http(&format!("{{ match: [{{ uri: {{ exact: /fine }} }}], {to} }}, {rule}"));
        assert_eq!(
            (rules[1].as_str(), found.as_str()),
            (shown, told.replace("[0]", "[1]").as_str()),
            "{rule}"
        );
    }
    let (rules, told) = http(&format!("{{ match: [{{ uri: {{ regex: \"(\" }} }}], {to} }}, {{ {to} }}"));
    assert_eq!(rules, ["a.example  -> sample.hello:5000=1"]);
    assert!(told.starts_with("Dropped Rule spec.http[0]: "), "{told}");
}

/// Where the requests `PATH` or `PATH USER` go, as subsets; empty: they are refused.
fn subsets(rules_of_http: &str, requests: &[&str]) -> Vec<String> {
    let (config, _) = with_http(rules_of_http);
    let route = config.routes.iter().find(|route| route.http.is_some()).unwrap();
    let rules = route.rules();
    let table = HttpRules::new(rules.iter().map(|rule| Given {
        hosts: &rule.hosts,
        matches: &rule.matches,
        list: rule.list.as_deref(),
        what: rule,
    }));
    let subset = |request: &&str| {
        let (path, user) = request.split_once(' ').unwrap_or((request, ""));
        let user = (HeaderName::from_static("user"), HeaderValue::from_str(user).unwrap());
        let (method, headers) = (Method::GET, HeaderMap::from_iter([user]));
        let parts = RequestParts { host: "a.example", method: &method, path, query: None, headers: &headers };
        let (rule, _) = table.lookup(&parts).unwrap_or_else(|| panic!("{request} has no rule"));
        let pools = rule.backends.iter().filter_map(|backend| Some(&*config.pools[backend.pool?].name));
        pools.map(|pool| pool.rsplit(':').next().unwrap().to_owned()).collect::<String>()
    };
    requests.iter().map(subset).collect()
}

#[test]
fn the_first_match_of_a_virtual_service_counts_though_the_api_takes_the_narrowest() {
    let rule = |matches: &str, more: &str, subset: &str| {
        format!(
            "{{ match: [{matches}], {more} route: [{{ destination: {{ host: hello, subset: {subset} }} }}] }}"
        )
    };
    let user = "{ headers: { user: { exact: jason } } }";
    let rewrite = "rewrite: { uri: / },";
    for (one, two, requests) in [
        (
            "{ uri: { prefix: /api/v2 } }",
            "{ uri: { prefix: /api } }",
            &[("/api/v2/x", "v1"), ("/api/v1", "v2"), ("/apis", "v2")][..],
        ),
        ("{ uri: { prefix: /a } }", "{ uri: { prefix: /a/b } }", &[("/a/b/c", "v1")]),
        ("{ uri: { prefix: /a } }", "{ uri: { exact: /a/x } }", &[("/a/x", "v1"), ("/ax", "v1")]),
        ("{ uri: { exact: /a } }", "{ uri: { prefix: /a } }", &[("/a", "v1"), ("/a/", "v2")]),
        (user, "{ uri: { prefix: /api } }", &[("/api jason", "v1"), ("/api", "v2")]),
        (user, "{ uri: { exact: /a } }", &[("/a jason", "v1"), ("/a", "v2")]),
        ("{ uri: { exact: /a } }", user, &[("/a jason", "v1"), ("/b jason", "v2")]),
        (
            "{ uri: { regex: \"/.*[.]png\" } }",
            "{ uri: { prefix: /a/b } }",
            &[("/a/b/c.png", "v1"), ("/a/b", "v2")],
        ),
        (
            "{ uri: { prefix: /a } }",
            "{ uri: { regex: \"/.*[.]png\" } }",
            &[("/a/b.png", "v1"), ("/b.png", "v2")],
        ),
        // What is rewritten is a beginning, too.
        ("{ uri: { prefix: /a/ } }", "{}", &[("/a/x", "v1"), ("/a", "v2"), ("/b", "v2")]),
        ("{}", "{ uri: { exact: /a } }", &[("/a", "v1")]),
    ] {
        for rewrites in [["", ""], ["", rewrite], [rewrite, ""], [rewrite, rewrite]] {
            let rules = [rule(one, rewrites[0], "v1"), rule(two, rewrites[1], "v2")].join(", ");
            let (paths, expected): (Vec<_>, Vec<_>) = requests.iter().copied().unzip();
            assert_eq!(subsets(&rules, &paths), expected, "{rules}");
            assert_eq!(http(&rules).1, "", "{rules}");
        }
    }
}

#[test]
fn a_rule_of_http_that_refuses_keeps_its_place() {
    let all = "{ route: [{ destination: { host: hello, subset: v1 } }] }";
    let two = "route: [{ destination: { host: hello, subset: v2 } }]";
    for narrowed in [
        "ignoreUriCase: true",
        "withoutHeaders: { a: {} }",
        "authority: { exact: b }",
        "sourceLabels: { a: b }",
        "method: { regex: \"G.*\" }",
    ] {
        let admin = format!("{{ uri: {{ prefix: /admin }}, {narrowed} }}");
        let refused = format!("{{ match: [{admin}], directResponse: {{ status: 403 }} }}");
        let found = subsets(&format!("{refused}, {all}"), &["/admin", "/admin/x", "/x"]);
        assert_eq!(found, ["", "", "v1"], "{narrowed}");
        // Within a rule, who has both goes to what is served.
        let both = format!("{{ match: [{{ {narrowed} }}, {{ uri: {{ prefix: /a }} }}], {two} }}");
        let expected = if narrowed.starts_with("ignore") { ["v2", "v2"] } else { ["v2", ""] };
        assert_eq!(subsets(&format!("{both}, {all}"), &["/a", "/x"]), expected, "{narrowed}");
    }
    let upper = format!(
        "{{ match: [{{ uri: {{ prefix: /admin }}, ignoreUriCase: true }}], directResponse: {{ status: 403 }} }}, {all}"
    );
    assert_eq!(subsets(&upper, &["/ADMIN/x", "/adm"]), ["", "v1"]);
}

#[test]
fn retries_are_those_that_are_numbered() {
    for (retries, statuses, attempts_and_lost, bound) in [
        ("", &[][..], None, None),
        ("retries: {},", &[], None, None),
        ("retries: { attempts: 0, perTryTimeout: 2s },", &[], None, None),
        ("retries: { perTryTimeout: 2s, retryOn: 5xx },", &[], None, None),
        ("retries: { attempts: 2, perTryTimeout: 2s },", &[503], Some((2, false)), Some(2)),
        ("retries: { attempts: 1, retryOn: \"\" },", &[503], Some((1, false)), None),
        (
            "retries: { attempts: 1, retryOn: \"connect-failure, gateway-error\" },",
            &[502, 503, 504],
            Some((1, false)),
            None,
        ),
        (
            "retries: { attempts: 1, retryOn: \"reset,retriable-status-codes,429\" },",
            &[429],
            Some((1, true)),
            None,
        ),
    ] {
        let (config, told) =
            with_http(&format!("{{ {retries} route: [{{ destination: {{ host: hello }} }}] }}"));
        let rule = config.routes.iter().find(|route| route.http.is_some()).unwrap().rules().remove(0);
        let retry = rule.retry.as_ref();
        assert_eq!((retry.map(|retry| (retry.attempts, retry.lost)), told.as_str()), (attempts_and_lost, ""));
        let found: Vec<_> =
            retry.into_iter().flat_map(|retry| &retry.statuses).map(StatusCode::as_u16).collect();
        assert_eq!(found, statuses, "{retries}");
        assert_eq!(rule.timeouts.backend, bound.map(Duration::from_secs), "{retries}");
    }
}

#[test]
fn only_the_gateways_that_are_selected_are_ours() {
    let one = gateway("gw", &[&server("TLS", "mode: PASSTHROUGH", "\"*\"")]);
    for (selector, ours) in [
        ("{ istio: ingress }", true),
        ("{ istio: other }", false),
        ("{ istio: ingress, app: x }", false),
        ("{}", true),
    ] {
        let text = one.replace("{ istio: ingress }", selector);
        let (config, _) = made(&mut index(&text));
        assert_eq!(config.listeners.len(), usize::from(ours), "{selector}");
        let mut without = Index::new(Settings::default());
        for object in objects(&(text + "\n---\n" + HELLO)) {
            without.apply(object);
        }
        assert!(without.keys().all(|key| matches!(key.kind, Kind::Service | Kind::EndpointSlice)));
    }
}

#[test]
fn of_two_gateways_with_one_host_the_older_has_it() {
    let at = |name: &str, created: &str| {
        gateway(name, &[&server("TLS", "mode: PASSTHROUGH", "a.example.com")])
            .replace("namespace: edge }", &format!("namespace: edge, creationTimestamp: \"{created}\" }}"))
    };
    let (_, statuses) =
        made(&mut index(&(at("a", "2026-02-02T00:00:00Z") + &at("b", "2026-01-01T00:00:00Z"))));
    let told = |name: &str| {
        conditions(&statuses, &Key::new(Kind::IstioGateway, "edge", name), Some("listener servers-0"))
    };
    assert_eq!(told("b")[0], "Accepted=True Accepted");
    assert_eq!(told("a")[3], "Conflicted=True HostnameConflict");
    // Of one Gateway's servers the first.
    let twice = server("TLS", "mode: PASSTHROUGH", "a.example.com");
    let (config, statuses) = made(&mut index(&gateway("gw", &[&twice, &twice])));
    assert_eq!(config.listeners.len(), 1);
    let told = |part: &str| conditions(&statuses, &Key::new(Kind::IstioGateway, "edge", "gw"), Some(part));
    assert_eq!(told("listener servers-0")[0], "Accepted=True Accepted");
    assert_eq!(told("listener servers-1")[3], "Conflicted=True HostnameConflict");
}

#[test]
fn what_is_wrong_is_refused_with_its_place() {
    let pass = server("TLS", "mode: PASSTHROUGH", "\"*\"");
    let rule = |host: &str, more: &str| {
        format!(
            "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: r, namespace: sample }}\nspec: {{ host: {host}{more} }}"
        )
    };
    let many: Vec<_> = (0..1001).map(|n| format!("h{n}.example.com")).collect();
    for (text, why) in [
        (gateway("gw", &[&pass.replace("number: 443", "number: 0")]), "spec.servers[0].port.number: "),
        (gateway("gw", &[&pass.replace("\"*\"", "\"a b\"")]), "spec.servers[0].hosts[0]: `a b` is no host"),
        (
            gateway("gw", &[&pass.replace("\"*\"", "\"a_b/x.example.com\"")]),
            "spec.servers[0].hosts[0]: `a_b/x.example.com` is no host",
        ),
        (
            gateway("gw", &[&pass.replace("mode:", "newKey: 1, mode:")]),
            "spec.servers[0].tls.newKey: unknown field",
        ),
        (
            gateway("gw", &[&pass.replace("\"*\"", &many.join(", "))]),
            "spec.servers: more than 1000 hosts in one object",
        ),
        (virtual_service("sample", "hosts: [\"a b\"]"), "spec.hosts[0]: `a b` is no host"),
        (
            virtual_service("sample", "hosts: [a], tls: [{ match: [{ sniHosts: [b] }] }]"),
            "spec.tls[0].match[0].sniHosts[0]: `b` is not among `spec.hosts`",
        ),
        (
            virtual_service("sample", "hosts: [a], tls: [{ route: [] }]"),
            "spec.tls[0].match: `sniHosts` are missing",
        ),
        (
            virtual_service("sample", "hosts: [a], tls: [{ match: [{ sniHosts: [a], newKey: 1 }] }]"),
            "spec.tls[0].match[0].newKey: unknown field",
        ),
        (
            virtual_service(
                "sample",
                "hosts: [a], tcp: [{ route: [{ destination: { host: a }, weight: -1 }] }]",
            ),
            "spec.tcp[0].route[0].weight: ",
        ),
        (
            rule("hello.other.svc.cluster.local", ""),
            "spec.host: `hello.other.svc.cluster.local` is no Service of the namespace sample",
        ),
        (
            rule("hello", ", subsets: [{ name: a.b }]"),
            "spec.subsets[0].name: `a.b` cannot be a part of a host name",
        ),
        (rule("hello", ", workloadSelector: { matchLabels: { a: b } }"), "spec.workloadSelector: "),
    ] {
        let document = text.trim_start_matches("\n---\n");
        let refused = Object::read(files::parse(document).unwrap().unwrap()).unwrap_err().to_string();
        assert!(refused.starts_with(why), "{refused} is not {why}");
    }
}

#[test]
fn whatever_stands_in_a_field_nothing_falls_over() {
    let rules = "hosts: [a.example.com, \"*.example.com\"], tls: [{ match: [{ sniHosts: [a.example.com], port: 443, gateways: [edge/gw] }], route: [{ destination: { host: hello, subset: v1, port: { number: 5000 } }, weight: 3 }] }], tcp: [{ route: [{ destination: { host: hello } }] }], exportTo: [\"*\"]";
    let text = HELLO.to_owned()
        + &gateway(
            "gw",
            &[
                &server("TLS", "mode: PASSTHROUGH", "\"*\", \"./b.example.com\""),
                &server("TLS", "mode: AUTO_PASSTHROUGH", "\"*.local\""),
                &server(
                    "TLS",
                    "mode: MUTUAL, credentialName: c, subjectAltNames: [a.example.com]",
                    "c.example.com",
                ),
            ],
        )
        + &virtual_service("sample", rules);
    let (taken, refused) = super::manifests::with_every_field_changed(&text, index(&text));
    assert!(taken > 200 && refused > 200, "{taken} and {refused}");
}
