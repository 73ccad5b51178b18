//! Istio: Gateway, VirtualService and DestinationRule.

mod policy;

use super::model::{
    ANY, At, Certificate, ClientCa, LARGEST, Listener, Model, Note, Object, Pool, Protocol, Route, Servers,
    Subset, Termination, any_address, host, parents,
};
use super::objects::{Cluster, Manifest, is_object_name, labels};
use super::yaml::{Fields, Item};
use crate::config::quote;
use policy::policy_of;
use std::collections::{BTreeMap, HashMap, HashSet};

pub(super) const GROUP: &str = "networking.istio.io";

/// What else clients must have that come with TLS.
const RESTRICTIONS: [&str; 6] = [
    "subjectAltNames",
    "verifyCertificateSpki",
    "verifyCertificateHash",
    "caCrl",
    "minProtocolVersion",
    "cipherSuites",
];

/// Names of two objects that are compared with each other, at most.
const MOST_PAIRS: usize = 1_000_000;

/// The servers of each Gateway.
type OfGateways = HashMap<Object, Vec<Server>>;

/// One server of a Gateway.
struct Server {
    /// Index into the model's listeners; none: only HTTP, or nothing that is taken over.
    listener: Option<usize>,
    port: u16,
    /// None: any.
    hosts: Vec<String>,
    tls: Tls,
}

#[derive(Clone)]
enum Tls {
    Plain,
    Passthrough,
    Terminate(Termination),
}

/// The part of a DestinationRule that is for a host.
struct Rule<'a> {
    policy: Option<Fields<'a>>,
    subsets: BTreeMap<&'a str, (BTreeMap<String, String>, Option<Fields<'a>>)>,
}

/// Takes over what the cluster has of Istio.
pub(super) fn read(cluster: &Cluster<'_>, model: &mut Model) {
    let ours =
        |kind| cluster.objects.iter().filter(move |object| (object.group, object.kind) == (GROUP, kind));
    let mut servers = OfGateways::new();
    for object in ours("Gateway") {
        gateway(object, &mut servers, model);
    }
    let mut rules = BTreeMap::new();
    for object in ours("DestinationRule") {
        destination_rule(object, &mut rules, model);
    }
    let routes = Routes { cluster, servers: &servers, rules: &rules };
    for object in ours("VirtualService") {
        routes.virtual_service(object, model);
    }
    for object in cluster.objects.iter().filter(|object| object.group == GROUP) {
        if !["Gateway", "DestinationRule", "VirtualService"].contains(&object.kind) {
            let text = format!("{} {}: not taken over", quote(object.kind), object.name);
            model.notes.push(Note::lost(object.fields.at(), text));
        }
    }
}

fn gateway(object: &Manifest<'_>, into: &mut OfGateways, model: &mut Model) {
    let Some(spec) = object.fields.map("spec") else { return };
    if let Some(selector) = spec.peek("selector") {
        spec.ignore(&["selector"]);
        let text = format!("{}: which pods serve is said by the GatewayClass", selector.said());
        model.notes.push(Note::left_out(selector.at, text));
    }
    let into = into.entry(object.name.clone()).or_default();
    // The listener of each port.
    let mut ports = HashMap::new();
    for item in spec.list("servers") {
        if server(object, &item, into, &mut ports, model).is_none() {
            item.lost("it has no port", &mut model.notes);
        }
    }
    spec.rest(&mut model.notes);
}

