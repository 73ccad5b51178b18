//! Routes and what they hang on: which listeners take which routes.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::gateways::Gateways;
use super::kept::{Accepting, Listeners, Offer, Outcome, Services};
use super::key::{Key, Kind};
use super::listeners::Listener;
use super::objects::Object;
use super::pools;
use super::references::admits;
use super::route::{RequestRule, RouteSpec};
use super::specs::{BackendRef, FromNamespaces, ParentRef};
use super::status::{Condition, Fault, RouteParentStatus, RouteStatus, Status, Statuses, Truth};
use super::view::View;
use crate::config::diagnostic::quote;
use crate::config::hostname::{self, Hosts, intersection};
use crate::config::model::SniPattern;

/// A route and the listeners that have accepted it.
pub(super) struct Attached<'i> {
    pub(super) key: &'i Key,
    /// Which of several routes of the object it is.
    pub(super) part: Option<&'i str>,
    pub(super) work: Work<'i>,
    pub(super) listeners: Listeners,
    pub(super) services: Services,
}

/// What it routes.
pub(super) enum Work<'i> {
    Connections(Connections<'i>),
    /// Of HTTP.
    Requests(&'i [RequestRule]),
}

/// Where they go. Paths are where something stands in the object.
pub(super) struct Connections<'i> {
    pub(super) hosts_path: Cow<'static, str>,
    pub(super) backends_path: Cow<'static, str>,
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
    let mut attached = Vec::new();
    let has = |kind| view.all(kind).next().is_some();
    let mut taken = (has(Kind::HttpRoute) && has(Kind::GrpcRoute)).then(HttpHosts::new);
    for (object, spec) in view.routes() {
        let offer = view.remembered(
            |memo| &mut memo.offers,
            object.key.clone(),
            |_| true,
            |view| offer(view, gateways, object, spec),
        );
        let outcome = match &mut taken {
            Some(taken) => beside_others(view, taken, object, spec, &offer),
            None => offer.outcome.clone(),
        };
        let Outcome { listeners, status } = outcome;
        // Rules that only answer with 500 are there, and their route is not accepted.
        let is_accepted = !is_unserved(spec);
        for (listener, _) in listeners.iter().filter(|_| is_accepted) {
            gateways.listeners[*listener].attached += 1;
        }
        if let Some(status) = status {
            statuses.insert(object.key.clone(), status);
        }
        attached.push(Attached {
            key: &object.key,
            part: None,
            work: match object.key.kind {
                Kind::HttpRoute | Kind::GrpcRoute => Work::Requests(&spec.requests),
                _ => Work::Connections(Connections {
                    hosts_path: "spec.hostnames".into(),
                    backends_path: "spec.rules[0].backendRefs".into(),
                    backends: spec.rules.first().map_or(&[], |rule| &rule.backend_refs),
                }),
            },
            listeners,
            services: offer.services.clone(),
        });
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
        statuses.insert(object.key.clone(), Status::Route(RouteStatus { parents }).into());
    }
}

/// What a route finds at its parents.
fn offer(view: &mut View<'_>, gateways: &Gateways<'_>, object: &Object, spec: &RouteSpec) -> Offer {
    view.note(object.key.clone());
    let hosts: Result<Vec<SniPattern>, &str> =
        spec.hostnames.iter().map(|host| hostname::read(host).ok_or(&**host)).collect();
    let left_out = unserved(spec).filter(|_| spec.requests.iter().all(|rule| rule.rule.is_none()));
    let mut parents = Vec::new();
    for (number, parent) in spec.parent_refs.iter().enumerate() {
        let key = parent.key(&object.key.name.namespace);
        let Some(candidates) = key.and_then(|key| gateways.listeners_of(&key)) else { continue };
        let found = match &hosts {
            Err(host) => Err(Fault::new("UnsupportedValue", format!("{} is no host name", quote(host)))),
            Ok(hosts) => match &left_out {
                Some(fault) => Err(fault.clone()),
                None => accepting(view, gateways, object, parent, candidates, hosts),
            },
        };
        parents.push((number, found));
    }
    let of_requests = spec.requests.iter().flat_map(|rule| &rule.backends);
    let backends = spec.rules.iter().flat_map(|rule| &rule.backend_refs).chain(of_requests);
    let (services, references) =
        if parents.is_empty() { (Arc::default(), None) } else { services(view, &object.key, backends) };
    let mut accepting = parents.iter().flat_map(|(_, found)| found).flatten();
    let references = match accepting.any(|(number, _)| gateways.listeners[*number].follows_policies()) {
        true => references.or_else(|| pools::unseen(view, &services)),
        false => references,
    };
    let outcome = Outcome::new(view, object, spec, &parents, references.as_ref());
    Offer { parents, references, services, outcome }
}

