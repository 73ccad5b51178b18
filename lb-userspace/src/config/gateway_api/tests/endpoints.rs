use super::*;

const GATEWAY: &str = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: gw, namespace: db }
spec: { gatewayClassName: edge, listeners: [{ name: tcp, protocol: TCP, port: 7000 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: { name: r, namespace: db }
spec: { parentRefs: [{ name: gw }], rules: [{ backendRefs: [{ name: redis, port: 6379 }] }] }
"#;

fn slice(name: &str, family: &str, port: &str, endpoints: &str) -> Object {
    let text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: {name}, namespace: db, labels: {{ kubernetes.io/service-name: redis }} }}\n\
         addressType: {family}\nports: [{port}]\nendpoints: [{endpoints}]\n"
    );
    objects(&text).remove(0)
}

#[test]
fn who_takes_connections() {
    let port = "{ name: redis, port: 6379 }";
    for (endpoints, expected) in [
        ("{ addresses: [10.1.0.1] }", vec!["10.1.0.1:6379"]),
        (
            "{ addresses: [10.1.0.1], conditions: { ready: false } }, { addresses: [10.1.0.2], conditions: { ready: true } }",
            vec!["10.1.0.2:6379"],
        ),
        (
            "{ addresses: [10.1.0.1], conditions: { ready: false, serving: true, terminating: true } }, { addresses: [10.1.0.2] }",
            vec!["10.1.0.2:6379"],
        ),
        (
            "{ addresses: [10.1.0.1], conditions: { ready: false, serving: true, terminating: true } }, \
             { addresses: [10.1.0.2], conditions: { ready: false, serving: false, terminating: true } }",
            vec!["10.1.0.1:6379"],
        ),
        ("{ addresses: [10.1.0.1], conditions: { ready: null } }", vec!["10.1.0.1:6379"]),
        ("{ addresses: [10.1.0.1, 10.1.0.1] }, { addresses: [10.1.0.1] }", vec!["10.1.0.1:6379"]),
        // The gateway's own, this machine's, and what is no server at all.
        (
            "{ addresses: [127.0.0.1, 169.254.1.1, 192.0.2.1, 0.0.0.0, 224.0.0.1, 255.255.255.255, x, 10.1.0.9] }",
            vec!["10.1.0.9:6379"],
        ),
        ("", vec![]),
    ] {
        let mut index = index(&(BASE.to_owned() + GATEWAY));
        index.apply(slice("redis-1", "IPv4", port, endpoints));
        assert_eq!(servers(&made(&mut index).0, "db.redis:6379"), expected, "{endpoints}");
    }
}

#[test]
fn no_endpoint_leads_to_a_gateway() {
    let mut index = index(&(BASE.to_owned() + GATEWAY));
    let endpoints = "{ addresses: [192.0.2.8, 192.0.2.9, 198.51.100.7, 198.51.100.8, 10.1.0.1] }";
    index.apply(slice("redis-1", "IPv4", "{ name: redis, port: 6379 }", endpoints));
    let place = Assigned {
        addresses: vec!["198.51.100.7".parse().unwrap()],
        elsewhere: vec![StatusAddress::Ip("198.51.100.8".parse().unwrap())],
        ..Assigned::default()
    };
    let context = Context {
        nodes: vec!["192.0.2.8".parse().unwrap()],
        peers: vec!["192.0.2.9".parse().unwrap()],
        assigned: [(Name::new("team", "other"), place)].into(),
        ..context()
    };
    assert_eq!(servers(&made_in(&mut index, &context).0, "db.redis:6379"), ["10.1.0.1:6379"]);
}

#[test]
fn ports_are_found_by_name_and_both_families_count() {
    let mut index = index(&(BASE.to_owned() + GATEWAY));
    index.apply(slice(
        "redis-1",
        "IPv4",
        "{ name: other, port: 1 }, { name: redis, port: 16379 }",
        "{ addresses: [10.1.0.1] }",
    ));
    index.apply(slice(
        "redis-6",
        "IPv6",
        "{ name: redis, port: 6379 }",
        "{ addresses: [\"2001:db8::9\", \"::1\", \"fe80::1\"] }",
    ));
    index.apply(slice("redis-7", "IPv4", "{ name: else, port: 6379 }", "{ addresses: [10.1.0.7] }"));
    assert_eq!(servers(&made(&mut index).0, "db.redis:6379"), ["10.1.0.1:16379", "[2001:db8::9]:6379"]);
}

