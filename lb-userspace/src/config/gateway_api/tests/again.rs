//! Builds again: whatever is taken from the last one, the outcome is that of a build from nothing.

use super::scale::{many, tls_route};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// An object of a small world, in one of its forms.
#[derive(Clone, Copy, Debug)]
struct Thing {
    kind: usize,
    name: usize,
    /// 0: it is not there.
    form: usize,
}

/// How many kinds, names and forms there are.
const WORLD: [usize; 3] = [16, 4, 4];

impl Thing {
    fn namespace(self) -> &'static str {
        ["db", "shop"][self.name % 2]
    }

    fn other_namespace(self) -> &'static str {
        ["db", "shop"][(self.name + 1) % 2]
    }

    fn key(self) -> Key {
        let kind = [
            Kind::GatewayClass,
            Kind::Gateway,
            Kind::ListenerSet,
            Kind::TlsRoute,
            Kind::HttpRoute,
            Kind::GrpcRoute,
            Kind::TcpRoute,
            Kind::Service,
            Kind::EndpointSlice,
            Kind::ReferenceGrant,
            Kind::Namespace,
            Kind::BackendTlsPolicy,
            Kind::ConfigMap,
            Kind::IstioGateway,
            Kind::VirtualService,
            Kind::DestinationRule,
        ][self.kind];
        let namespace = if kind.is_of_cluster() { "" } else { self.namespace() };
        let name = if kind == Kind::Namespace { self.namespace().to_owned() } else { self.name.to_string() };
        Key::new(kind, namespace, &name)
    }

    fn yaml(self) -> String {
        let Thing { name, form, .. } = self;
        let (own, other) = (self.namespace(), self.other_namespace());
        let key = self.key();
        let kind = key.kind;
        let version = match (kind.group(), kind) {
            ("", _) => "v1".to_owned(),
            (group, _) => format!("{group}/v1"),
        };
        let host = |number: usize| format!("h{}.example.com", number % 3);
        let backend = |number: usize| match form {
            1 => format!("{{ name: \"{}\", port: 1 }}", number % 2 * 2 + name % 2),
            2 => format!("{{ name: \"{}\", namespace: {other}, port: 1 }}", number % 2 * 2 + (name + 1) % 2),
            _ => format!("{{ name: \"{}\", port: 2, weight: 3 }}", name % 2),
        };
        let parents = match form {
            1 => "[{ name: \"0\", namespace: db }]".to_owned(),
            2 => "[{ name: \"1\", namespace: shop }, { name: \"0\", namespace: db, sectionName: tls }]"
                .to_owned(),
            _ => "[{ kind: ListenerSet, name: \"2\", namespace: db }, { name: \"0\", namespace: db }]"
                .to_owned(),
        };
        let spec = match kind {
            Kind::GatewayClass => match form {
                1 => "{ controllerName: example.com/other }".to_owned(),
                2 => "{ controllerName: snisplice.dev/gateway, parametersRef: { name: x } }".to_owned(),
                _ => "{ controllerName: snisplice.dev/gateway }".to_owned(),
            },
            Kind::Gateway => {
                let from = ["All", "Same", "Selector, selector: { matchLabels: { team: \"1\" } }"][form - 1];
                let host = ["", ", hostname: \"*.example.com\"", ", hostname: h1.example.com"][name % 3];
                let mode =
                    if form == 2 { "Terminate, certificateRefs: [{ name: tls }]" } else { "Passthrough" };
                format!(
                    "{{ gatewayClassName: \"{}\", allowedListeners: {{ namespaces: {{ from: All }} }}, listeners: [\
                     {{ name: tls, protocol: TLS, port: 443{host}, tls: {{ mode: {mode} }}, \
                     allowedRoutes: {{ namespaces: {{ from: {from} }} }} }}, \
                     {{ name: http, protocol: HTTP, port: 80{host}, allowedRoutes: {{ namespaces: {{ from: All }} }} }}, \
                     {{ name: tcp, protocol: TCP, port: {} }}] }}",
                    name % 2,
                    6000 + form
                )
            }
            Kind::ListenerSet => format!(
                "{{ parentRef: {{ name: \"0\", namespace: db }}, listeners: [{{ name: more, protocol: TLS, port: {}, \
                 tls: {{ mode: Passthrough }}, allowedRoutes: {{ namespaces: {{ from: All }} }} }}] }}",
                443 + form / 3
            ),
            Kind::TlsRoute => format!(
                "{{ parentRefs: {parents}, hostnames: [{}, {}], rules: [{{ backendRefs: [{}, {}] }}] }}",
                host(name),
                if form == 3 { "\"*.example.com\"".to_owned() } else { host(form + name) },
                backend(0),
                backend(1)
            ),
            Kind::HttpRoute | Kind::GrpcRoute => {
                format!(
                    "{{ parentRefs: {parents}, hostnames: [{}], rules: [{{ backendRefs: [{}, {}] }}] }}",
                    host(name + form),
                    backend(0),
                    backend(1)
                )
            }
            Kind::TcpRoute => {
                format!("{{ parentRefs: {parents}, rules: [{{ backendRefs: [{}] }}] }}", backend(name))
            }
            Kind::BackendTlsPolicy => format!(
                "{{ targetRefs: [{{ kind: Service, name: \"{}\"{} }}], validation: {{ hostname: a.example, \
                 caCertificateRefs: [{{ kind: ConfigMap, name: \"{}\" }}] }} }}",
                form / 2 * 2 + name % 2,
                if form == 2 { ", sectionName: x" } else { "" },
                name % 2
            ),
            Kind::IstioGateway => {
                let servers = ["*/*.example.com", "*/h1.example.com", "./h2.example.com"];
                format!(
                    "{{ selector: {{ istio: {} }}, servers: [\
                     {{ port: {{ number: 443, name: x, protocol: TLS }}, tls: {{ mode: PASSTHROUGH }}, hosts: [\"{}\"] }}, \
                     {{ port: {{ number: 8080, name: y, protocol: HTTP }}, hosts: [\"*\"] }}] }}",
                    if form == 3 { "other" } else { "ingress" },
                    servers[name % 3]
                )
            }
            Kind::VirtualService => {
                let of = |number: usize| format!("\"{}.{other}.svc.cluster.local\"", number % 4);
                let subset = if form == 2 { ", subset: v1" } else { "" };
                format!(
                    "{{ gateways: [{}], hosts: [\"*.example.com\"], \
                     tls: [{{ match: [{{ sniHosts: [{}] }}], route: [{{ destination: {{ host: {}{subset}, port: {{ number: 1 }} }} }}] }}], \
                     http: [{{ route: [{{ destination: {{ host: \"{}\", port: {{ number: {form} }} }} }}] }}] }}",
                    ["\"0\"", "db/0", "\"0\", shop/1"][form - 1],
                    host(name),
                    of(name + 1),
                    name % 2
                )
            }
            Kind::DestinationRule => format!(
                "{{ host: \"{}\", subsets: [{{ name: v1, labels: {{ v: \"{form}\" }} }}]{} }}",
                name % 2 * 2 + name % 2,
                ["", ", exportTo: [\".\"]", ", trafficPolicy: { tls: { mode: SIMPLE } }"][form - 1]
            ),
            Kind::Service => format!("{{ ports: [{{ name: x, port: {} }}] }}", 1 + form / 3),
            Kind::ReferenceGrant => format!(
                "{{ from: [{{ group: gateway.networking.k8s.io, kind: {}, namespace: {other} }}], to: [{{ group: \"\", kind: Service }}] }}",
                if form == 3 { "TCPRoute" } else { "TLSRoute" }
            ),
            _ => "{}".to_owned(),
        };
        let labels = match kind {
            Kind::Namespace => format!("{{ team: \"{form}\" }}"),
            Kind::EndpointSlice => {
                format!("{{ kubernetes.io/service-name: \"{}\" }}", form / 2 * 2 + name % 2)
            }
            _ => "{}".to_owned(),
        };
        let rest = match kind {
            Kind::EndpointSlice => format!(
                "\naddressType: IPv4\nports: [{{ name: x, port: 1 }}]\nendpoints: [{{ addresses: [10.0.{name}.{form}] }}]"
            ),
            Kind::ConfigMap if form != 3 => {
                let pem = CERTIFICATE.0.replace('\n', "\\n");
                format!("\ndata: {{ ca.crt: \"{pem}\" }}")
            }
            _ => String::new(),
        };
        format!(
            "apiVersion: {version}\nkind: {}\nmetadata: {{ name: \"{}\", namespace: {own}, generation: {form}, \
             creationTimestamp: \"2026-01-0{}T00:00:00Z\", labels: {labels} }}\nspec: {spec}{rest}\n",
            kind.name(),
            key.name.name,
            1 + (name + form) % 3
        )
    }
}

