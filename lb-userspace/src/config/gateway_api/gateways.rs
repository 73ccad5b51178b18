//! Gateways: which are ours, where they are, what hangs on them, and what is said of them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::claims::{Claims, mark_overlaps, reject_equal};
use super::context::{Definitions, Lacking};
use super::gateway::Gateway;
use super::index::by_age;
use super::key::{Key, Kind};
use super::listeners::Listener;
use super::objects::{Object, Spec};
use super::specs::{ListenerSetSpec, ListenerSpec, ParentRef};
use super::status::{
    ClassStatus, Condition, Fault, Feature, GatewayStatus, ListenerSetStatus, Status, Statuses, Truth,
};
use super::view::View;
use crate::config::controller::Mode;
use crate::config::diagnostic::quote;

/// Where something is served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Everywhere,
    /// Where addresses are assigned.
    Assigned,
    /// Where HTTPRoutes have the fields of the experimental channel.
    Experimental,
}

/// What the API calls what is served, in the order of the names.
const FEATURES: [(&str, Where); 47] = [
    ("BackendTLSPolicy", Where::Everywhere),
    ("BackendTLSPolicySANValidation", Where::Everywhere),
    ("GRPCRoute", Where::Everywhere),
    ("GRPCRouteNamedRouteRule", Where::Everywhere),
    ("Gateway", Where::Everywhere),
    ("GatewayAddressEmpty", Where::Assigned),
    ("GatewayBackendClientCertificate", Where::Everywhere),
    ("GatewayFrontendClientCertificateValidation", Where::Everywhere),
    ("GatewayFrontendClientCertificateValidationInsecureFallback", Where::Everywhere),
    ("GatewayHTTPListenerIsolation", Where::Everywhere),
    ("GatewayHTTPSListenerDetectMisdirectedRequests", Where::Everywhere),
    ("GatewayInfrastructure", Where::Everywhere),
    ("GatewayPort8080", Where::Everywhere),
    ("GatewayStaticAddresses", Where::Assigned),
    ("HTTPRoute", Where::Everywhere),
    ("HTTPRoute303RedirectStatusCode", Where::Everywhere),
    ("HTTPRoute307RedirectStatusCode", Where::Everywhere),
    ("HTTPRoute308RedirectStatusCode", Where::Everywhere),
    ("HTTPRouteBackendProtocolH2C", Where::Everywhere),
    ("HTTPRouteBackendProtocolWebSocket", Where::Everywhere),
    ("HTTPRouteBackendRequestHeaderModification", Where::Everywhere),
    ("HTTPRouteBackendTimeout", Where::Everywhere),
    ("HTTPRouteCORS", Where::Everywhere),
    ("HTTPRouteDestinationPortMatching", Where::Everywhere),
    ("HTTPRouteHostRewrite", Where::Everywhere),
    ("HTTPRouteMethodMatching", Where::Everywhere),
    ("HTTPRouteNamedRouteRule", Where::Everywhere),
    ("HTTPRouteParentRefPort", Where::Everywhere),
    ("HTTPRoutePathRedirect", Where::Everywhere),
    ("HTTPRoutePathRewrite", Where::Everywhere),
    ("HTTPRoutePortRedirect", Where::Everywhere),
    ("HTTPRouteQueryParamMatching", Where::Everywhere),
    ("HTTPRouteRequestMirror", Where::Everywhere),
    ("HTTPRouteRequestMultipleMirrors", Where::Everywhere),
    ("HTTPRouteRequestPercentageMirror", Where::Everywhere),
    ("HTTPRouteRequestTimeout", Where::Everywhere),
    ("HTTPRouteResponseHeaderModification", Where::Everywhere),
    ("HTTPRouteRetry", Where::Experimental),
    ("HTTPRouteRetryBackendTimeout", Where::Experimental),
    ("HTTPRouteRetryConnectionError", Where::Experimental),
    ("HTTPRouteSchemeRedirect", Where::Everywhere),
    ("ListenerSet", Where::Everywhere),
    ("ReferenceGrant", Where::Everywhere),
    ("TCPRoute", Where::Everywhere),
    ("TLSRoute", Where::Everywhere),
    ("TLSRouteModeMixed", Where::Everywhere),
    ("TLSRouteModeTerminate", Where::Everywhere),
];

/// The Gateway API is known up to v1 of this minor version.
const LATEST_MINOR: u8 = 6;

