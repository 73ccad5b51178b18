//! BackendTLSPolicy.

use super::*;
use crate::config::model::UpstreamTls;

const SHOP: &str = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: gw, namespace: db }
spec: { gatewayClassName: edge, listeners: [{ name: web, protocol: HTTP, port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: shop, namespace: db }
spec: { ports: [{ name: one, port: 443 }, { name: two, port: 8443 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: r, namespace: db }
spec: { parentRefs: [{ name: gw }], rules: [{ backendRefs: [{ name: shop, port: 443 }, { name: shop, port: 8443 }] }] }
"#;

fn ca(name: &str) -> String {
    let indented: String = CERTIFICATE.0.lines().map(|line| format!("\n    {line}")).collect();
    format!(
        "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {name}, namespace: db }}\ndata:\n  ca.crt: |{indented}\n"
    )
}

fn policy(name: &str, section: &str, validation: &str) -> String {
    let section = if section.is_empty() { String::new() } else { format!(", sectionName: {section}") };
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{ name: {name}, namespace: db }}\n\
         spec: {{ targetRefs: [{{ group: \"\", kind: Service, name: shop{section} }}], validation: {{ {validation} }} }}\n"
    )
}

const CA: &str = "caCertificateRefs: [{ group: \"\", kind: ConfigMap, name: ca }], hostname: ";

fn tls<'c>(config: &'c Config, pool: &str) -> &'c UpstreamTls {
    let pool = config.pools.iter().find(|known| &*known.name == pool).unwrap_or_else(|| panic!("no {pool}"));
    pool.tls.as_deref().unwrap()
}

fn told(statuses: &Statuses, name: &str) -> Vec<String> {
    conditions(statuses, &Key::new(Kind::BackendTlsPolicy, "db", name), Some("Gateway db/gw"))
}

const GOOD: [&str; 2] = ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"];

#[test]
fn a_policy_of_a_port_goes_before_one_of_the_service_and_the_older_before_the_younger() {
    let base = BASE.to_owned() + SHOP + &ca("ca");
    let text = base.clone()
        + &policy("a", "", &format!("{CA}whole.example"))
        + &policy("b", "", &format!("{CA}late.example"))
        + &policy("c", "one", &format!("{CA}one.example"))
        + &policy("d", "one", &format!("{CA}late.example"))
        + &policy("e", "three", &format!("{CA}three.example"));
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(rules(&config, "http@db.gw.web"), ["* / -> db.shop:443+tls=1 db.shop:8443+tls=1"]);
    let name = |pool: &str| tls(&config, pool).server_name.as_ref().unwrap().to_str().into_owned();
    assert_eq!(name("db.shop:443+tls"), "one.example");
    assert_eq!(name("db.shop:8443+tls"), "whole.example");
    for (policy, accepted) in [
        ("a", "Accepted=True Accepted"),
        ("b", "Accepted=False Conflicted"),
        ("c", "Accepted=True Accepted"),
        ("d", "Accepted=False Conflicted"),
        ("e", "Accepted=False TargetNotFound"),
    ] {
        assert_eq!(told(&statuses, policy), [accepted, "ResolvedRefs=True ResolvedRefs"], "{policy}");
    }
    // Age before the name.
    let old = |text: &str, name: &str| {
        text.replace(
            &format!("name: {name}, namespace: db }}\nspec: {{ targetRefs"),
            &format!(
                "name: {name}, namespace: db, creationTimestamp: \"{}\" }}\nspec: {{ targetRefs",
                if name == "a" { "2026-02-02" } else { "2026-01-01" }
            ),
        )
    };
    let (config, statuses) = made(&mut index(&old(&old(&text, "a"), "b")));
    assert_eq!(tls(&config, "db.shop:8443+tls").server_name.as_ref().unwrap().to_str(), "late.example");
    assert_eq!(told(&statuses, "a")[0], "Accepted=False Conflicted");
}

#[test]
fn names_and_authorities() {
    let text = BASE.to_owned()
        + SHOP
        + &ca("ca")
        + &policy(
            "p",
            "",
            &format!(
                "{CA}a.example, subjectAltNames: [{{ type: Hostname, hostname: B.example }}, {{ type: Hostname, hostname: \"*.c.example\" }}, {{ type: URI, uri: \"spiffe://d/e\" }}]"
            ),
        );
    let (config, statuses) = made(&mut index(&text));
    let tls = tls(&config, "db.shop:443+tls");
    let sans: Vec<_> = tls.san.iter().map(ToString::to_string).collect();
    assert_eq!(sans, ["DNS:b.example", "DNS:*.c.example", "URI:spiffe://d/e"]);
    assert_eq!(
        (tls.authorities.certificates.len(), tls.certificate.is_some(), tls.alpn.len()),
        (1, false, 0)
    );
    assert_eq!(told(&statuses, "p"), GOOD);
}

#[test]
fn with_a_policy_that_cannot_be_followed_nobody_is_spoken_to() {
    for (validation, expected) in [
        (
            "caCertificateRefs: [{ group: \"\", kind: ConfigMap, name: gone }], hostname: a.example",
            ["Accepted=False NoValidCACertificate", "ResolvedRefs=False InvalidCACertificateRef"],
        ),
        (
            "caCertificateRefs: [{ group: x.io, kind: Thing, name: ca }], hostname: a.example",
            ["Accepted=False NoValidCACertificate", "ResolvedRefs=False InvalidKind"],
        ),
        ("wellKnownCACertificates: a/b, hostname: a.example", ["Accepted=False Invalid", GOOD[1]]),
        ("wellKnownCACertificates: System, hostname: \"*\"", ["Accepted=False Invalid", GOOD[1]]),
        ("hostname: a.example", ["Accepted=False Invalid", GOOD[1]]),
        ("future: x", ["Accepted=False Invalid", GOOD[1]]),
        (
            "caCertificateRefs: [{ group: \"\", kind: ConfigMap, name: ca }], hostname: a.example, subjectAltNames: [{ type: Email, hostname: a }]",
            ["Accepted=False Invalid", GOOD[1]],
        ),
    ] {
        let text = BASE.to_owned() + SHOP + &ca("ca") + &policy("p", "two", validation);
        let (config, statuses) = made(&mut index(&text));
        assert_eq!(rules(&config, "http@db.gw.web"), ["* / -> db.shop:443=1 500=1"], "{validation}");
        assert_eq!(told(&statuses, "p"), expected, "{validation}");
    }
    // One of two is enough.
    let some = "caCertificateRefs: [{ group: \"\", kind: ConfigMap, name: gone }, { group: \"\", kind: ConfigMap, name: ca }], hostname: a.example";
    let text = BASE.to_owned() + SHOP + &ca("ca") + &policy("p", "two", some);
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(rules(&config, "http@db.gw.web"), ["* / -> db.shop:443=1 db.shop:8443+tls=1"]);
    assert_eq!(told(&statuses, "p"), [GOOD[0], "ResolvedRefs=False InvalidCACertificateRef"]);
}

#[test]
fn an_edited_config_map_counts() {
    let mut index = index(&(BASE.to_owned() + SHOP + &policy("p", "", &format!("{CA}a.example"))));
    let shown = |index: &mut Index| {
        let (config, statuses) = made(index);
        (rules(&config, "http@db.gw.web").remove(0), told(&statuses, "p").remove(0))
    };
    let none = ("* / -> 500=1 500=1".to_owned(), "Accepted=False NoValidCACertificate".to_owned());
    let some = ("* / -> db.shop:443+tls=1 db.shop:8443+tls=1".to_owned(), GOOD[0].to_owned());
    assert_eq!(shown(&mut index), none);
    assert!(
        index.wanted().any(|wanted| wanted.kind == Kind::ConfigMap && wanted.name.as_deref() == Some("ca"))
    );
    assert_eq!(index.apply(objects(&ca("ca")).remove(0)), Change::All);
    assert_eq!(shown(&mut index), some);
    let empty =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: ca, namespace: db }\ndata: { ca.crt: \"\" }";
    assert_eq!(index.apply(objects(empty).remove(0)), Change::All);
    assert_eq!(shown(&mut index), none);
    assert_eq!(index.delete(&Key::new(Kind::BackendTlsPolicy, "db", "p")), Change::All);
    let (config, statuses) = made(&mut index);
    assert_eq!(rules(&config, "http@db.gw.web"), ["* / -> db.shop:443=1 db.shop:8443=1"]);
    assert!(!statuses.contains_key(&Key::new(Kind::BackendTlsPolicy, "db", "p")));
}

#[test]
fn each_gateway_shows_its_own_certificate() {
    let text = BASE.to_owned()
        + &SHOP.replace(
            "gatewayClassName: edge,",
            "gatewayClassName: edge, tls: { backend: { clientCertificateRef: { name: cert } } },",
        )
        + &ca("ca")
        + &secret("db", "cert")
        + &policy("p", "", &format!("{CA}a.example"));
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(rules(&config, "http@db.gw.web"), ["* / -> db.shop:443+tls@db.gw=1 db.shop:8443+tls@db.gw=1"]);
    assert!(tls(&config, "db.shop:443+tls@db.gw").certificate.is_some());
    assert_eq!(told(&statuses, "p"), GOOD);
}

#[test]
fn routes_of_ended_tls_follow_policies_and_passed_through_ones_do_not() {
    let gateway = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: tls, namespace: db }\nspec:\n  gatewayClassName: edge\n  listeners:\n    \
                   - { name: end, protocol: TLS, port: 443, hostname: end.example, tls: { certificateRefs: [{ name: cert }] } }\n    \
                   - { name: pass, protocol: TLS, port: 443, hostname: pass.example, tls: { mode: Passthrough } }\n";
    let route = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: t, namespace: db }\n\
                 spec: { parentRefs: [{ name: tls }], hostnames: [end.example, pass.example], rules: [{ backendRefs: [{ name: shop, port: 443 }] }] }\n";
    let text = BASE.to_owned()
        + SHOP
        + gateway
        + route
        + &ca("ca")
        + &secret("db", "cert")
        + &policy("p", "", &format!("{CA}a.example"));
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(
        routes(&config, "gateway:443"),
        [
            ("end.example".to_owned(), true, "db.shop:443+tls=1".to_owned()),
            ("pass.example".to_owned(), false, "db.shop:443=1".to_owned()),
        ]
    );
    let policy = Key::new(Kind::BackendTlsPolicy, "db", "p");
    assert_eq!(conditions(&statuses, &policy, Some("Gateway db/tls")), GOOD);
    assert_eq!(conditions(&statuses, &policy, Some("Gateway db/gw")), GOOD);
}

#[test]
fn of_calls_http2_is_agreed_upon_in_tls() {
    let text = BASE.to_owned()
        + &SHOP.replace("kind: HTTPRoute", "kind: GRPCRoute")
        + &ca("ca")
        + &policy("p", "", &format!("{CA}a.example"));
    let (config, _) = made(&mut index(&text));
    assert_eq!(rules(&config, "http@db.gw.web"), ["*  -> db.shop:443+h2+tls=1 db.shop:8443+h2+tls=1"]);
    assert_eq!(tls(&config, "db.shop:443+h2+tls").alpn, ["h2".into()]);
}

#[test]
fn a_name_that_is_listed_twice_counts_once() {
    let sans =
        "subjectAltNames: [{ type: Hostname, hostname: b.example }, { type: Hostname, hostname: B.example }]";
    let text = BASE.to_owned() + SHOP + &ca("ca") + &policy("p", "", &format!("{CA}a.example, {sans}"));
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(tls(&config, "db.shop:443+tls").san.len(), 1);
    assert_eq!(told(&statuses, "p"), GOOD);
}

#[test]
fn without_authorities_of_the_system_the_pool_is_closed() {
    struct Bare;
    impl Files for Bare {
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            NoFiles.read(path)
        }

        fn system_authorities(&self) -> (Vec<CertificateDer<'static>>, Option<String>) {
            (Vec::new(), None)
        }
    }
    let endpoints = "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: { name: shop-1, namespace: db, labels: { kubernetes.io/service-name: shop } }\naddressType: IPv4\n\
                     ports: [{ name: one, port: 443 }, { name: two, port: 8443 }]\nendpoints: [{ addresses: [10.0.0.21] }]\n";
    let system = policy("p", "two", "wellKnownCACertificates: System, hostname: a.example");
    let text = BASE.to_owned() + SHOP + endpoints + &system;
    let (config, _, refusals) = made_beside("", &mut index(&text), &context(), &Bare);
    assert!(refusals.is_empty(), "{refusals:?}");
    let pools = config.pools.iter().map(|pool| (&*pool.name, pool.is_closed, pool.servers.len()));
    assert_eq!(pools.collect::<Vec<_>>(), [("db.shop:443", false, 1), ("db.shop:8443+tls", true, 0)]);
}

#[test]
fn of_a_policy_that_cannot_be_read_the_targets_count_that_can() {
    let shop = "{ group: \"\", kind: Service, name: shop, sectionName: two }";
    let good = policy("p", "two", &format!("{CA}a.example"));
    for (text, counts) in [
        (good.replace("targetRefs: [", "targetRefs: [{ kind: 1 }, "), true),
        (good.replace("networking.k8s.io/v1", "networking.k8s.io/v9"), true),
        (good.replace(shop, "{ kind: 1 }"), false),
    ] {
        let value = files::parse(text.trim_start().trim_start_matches("---")).unwrap().unwrap();
        let refusal = Object::read(value.clone()).unwrap_err();
        let key = Key::new(Kind::BackendTlsPolicy, "db", "p");
        let object = Object::unread(key, &value, refusal);
        assert_eq!(object.is_some(), counts, "{text}");
        let Some(object) = object else { continue };
        let mut index = index(&(BASE.to_owned() + SHOP + &ca("ca")));
        index.apply(object);
        let (config, statuses) = made(&mut index);
        assert_eq!(rules(&config, "http@db.gw.web"), ["* / -> db.shop:443=1 500=1"], "{text}");
        assert_eq!(told(&statuses, "p")[0], "Accepted=False Invalid");
    }
}

/// Of a namespace no more than a tenth of all is watched: that of its oldest objects.
#[test]
fn who_names_very_many_config_maps_takes_them_from_nobody_else() {
    let named = |policy_name: &str, namespace: &str, service: &str, ca: &str| {
        policy(policy_name, "", &format!("{CA}a.example").replace("name: ca", &format!("name: {ca}")))
            .replace("namespace: db", &format!("namespace: {namespace}"))
            .replace("name: shop", &format!("name: {service}"))
    };
    let service = |namespace: &str, name: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec: {{ ports: [{{ port: 443 }}] }}\n"
        )
    };
    let gateway = SHOP
        .split("---\napiVersion: v1")
        .next()
        .unwrap()
        .replace("port: 80 }", "port: 80, allowedRoutes: { namespaces: { from: All } } }");
    let mut text = BASE.to_owned() + &gateway;
    let mut backends = [Vec::new(), Vec::new()];
    for (number, namespace) in [(0, "db"), (1, "db"), (2, "db"), (3, "db"), (4, "shop")] {
        let name = format!("s{number}");
        text += &service(namespace, &name);
        text += &named(&name, namespace, &name, &name);
        text += &ca(&name).replace("namespace: db", &format!("namespace: {namespace}"));
        backends[usize::from(namespace == "shop")].push(format!("{{ name: {name}, port: 443 }}"));
    }
    for (namespace, backends) in ["db", "shop"].into_iter().zip(backends) {
        text += &format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {namespace}, namespace: {namespace} }}\n\
             spec: {{ parentRefs: [{{ name: gw, namespace: db }}], rules: [{{ matches: [{{ path: {{ value: /{namespace} }} }}], backendRefs: [{}] }}] }}\n",
            backends.join(", ")
        );
    }
    let mut index = index_with(Settings { max_watches: 20, ..Settings::default() }, &text);
    let shown = |index: &mut Index| {
        let (config, statuses) = made(index);
        let wanted: Vec<_> = index.wanted().map(|wanted| wanted.name.unwrap().to_string()).collect();
        (rules(&config, "http@db.gw.web"), wanted, told(&statuses, "s2"))
    };
    let (found, wanted, of_third) = shown(&mut index);
    let other = "* /shop -> shop.s4:443+tls=1".to_owned();
    assert_eq!(found, ["* /db -> db.s0:443+tls=1 db.s1:443+tls=1 500=1 500=1".to_owned(), other.clone()]);
    assert_eq!(wanted, ["s0", "s1", "s4"]);
    assert_eq!(
        of_third,
        ["Accepted=False NoValidCACertificate", "ResolvedRefs=False InvalidCACertificateRef"]
    );
    // Room that is given back is the next one's, and nothing else has changed for it.
    index.delete(&key(Kind::BackendTlsPolicy, "db/s0"));
    let (found, wanted, of_third) = shown(&mut index);
    let expected = "* /db -> db.s0:443=1 db.s1:443+tls=1 db.s2:443+tls=1 500=1".to_owned();
    assert_eq!(found, [expected, other.clone()]);
    assert_eq!(wanted, ["s1", "s2", "s4"]);
    assert_eq!(of_third, GOOD);
    // One that comes first takes it from the last one.
    index.apply(objects(&named("a", "db", "s3", "s3")).remove(0));
    let (found, wanted, of_third) = shown(&mut index);
    let expected = "* /db -> db.s0:443=1 db.s1:443+tls=1 500=1 db.s3:443+tls=1".to_owned();
    assert_eq!(found, [expected, other]);
    assert_eq!(wanted, ["s1", "s3", "s4"]);
    assert_eq!(of_third[0], "Accepted=False NoValidCACertificate");
}

