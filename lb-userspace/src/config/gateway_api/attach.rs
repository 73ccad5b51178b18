//! Routes and what they hang on: which listeners take which routes.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;

use super::gateways::Gateways;
use super::hostname::{self, Hosts, intersection};
use super::index::{View, by_age, route_of};
use super::key::{Key, Kind};
use super::listeners::Listener;
use super::objects::Object;
use super::pools;
use super::references::admits;
use super::requests::RequestRule;
use super::specs::{BackendRef, FromNamespaces, ParentRef, RouteSpec};
use super::status::{Condition, Fault, RouteParentStatus, RouteStatus, Status, Statuses, Truth};
use crate::config::diagnostic::quote;
use crate::config::model::SniPattern;

/// A route and the listeners that have accepted it.
pub(super) struct Attached<'i> {
    pub(super) key: &'i Key,
    /// Which of several routes of the object it is.
    pub(super) part: Option<&'i str>,
    pub(super) work: Work<'i>,
    /// Indices of listeners, each with the names that both have; no listener twice.
    pub(super) listeners: Vec<(usize, Vec<SniPattern>)>,
}

/// What it routes.
pub(super) enum Work<'i> {
    Connections(Connections<'i>),
    /// Of HTTP.
    Requests(&'i [RequestRule]),
}

/// Where they go. Paths are where something stands in the object.
pub(super) struct Connections<'i> {
    pub(super) hosts_path: String,
    pub(super) backends_path: String,
    pub(super) backends: &'i [BackendRef],
}

/// Host names of HTTPRoutes and of GRPCRoutes that a listener has accepted.
type HttpHosts = HashMap<(usize, Kind), Hosts>;

/// Looks at all routes, the oldest first, and writes their statuses.
pub(super) fn routes<'i>(
    view: &mut View<'i>,
    gateways: &mut Gateways<'i>,
    statuses: &mut Statuses,
) -> Vec<Attached<'i>> {
    let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_route());
    let routes = by_age(kinds.flat_map(|kind| view.all(kind)), route_of);
    let mut attached = Vec::with_capacity(routes.len());
    let mut taken = HttpHosts::new();
    for (object, spec) in routes {
        attached.push(attach(view, gateways, &mut taken, statuses, object, spec));
    }
    for object in Kind::ALL.into_iter().filter(|kind| kind.is_route()).flat_map(|kind| view.all(kind)) {
        refuse(view, gateways, statuses, object);
    }
    attached
}

/// Says of a route that cannot be read why it is not accepted, to those of its parents that can be told.
fn refuse(view: &View<'_>, gateways: &Gateways<'_>, statuses: &mut Statuses, object: &Object) {
    let Some(unread) = object.as_unread() else { return };
    let fault = Fault::new("UnsupportedValue", unread.refusal.to_string());
    let is_ours = |parent: &&ParentRef| {
        let key = parent.key(&object.key.name.namespace);
        key.is_some_and(|key| gateways.listeners_of(&key).is_some())
    };
    let entry = |parent: &ParentRef| RouteParentStatus {
        parent_ref: parent.clone(),
        controller_name: Box::from(&*view.index.settings.controller),
        conditions: vec![Condition::of("Accepted", "", Some(&fault), object.generation)],
    };
    let parents: Vec<_> = unread.parents.iter().filter(is_ours).map(entry).collect();
    if !parents.is_empty() {
        statuses.insert(object.key.clone(), Status::Route(RouteStatus { parents }));
    }
}

fn attach<'i>(
    view: &mut View<'i>,
    gateways: &mut Gateways<'i>,
    taken: &mut HttpHosts,
    statuses: &mut Statuses,
    object: &'i Object,
    spec: &'i RouteSpec,
) -> Attached<'i> {
    let mut attached = Attached {
        key: &object.key,
        part: None,
        work: match object.key.kind {
            Kind::HttpRoute | Kind::GrpcRoute => Work::Requests(&spec.requests),
            _ => Work::Connections(Connections {
                hosts_path: "spec.hostnames".to_owned(),
                backends_path: "spec.rules[0].backendRefs".to_owned(),
                backends: spec.rules.first().map_or(&[], |rule| &rule.backend_refs),
            }),
        },
        listeners: Vec::new(),
    };
    let hosts: Result<Vec<SniPattern>, &str> =
        spec.hostnames.iter().map(|host| hostname::read(host).ok_or(&**host)).collect();
    let unserved = unserved(spec);
    let mut parents = Vec::new();
    let mut references = None;
    for parent in &spec.parent_refs {
        let Some(candidates) = parent
            .key(&object.key.name.namespace)
            .and_then(|key| gateways.listeners_of(&key))
            .map(<[usize]>::to_vec)
        else {
            continue;
        };
        let found = match &hosts {
            Err(host) => Err(Fault::new("UnsupportedValue", format!("{} is no host name", quote(host)))),
            Ok(hosts) => match &unserved {
                Some(fault) => Err(fault.clone()),
                None => accepting(view, gateways, taken, object, parent, &candidates, hosts),
            },
        };
        let references = references.get_or_insert_with(|| unresolved(view, object, spec));
        let generation = object.generation;
        let mut conditions = vec![
            Condition::of("Accepted", "Accepted", found.as_ref().err(), generation),
            Condition::of("ResolvedRefs", "ResolvedRefs", references.as_ref(), generation),
        ];
        conditions.extend(partly_served(object, spec).filter(|_| found.is_ok()));
        let controller_name = Box::from(&*view.index.settings.controller);
        parents.push(RouteParentStatus { parent_ref: parent.clone(), controller_name, conditions });
        for (listener, hosts) in found.into_iter().flatten() {
            if !attached.listeners.iter().any(|(known, _)| *known == listener) {
                gateways.listeners[listener].attached += 1;
                attached.listeners.push((listener, hosts));
            }
        }
    }
    if !parents.is_empty() {
        statuses.insert(object.key.clone(), Status::Route(RouteStatus { parents }));
    }
    attached
}

