use super::*;
use std::time::Instant;

/// Objects of this many routes over fifty Gateways, each with a Service of its own with two endpoints.
pub(super) fn many(routes: usize) -> Index {
    let mut text = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: { name: edge }\n\
                    spec: { controllerName: snisplice.dev/gateway }"
        .to_owned();
    for gateway in 0..50 {
        text += &format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: gw-{gateway}, namespace: db }}\n\
             spec: {{ gatewayClassName: edge, listeners: [{{ name: tls, protocol: TLS, port: 443, hostname: \"*.gw-{gateway}.example\", \
             tls: {{ mode: Passthrough }} }}] }}"
        );
    }
    for route in 0..routes {
        let gateway = route % 50;
        text += &format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{ name: r-{route}, namespace: db }}\n\
             spec: {{ parentRefs: [{{ name: gw-{gateway} }}], hostnames: [r-{route}.gw-{gateway}.example], \
             rules: [{{ backendRefs: [{{ name: s-{route}, port: 1 }}] }}] }}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s-{route}, namespace: db }}\nspec: {{ ports: [{{ name: x, port: 1 }}] }}\n\
             ---\n{}",
            slice(route, 1)
        );
    }
    index(&text)
}

fn slice(route: usize, version: usize) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: s-{route}, namespace: db, labels: {{ kubernetes.io/service-name: s-{route} }} }}\n\
         addressType: IPv4\nports: [{{ name: x, port: 1 }}]\n\
         endpoints: [{{ addresses: [10.1.{version}.1] }}, {{ addresses: [10.1.{version}.2] }}]"
    )
}

/// The time for ten times the routes is about ten times that for one; what is said of it is printed.
#[test]
#[ignore = "prints times, which depend on the machine: --ignored --nocapture"]
fn figures() {
    for routes in [1000, 10_000] {
        let mut index = many(routes);
        let begin = Instant::now();
        let built = index.build(&context());
        let build = begin.elapsed();
        assert_eq!(built.routes.len(), routes);
        let begin = Instant::now();
        let (config, _) = made(&mut index);
        let checked = begin.elapsed();
        let begin = Instant::now();
        drop(crate::serving::Snapshot::new(&config, None).unwrap());
        let snapshot = begin.elapsed();
        let changed = objects(&slice(7, 2)).remove(0);
        let begin = Instant::now();
        assert_eq!(index.apply(changed), Change::Servers);
        assert_eq!(index.take_servers(&context()).len(), 1);
        let servers = begin.elapsed();
        println!(
            "{routes} routes: build {build:?}, with check {checked:?}, snapshot {snapshot:?}, other endpoints {servers:?}"
        );
    }
}