/// Where nobody may look for policies, servers are not spoken to in the clear.
#[test]
fn where_policies_may_not_be_looked_at_nobody_is_spoken_to() {
    let route = Key::new(Kind::HttpRoute, "db", "r");
    let text = BASE.to_owned() + SHOP + &ca("ca") + &policy("p", "one", &format!("{CA}a.example"));
    let mut index = index(&text);
    let mut context = context();
    for (unseen, expected, resolved) in [
        (vec![], "* / -> db.shop:443+tls=1 db.shop:8443=1", "ResolvedRefs=True ResolvedRefs"),
        (
            vec![(Kind::TcpRoute, "")],
            "* / -> db.shop:443+tls=1 db.shop:8443=1",
            "ResolvedRefs=True ResolvedRefs",
        ),
        (
            vec![(Kind::BackendTlsPolicy, "other")],
            "* / -> db.shop:443+tls=1 db.shop:8443=1",
            "ResolvedRefs=True ResolvedRefs",
        ),
        (
            vec![(Kind::BackendTlsPolicy, "db")],
            "* / -> db.shop:443+tls=1 500=1",
            "ResolvedRefs=False PoliciesUnknown",
        ),
        (
            vec![(Kind::BackendTlsPolicy, "")],
            "* / -> db.shop:443+tls=1 500=1",
            "ResolvedRefs=False PoliciesUnknown",
        ),
        (vec![], "* / -> db.shop:443+tls=1 db.shop:8443=1", "ResolvedRefs=True ResolvedRefs"),
    ] {
        context.unseen = unseen.iter().map(|(kind, namespace)| (*kind, (*namespace).into())).collect();
        let (config, statuses) = made_in(&mut index, &context);
        assert_eq!(rules(&config, "http@db.gw.web"), [expected], "{unseen:?}");
        assert_eq!(conditions(&statuses, &route, Some("Gateway gw")), ["Accepted=True Accepted", resolved]);
    }
}
