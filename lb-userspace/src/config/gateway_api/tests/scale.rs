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
        text += &format!(
            "\n---\n{}\n---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s-{route}, namespace: db }}\n\
             spec: {{ ports: [{{ name: x, port: 1 }}] }}\n---\n{}",
            tls_route(route, &format!("s-{route}")),
            slice(route, 1)
        );
    }
    index(&text)
}

/// One of them, to a Service.
pub(super) fn tls_route(route: usize, service: &str) -> String {
    let gateway = route % 50;
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{ name: r-{route}, namespace: db }}\n\
         spec: {{ parentRefs: [{{ name: gw-{gateway} }}], hostnames: [r-{route}.gw-{gateway}.example], \
         rules: [{{ backendRefs: [{{ name: {service}, port: 1 }}] }}] }}"
    )
}

fn slice(route: usize, version: usize) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: s-{route}, namespace: db, labels: {{ kubernetes.io/service-name: s-{route} }} }}\n\
         addressType: IPv4\nports: [{{ name: x, port: 1 }}]\n\
         endpoints: [{{ addresses: [10.1.{version}.1] }}, {{ addresses: [10.1.{version}.2] }}]"
    )
}

/// The time for ten times the routes is about ten times that for one; one more takes little of that. What is said of it is
/// printed.
#[test]
#[ignore = "prints times, which depend on the machine: --ignored --nocapture"]
fn figures() {
    fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let made = work();
        println!("    {what}: {:?}", begin.elapsed());
        made
    }
    for routes in [1000, 5000, 10_000] {
        println!("{routes} routes");
        let mut index = many(routes);
        let built = timed("build", || index.build(&context()));
        assert_eq!(built.routes.len(), routes);
        let (config, _) = timed("the same with check", || made(&mut index));
        let before = timed("snapshot", || crate::serving::Snapshot::new(&config, None).unwrap());
        timed("all freed", || drop((config, built)));
        println!("  one more");
        assert_eq!(index.apply(objects(&tls_route(routes, "s-7")).remove(0)), Change::All);
        let built = timed("build", || index.build(&context()));
        let (config, _) = timed("the same with check", || made(&mut index));
        let after = timed("snapshot", || crate::serving::Snapshot::new(&config, Some(&before)).unwrap());
        timed("what it was made of freed", || drop((config, built)));
        timed("the one before freed", || drop(before));
        let changed = objects(&slice(7, 2)).remove(0);
        timed("other endpoints", || {
            assert_eq!(index.apply(changed), Change::Servers);
            assert_eq!(index.take_servers(&context()).len(), 1);
        });
        drop(after);
    }
}