/// Of the listeners of a parent those that accept a route, with the names that both have; or why none does.
fn accepting(
    view: &mut View<'_>,
    gateways: &Gateways<'_>,
    taken: &mut HttpHosts,
    object: &Object,
    parent: &ParentRef,
    candidates: &[usize],
    hosts: &[SniPattern],
) -> Result<Vec<(usize, Vec<SniPattern>)>, Fault> {
    let key = &object.key;
    let is_meant = |listener: &Listener<'_>| {
        parent.section_name.as_deref().is_none_or(|name| name == &*listener.spec.name)
            && parent.port.is_none_or(|port| port == listener.port())
    };
    let mut found: Vec<_> =
        candidates.iter().copied().filter(|number| is_meant(&gateways.listeners[*number])).collect();
    if found.is_empty() {
        return Err(Fault::new("NoMatchingParent", "no listener has this name and port"));
    }
    found.retain(|number| {
        let listener = &gateways.listeners[*number];
        let own = &listener.owner.name.namespace;
        let allowed = &listener.spec.allowed_routes;
        listener.kinds.contains(&key.kind)
            && admits(view, allowed, FromNamespaces::Same, own, &key.name.namespace)
    });
    if found.is_empty() {
        let message =
            format!("no listener takes a {} of the namespace {}", key.kind.name(), key.name.namespace);
        return Err(Fault::new("NotAllowedByListeners", message));
    }
    let common = |number: usize| {
        let host = &gateways.listeners[number].host;
        let mut common: Vec<_> = match hosts {
            [] => vec![host.clone()],
            _ => hosts.iter().filter_map(|own| intersection(own, host)).collect(),
        };
        common.sort_by_cached_key(ToString::to_string);
        common.dedup();
        (number, common)
    };
    let mut found: Vec<_> = found.into_iter().map(common).filter(|(_, common)| !common.is_empty()).collect();
    if found.is_empty() {
        return Err(Fault::new("NoMatchingListenerHostname", "no listener has a host name of it"));
    }
    let other = match key.kind {
        Kind::HttpRoute => Kind::GrpcRoute,
        Kind::GrpcRoute => Kind::HttpRoute,
        _ => return Ok(found),
    };
    // The API: of an HTTPRoute and a GRPCRoute with common names on a listener, the older one is accepted.
    found.retain(|(number, common)| {
        let others = taken.get(&(*number, other));
        !others.is_some_and(|others| common.iter().any(|host| others.meets(host)))
    });
    if found.is_empty() {
        let message = format!("an older {} has a host name of it", other.name());
        return Err(Fault::new("NotAllowedByListeners", message));
    }
    for (number, common) in &found {
        let hosts = taken.entry((*number, key.kind)).or_default();
        common.iter().for_each(|host| hosts.insert(host));
    }
    Ok(found)
}

/// The first backend that a route cannot have, and why.
fn unresolved(view: &mut View<'_>, object: &Object, spec: &RouteSpec) -> Option<Fault> {
    let Key { kind, name } = &object.key;
    let backends = spec.rules.iter().flat_map(|rule| &rule.backend_refs);
    let of_requests = spec.requests.iter().flat_map(|rule| &rule.references).map(|named| &named.backend);
    backends
        .chain(of_requests)
        .filter_map(|backend| pools::resolve(view, *kind, &name.namespace, backend).err())
        .next()
}

/// Why nothing is served of a route of requests that has rules.
fn unserved(spec: &RouteSpec) -> Option<Fault> {
    let all_bad = !spec.requests.is_empty() && spec.requests.iter().all(|rule| rule.fault.is_some());
    all_bad.then(|| Fault::new("UnsupportedValue", told(spec).join("; ")))
}

/// What is to be said of the rules of requests that are not served.
fn told(spec: &RouteSpec) -> Vec<String> {
    spec.requests.iter().filter_map(RequestRule::told).collect()
}

/// What of a route is not served. Routes of connections have one rule: nothing could choose between several.
fn partly_served(object: &Object, spec: &RouteSpec) -> Option<Condition> {
    let message = match told(spec) {
        told if !told.is_empty() => told.join("; "),
        _ if spec.rules.len() > 1 => "only the first of `spec.rules` is served".to_owned(),
        _ => return None,
    };
    Some(Condition {
        kind: "PartiallyInvalid",
        status: Truth::True,
        reason: "UnsupportedValue",
        message: message.into(),
        observed_generation: object.generation,
    })
}