fn world() -> impl Strategy<Value = Vec<Thing>> {
    let [kinds, names, forms] = WORLD;
    let thing = (0..kinds, 0..names, 0..forms).prop_map(|(kind, name, form)| Thing { kind, name, form });
    prop::collection::vec(thing, 1..40)
}

/// What a build makes: its pools, and all else.
fn shown(built: &Built) -> [String; 2] {
    let Built { listeners, routes, pools, statuses, lacking, made: _ } = built;
    [format!("{pools:#?}"), format!("{listeners:#?} {routes:#?} {statuses:#?} {lacking:#?}")]
}

/// The first lines in which two differ.
fn difference(one: &str, other: &str) -> Option<(String, String)> {
    let at = one.lines().zip(other.lines()).position(|(one, other)| one != other);
    let at = at.or_else(|| (one != other).then(|| one.lines().count().min(other.lines().count())))?;
    let lines = |text: &str| text.lines().skip(at.saturating_sub(8)).take(12).collect::<Vec<_>>().join("\n");
    Some((lines(one), lines(other)))
}

fn wanted(index: &Index) -> Vec<String> {
    let mut all: Vec<_> = index.wanted().map(|wanted| format!("{wanted:?}")).collect();
    all.sort();
    all.dedup();
    all
}

/// Everything good, so that most changes matter.
fn beginning() -> Vec<Thing> {
    let [kinds, names, _] = WORLD;
    let form = |kind| if kind == 0 { 3 } else { 1 };
    (0..kinds).flat_map(|kind| (0..names).map(move |name| Thing { kind, name, form: form(kind) })).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// `moved`: when the node gets an address that an endpoint has. `forces`: by bits, whether a build comes into force.
    /// `watches`: how many Secrets and ConfigMaps may be named.
    #[test]
    fn a_build_after_any_changes_is_that_of_a_new_store(
        changes in world(),
        moved in 0usize..80,
        forces in any::<u64>(),
        watches in prop::sample::select(vec![10, 20, 2000]),
    ) {
        let index_of = |objects: &BTreeMap<Key, String>| index_of(objects, watches);
        let mut index = index_of(&BTreeMap::new());
        let mut there: BTreeMap<Key, String> = BTreeMap::new();
        let mut context = context();
        let mut last = None;
        let mut is_in_force = false;
        let first = beginning().len() - 1;
        for (number, thing) in beginning().into_iter().chain(changes).enumerate() {
            let key = thing.key();
            let change = match thing.form {
                0 => {
                    there.remove(&key);
                    index.delete(&key)
                }
                _ => {
                    there.insert(key, thing.yaml());
                    index.apply(objects(&thing.yaml()).remove(0))
                }
            };
            let is_moved = number == first + moved;
            if is_moved {
                context.own.push("10.0.2.1".parse().unwrap());
            }
            if number < first {
                continue;
            }
            let mut scratch = index_of(&there);
            let expected = shown(&scratch.build(&context));
            let found = match (&last, change) {
                (Some(last), Change::Nothing | Change::Servers) if !is_moved => Clone::clone(last),
                _ => {
                    let built = shown(&index.build(&context));
                    is_in_force = forces >> (number % 64) & 1 == 1;
                    if is_in_force {
                        index.in_force();
                        scratch.in_force();
                        prop_assert_eq!(wanted(&index), wanted(&scratch));
                    }
                    built
                }
            };
            prop_assert_eq!(difference(&found[1], &expected[1]), None, "{:?} {:?}", thing, change);
            // Other servers are of interest where the pool is in force.
            if change == Change::All || (change == Change::Nothing && is_in_force) {
                prop_assert_eq!(difference(&found[0], &expected[0]), None, "{:?} {:?}", thing, change);
            }
            last = Some(expected);
        }
    }
}

