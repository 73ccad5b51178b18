//! ingress-nginx: the ConfigMap of `--tcp-services-configmap`.

use super::model::{
    Extra, Listener, Model, Note, Object, PROXY_FROM_ANYBODY, Pool, Protocol, Route, Servers, any_address,
};
use super::objects::{Cluster, Manifest, is_object_name};
use super::yaml::Item;
use crate::config::quote;

const GATEWAY: &str = "ingress-nginx";

/// Whether an object is such a ConfigMap: each key is a port, and each value begins with a Service.
pub(super) fn is_one(object: &Manifest<'_>) -> bool {
    let data = || object.fields.peek("data")?.fields();
    let entry = |(key, item): &(&str, Item<'_>)| {
        key.parse::<u16>().is_ok() && item.text().is_some_and(|text| text.contains('/') && text.contains(':'))
    };
    (object.group, object.kind) == ("", "ConfigMap")
        && data().is_some_and(|data| {
            let entries = data.all();
            !entries.is_empty() && entries.iter().all(entry)
        })
}

/// Takes over such a ConfigMap.
pub(super) fn read(cluster: &Cluster<'_>, object: &Manifest<'_>, model: &mut Model) {
    let Some(data) = object.fields.map("data") else { return };
    if object.name.name.contains("udp") {
        let text = format!("ConfigMap {}: UDP", object.name);
        return model.notes.push(Note::lost(object.fields.at(), text));
    }
    for (port, item) in data.all() {
        if entry(cluster, port, &item, object, model).is_none() {
            item.lost("it is not NAMESPACE/SERVICE:PORT", &mut model.notes);
        }
    }
}

/// `NAMESPACE/SERVICE:PORT[:PROXY][:PROXY]`: the first for PROXY headers of clients, the second for those to servers.
fn entry(
    cluster: &Cluster<'_>,
    port: &str,
    item: &Item<'_>,
    object: &Manifest<'_>,
    model: &mut Model,
) -> Option<()> {
    let port: u16 = port.parse().ok().filter(|&port| port > 0)?;
    let text = item.text()?;
    let mut parts = text.split(':');
    let (namespace, name) = parts.next()?.split_once('/')?;
    let service = Object::new(namespace, name);
    if !is_object_name(namespace) || !is_object_name(name) {
        return None;
    }
    let Some(number) = cluster.port(&service, parts.next()?) else {
        let text = format!(
            "{}: the number of its port is in the Service, which is not among the files",
            quote(text)
        );
        model.notes.push(Note::lost(item.at, text));
        return Some(());
    };
    let mut listener = Listener::new(
        item.at,
        format!("port-{port}"),
        Object::new(&object.name.namespace, GATEWAY),
        Protocol::Tcp,
    );
    listener.binds = any_address(port);
    let mut pool =
        Pool::new(item.at, name, Servers::Service { service: service.clone(), port: number, subset: None });
    match parts.next() {
        Some("PROXY") => {
            let text = format!("{}: {PROXY_FROM_ANYBODY}", quote(text));
            listener.notes.push(Note::lost(item.at, text));
        }
        None | Some("") => {}
        Some(_) => return None,
    }
    match parts.next() {
        Some("PROXY") => pool.extras.push(Extra::new("send_proxy", "\"v1\"", item.at, text)),
        None | Some("") => {}
        Some(_) => return None,
    }
    let mut route =
        Route::new(item.at, Object::new(namespace, format!("{name}-{port}")), model.listener(listener));
    route.backends.push((model.service_pool(pool), 1));
    model.route(route);
    Some(())
}
