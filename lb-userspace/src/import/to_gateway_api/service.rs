//! Services for servers that are addresses, and for some of another Service's pods.

use super::objects::{MOST_BACKENDS, lost, part};
use crate::config::quote;
use crate::import::model::{Model, NAMESPACE, Note, Object, Part, Pool, Server, Servers, Subset};
use crate::import::names::Names;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Endpoints of one slice.
const MOST_ENDPOINTS: usize = 1000;

/// A Service, its port, and its share of the pool.
type Backend = (Object, u16, u64);

/// The Services of the pools that routes use.
#[derive(Default)]
pub(super) struct Services {
    of_pool: HashMap<usize, Vec<Backend>>,
    pub(super) parts: Vec<Part>,
    /// Slices so far: nobody names them, but each has a name.
    slices: usize,
}

impl Services {
    /// The Services of a pool, which are made when the first route uses it.
    pub(super) fn of_pool(
        &mut self,
        index: usize,
        names: &mut Names,
        model: &Model,
        notes: &mut Vec<Note>,
    ) -> Vec<Backend> {
        if let Some(known) = self.of_pool.get(&index) {
            return known.clone();
        }
        let pool = &model.pools[index];
        let mut own: Vec<Note> = pool.notes.clone();
        own.extend(pool.extras.iter().filter_map(lost));
        let backends = match &pool.servers {
            Servers::Service { service: object, port, subset } => {
                if let Some(subset) = subset {
                    self.parts.push(part(std::mem::take(&mut own), &subset_service(object, *port, subset)));
                }
                notes.append(&mut own);
                vec![(object.clone(), *port, 1)]
            }
            Servers::Addresses(servers) => self.addresses(pool, servers, own, names),
        };
        self.of_pool.insert(index, backends.clone());
        backends
    }

    /// A Service for the addresses of each weight, and one for each name.
    fn addresses(
        &mut self,
        pool: &Pool,
        servers: &[Server],
        mut notes: Vec<Note>,
        names: &mut Names,
    ) -> Vec<Backend> {
        let mut groups: BTreeMap<(u32, Option<&str>, u16), Vec<&Server>> = BTreeMap::new();
        for server in servers {
            notes.extend(server.extras.iter().filter_map(lost));
            if server.backup {
                let text = format!("backup server {}: not taken over", quote(&server.host));
                notes.push(Note::lost(pool.at, text));
                continue;
            }
            let address = server.host.parse::<IpAddr>().ok();
            if address.is_some_and(|address| {
                address.is_loopback() || address.is_unspecified() || address.is_multicast()
            }) {
                let text =
                    format!("server {}: an EndpointSlice does not take such an address", quote(&server.host));
                notes.push(Note::lost(pool.at, text));
                continue;
            }
            let name = address.is_none().then_some(server.host.as_str());
            let port = if name.is_some() { server.port } else { 0 };
            groups.entry((server.weight, name, port)).or_default().push(server);
        }
        if groups.len() > MOST_BACKENDS {
            let text = format!("{}: weights of servers", quote(&pool.name));
            notes.push(Note::lost(pool.at, text));
            let mut without: BTreeMap<_, Vec<&Server>> = BTreeMap::new();
            for ((_, name, port), servers) in groups {
                without.entry((1, name, port)).or_default().extend(servers);
            }
            groups = without;
        }
        let mut backends = Vec::new();
        let several = groups.len() > 1;
        for ((weight, name, _), servers) in groups {
            let wanted = format!("s-{}", pool.name.to_ascii_lowercase());
            // RFC 1035: the name of a Service begins with a letter.
            let wanted = match pool.name.chars().next() {
                Some(first) if first.is_ascii_alphabetic() => pool.name.to_ascii_lowercase(),
                _ => wanted,
            };
            let own = names.unique(&format!("{NAMESPACE} Service"), &wanted);
            let port = servers[0].port;
            let mut spec = json!({ "ports": [{ "name": "tcp", "port": port }] });
            let mut slices = Vec::new();
            match name {
                Some(host) => {
                    spec = json!({ "externalName": host, "ports": [{ "name": "tcp", "port": port }], "type": "ExternalName" });
                    let text = format!(
                        "{}: a Service of type ExternalName is followed only with `external_names = true` in [gateway_api]",
                        quote(host)
                    );
                    notes.push(Note::to_do(pool.at, text));
                }
                None => slices = self.slices(&own, &servers),
            }
            let share = u64::from(weight) * servers.len() as u64;
            backends.push((Object::new(NAMESPACE, own.clone()), port, if several { share } else { 1 }));
            let object = json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": own, "namespace": NAMESPACE },
                "spec": spec,
            });
            self.parts.push(part(std::mem::take(&mut notes), &object));
            self.parts.extend(slices.iter().map(|slice| part(Vec::new(), slice)));
        }
        if backends.is_empty() {
            let text = format!("{}: no server is left", quote(&pool.name));
            notes.push(Note::lost(pool.at, text));
            self.parts.push(Part { notes, text: String::new() });
        }
        backends
    }

    /// A slice for each family and port.
    fn slices(&mut self, service: &str, servers: &[&Server]) -> Vec<Value> {
        let mut of_port: BTreeMap<(bool, u16), Vec<Value>> = BTreeMap::new();
        for server in servers {
            let v6 = server.host.contains(':');
            let endpoint = json!({ "addresses": [server.host], "conditions": { "ready": true } });
            of_port.entry((v6, server.port)).or_default().push(endpoint);
        }
        let mut slices = Vec::new();
        for ((v6, port), endpoints) in of_port {
            for endpoints in endpoints.chunks(MOST_ENDPOINTS) {
                self.slices += 1;
                slices.push(json!({
                    "addressType": if v6 { "IPv6" } else { "IPv4" },
                    "apiVersion": "discovery.k8s.io/v1",
                    "endpoints": endpoints,
                    "kind": "EndpointSlice",
                    "metadata": {
                        "labels": { "kubernetes.io/service-name": service },
                        "name": format!("{service}-{}", self.slices),
                        "namespace": NAMESPACE,
                    },
                    "ports": [{ "name": "tcp", "port": port, "protocol": "TCP" }],
                }));
            }
        }
        slices
    }
}

fn subset_service(object: &Object, port: u16, subset: &Subset) -> Value {
    let target = match subset.target_port.parse::<u16>() {
        Ok(number) => json!(number),
        Err(_) => json!(subset.target_port),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": object.name, "namespace": object.namespace },
        "spec": {
            "ports": [{ "name": "tcp", "port": port, "targetPort": target }],
            "selector": subset.selector,
        },
    })
}