fn index_of(objects: &BTreeMap<Key, String>, max_watches: usize) -> Index {
    let istio = vec![[("istio".to_owned(), "ingress".to_owned())].into()];
    let settings = Settings { istio, max_watches, ..Settings::default() };
    index_with(settings, &objects.values().fold(secret("db", "tls"), |all, yaml| all + "\n---\n" + yaml))
}

/// Of many routes, one that is added, one that changes, and one whose Service comes or goes are all that is looked at again.
#[test]
fn only_what_a_change_has_to_do_with_is_made_again() {
    let mut index = many(500);
    let made = |index: &mut Index, yaml: &str| {
        assert_eq!(index.apply(objects(yaml).remove(0)), Change::All, "{yaml}");
        index.build(&context()).made
    };
    // An offer, a draft and a pool of each.
    assert_eq!(index.build(&context()).made, 1500);
    assert_eq!(made(&mut index, &tls_route(500, "s-7")), 2);
    assert_eq!(made(&mut index, &tls_route(3, "absent")), 2);
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: absent, namespace: db }\nspec: { ports: [{ name: x, port: 1 }] }";
    assert_eq!(made(&mut index, service), 3);
    assert_eq!(index.delete(&key(Kind::Service, "db/absent")), Change::All);
    assert_eq!(index.build(&context()).made, 2);
    assert_eq!(index.delete(&key(Kind::TlsRoute, "db/r-3")), Change::All);
    assert_eq!(index.build(&context()).made, 0);
}