/// The Gateways of our classes, and what hangs on them.
pub(super) struct Gateways<'i> {
    /// The oldest first.
    list: Vec<Gateway<'i>>,
    sets: Vec<Set<'i>>,
    /// Of all Gateways: each one's own, then those of its ListenerSets.
    pub(super) listeners: Vec<Listener<'i>>,
    /// The listeners of each Gateway and ListenerSet of ours.
    by_owner: HashMap<&'i Key, Vec<usize>>,
}

struct Set<'i> {
    object: &'i Object,
    gateway: &'i Key,
    fault: Option<Fault>,
}

impl<'i> Gateways<'i> {
    /// Looks at all Gateways of our classes, and writes the statuses of these classes.
    pub(super) fn new(view: &mut View<'i>, statuses: &mut Statuses) -> Self {
        let classes = classes(view, statuses);
        let objects = view.all(Kind::Gateway).chain(view.all(Kind::IstioGateway));
        let settings = &view.index.settings;
        let gateways = by_age(objects, |object| match &object.spec {
            Spec::Gateway(spec) if classes.contains(&*spec.gateway_class_name) => Some(&**spec),
            Spec::IstioGateway(spec) if settings.is_selected(&spec.selector) => Some(&spec.gateway),
            _ => None,
        });
        let sets = by_age(view.all(Kind::ListenerSet), |object| match &object.spec {
            Spec::ListenerSet(spec) => Some(&**spec),
            _ => None,
        });
        let mut sets_of: HashMap<Key, Vec<(&Object, &ListenerSetSpec)>> = HashMap::new();
        for (object, spec) in sets {
            let parent = spec.parent_ref.key(&object.key.name.namespace);
            if let Some(parent) = parent.filter(|parent| parent.kind == Kind::Gateway) {
                sets_of.entry(parent).or_default().push((object, spec));
            }
        }
        let mut all =
            Gateways { list: Vec::new(), sets: Vec::new(), listeners: Vec::new(), by_owner: HashMap::new() };
        // The listeners of each Gateway and ListenerSet: since when they are there, and the Gateway that they are of.
        let mut claimants: Vec<(&str, usize, Range<usize>)> = Vec::new();
        for (object, spec) in gateways {
            let gateway = all.list.len();
            all.list.push(Gateway::new(object, spec, view));
            let first = all.listeners.len();
            for (number, listener) in spec.listeners.iter().enumerate() {
                all.add(view, &object.key, gateway, number, listener);
            }
            all.by_owner.entry(&object.key).or_default();
            // Of Istio's, the first has it.
            if object.key.kind == Kind::Gateway {
                reject_equal(&mut all.listeners[first..]);
            }
            claimants.push((&object.created, gateway, first..all.listeners.len()));
            for (set, set_spec) in sets_of.remove(&object.key).into_iter().flatten() {
                let fault = all.list[gateway].refuses(view, set);
                all.by_owner.entry(&set.key).or_default();
                if fault.is_none() {
                    let first = all.listeners.len();
                    for (number, listener) in set_spec.listeners.iter().enumerate() {
                        all.add(view, &set.key, gateway, number, listener);
                    }
                    let since = (&*set.created).max(&object.created);
                    claimants.push((since, gateway, first..all.listeners.len()));
                }
                all.sets.push(Set { object: set, gateway: &object.key, fault });
            }
        }
        // Whoever came first. Stable: of equally old ones the older Gateway, and a Gateway before its ListenerSets.
        claimants.sort_by_key(|(since, ..)| *since);
        let mut claims = Claims::new(view.index.settings.max_ports);
        for (_, gateway, listeners) in claimants {
            for listener in &mut all.listeners[listeners] {
                let own = listener.owner;
                let lets_in = |other: usize| all.list[other].lets_in(view, &own.name.namespace);
                claims.claim(listener, gateway, lets_in);
            }
        }
        mark_overlaps(&mut all.listeners);
        all.refuse(view, &classes, statuses);
        all
    }

