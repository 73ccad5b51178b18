//! Kong: TCPIngress.

use super::model::{
    Certificate, Listener, Model, Note, Object, Pool, Protocol, Route, Servers, Termination, any_address,
    host,
};
use super::objects::{Cluster, Manifest, is_object_name};
use super::yaml::{Fields, Item};
use crate::config::quote;
use std::collections::HashMap;

pub(super) const GROUP: &str = "configuration.konghq.com";

const GATEWAY: &str = "kong";

/// Takes over what the cluster has of Kong.
pub(super) fn read(cluster: &Cluster<'_>, model: &mut Model) {
    let mut gateway = None;
    for object in cluster.objects.iter().filter(|object| object.group == GROUP) {
        if object.kind == "TCPIngress" {
            let gateway = gateway.get_or_insert_with(|| Object::new(&object.name.namespace, GATEWAY));
            ingress(cluster, object, gateway, model);
        } else {
            let text = format!("{} {}: not taken over", quote(object.kind), object.name);
            model.notes.push(Note::lost(object.fields.at(), text));
        }
    }
}

fn ingress(cluster: &Cluster<'_>, object: &Manifest<'_>, gateway: &Object, model: &mut Model) {
    let mut notes = Vec::new();
    let annotation = |key| object.annotations.as_ref().and_then(|annotations| annotations.text(key));
    let protocols = annotation("konghq.com/protocols").unwrap_or_default();
    if let Some(annotations) = &object.annotations {
        annotations
            .ignore(&["kubernetes.io/ingress.class", "kubectl.kubernetes.io/last-applied-configuration"]);
        annotations.rest(&mut notes);
    }
    let Some(spec) = object.fields.map("spec") else {
        return model.notes.push(Note::lost(object.fields.at(), "a TCPIngress without spec"));
    };
    spec.ignore(&["ingressClassName"]);
    // The Secret of each host, and the first without hosts, which is for all; each with its number.
    let mut secrets: HashMap<&str, (usize, Certificate)> = HashMap::new();
    let mut for_all = None;
    for (number, item) in spec.list("tls").into_iter().enumerate() {
        let Some(tls) = item.fields() else { continue };
        let secret = tls.text("secretName").filter(|name| is_object_name(name));
        let secret = secret.map(|name| Certificate::Secret(Object::new(&object.name.namespace, name)));
        let secret = (number, secret.unwrap_or(Certificate::Unknown));
        let hosts = tls.texts("hosts");
        if hosts.is_empty() {
            for_all.get_or_insert_with(|| secret.clone());
        }
        for host in hosts {
            secrets.entry(host).or_insert_with(|| secret.clone());
        }
        tls.rest(&mut notes);
    }
    let rules = spec.list("rules");
    spec.rest(&mut notes);
    let several = rules.len() > 1;
    let first = model.routes.len();
    for (index, item) in rules.iter().enumerate() {
        let Some(rule) = item.fields() else {
            item.lost("not a rule", &mut notes);
            continue;
        };
        let name = format!("{}-{}", object.name.name, index + 1);
        let name = if several { name } else { object.name.name.clone() };
        let mut route = Route::new(item.at, Object::new(&object.name.namespace, name), 0);
        let Some(port) = rule.parsed::<u16>("port").filter(|&port| port > 0) else {
            item.lost("it has no port", &mut notes);
            continue;
        };
        let protocol = match rule.text("host") {
            None => Protocol::Tcp,
            Some(name) => {
                let Some(name) = host(name) else {
                    item.lost("its host is no host name", &mut notes);
                    continue;
                };
                if protocols != "tls_passthrough" {
                    let own = secrets.get(name.as_str()).into_iter().chain(&for_all);
                    let first = own.min_by_key(|(number, _)| *number);
                    let certificate = first.map(|(_, certificate)| certificate.clone());
                    let certificates = vec![certificate.unwrap_or(Certificate::Unknown)];
                    route.tls = Some(Termination { certificates, client_ca: None });
                }
                route.hosts.push(name);
                Protocol::Tls
            }
        };
        match rule.map("backend").and_then(|backend| service(cluster, object, &backend, item, model)) {
            Some(pool) => route.backends.push((pool, 1)),
            None => item.lost("its backend has no Service or no port number", &mut route.notes),
        }
        rule.rest(&mut route.notes);
        let listener_name = format!("port-{port}");
        let mut listener = Listener::new(item.at, listener_name, gateway.clone(), protocol);
        listener.binds = any_address(port);
        route.listener = model.listener(listener);
        if model.listeners[route.listener].protocol == protocol {
            model.route(route);
        } else {
            item.lost("rules with and without host on one port", &mut notes);
        }
    }
    match model.routes.get_mut(first) {
        Some(route) => route.notes.append(&mut notes),
        None => model.notes.append(&mut notes),
    }
}

fn service(
    cluster: &Cluster<'_>,
    object: &Manifest<'_>,
    backend: &Fields<'_>,
    item: &Item<'_>,
    model: &mut Model,
) -> Option<usize> {
    let name = backend.text("serviceName").filter(|name| is_object_name(name))?;
    let service = Object::new(&object.name.namespace, name);
    let port = cluster.port(&service, backend.text("servicePort")?)?;
    let servers = Servers::Service { service, port, subset: None };
    Some(model.service_pool(Pool::new(item.at, name, servers)))
}
