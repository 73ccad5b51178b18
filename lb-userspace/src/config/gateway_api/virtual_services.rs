//! VirtualServices and what they hang on, and what is said of them and of DestinationRules.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use super::attach::{Attached, Connections, Work, services};
use super::gateways::Gateways;
use super::istio::{DestinationRule, Rule, VirtualService, is_exported};
use super::kept::Taken;
use super::key::{ISTIO, Key, Kind};
use super::listeners::{Listener, Use};
use super::objects::{Object, Spec};
use super::pools;
use super::references::admits;
use super::specs::{FromNamespaces, ParentRef};
use super::status::{Condition, Fault, RouteParentStatus, RouteStatus, RuleStatus, Status, Statuses, Truth};
use super::view::View;
use crate::config::hostname::intersection;
use crate::config::model::SniPattern;

/// Looks at all VirtualServices, the oldest first, and writes what becomes of them.
pub(super) fn routes<'i>(
    view: &mut View<'i>,
    gateways: &mut Gateways<'i>,
    statuses: &mut Statuses,
) -> Vec<Attached<'i>> {
    let mut attached = Vec::new();
    for (object, spec) in view.virtual_services() {
        let taken = view.remembered(
            |memo| &mut memo.taken,
            object.key.clone(),
            |_| true,
            |view| Taken::new(view, gateways, object, spec),
        );
        for listener in &taken.attached {
            gateways.listeners[*listener].attached += 1;
        }
        if let Some(status) = &taken.status {
            statuses.insert(object.key.clone(), status.clone());
        }
        let rules = spec.rules.iter().zip(&taken.rules);
        for (rule, (listeners, services)) in rules.filter(|(_, (listeners, _))| !listeners.is_empty()) {
            attached.push(Attached {
                key: &object.key,
                part: Some(&rule.name),
                work: work(rule),
                listeners: listeners.clone(),
                services: services.clone(),
            });
        }
    }
    attached
}

fn work(rule: &Rule) -> Work<'_> {
    match &rule.request {
        Some(request) => Work::Requests(std::slice::from_ref(request)),
        None => Work::Connections(Connections {
            hosts_path: match rule.is_tls {
                true => format!("{}.match", rule.path).into(),
                false => "spec.hosts".into(),
            },
            backends_path: format!("{}.route", rule.path).into(),
            backends: &rule.backends,
        }),
    }
}

impl Taken {
    fn new(view: &mut View<'_>, gateways: &Gateways<'_>, object: &Object, spec: &VirtualService) -> Self {
        view.note(object.key.clone());
        let own = &object.key.name.namespace;
        let mut listeners_of: Vec<Vec<(usize, Vec<SniPattern>)>> = vec![Vec::new(); spec.rules.len()];
        // Those of ours, and on which of their listeners it is; `None`: it is not for them.
        let mut ours: Vec<(&Key, Option<BTreeSet<usize>>)> = Vec::new();
        for gateway in &spec.gateways {
            let Some(candidates) = gateways.listeners_of(gateway) else { continue };
            if !is_exported(&spec.export_to, own, &gateway.name.namespace) {
                ours.push((gateway, None));
                continue;
            }
            let mut found = BTreeSet::new();
            for (rule, listeners) in spec.rules.iter().zip(&mut listeners_of) {
                if rule.gateways.as_ref().is_none_or(|named| named.contains(gateway)) {
                    let taking = taking(view, gateways, object, spec, rule, candidates);
                    found.extend(taking.iter().map(|(listener, _)| *listener));
                    listeners.extend(taking);
                }
            }
            ours.push((gateway, Some(found)));
        }
        if ours.is_empty() {
            return Self::default();
        }
        let mut amiss = spec.unserved.clone();
        let is_ours = |rule: &Rule| match &rule.gateways {
            Some(named) => ours.iter().any(|(gateway, _)| named.contains(gateway)),
            None => true,
        };
        let idle = spec.rules.iter().zip(&listeners_of);
        let idle = idle.filter(|(rule, listeners)| listeners.is_empty() && is_ours(rule));
        amiss.extend(
            idle.map(|(rule, _)| format!("{}: no server of its Gateways takes these clients", rule.path)),
        );
        let hidden = ["spec.exportTo keeps it from the Gateway's namespace".to_owned()];
        let (mut rules, mut references) = (Vec::with_capacity(spec.rules.len()), None);
        for (rule, listeners) in spec.rules.iter().zip(listeners_of) {
            let of_requests = rule.request.iter().flat_map(|request| &request.backends);
            let backends = rule.backends.iter().chain(of_requests);
            let (services, fault) = services(view, &object.key, backends);
            let follows = listeners.iter().any(|(number, _)| gateways.listeners[*number].follows_policies());
            let unseen = follows.then(|| pools::unseen(view, &services)).flatten();
            references = references.or(fault).or(unseen);
            rules.push((listeners.into(), services));
        }
        let (mut attached, mut parents) = (Vec::new(), Vec::new());
        for (gateway, found) in ours {
            let is_attached = found.as_ref().is_some_and(|found| !found.is_empty());
            let amiss = if found.is_some() { &amiss[..] } else { &hidden };
            parents.push(parent(view, object, gateway, amiss, is_attached, references.as_ref()));
            attached.extend(found.into_iter().flatten());
        }
        Self { rules, attached, status: Some(Status::Route(RouteStatus { parents }).into()) }
    }
}