#[test]
fn other_endpoints_ask_for_no_build() {
    let mut index = index(&(BASE.to_owned() + GATEWAY));
    made(&mut index);
    let port = "{ name: redis, port: 6379 }";
    assert_eq!(index.apply(slice("redis-1", "IPv4", port, "{ addresses: [10.1.0.1] }")), Change::Servers);
    assert_eq!(index.apply(slice("redis-1", "IPv4", port, "{ addresses: [10.1.0.1] }")), Change::Nothing);
    let server = crate::config::Server::new(ip("10.1.0.1", 6379));
    assert_eq!(index.take_servers(&context()), [("db.redis:6379".to_owned(), vec![server])]);
    assert_eq!(index.take_servers(&context()), []);
    assert_eq!(index.delete(&key(Kind::EndpointSlice, "db/redis-1")), Change::Servers);
    assert_eq!(index.take_servers(&context()), [("db.redis:6379".to_owned(), vec![])]);
    // Of a Service that no route uses.
    let mut other = slice("other-1", "IPv4", port, "{ addresses: [10.1.0.1] }");
    other.labels.insert("kubernetes.io/service-name".into(), "other".into());
    assert_eq!(index.apply(other), Change::Nothing);
    // Services and Secrets that nobody names.
    let text = "apiVersion: v1\nkind: Service\nmetadata: { name: unused, namespace: db }\nspec: { ports: [{ port: 1 }] }";
    assert_eq!(index.apply(objects(text).remove(0)), Change::Nothing);
    assert_eq!(index.apply(objects(&secret("db", "unused")).remove(0)), Change::Nothing);
}

#[test]
fn endpoints_of_what_is_in_force_count_also_after_another_build() {
    let mut index = index(&(BASE.to_owned() + GATEWAY));
    made(&mut index);
    let route = objects(&GATEWAY.replace("redis, port: 6379", "redis, port: 80")).remove(1);
    assert_eq!(index.apply(route), Change::All);
    // What that makes cannot be served.
    index.build(&context());
    let port = "{ name: redis, port: 6379 }, { name: http, port: 8080 }";
    assert_eq!(index.apply(slice("redis-1", "IPv4", port, "{ addresses: [10.1.0.1] }")), Change::Servers);
    let names = |index: &mut Index| {
        index.take_servers(&context()).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(names(&mut index), ["db.redis:6379"]);
    index.in_force();
    assert_eq!(index.apply(slice("redis-1", "IPv4", port, "{ addresses: [10.1.0.2] }")), Change::Servers);
    assert_eq!(names(&mut index), ["db.redis:80"]);
}

#[test]
fn external_names_are_followed_only_if_that_is_allowed() {
    let external = "\n---\napiVersion: v1\nkind: Service\nmetadata: { name: redis, namespace: db }\n\
                    spec: { type: ExternalName, externalName: Redis.Example.com, ports: [{ port: 6379 }] }";
    let text = BASE.to_owned() + GATEWAY + external;
    let (config, statuses) = made(&mut index(&text));
    assert_eq!(routes(&config, "gateway:7000")[0].2, "gateway:refused=1");
    let found = conditions(&statuses, &key(Kind::TcpRoute, "db/r"), Some("Gateway gw"));
    assert_eq!(found[1], "ResolvedRefs=False BackendNotFound");
    let mut index = Index::new(Settings { external_names: true, ..Settings::default() });
    objects(&text).into_iter().for_each(|object| _ = index.apply(object));
    assert_eq!(servers(&made(&mut index).0, "db.redis:6379"), ["redis.example.com:6379"]);
}

#[test]
fn namespaces_that_are_not_named_do_not_count() {
    let mut index = Index::new(Settings { namespaces: vec!["other".into()], ..Settings::default() });
    objects(&(BASE.to_owned() + GATEWAY)).into_iter().for_each(|object| _ = index.apply(object));
    assert_eq!(made(&mut index).0.listeners.len(), 0);
}