fn server(
    object: &Manifest<'_>,
    item: &Item<'_>,
    into: &mut Vec<Server>,
    ports: &mut HashMap<u16, usize>,
    model: &mut Model,
) -> Option<()> {
    let fields = item.fields()?;
    let port = fields.map("port")?;
    let number = port.parsed::<u16>("number").filter(|&number| number > 0)?;
    let mut notes = Vec::new();
    let kind = port.text("protocol").unwrap_or_default().to_ascii_uppercase();
    let default = format!("port-{number}");
    let name = port.text("name").unwrap_or(&default);
    port.ignore(&["targetPort"]);
    port.rest(&mut notes);
    let hosts: Vec<String> = fields.texts("hosts").into_iter().filter_map(server_host).collect();
    fields.ignore(&["name", "defaultEndpoint"]);
    let mut auto = false;
    let tls = match fields.map("tls") {
        None => Tls::Plain,
        Some(tls) => {
            let read = tls_of(object, &tls, &mut notes, &mut auto);
            tls.rest(&mut notes);
            read?
        }
    };
    if matches!(fields.text("bind"), Some(bind) if bind != "0.0.0.0" && bind != "::") {
        notes.push(Note::lost(item.at, "bind: one address of the pod"));
    }
    fields.rest(&mut notes);
    let protocol = match (kind.as_str(), &tls) {
        ("HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB", _) | ("HTTPS", Tls::Terminate(_) | Tls::Plain) => {
            item.lost("HTTP: only TLS and TCP are taken over", &mut notes);
            None
        }
        (_, Tls::Plain) => Some(Protocol::Tcp),
        _ => Some(Protocol::Tls),
    };
    let listener = protocol.map(|protocol| {
        // Servers of one port are one listener, whatever they are called.
        let known = ports.get(&number).map(|&index| model.listeners[index].name.clone());
        let name = known.unwrap_or_else(|| name.to_owned());
        let mut listener = Listener::new(item.at, name, object.name.clone(), protocol);
        listener.binds = any_address(number);
        let index = model.listener(listener);
        ports.insert(number, index);
        let listener = &mut model.listeners[index];
        listener.notes.append(&mut notes);
        if auto {
            listener.auto_passthrough.extend(hosts.iter().cloned());
        }
        if (listener.protocol == Protocol::Tcp) != (protocol == Protocol::Tcp) {
            listener.notes.push(Note::lost(item.at, "plain TCP and TLS on one port"));
        }
        index
    });
    model.notes.append(&mut notes);
    if !auto {
        into.push(Server { listener, port: number, hosts, tls });
    }
    Some(())
}

/// `[NAMESPACE/]HOST`; the namespace says whose VirtualServices count, which is a matter of routes' parents here.
fn server_host(text: &str) -> Option<String> {
    let bare = text.rsplit_once('/').map_or(text, |(_, bare)| bare);
    if bare == ANY { Some(bare.to_owned()) } else { host(bare) }
}

/// Who ends TLS; none: nothing that can be had here.
fn tls_of(object: &Manifest<'_>, tls: &Fields<'_>, notes: &mut Vec<Note>, auto: &mut bool) -> Option<Tls> {
    tls.ignore(&["httpsRedirect"]);
    let secret = |suffix: &str| {
        let name = tls.text("credentialName").filter(|name| is_object_name(name))?;
        Some(Object::new(&object.name.namespace, format!("{name}{suffix}")))
    };
    let file = |key| tls.text(key).map(str::to_owned);
    // The first of the API's modes is the one of those that say none.
    let mode = tls.text("mode").unwrap_or("PASSTHROUGH");
    let client_ca = match mode {
        "PASSTHROUGH" => return Some(Tls::Passthrough),
        "AUTO_PASSTHROUGH" => {
            *auto = true;
            return Some(Tls::Passthrough);
        }
        "SIMPLE" => None,
        "MUTUAL" => file("caCertificates").map(ClientCa::File).or_else(|| secret("").map(ClientCa::Secret)),
        _ => {
            let text = format!("tls.mode {}: not taken over (restricts who may connect)", quote(mode));
            notes.push(Note::lost(tls.at(), text));
            None
        }
    };
    if mode == "MUTUAL" && client_ca.is_none() {
        let text = "tls.mode MUTUAL without authorities (restricts who may connect)";
        notes.push(Note::lost(tls.at(), text));
    }
    let files = file("serverCertificate").zip(file("privateKey"));
    let certificate = files.map(|(chain, key)| Certificate::Files { chain, key });
    let certificate =
        certificate.or_else(|| secret("").map(Certificate::Secret)).unwrap_or(Certificate::Unknown);
    for key in RESTRICTIONS {
        if let Some(item) = tls.peek(key) {
            tls.ignore(&[key]);
            item.lost("not taken over (restricts who may connect)", notes);
        }
    }
    Some(Tls::Terminate(Termination { certificates: vec![certificate], client_ca }))
}

fn destination_rule<'a>(object: &Manifest<'a>, into: &mut BTreeMap<Object, Rule<'a>>, model: &mut Model) {
    let Some(spec) = object.fields.map("spec") else { return };
    let Some(service) = spec.text("host").and_then(|host| service_of(host, &object.name.namespace)) else {
        let text = format!("DestinationRule {}: its host is no Service", object.name);
        return model.notes.push(Note::lost(object.fields.at(), text));
    };
    let mut subsets = BTreeMap::new();
    for item in spec.list("subsets") {
        let Some(subset) = item.fields() else { continue };
        let Some(name) = subset.text("name") else { continue };
        subsets.insert(name, (labels(&subset, "labels"), subset.map("trafficPolicy")));
        subset.rest(&mut model.notes);
    }
    let policy = spec.map("trafficPolicy");
    spec.ignore(&["exportTo"]);
    spec.rest(&mut model.notes);
    into.insert(service, Rule { policy, subsets });
}

