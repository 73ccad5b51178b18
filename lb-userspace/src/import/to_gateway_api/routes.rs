//! TLSRoutes and TCPRoutes.

use super::objects::{API, GROUP, Grant, Kind, MOST_BACKENDS, MOST_LISTENERS, Section, lost, part, sorted};
use super::writer::Writer;
use crate::config::quote;
use crate::import::model::{Model, Note, Object, Part, Route};
use crate::import::objects::is_object_name;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The API's limits of a route.
const MOST_PARENTS: usize = 32;
const MOST_HOSTNAMES: usize = 16;

impl Writer {
    /// As many objects as the API's limits ask for.
    #[expect(clippy::too_many_arguments, reason = "the parts of one object, at its only call")]
    pub(super) fn route(
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

/// What the API takes as a hostname: no underscores.
fn is_hostname(host: &str) -> bool {
    is_object_name(host.strip_prefix("*.").unwrap_or(host))
}