    /// Says of Gateways and ListenerSets that cannot be read why they are not accepted.
    fn refuse(&self, view: &View<'_>, classes: &HashSet<Box<str>>, statuses: &mut Statuses) {
        for object in view.all(Kind::Gateway).chain(view.all(Kind::ListenerSet)) {
            let Some(unread) = object.as_unread() else { continue };
            let fault = Fault::new("Invalid", unread.refusal.to_string());
            let conditions = ["Accepted", "Programmed"]
                .map(|kind| Condition::of(kind, "", Some(&fault), object.generation))
                .to_vec();
            let parent = |parent: &ParentRef| {
                let key = parent.key(&object.key.name.namespace);
                key.is_some_and(|key| key.kind == Kind::Gateway && self.listeners_of(&key).is_some())
            };
            let status = if object.key.kind == Kind::Gateway && classes.contains(&unread.class) {
                Status::Gateway(GatewayStatus {
                    addresses: Vec::new(),
                    conditions,
                    listeners: Vec::new(),
                    attached_listener_sets: 0,
                    ports: BTreeSet::new(),
                })
            } else if unread.parents.iter().any(parent) {
                Status::ListenerSet(ListenerSetStatus { conditions, listeners: Vec::new() })
            } else {
                continue;
            };
            statuses.insert(object.key.clone(), status.into());
        }
    }

    /// The listeners of a Gateway or ListenerSet; `None`: it is not of ours.
    pub(super) fn listeners_of(&self, owner: &Key) -> Option<&[usize]> {
        self.by_owner.get(owner).map(Vec::as_slice)
    }

    fn add(
        &mut self,
        view: &mut View<'i>,
        owner: &'i Key,
        gateway: usize,
        number: usize,
        spec: &'i ListenerSpec,
    ) {
        let listener = Listener::new(view, owner, &mut self.list[gateway], number, spec);
        self.by_owner.entry(owner).or_default().push(self.listeners.len());
        self.listeners.push(listener);
    }
}

/// The classes that are ours, and good.
fn classes(view: &View<'_>, statuses: &mut Statuses) -> HashSet<Box<str>> {
    let mut ours = HashSet::new();
    let settings = &view.index.settings;
    for object in view.all(Kind::GatewayClass) {
        let Spec::GatewayClass(class) = &object.spec else { continue };
        if *class.controller_name != *settings.controller {
            continue;
        }
        let fault = class.parameters_ref.is_some().then(|| {
            Fault::new(
                "InvalidParameters",
                "`spec.parametersRef` names something that this controller does not know",
            )
        });
        if fault.is_none() {
            ours.insert(Box::from(&*object.key.name.name));
        }
        let accepted = Condition::of("Accepted", "Accepted", fault.as_ref(), object.generation);
        let mut conditions = vec![accepted];
        if !view.context.definitions.is_empty() {
            let fault = unsupported(&view.context.definitions);
            let supported = "SupportedVersion";
            conditions.push(Condition::of(supported, supported, fault.as_ref(), object.generation));
        }
        // In files they can have all fields.
        let definitions = &view.context.definitions;
        let is_experimental = definitions.is_empty()
            || definitions.get("httproutes").is_some_and(|routes| routes.is_experimental);
        let is_here = |(_, on): &&(&str, Where)| match on {
            Where::Everywhere => true,
            Where::Assigned => settings.mode != Mode::Node,
            Where::Experimental => is_experimental,
        };
        let names = FEATURES.iter().filter(is_here);
        let supported_features = names.map(|(name, _)| Feature { name }).collect();
        let status = ClassStatus { conditions, supported_features };
        statuses.insert(object.key.clone(), Status::Class(status).into());
    }
    ours
}

/// The first definition of a version that is not known, or without one. It is tried all the same.
fn unsupported(definitions: &Definitions) -> Option<Fault> {
    let is_known = |version: &str| {
        let mut parts = version.strip_prefix('v').unwrap_or_default().split('.');
        let minor = (parts.next() == Some("1")).then(|| parts.next()).flatten();
        minor.and_then(|minor| minor.parse::<u8>().ok()).is_some_and(|minor| minor <= LATEST_MINOR)
    };
    definitions.iter().find_map(|(name, definition)| {
        let what = match &definition.version {
            None => "has no version".to_owned(),
            Some(version) if !is_known(version) => format!("is of version {}", quote(version)),
            Some(_) => return None,
        };
        let message = format!("{name} {what}; known are v1.0 to v1.{LATEST_MINOR}");
        Some(Fault::new("UnsupportedVersion", message))
    })
}