/// `hello`, `hello.sample`, `hello.sample.svc.cluster.local`.
fn service_of(host: &str, namespace: &str) -> Option<Object> {
    let bare = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
    let (name, namespace) = bare.split_once('.').unwrap_or((bare, namespace));
    let good = is_object_name(name) && is_object_name(namespace) && !namespace.contains('.');
    good.then(|| Object::new(namespace, name))
}

struct Routes<'r, 'a> {
    cluster: &'r Cluster<'a>,
    servers: &'r OfGateways,
    rules: &'r BTreeMap<Object, Rule<'a>>,
}

impl Routes<'_, '_> {
    fn virtual_service(&self, object: &Manifest<'_>, model: &mut Model) {
        let Some(spec) = object.fields.map("spec") else { return };
        let gateways = spec.texts("gateways");
        let hosts = spec.texts("hosts");
        if gateways.iter().all(|name| *name == "mesh") {
            let text = format!("VirtualService {}: for sidecars only (no gateways)", object.name);
            return model.notes.push(Note::lost(object.fields.at(), text));
        }
        let mut gateways: Vec<Object> = gateways
            .iter()
            .filter(|name| **name != "mesh")
            .map(|name| {
                let (namespace, name) = name.split_once('/').unwrap_or((&object.name.namespace, name));
                Object::new(namespace, name)
            })
            .collect();
        gateways.sort();
        gateways.dedup();
        let mut notes = Vec::new();
        for item in spec.list("http") {
            item.lost("HTTP: only TLS and TCP are taken over", &mut notes);
        }
        spec.ignore(&["exportTo"]);
        let rules: Vec<_> = ["tls", "tcp"]
            .into_iter()
            .flat_map(|kind| spec.list(kind).into_iter().map(move |item| (kind == "tls", item)))
            .collect();
        spec.rest(&mut notes);
        let several = rules.len() > 1;
        let first = model.routes.len();
        for (index, (sni, item)) in rules.iter().enumerate() {
            let name = format!("{}-{}", object.name.name, index + 1);
            let name = if several { name } else { object.name.name.clone() };
            let name = Object::new(&object.name.namespace, name);
            self.rule(item, *sni, name, &gateways, &hosts, model, &mut notes);
        }
        match model.routes.get_mut(first) {
            Some(route) => route.notes.append(&mut notes),
            None => model.notes.append(&mut notes),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one rule, at its only call")]
    fn rule(
        &self,
        item: &Item<'_>,
        sni: bool,
        name: Object,
        gateways: &[Object],
        hosts: &[&str],
        model: &mut Model,
        notes: &mut Vec<Note>,
    ) {
        let Some(rule) = item.fields() else { return item.lost("not a rule", notes) };
        // Each match: names (none: those of the VirtualService) and a port (none: every).
        let mut matches: Vec<(Vec<&str>, Option<u16>)> = Vec::new();
        let list = rule.list("match");
        for (index, item) in list.iter().enumerate() {
            let Some(fields) = item.fields() else { continue };
            let names = if sni { fields.texts("sniHosts") } else { Vec::new() };
            let port = fields.parsed("port");
            let mut lost = Vec::new();
            fields.rest(&mut lost);
            if lost.is_empty() {
                matches.push((names, port));
            } else {
                let text = format!("match {}: its clients are left out", index + 1);
                notes.push(Note::lost(item.at, text));
                notes.append(&mut lost);
            }
        }
        if list.is_empty() {
            matches.push((Vec::new(), None));
        }
        let mut own = Vec::new();
        let destinations = rule.list("route");
        let is_alone = destinations.len() == 1;
        let backends: Vec<(usize, u32)> = destinations
            .iter()
            .filter_map(|item| self.destination(item, is_alone, &name.namespace, model, &mut own))
            .collect();
        rule.rest(&mut own);
        let first = model.routes.len();
        // Without one, the matches have been named.
        let mut found = matches.is_empty();
        for (names, port) in matches {
            let names = if names.is_empty() { hosts.to_vec() } else { names };
            let names: Vec<String> = names.into_iter().filter_map(server_host).collect();
            let servers = gateways.iter().filter_map(|gateway| self.servers.get(gateway)).flatten();
            for server in servers {
                let fits = port.is_none_or(|port| port == server.port)
                    && matches!(server.tls, Tls::Passthrough) == sni;
                let (Some(listener), true) = (server.listener, fits) else { continue };
                let mut route = Route::new(item.at, name.clone(), listener);
                route.backends = backends.clone();
                if !matches!(server.tls, Tls::Plain) {
                    if names.len().saturating_mul(server.hosts.len()) > MOST_PAIRS {
                        return model.grow(LARGEST + 1);
                    }
                    route.hosts = common(&names, &server.hosts);
                    if route.hosts.is_empty() {
                        continue;
                    }
                }
                if let Tls::Terminate(tls) = &server.tls {
                    route.tls = Some(tls.clone());
                }
                route.notes.append(&mut own);
                found = true;
                // The same rule on the same listener is one route.
                let mut added = 0;
                let same = |known: &&mut Route| {
                    known.name == route.name && known.listener == listener && known.tls == route.tls
                };
                match model.routes[first..].iter_mut().rev().find(same) {
                    Some(known) => {
                        added += route.hosts.len();
                        known.hosts.append(&mut route.hosts);
                        known.hosts.dedup();
                        known.notes.append(&mut route.notes);
                    }
                    None => model.route(route),
                }
                model.grow(added);
                if model.is_too_large() {
                    return;
                }
            }
        }
        notes.append(&mut own);
        if !found {
            item.lost("no server of its gateways among the files takes these clients", notes);
        }
    }

    fn destination(
        &self,
        item: &Item<'_>,
        is_alone: bool,
        namespace: &str,
        model: &mut Model,
        notes: &mut Vec<Note>,
    ) -> Option<(usize, u32)> {
        // Of several, one without a weight gets nothing.
        let read = || {
            let fields = item.fields()?;
            let destination = fields.map("destination")?;
            let weight = fields.parsed("weight").unwrap_or(u32::from(is_alone));
            fields.rest(&mut Vec::new());
            Some((destination, weight))
        };
        let Some((destination, weight)) = read() else {
            item.lost("it has no destination", notes);
            return None;
        };
        // As in Istio, a name without a namespace is of the rule's; that is warned of there, too.
        let Some(service) = destination.text("host").and_then(|host| service_of(host, namespace)) else {
            item.lost("its host is no Service", notes);
            return None;
        };
        let port = destination.map("port").and_then(|port| port.parsed::<u16>("number"));
        let Some(port) = port.or_else(|| self.cluster.only_port(&service)) else {
            item.lost("it has no port, and its Service is not among the files", notes);
            return None;
        };
        let rule = self.rules.get(&service);
        let subset =
            destination.text("subset").map(|subset| (subset, rule.and_then(|rule| rule.subsets.get(subset))));
        destination.rest(notes);
        let mut pool = Pool::new(
            item.at,
            service.name.clone(),
            Servers::Service { service: service.clone(), port, subset: None },
        );
        if let Some(policy) = rule.and_then(|rule| rule.policy.as_ref()) {
            policy_of(policy, &mut pool);
        }
        if let Some((subset, known)) = subset {
            self.subset(subset, known, &service, port, item.at, &mut pool);
        }
        Some((model.service_pool(pool), weight))
    }

    /// Some of a Service's pods: a Service of their own, which the files' Service and DestinationRule describe.
    fn subset(
        &self,
        subset: &str,
        known: Option<&(BTreeMap<String, String>, Option<Fields<'_>>)>,
        service: &Object,
        port: u16,
        at: At,
        pool: &mut Pool,
    ) {
        let own = format!("{}-{}", service.name, subset.to_ascii_lowercase());
        let own = if is_object_name(&own) { own } else { format!("{}-subset", service.name) };
        pool.name.clone_from(&own);
        let object = Object::new(&service.namespace, own);
        if let Some((_, Some(policy))) = known {
            policy_of(policy, pool);
        }
        let selector = self.cluster.services.get(service).map(|service| service.selector.clone());
        let made = known.zip(selector).filter(|(_, selector)| !selector.is_empty());
        let subset_service = made.map(|((labels, _), mut selector)| {
            selector.extend(labels.clone());
            let target_port = self.cluster.target_port(service, port).unwrap_or_else(|| port.to_string());
            Subset { selector, target_port }
        });
        if subset_service.is_none() {
            let text = format!(
                "subset {} of {service}: make the Service {object}, which selects its pods. The Service and the \
                 DestinationRule are not both among the files",
                quote(subset)
            );
            pool.notes.push(Note::lost(at, text));
        }
        pool.servers = Servers::Service { service: object, port, subset: subset_service };
    }
}

/// The names that both have.
fn common(names: &[String], server: &[String]) -> Vec<String> {
    let covers = |wide: &str, name: &str| wide == name || parents(name).iter().any(|parent| parent == wide);
    let (mut both, mut known) = (Vec::new(), HashSet::new());
    for (name, of_server) in
        names.iter().flat_map(|name| server.iter().map(move |of_server| (name, of_server)))
    {
        let narrow = if covers(of_server, name) {
            name
        } else if covers(name, of_server) {
            of_server
        } else {
            continue;
        };
        if known.insert(narrow) {
            both.push(narrow.clone());
        }
    }
    both
}
