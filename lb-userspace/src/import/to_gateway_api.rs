//! The result as objects of the Gateway API, v1.
//!
//! A Gateway for each set of addresses; a TLSRoute (with names) or TCPRoute for each route; a Service with EndpointSlices
//! for servers that are addresses; ReferenceGrants where something is in another namespace.

mod service;

use super::Part;
use super::model::{
    ANY, At, Certificate, ClientCa, Extra, Listener, Model, Note, Object, Protocol, Route, Termination,
};
use super::names::Names;
use super::objects::is_object_name;
use crate::config::quote;
use serde_json::{Value, json};
use service::Services;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

const GROUP: &str = "gateway.networking.k8s.io";
const API: &str = "gateway.networking.k8s.io/v1";
const CLASS: &str = "snisplice";
const CONTROLLER: &str = "snisplice.dev/gateway";

/// The API's limits.
const MOST_LISTENERS: usize = 64;
const MOST_PARENTS: usize = 32;
const MOST_HOSTNAMES: usize = 16;
const MOST_BACKENDS: usize = 16;

/// The objects, each with its notes.
pub(super) fn write(model: Model) -> Vec<Part> {
    let mut writer = Writer {
        services: Services::default(),
        names: object_names(),
        grants: BTreeSet::new(),
        secrets: HashMap::new(),
        gateways: Vec::new(),
        routes: Vec::new(),
    };
    let mut groups: BTreeMap<(Object, Vec<IpAddr>), Vec<usize>> = BTreeMap::new();
    for (index, listener) in model.listeners.iter().enumerate() {
        groups.entry((listener.gateway.clone(), addresses(listener))).or_default().push(index);
    }
    for ((gateway, addresses), listeners) in &groups {
        writer.gateway(gateway, addresses, listeners, &model);
    }
    let class = json!({
        "apiVersion": API,
        "kind": "GatewayClass",
        "metadata": { "name": CLASS },
        "spec": { "controllerName": CONTROLLER },
    });
    let mut parts = vec![part(Vec::new(), &class)];
    parts.append(&mut writer.gateways);
    parts.append(&mut writer.routes);
    parts.append(&mut writer.services.parts);
    for grant in &writer.grants {
        let name = writer.names.unique(&format!("{} ReferenceGrant", grant.to.0), "imported");
        parts.push(part(Vec::new(), &grant.object(&name)));
    }
    parts
}

/// Keys are written in the order of the alphabet, so that the text is the same whether or not serde_json keeps the order.
fn part(notes: Vec<Note>, object: &Value) -> Part {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let text = serde_saphyr::to_string_with_options(object, options);
    // Maps, lists and strings can all be written.
    Part { notes, text: text.unwrap_or_default() }
}

