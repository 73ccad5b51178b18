//! Objects in, configuration and statuses out.

mod addresses;
mod again;
mod backend_tls;
mod endpoints;
mod istio;
mod listeners;
mod manifests;
mod requests;
mod routes;
mod scale;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::LazyLock;

use rustls::pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::config::diagnostic::Report;
use crate::config::files::Files;
use crate::config::http::{PathMatch, Rule, ValueMatch};
use crate::config::model::{Action, Config, Listener, Route, SniPattern};
use crate::config::{Address, Host, Origin};

/// A class of ours, a namespace's certificate, and a Service with two servers.
const BASE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: edge }
spec: { controllerName: snisplice.dev/gateway }
---
apiVersion: v1
kind: Service
metadata: { name: redis, namespace: db }
spec: { ports: [{ name: redis, port: 6379 }, { name: http, port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: redis-1, namespace: db, labels: { kubernetes.io/service-name: redis } }
addressType: IPv4
ports: [{ name: redis, port: 6379 }, { name: http, port: 8080 }]
endpoints: [{ addresses: [10.0.0.11] }, { addresses: [10.0.0.12] }]
"#;

/// A certificate and its key, as a Secret has them.
static CERTIFICATE: LazyLock<(String, String)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["odd.example.org".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
});

fn secret(namespace: &str, name: &str) -> String {
    let (chain, key) = &*CERTIFICATE;
    let indented = |pem: &str| pem.lines().map(|line| format!("\n    {line}")).collect::<String>();
    format!(
        "\n---\napiVersion: v1\nkind: Secret\nmetadata: {{ name: {name}, namespace: {namespace} }}\ntype: kubernetes.io/tls\n\
         stringData:\n  tls.crt: |{}\n  tls.key: |{}\n",
        indented(chain),
        indented(key)
    )
}

fn grant(namespace: &str, from: (&str, &str), to: &str) -> String {
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {{ name: grant, namespace: {namespace} }}\nspec:\n  \
         from: [{{ group: gateway.networking.k8s.io, kind: {}, namespace: {} }}]\n  to: [{{ group: \"\", kind: {to} }}]\n",
        from.0, from.1
    )
}

/// Objects of YAML: all of them are good.
fn objects(yaml: &str) -> Vec<Object> {
    let documents = yaml.split("\n---").filter(|document| !document.trim().is_empty());
    let read = |document| {
        let value = files::parse(document).unwrap_or_else(|error| panic!("{document}: {error}"));
        Object::read(value.unwrap()).unwrap_or_else(|error| panic!("{document}: {error}")).unwrap()
    };
    documents.map(read).collect()
}

fn index(yaml: &str) -> Index {
    index_with(Settings::default(), yaml)
}

fn index_with(settings: Settings, yaml: &str) -> Index {
    let mut index = Index::new(settings);
    objects(yaml).into_iter().for_each(|object| _ = index.apply(object));
    index
}

struct NoFiles;

impl Files for NoFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        panic!("{} was read", path.display())
    }

    fn system_authorities(&self) -> (Vec<CertificateDer<'static>>, Option<String>) {
        panic!("the system's authorities were read")
    }
}

fn context() -> Context {
    Context {
        own: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ipv6: true,
        ..Context::default()
    }
}

/// Not shared with other builds.
type Statuses = BTreeMap<Key, Status>;

/// What the objects make, with all checks.
fn made(index: &mut Index) -> (Config, Statuses) {
    made_in(index, &context())
}

fn made_in(index: &mut Index, context: &Context) -> (Config, Statuses) {
    let (config, statuses, refusals) = made_beside("", index, context, &NoFiles);
    assert!(refusals.is_empty(), "{refusals:?}");
    (config, statuses)
}

/// What the objects make together with a file, and which of them are refused for what.
fn made_beside(
    text: &str,
    index: &mut Index,
    context: &Context,
    files: &dyn Files,
) -> (Config, Statuses, BTreeMap<String, String>) {
    let mut report = Report::default();
    let text = format!("[gateway_api]\nfrom = 'directory'\ndirectory = 'x'\n{text}");
    let mut draft = crate::config::toml::read(&text, &mut report);
    let built = index.build(context);
    draft.listeners.extend(built.listeners);
    draft.routes.extend(built.routes);
    draft.pools.extend(built.pools);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    let config = crate::config::check::check(draft, files, now, &mut report);
    let refusals = report.refusals();
    let refusals = refusals.into_iter().map(|(object, why)| (object.to_string(), why)).collect();
    assert!(!report.has_errors(), "{refusals:?} {}", report.finish("file", &text));
    index.in_force();
    let statuses = built.statuses.into_iter().map(|(key, status)| (key, Status::clone(&status)));
    (config, statuses.collect(), refusals)
}

fn listener<'c>(config: &'c Config, name: &str) -> &'c Listener {
    let found = config.listeners.iter().find(|listener| &*listener.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", config.listeners))
}

