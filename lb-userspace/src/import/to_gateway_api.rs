//! The result as objects of the Gateway API, v1.
//!
//! A Gateway for each set of addresses; a TLSRoute (with names) or TCPRoute for each route; a Service with EndpointSlices
//! for servers that are addresses; ReferenceGrants where something is in another namespace.

mod objects;
mod plan;
mod routes;
mod service;
mod writer;

use super::model::{Listener, Model, Note, Object, Part, Route};
use crate::config::quote;
use objects::{API, CLASS, CONTROLLER, Kind, MOST_LISTENERS, Section, lost, object_names, part, sorted};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use writer::Writer;

/// The objects, each with its notes.
pub(super) fn write(model: Model) -> Vec<Part> {
    let mut writer = Writer::new();
    let mut groups: BTreeMap<(Object, Vec<IpAddr>), Vec<usize>> = BTreeMap::new();
    for (index, listener) in model.listeners.iter().enumerate() {
        groups.entry((listener.gateway.clone(), addresses(listener))).or_default().push(index);
    }
    let mut routes_of: HashMap<usize, Vec<&Route>> = HashMap::new();
    for route in &model.routes {
        routes_of.entry(route.listener).or_default().push(route);
    }
    for ((gateway, addresses), listeners) in &groups {
        writer.gateway(gateway, addresses, listeners, &mut routes_of, &model);
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

/// The addresses that a listener does not share with all others.
fn addresses(listener: &Listener) -> Vec<IpAddr> {
    let addresses: BTreeSet<IpAddr> = listener.binds.iter().map(|&(ip, _)| ip).collect();
    if addresses.iter().any(IpAddr::is_unspecified) { Vec::new() } else { addresses.into_iter().collect() }
}

impl Writer {
    /// `routes_of`: of each listener.
    fn gateway<'m>(
        &mut self,
        object: &Object,
        addresses: &[IpAddr],
        listeners: &[usize],
        routes_of: &mut HashMap<usize, Vec<&'m Route>>,
        model: &'m Model,
    ) {
        let namespace = &object.namespace;
        let name = self.names.unique(&format!("{namespace} Gateway"), &object.name);
        let mut sections: Vec<Section> = Vec::new();
        let mut section_names = object_names();
        let mut notes = Vec::new();
        let mut validation: BTreeMap<u16, String> = BTreeMap::new();
        let mut foreign = false;
        let mut attached: Vec<(&Route, Kind, Vec<usize>)> = Vec::new();
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
            if plan.sections.is_empty() {
                continue;
            }
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
        if sections.is_empty() {
            return self.gateways.push(Part { notes, text: String::new() });
        }
        if let (false, Some(&first)) = (addresses.is_empty(), listeners.first()) {
            let text = "`addresses` of [gateway_api] must have the addresses of this Gateway";
            notes.push(Note::to_do(model.listeners[first].at, text));
        }
        let parents = self.parents(&sections, namespace, &name);
        for (route, kind, of_route) in attached {
            self.route(route, kind, &of_route, &sections, &parents, namespace, model);
        }
        self.gateway_object(&name, namespace, addresses, &sections, &validation, foreign, notes);
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
}