impl Outcome {
    fn new(
        view: &View<'_>,
        object: &Object,
        spec: &RouteSpec,
        parents: &[(usize, Accepting)],
        references: Option<&Fault>,
    ) -> Self {
        let mut listeners: Vec<(usize, Vec<SniPattern>)> = Vec::new();
        let generation = object.generation;
        let unserved = unserved(spec);
        let mut told = Vec::with_capacity(parents.len());
        for (number, found) in parents {
            let fault = found.as_ref().err().or(unserved.as_ref());
            let mut conditions = vec![
                Condition::of("Accepted", "Accepted", fault, generation),
                Condition::of("ResolvedRefs", "ResolvedRefs", references, generation),
            ];
            conditions.extend(partly_served(object, spec).filter(|_| fault.is_none()));
            let controller_name = Box::from(&*view.index.settings.controller);
            let parent_ref = spec.parent_refs[*number].clone();
            told.push(RouteParentStatus { parent_ref, controller_name, conditions });
            for (listener, hosts) in found.iter().flatten() {
                if !listeners.iter().any(|(known, _)| known == listener) {
                    listeners.push((*listener, hosts.clone()));
                }
            }
        }
        let status = (!told.is_empty()).then(|| Status::Route(RouteStatus { parents: told }).into());
        Self { listeners: listeners.into(), status }
    }
}

/// The API: of an HTTPRoute and a GRPCRoute with common names on a listener, the older one is accepted.
fn beside_others(
    view: &View<'_>,
    taken: &mut HttpHosts,
    object: &Object,
    spec: &RouteSpec,
    offer: &Offer,
) -> Outcome {
    let kind = object.key.kind;
    let other = match kind {
        Kind::HttpRoute => Kind::GrpcRoute,
        Kind::GrpcRoute => Kind::HttpRoute,
        _ => return offer.outcome.clone(),
    };
    let is_free = |(number, common): &(usize, Vec<SniPattern>)| {
        let others = taken.get(&(*number, other));
        !others.is_some_and(|others| common.iter().any(|host| others.meets(host)))
    };
    let outcome = if offer.parents.iter().flat_map(|(_, found)| found).flatten().all(is_free) {
        offer.outcome.clone()
    } else {
        let left = |(number, found): &(usize, Accepting)| {
            let left = found.clone().and_then(|mut found| {
                found.retain(is_free);
                let message = || format!("an older {} has a host name of it", other.name());
                if found.is_empty() { Err(Fault::new("NotAllowedByListeners", message())) } else { Ok(found) }
            });
            (*number, left)
        };
        let parents: Vec<_> = offer.parents.iter().map(left).collect();
        Outcome::new(view, object, spec, &parents, offer.references.as_ref())
    };
    for (number, common) in &*outcome.listeners {
        let hosts = taken.entry((*number, kind)).or_default();
        common.iter().for_each(|host| hosts.insert(host));
    }
    outcome
}

/// Of the listeners of a parent those that accept a route, with the names that both have; or why none does.
fn accepting(
    view: &mut View<'_>,
    gateways: &Gateways<'_>,
    object: &Object,
    parent: &ParentRef,
    candidates: &[usize],
    hosts: &[SniPattern],
) -> Accepting {
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
    let found: Vec<_> = found.into_iter().map(common).filter(|(_, common)| !common.is_empty()).collect();
    if found.is_empty() {
        return Err(Fault::new("NoMatchingListenerHostname", "no listener has a host name of it"));
    }
    Ok(found)
}

/// The Services that backends of a route are, and the first that it cannot have, and why.
pub(super) fn services<'b>(
    view: &mut View<'_>,
    route: &Key,
    backends: impl Iterator<Item = &'b BackendRef>,
) -> (Services, Option<Fault>) {
    let (mut found, mut fault) = (BTreeSet::new(), None);
    for backend in backends {
        match pools::resolve(view, route.kind, &route.name.namespace, backend) {
            Ok(target) => _ = found.insert(target.service),
            Err(why) => _ = fault.get_or_insert(why),
        }
    }
    (found.into_iter().collect(), fault)
}

/// Why nothing is served of a route of requests that has rules. Those of them that have matches answer with 500 all the same:
/// without them the requests would go where another route sends them.
fn unserved(spec: &RouteSpec) -> Option<Fault> {
    is_unserved(spec).then(|| Fault::new("UnsupportedValue", told(spec).join("; ")))
}

fn is_unserved(spec: &RouteSpec) -> bool {
    !spec.requests.is_empty() && spec.requests.iter().all(|rule| rule.fault.is_some())
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