/// The listeners whose ports this machine cannot give.
pub(super) fn lacking(gateways: &Gateways<'_>) -> Lacking {
    let mut lacking = Lacking::new();
    for listener in &gateways.listeners {
        let Some(why) = &listener.lacks_port else { continue };
        let of_owner = lacking.entry(listener.owner.clone()).or_default();
        of_owner.insert(listener.spec.name.clone(), why.clone());
    }
    lacking
}

/// Writes the statuses of Gateways and ListenerSets.
pub(super) fn statuses(gateways: &Gateways<'_>, statuses: &mut Statuses) {
    let listeners = |owner: &Key| gateways.by_owner[owner].iter().map(|number| &gateways.listeners[*number]);
    let mut sets_of: HashMap<&Key, usize> = HashMap::new();
    let mut ports_of: HashMap<&Key, BTreeSet<u16>> = HashMap::new();
    let ports = |owner| listeners(owner).filter(|listener| listener.is_for_clients()).map(Listener::port);
    for set in &gateways.sets {
        ports_of.entry(set.gateway).or_default().extend(ports(&set.object.key));
        let generation = set.object.generation;
        let invalid = || Fault::new("ListenersNotValid", "none of its listeners takes connections");
        let is_good = listeners(&set.object.key).any(Listener::is_programmed_everywhere);
        let fault = set.fault.clone().or_else(|| (!is_good).then(invalid));
        *sets_of.entry(set.gateway).or_default() += usize::from(fault.is_none());
        let some_bad = listeners(&set.object.key).any(|listener| !listener.is_programmed_everywhere());
        let reason = if some_bad { "ListenersNotValid" } else { "Accepted" };
        let status = ListenerSetStatus {
            conditions: vec![
                Condition::of("Accepted", reason, fault.as_ref(), generation),
                Condition::of("Programmed", "Programmed", fault.as_ref(), generation),
            ],
            listeners: listeners(&set.object.key).map(|each| each.status(generation)).collect(),
        };
        statuses.insert(set.object.key.clone(), Status::ListenerSet(status).into());
    }
    for gateway in &gateways.list {
        let key = &gateway.object.key;
        let mut status = gateway.status(&listeners(key).collect::<Vec<_>>());
        status.attached_listener_sets = sets_of.get(key).copied().unwrap_or_default();
        status.ports = ports_of.remove(key).unwrap_or_default();
        status.ports.extend(ports(key));
        statuses.insert(key.clone(), Status::Gateway(status).into());
    }
}

impl Gateway<'_> {
    fn status(&self, listeners: &[&Listener<'_>]) -> GatewayStatus {
        let generation = self.object.generation;
        let bad: Vec<_> = listeners.iter().filter(|listener| !listener.is_accepted()).collect();
        let names: Vec<_> = bad.iter().map(|listener| quote(&listener.spec.name)).collect();
        let not_valid = || {
            Fault::new("ListenersNotValid", format!("listeners that are not accepted: {}", names.join(", ")))
        };
        let fault =
            self.fault.clone().or_else(|| (!bad.is_empty() && bad.len() == listeners.len()).then(not_valid));
        let mut accepted = Condition::of("Accepted", "Accepted", fault.as_ref(), generation);
        if fault.is_none() && !bad.is_empty() {
            let Fault { reason, message } = not_valid();
            (accepted.reason, accepted.message) = (reason, message);
        }
        let is_idle =
            !listeners.is_empty() && !listeners.iter().any(|listener| listener.is_programmed_everywhere());
        let not_programmed = match &fault {
            Some(_) => Some(Fault::new("Invalid", "it is not accepted")),
            None => self.addresses_fault.clone().or_else(|| {
                is_idle.then(|| Fault::new("Invalid", "none of its listeners takes connections"))
            }),
        };
        let mut conditions = vec![
            accepted,
            Condition::of("Programmed", "Programmed", not_programmed.as_ref(), generation),
            Condition::of("ResolvedRefs", "ResolvedRefs", self.backend_fault.as_ref(), generation),
        ];
        if self.insecure {
            conditions.push(Condition {
                kind: "InsecureFrontendValidationMode",
                status: Truth::True,
                reason: "ConfigurationChanged",
                message: "clients are let in whose certificates cannot be verified".into(),
                observed_generation: generation,
            });
        }
        GatewayStatus {
            addresses: self.addresses.clone(),
            conditions,
            listeners: listeners.iter().map(|listener| listener.status(generation)).collect(),
            attached_listener_sets: 0,
            ports: BTreeSet::new(),
        }
    }
}
