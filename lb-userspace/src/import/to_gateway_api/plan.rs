//! Which listeners of a Gateway a port has, and which routes are attached to which.

use super::objects::{Grant, Kind, Section};
use super::writer::Writer;
use crate::config::quote;
use crate::import::model::{
    ANY, At, Certificate, ClientCa, Listener, Note, Object, Protocol, Route, Termination,
};
use serde_json::{Value, json};
use std::collections::HashMap;

/// What each port of a listener has.
pub(super) struct Plan<'m> {
    pub(super) sections: Vec<Section>,
    /// With the indexes of their sections.
    pub(super) routes: Vec<(&'m Route, Kind, Vec<usize>)>,
}

impl Plan<'_> {
    fn section(&mut self, protocol: &'static str, hostname: Option<String>, tls: Option<Value>) -> usize {
        self.sections.push(Section { name: String::new(), port: 0, hostname, protocol, tls });
        self.sections.len() - 1
    }
}

impl Writer {
    pub(super) fn plan<'m>(
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
            // Of a single Service: what clients ask for has its own name at its end.
            let host = if host.starts_with(ANY) { host.clone() } else { format!("*.{host}") };
            plan.section("TLS", Some(host).filter(|host| host != ANY), Some(tls));
        }
        if !listener.auto_passthrough.is_empty() {
            let text =
                "an auto-passthrough listener is served only with `auto_passthrough = true` in [gateway_api]";
            notes.push(Note::to_do(listener.at, text));
        }
        let Some(first) = routes.first() else { return plan };
        let only = routes.len() == 1;
        if listener.protocol == Protocol::Tcp || (only && first.hosts.is_empty() && first.tls.is_none()) {
            let index = plan.section("TCP", None, None);
            plan.routes.extend(routes.iter().map(|&route| (route, Kind::Tcp, vec![index])));
            return plan;
        }
        let (named, for_all): (Vec<&Route>, Vec<&Route>) =
            routes.iter().copied().partition(|route| !route.hosts.is_empty());
        notes.extend(for_all.into_iter().map(for_the_rest));
        let Some(first) = named.first() else { return plan };
        let passthrough = json!({ "mode": "Passthrough" });
        if named.iter().all(|route| route.tls == first.tls) {
            let tls = match &first.tls {
                Some(tls) => self.terminate(tls, first, namespace, notes),
                None => passthrough,
            };
            let index = plan.section("TLS", None, Some(tls));
            plan.routes.extend(named.into_iter().map(|route| (route, Kind::Tls, vec![index])));
            return plan;
        }
        // The most specific section has a client: each name is one, so that none has another route's clients.
        let mut of_host: HashMap<&str, usize> = HashMap::new();
        for route in named {
            let tls = match &route.tls {
                Some(tls) => self.terminate(tls, route, namespace, notes),
                None => passthrough.clone(),
            };
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
    pub(super) fn config_map(
        &mut self,
        ca: &ClientCa,
        namespace: &str,
        at: At,
        notes: &mut Vec<Note>,
    ) -> String {
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
}

/// A route for whoever no other route takes.
fn for_the_rest(route: &Route) -> Note {
    let text = format!(
        "{}: for all other names, and for clients without one: a TLSRoute needs its names, so these clients are refused",
        quote(&route.name.name)
    );
    Note::lost(route.at, text)
}