/// Of the listeners of a Gateway those that take the clients of a rule, with the names that both have.
fn taking(
    view: &mut View<'_>,
    gateways: &Gateways<'_>,
    object: &Object,
    spec: &VirtualService,
    rule: &Rule,
    candidates: &[usize],
) -> Vec<(usize, Vec<SniPattern>)> {
    let mut found = Vec::new();
    for number in candidates {
        let listener = &gateways.listeners[*number];
        let is_meant = rule.port.is_none_or(|port| port == listener.port()) && is_for(listener, rule);
        let own = &listener.owner.name.namespace;
        let allowed = &listener.spec.allowed_routes;
        if !is_meant || !admits(view, allowed, FromNamespaces::All, own, &object.key.name.namespace) {
            continue;
        }
        let mut common = match listener.is_for {
            // A whole server, whose hosts only say whose VirtualServices it takes.
            Some(Use::Tcp) => {
                let servers = listener.spec.istio.as_ref().map_or(&[][..], |server| &server.hosts);
                let meets =
                    |host: &SniPattern| spec.hosts.iter().any(|own| intersection(own, host).is_some());
                if servers.is_empty() || servers.iter().any(meets) {
                    vec![SniPattern::Any]
                } else {
                    Vec::new()
                }
            }
            _ => rule.hosts.iter().filter_map(|host| intersection(host, &listener.host)).collect(),
        };
        common.sort_by_cached_key(ToString::to_string);
        common.dedup();
        if !common.is_empty() {
            found.push((*number, common));
        }
    }
    found
}

/// Rules of `tls` are for clients whose TLS is passed through, those of `tcp` for what is plain here, and those of `http` for
/// requests.
fn is_for(listener: &Listener<'_>, rule: &Rule) -> bool {
    match listener.is_for {
        Some(Use::Passthrough) => rule.is_tls && !listener.is_auto_passthrough(),
        Some(Use::Terminate | Use::Tcp) => !rule.is_tls && rule.request.is_none(),
        Some(Use::Http | Use::Https) => rule.request.is_some(),
        None => false,
    }
}

fn parent(
    view: &View<'_>,
    object: &Object,
    gateway: &Key,
    amiss: &[String],
    is_attached: bool,
    references: Option<&Fault>,
) -> RouteParentStatus {
    let generation = object.generation;
    let message = || amiss.join("; ");
    let fault = (!is_attached).then(|| Fault::new("UnsupportedValue", message()));
    let mut conditions = vec![
        Condition::of("Accepted", "Accepted", fault.as_ref(), generation),
        Condition::of("ResolvedRefs", "ResolvedRefs", references, generation),
    ];
    conditions.extend((is_attached && !amiss.is_empty()).then(|| Condition {
        kind: "PartiallyInvalid",
        status: Truth::True,
        reason: "UnsupportedValue",
        message: message().into(),
        observed_generation: generation,
    }));
    let parent_ref = ParentRef {
        group: Some(ISTIO.into()),
        kind: Some(gateway.kind.name().into()),
        namespace: Some(Box::from(&*gateway.name.namespace)),
        name: Box::from(&*gateway.name.name),
        section_name: None,
        port: None,
    };
    RouteParentStatus { parent_ref, controller_name: Box::from(&*view.index.settings.controller), conditions }
}

/// Says of DestinationRules what of them has no effect.
pub(super) fn rule_statuses(view: &mut View<'_>, statuses: &mut Statuses) {
    for object in view.all(Kind::DestinationRule) {
        let Spec::DestinationRule(rule) = &object.spec else { continue };
        let status = view.remembered(
            |memo| &mut memo.rule_statuses,
            object.key.clone(),
            |_| true,
            |view| {
                view.note(object.key.clone());
                rule_status(object, rule)
            },
        );
        statuses.insert(object.key.clone(), status);
    }
}

fn rule_status(object: &Object, rule: &DestinationRule) -> Status {
    let fault = (!rule.is_exported)
        .then(|| Fault::new("UnsupportedValue", "spec.exportTo keeps it from other namespaces"));
    let mut accepted = Condition::of("Accepted", "Accepted", fault.as_ref(), object.generation);
    if fault.is_none() && !rule.ignored.is_empty() {
        accepted.message = format!("without effect: {}", rule.ignored.join(", ")).into();
    }
    Status::Rule(RuleStatus { conditions: vec![accepted] })
}