/// Names of objects, and of listeners: those that are labels, too.
fn object_names() -> Names {
    Names::new(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-', 63)
}

/// The addresses that a listener does not share with all others.
fn addresses(listener: &Listener) -> Vec<IpAddr> {
    let addresses: BTreeSet<IpAddr> = listener.binds.iter().map(|&(ip, _)| ip).collect();
    if addresses.iter().any(IpAddr::is_unspecified) { Vec::new() } else { addresses.into_iter().collect() }
}

/// What the Gateway API has no words for; what the input has only by default is not missed.
fn lost(extra: &Extra) -> Option<Note> {
    let restricts = if extra.restricts { " (restricts who may connect)" } else { "" };
    let text = format!("{}: the Gateway API has no equal{restricts}", extra.said);
    (!extra.said.is_empty()).then(|| Note::lost(extra.at, text))
}

/// Something in one namespace that may be named from another.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Grant {
    /// Namespace and kind of what names it.
    from: (String, &'static str),
    /// Namespace and kind of what is named.
    to: (String, &'static str),
}

impl Grant {
    fn object(&self, name: &str) -> Value {
        json!({
            "apiVersion": API,
            "kind": "ReferenceGrant",
            "metadata": { "name": name, "namespace": self.to.0 },
            "spec": {
                "from": [{ "group": GROUP, "kind": self.from.1, "namespace": self.from.0 }],
                "to": [{ "group": "", "kind": self.to.1 }],
            },
        })
    }
}

/// One listener of a Gateway, on one port.
struct Section {
    name: String,
    port: u16,
    hostname: Option<String>,
    protocol: &'static str,
    tls: Option<Value>,
}

/// Which sections a route is attached to: those with one of its names, or one for all names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tls,
    Tcp,
}

struct Writer {
    services: Services,
    names: Names,
    grants: BTreeSet<Grant>,
    /// Secrets and ConfigMaps that have to be made of files, by what they are made of.
    secrets: HashMap<(String, String), String>,
    gateways: Vec<Part>,
    routes: Vec<Part>,
}

impl Writer {
    fn gateway(&mut self, object: &Object, addresses: &[IpAddr], listeners: &[usize], model: &Model) {
        let namespace = &object.namespace;
        let name = self.names.unique(&format!("{namespace} Gateway"), &object.name);
        let mut sections: Vec<Section> = Vec::new();
        let mut section_names = object_names();
        let mut notes = Vec::new();
        if let (false, Some(&first)) = (addresses.is_empty(), listeners.first()) {
            let text = "`addresses` of [gateway_api] must have the addresses of this Gateway";
            notes.push(Note::to_do(model.listeners[first].at, text));
        }
        let mut validation: BTreeMap<u16, String> = BTreeMap::new();
        let mut foreign = false;
        let mut attached: Vec<(&Route, Kind, Vec<usize>)> = Vec::new();
        let mut routes_of: HashMap<usize, Vec<&Route>> = HashMap::new();
        for route in &model.routes {
            routes_of.entry(route.listener).or_default().push(route);
        }
        for &index in listeners {
            let listener = &model.listeners[index];
            notes.extend(listener.notes.iter().cloned());
            notes.extend(listener.extras.iter().filter_map(lost));
            let ports: BTreeSet<u16> = listener.binds.iter().map(|&(_, port)| port).collect();
            let pairs: HashSet<_> = listener.binds.iter().collect();
            if !addresses.is_empty() && pairs.len() != ports.len() * addresses.len() {
                let text = format!("{}: each port is on each address", quote(&listener.name));
                notes.push(Note::lost(listener.at, text));
            }
            let routes = routes_of.remove(&index).unwrap_or_default();
            foreign |= routes.iter().any(|route| route.name.namespace != *namespace);
            let plan = self.plan(listener, namespace, &routes, &mut notes);
            let first = sections.len();
            let several = ports.len() > 1;
            for &port in &ports {
                for planned in &plan.sections {
                    let wanted =
                        if several { format!("{}-{port}", listener.name) } else { listener.name.clone() };
                    let name = section_names.unique("listener", &wanted.to_ascii_lowercase());
                    sections.push(Section { name, port, ..planned.again() });
                }
            }
            for (route, kind, of_plan) in plan.routes {
                let all = (0..ports.len()).flat_map(|port| {
                    let len = plan.sections.len();
                    of_plan.iter().map(move |index| first + port * len + index)
                });
                attached.push((route, kind, all.collect()));
            }
            for route in &routes {
                let Some(ca) = route.tls.as_ref().and_then(|tls| tls.client_ca.as_ref()) else { continue };
                let config_map = self.config_map(ca, namespace, route.at, &mut notes);
                for &port in &ports {
                    let known = validation.entry(port).or_insert_with(|| config_map.clone());
                    if *known != config_map {
                        let text = format!("port {port}: other authorities of clients for some routes");
                        notes.push(Note::lost(route.at, text));
                    }
                }
            }
            let asked =
                routes.iter().filter(|route| route.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()));
            if (1..routes.iter().filter(|route| route.tls.is_some()).count()).contains(&asked.count()) {
                let text = format!(
                    "{}: client certificates are asked for by port, of all its clients",
                    quote(&listener.name)
                );
                notes.push(Note::lost(listener.at, text));
            }
        }
        let parents = self.parents(&sections, namespace, &name);
        for (route, kind, of_route) in attached {
            self.route(route, kind, &of_route, &sections, &parents, namespace, model);
        }
        self.gateway_object(&name, namespace, addresses, &sections, &validation, foreign, notes);
    }

    /// The sections of a listener on each of its ports, and the routes with the indexes of theirs.
    fn plan<'m>(
        &mut self,
        listener: &Listener,
        namespace: &str,
        routes: &[&'m Route],
        notes: &mut Vec<Note>,
    ) -> Plan<'m> {
        let mut plan = Plan { sections: Vec::new(), routes: Vec::new() };
        for host in &listener.auto_passthrough {
            let options = json!({ "gateway.istio.io/listener-protocol": "auto-passthrough" });
            let tls = json!({ "mode": "Passthrough", "options": options });
            plan.section("TLS", Some(host.clone()).filter(|host| host != ANY), Some(tls));
        }
        let Some(first) = routes.first() else { return plan };
        let only = routes.len() == 1;
        if listener.protocol == Protocol::Tcp || (only && first.hosts.is_empty() && first.tls.is_none()) {
            let index = plan.section("TCP", None, None);
            plan.routes.extend(routes.iter().map(|&route| (route, Kind::Tcp, vec![index])));
            return plan;
        }
        let same = routes.iter().all(|route| route.tls == first.tls);
        let for_all = routes.iter().any(|route| route.hosts.is_empty());
        let passthrough = json!({ "mode": "Passthrough" });
        if same && (only || !for_all || first.tls.is_none()) {
            let tls = match &first.tls {
                Some(tls) => self.terminate(tls, first, namespace, notes),
                None => passthrough,
            };
            let index = plan.section("TLS", None, Some(tls));
            for &route in routes {
                match (route.hosts.is_empty(), &route.tls) {
                    (false, _) => plan.routes.push((route, Kind::Tls, vec![index])),
                    (true, Some(_)) => plan.routes.push((route, Kind::Tcp, vec![index])),
                    (true, None) => notes.push(for_the_rest(route)),
                }
            }
            return plan;
        }
        // The most specific section has a client: each name is one, so that none has another route's clients.
        let mut of_host: HashMap<&str, usize> = HashMap::new();
        for &route in routes {
            let tls = match &route.tls {
                Some(tls) => self.terminate(tls, route, namespace, notes),
                None => passthrough.clone(),
            };
            if route.hosts.is_empty() {
                if route.tls.is_some() {
                    let index = plan.section("TLS", None, Some(tls));
                    plan.routes.push((route, Kind::Tcp, vec![index]));
                } else {
                    notes.push(for_the_rest(route));
                }
                continue;
            }
            let section = |host| {
                *of_host
                    .entry(host)
                    .or_insert_with(|| plan.section("TLS", Some(host.to_owned()), Some(tls.clone())))
            };
            let indexes = route.hosts.iter().map(String::as_str).map(section).collect();
            plan.routes.push((route, Kind::Tls, indexes));
        }
        plan
    }

    /// TLS that ends at the Gateway.
    fn terminate(
        &mut self,
        tls: &Termination,
        route: &Route,
        namespace: &str,
        notes: &mut Vec<Note>,
    ) -> Value {
        let mut references = Vec::new();
        for certificate in &tls.certificates {
            let secret = match certificate {
                Certificate::Secret(secret) => secret.clone(),
                Certificate::Files { chain, key } => {
                    let stem = chain.rsplit('/').next().unwrap_or(chain);
                    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem).to_ascii_lowercase();
                    let known = self.secrets.get(&(namespace.to_owned(), format!("{chain}\n{key}")));
                    let name = known.cloned().unwrap_or_else(|| {
                        let name = self.names.unique(&format!("{namespace} Secret"), &stem);
                        let text = format!(
                            "make the Secret {name} (kubernetes.io/tls) in namespace {namespace} of {} and {}",
                            quote(chain),
                            quote(key)
                        );
                        notes.push(Note::to_do(route.at, text));
                        name
                    });
                    self.secrets.insert((namespace.to_owned(), format!("{chain}\n{key}")), name.clone());
                    Object::new(namespace, name)
                }
                Certificate::Unknown => {
                    let name = self
                        .names
                        .unique(&format!("{namespace} Secret"), &format!("{}-cert", route.name.name));
                    let text = format!("make the Secret {name} (kubernetes.io/tls) in namespace {namespace}");
                    notes.push(Note::to_do(route.at, text));
                    Object::new(namespace, name)
                }
            };
            references.push(self.reference(&secret, namespace));
        }
        json!({ "certificateRefs": references, "mode": "Terminate" })
    }

    /// A Secret as a Gateway of this namespace names it.
    fn reference(&mut self, secret: &Object, namespace: &str) -> Value {
        if secret.namespace == namespace {
            return json!({ "name": secret.name });
        }
        self.grants.insert(Grant {
            from: (namespace.to_owned(), "Gateway"),
            to: (secret.namespace.clone(), "Secret"),
        });
        json!({ "name": secret.name, "namespace": secret.namespace })
    }

    /// The ConfigMap with the authorities of clients, which has to be made.
    fn config_map(&mut self, ca: &ClientCa, namespace: &str, at: At, notes: &mut Vec<Note>) -> String {
        let source = match ca {
            ClientCa::File(file) => file.clone(),
            ClientCa::Secret(secret) => secret.to_string(),
        };
        let key = (format!("{namespace} ConfigMap"), source);
        if let Some(known) = self.secrets.get(&key) {
            return known.clone();
        }
        let name = self.names.unique(&key.0, "clients-ca");
        let from = match ca {
            ClientCa::File(file) => quote(file),
            ClientCa::Secret(secret) => format!("ca.crt of the Secret {secret}"),
        };
        let text = format!("make the ConfigMap {name} in namespace {namespace} with a key ca.crt: {from}");
        notes.push(Note::to_do(at, text));
        self.secrets.insert(key, name.clone());
        name
    }

    /// Where each section is to be found: the Gateway has the first, and ListenerSets the rest.
    fn parents(&mut self, sections: &[Section], namespace: &str, gateway: &str) -> Vec<String> {
        let sets = sections.len().div_ceil(MOST_LISTENERS);
        let kind = format!("{namespace} ListenerSet");
        let names: Vec<String> = (0..sets)
            .map(|set| if set == 0 { gateway.to_owned() } else { self.names.unique(&kind, gateway) })
            .collect();
        (0..sections.len()).map(|section| names[section / MOST_LISTENERS].clone()).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one object, at its only call")]
    fn gateway_object(
        &mut self,
        name: &str,
        namespace: &str,
        addresses: &[IpAddr],
        sections: &[Section],
        validation: &BTreeMap<u16, String>,
        foreign: bool,
        notes: Vec<Note>,
    ) {
        let listener = |section: &Section| {
            let mut listener =
                json!({ "name": section.name, "port": section.port, "protocol": section.protocol });
            if foreign {
                listener["allowedRoutes"] = json!({ "namespaces": { "from": "All" } });
            }
            if let Some(hostname) = &section.hostname {
                listener["hostname"] = json!(hostname);
            }
            if let Some(tls) = &section.tls {
                listener["tls"] = tls.clone();
            }
            sorted(listener)
        };
        let mut sets = sections.chunks(MOST_LISTENERS);
        let own: Vec<_> = sets.next().unwrap_or_default().iter().map(listener).collect();
        let mut spec = json!({ "gatewayClassName": CLASS, "listeners": own });
        if !addresses.is_empty() {
            let addresses =
                addresses.iter().map(|ip| json!({ "type": "IPAddress", "value": ip.to_string() }));
            spec["addresses"] = addresses.collect();
        }
        if !validation.is_empty() {
            let port = |(port, name): (&u16, &String)| {
                let ca = json!([{ "group": "", "kind": "ConfigMap", "name": name }]);
                json!({ "port": port, "tls": { "validation": { "caCertificateRefs": ca } } })
            };
            // The API wants a default beside ports: one that asks for nothing.
            spec["tls"] = json!({ "frontend": { "default": {}, "perPort": validation.iter().map(port).collect::<Vec<_>>() } });
        }
        if sections.len() > MOST_LISTENERS {
            spec["allowedListeners"] = json!({ "namespaces": { "from": "Same" } });
        }
        let object = json!({
            "apiVersion": API,
            "kind": "Gateway",
            "metadata": { "name": name, "namespace": namespace },
            "spec": sorted(spec),
        });
        self.gateways.push(part(notes, &object));
        for (set, sections) in sets.enumerate() {
            let object = json!({
                "apiVersion": API,
                "kind": "ListenerSet",
                "metadata": { "name": format!("{name}-{}", set + 2), "namespace": namespace },
                "spec": {
                    "listeners": sections.iter().map(listener).collect::<Vec<_>>(),
                    "parentRef": { "name": name },
                },
            });
            self.gateways.push(part(Vec::new(), &object));
        }
    }

    /// As many objects as the API's limits ask for.
    #[expect(clippy::too_many_arguments, reason = "the parts of one object, at its only call")]
    fn route(
        &mut self,
        route: &Route,
        kind: Kind,
        of_route: &[usize],
        sections: &[Section],
        parents: &[String],
        gateway_namespace: &str,
        model: &Model,
    ) {
        let namespace = &route.name.namespace;
        let mut notes = route.notes.clone();
        notes.extend(route.extras.iter().filter_map(lost));
        if !route.alpn.is_empty() {
            let text = format!("ALPN {}: the Gateway API has no equal", quote(&route.alpn.join(", ")));
            notes.push(Note::lost(route.at, text));
        }
        let backends = self.backends(route, model, &mut notes);
        let parent = |&index: &usize| {
            let section = &sections[index];
            let name = &parents[index];
            let mut parent = json!({ "name": name, "sectionName": section.name });
            if index >= MOST_LISTENERS {
                parent = json!({ "group": GROUP, "kind": "ListenerSet", "name": name, "sectionName": section.name });
            }
            if namespace != gateway_namespace {
                parent["namespace"] = json!(gateway_namespace);
            }
            sorted(parent)
        };
        // Names and the sections for them, a few at a time.
        let mut pieces: Vec<(Vec<&str>, Vec<usize>)> = Vec::new();
        if kind == Kind::Tcp {
            pieces.extend(of_route.chunks(MOST_PARENTS).map(|some| (Vec::new(), some.to_vec())));
        } else {
            for &index in of_route {
                match &sections[index].hostname {
                    Some(own) => match pieces.last_mut() {
                        Some((hosts, of_piece))
                            if of_piece.len() < MOST_PARENTS && hosts.len() < MOST_HOSTNAMES =>
                        {
                            hosts.push(own);
                            of_piece.push(index);
                        }
                        _ => pieces.push((vec![own], vec![index])),
                    },
                    None => {
                        for hosts in route.hosts.chunks(MOST_HOSTNAMES) {
                            pieces.push((hosts.iter().map(String::as_str).collect(), vec![index]));
                        }
                    }
                }
            }
        }
        let object_kind = if kind == Kind::Tls { "TLSRoute" } else { "TCPRoute" };
        for (hosts, of_piece) in pieces {
            let name = self
                .names
                .unique(&format!("{namespace} {object_kind}"), &route.name.name.to_ascii_lowercase());
            let mut spec = json!({
                "parentRefs": of_piece.iter().map(parent).collect::<Vec<_>>(),
                "rules": [{ "backendRefs": backends }],
            });
            if kind == Kind::Tls {
                let unique: BTreeSet<&str> = hosts.into_iter().collect();
                let (good, bad): (Vec<&str>, Vec<&str>) =
                    unique.into_iter().partition(|host| is_hostname(host));
                for host in bad {
                    let text = format!("{}: the Gateway API does not allow this name", quote(host));
                    notes.push(Note::lost(route.at, text));
                }
                if good.is_empty() {
                    self.routes.push(Part { notes: std::mem::take(&mut notes), text: String::new() });
                    continue;
                }
                spec["hostnames"] = json!(good);
            }
            let object = json!({
                "apiVersion": API,
                "kind": object_kind,
                "metadata": { "name": name, "namespace": namespace },
                "spec": sorted(spec),
            });
            self.routes.push(part(std::mem::take(&mut notes), &object));
        }
    }

    /// References to the Services of a route's pools, in the shares of the pools and of their servers.
    fn backends(&mut self, route: &Route, model: &Model, notes: &mut Vec<Note>) -> Value {
        let namespace = &route.name.namespace;
        let mut references: Vec<(Object, u16, u64)> = Vec::new();
        for &(index, weight) in &route.backends {
            let of_pool = self.services.of_pool(index, &mut self.names, model, notes);
            let sum: u64 = of_pool.iter().map(|&(_, _, share)| share).sum::<u64>().max(1);
            // In thousandths where a pool is more than one Service.
            let several = route.backends.len() > 1 && of_pool.len() > 1;
            for (service, port, share) in of_pool {
                let weight = u64::from(weight);
                let weight = match (route.backends.len(), several) {
                    (1, _) => {
                        if weight == 0 {
                            0
                        } else {
                            share
                        }
                    }
                    (_, true) => (weight * 1000 * share).div_ceil(sum),
                    (_, false) => weight * 1000,
                };
                references.push((service, port, weight));
            }
        }
        // Shares of whole pools need no thousandths.
        if references.iter().all(|&(_, _, weight)| weight % 1000 == 0) {
            references.iter_mut().for_each(|(_, _, weight)| *weight /= 1000);
        }
        let largest = references.iter().map(|&(_, _, weight)| weight).max().unwrap_or(1);
        if largest > 1_000_000 {
            notes.push(Note::lost(route.at, "weights above 1 000 000: scaled, and rounded"));
            for (_, _, weight) in &mut references {
                *weight = weight.saturating_mul(1_000_000).div_ceil(largest);
            }
        }
        if references.len() > MOST_BACKENDS {
            let text = format!("backends beyond the first {MOST_BACKENDS}, which the API allows");
            notes.push(Note::lost(route.at, text));
            references.truncate(MOST_BACKENDS);
        }
        let equal = references.iter().all(|&(_, _, weight)| weight == references[0].2);
        let mut values = Vec::new();
        for (service, port, weight) in references {
            let mut value = json!({ "name": service.name, "port": port });
            if service.namespace != *namespace {
                value["namespace"] = json!(service.namespace);
                let kind = if route.hosts.is_empty() { "TCPRoute" } else { "TLSRoute" };
                let grant = Grant { from: (namespace.clone(), kind), to: (service.namespace, "Service") };
                self.grants.insert(grant);
            }
            if !equal {
                value["weight"] = json!(weight);
            }
            values.push(sorted(value));
        }
        Value::Array(values)
    }
}

struct Plan<'m> {
    sections: Vec<Section>,
    routes: Vec<(&'m Route, Kind, Vec<usize>)>,
}

impl Plan<'_> {
    fn section(&mut self, protocol: &'static str, hostname: Option<String>, tls: Option<Value>) -> usize {
        self.sections.push(Section { name: String::new(), port: 0, hostname, protocol, tls });
        self.sections.len() - 1
    }
}

impl Section {
    fn again(&self) -> Self {
        Self {
            name: self.name.clone(),
            port: self.port,
            hostname: self.hostname.clone(),
            protocol: self.protocol,
            tls: self.tls.clone(),
        }
    }
}

/// A route for whoever no other route takes.
fn for_the_rest(route: &Route) -> Note {
    let text = format!(
        "{}: for all other names, and for clients without one: a TLSRoute needs its names, so these clients are refused",
        quote(&route.name.name)
    );
    Note::lost(route.at, text)
}

/// What the API takes as a hostname: no underscores.
fn is_hostname(host: &str) -> bool {
    is_object_name(host.strip_prefix("*.").unwrap_or(host))
}

/// With its keys in the order of the alphabet.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> = map.into_iter().collect();
            sorted.into_iter().collect()
        }
        other => other,
    }
}