/// The routes of a listener: names, whether they end TLS, and the pools with their weights.
fn routes(config: &Config, name: &str) -> Vec<(String, bool, String)> {
    let index = config.listeners.iter().position(|listener| &*listener.name == name).unwrap();
    let shown = |route: &Route| {
        let names: Vec<_> = route.sni.iter().map(ToString::to_string).collect();
        let backends = route.backends.iter().map(|backend| {
            let pool = &config.pools[backend.pool];
            format!("{}={}", pool.name, backend.weight)
        });
        let backends =
            if route.http.is_some() { "http".to_owned() } else { backends.collect::<Vec<_>>().join(" ") };
        (names.join(" "), matches!(route.action, Action::Terminate(_)), backends)
    };
    let mut found: Vec<_> = config.routes.iter().filter(|route| route.listener == index).map(shown).collect();
    found.sort();
    found
}

/// The rules of a route: hosts, matches, and where requests go; `500`: what is not to be had.
fn rules(config: &Config, route: &str) -> Vec<String> {
    let route = config.routes.iter().find(|known| &*known.name == route);
    let route = route.unwrap_or_else(|| panic!("not among {:?}", names(config)));
    route.rules().iter().map(|rule| shown_rule(config, rule)).collect()
}

fn names(config: &Config) -> Vec<&str> {
    config.routes.iter().map(|route| &*route.name).collect()
}

fn shown_rule(config: &Config, rule: &Rule<usize>) -> String {
    let value = |value: &ValueMatch| match value {
        ValueMatch::Exact(text) => format!("={text}"),
        ValueMatch::Regex(pattern) => format!("~{}", pattern.as_str()),
    };
    let matches = rule.matches.iter().map(|of| {
        let method = of.method.iter().map(|method| format!("{method} "));
        let path = of.path.iter().map(|path| match path {
            PathMatch::Exact(path) => format!("={path}"),
            PathMatch::Prefix(path) => path.to_string(),
            PathMatch::Begin(path) => format!("{path}*"),
            PathMatch::Regex(pattern) => format!("~{}", pattern.as_str()),
        });
        let headers = of.headers.iter().map(|(name, text)| format!(" {name}:{}", value(text)));
        let query = of.query.iter().map(|(name, text)| format!(" ?{name}{}", value(text)));
        method.chain(path).chain(headers).chain(query).collect::<String>()
    });
    let name = |pool: Option<usize>| pool.map_or("500", |pool| &config.pools[pool].name);
    let backends = rule.backends.iter().map(|backend| format!("{}={}", name(backend.pool), backend.weight));
    let hosts: Vec<_> = rule.hosts.iter().map(ToString::to_string).collect();
    let [matches, backends] =
        [matches.collect::<Vec<_>>().join(" | "), backends.collect::<Vec<_>>().join(" ")];
    format!("{} {matches} -> {backends}", hosts.join(","))
}

fn servers(config: &Config, pool: &str) -> Vec<String> {
    let pool = config.pools.iter().find(|known| &*known.name == pool).unwrap_or_else(|| panic!("no {pool}"));
    pool.servers.iter().map(|server| server.origin.to_string()).collect()
}

/// `Accepted=True Accepted` and so on, of the whole object or of a part of it.
fn conditions(statuses: &Statuses, key: &Key, part: Option<&str>) -> Vec<String> {
    let status = statuses.get(key).unwrap_or_else(|| panic!("no status of {key} in {:?}", statuses.keys()));
    let mine = status.conditions().into_iter().filter(|(of, _)| of.as_deref() == part);
    mine.map(|(_, condition)| format!("{}={} {}", condition.kind, condition.status, condition.reason))
        .collect()
}

fn key(kind: Kind, name: &str) -> Key {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Key::new(kind, namespace, name)
}

fn ip(text: &str, port: u16) -> Origin {
    Origin::Address(Address { host: Host::Ip(text.parse().unwrap()), port })
}