/// A Service that no route names any more asks for nothing when it changes.
#[test]
fn what_only_a_route_that_is_gone_has_asked_for_is_of_no_interest() {
    let mut index = many(50);
    index.build(&context());
    index.in_force();
    let service = |port: usize| {
        objects(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: s-7, namespace: db }}\nspec: {{ ports: [{{ name: x, port: {port} }}] }}"
        ))
        .remove(0)
    };
    assert_eq!(index.apply(service(2)), Change::All);
    index.build(&context());
    index.delete(&key(Kind::TlsRoute, "db/r-7"));
    index.build(&context());
    assert_eq!(index.apply(service(3)), Change::Nothing);
}

/// A policy for a Service is no reason to look at the routes of others.
#[test]
fn with_a_policy_only_what_a_change_has_to_do_with_is_looked_at() {
    let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: { name: p, namespace: db }\n\
                  spec: { targetRefs: [{ group: \"\", kind: Service, name: s-3 }], validation: { hostname: a.example, \
                  wellKnownCACertificates: System } }";
    let read = |routes: usize| {
        let mut index = many(routes);
        index.apply(objects(policy).remove(0));
        index.build(&context());
        let read = index.read.len();
        assert_eq!(index.apply(objects(&tls_route(3, "s-7")).remove(0)), Change::All);
        assert_eq!(index.build(&context()).made, 2);
        (read, index.read.len())
    };
    assert_eq!(read(50), read(500));
}
