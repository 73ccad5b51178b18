//! What is said of objects: conditions and statuses, as the API has them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::key::Key;
use super::specs::{ParentRef, RouteKind};

/// The statuses of all objects that this gateway is responsible for. One that has not changed may be that of the last build.
pub type Statuses = BTreeMap<Key, Arc<Status>>;

/// A condition, but for its time: that is the time of the writing, if `status` differs from what is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Accepted`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: Truth,
    /// One word of the API.
    pub reason: &'static str,
    /// For people.
    pub message: Box<str>,
    /// The generation of the object that was looked at.
    pub observed_generation: i64,
}

/// As conditions have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
}

impl std::fmt::Display for Truth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Truth::True => "True",
            Truth::False => "False",
        })
    }
}

/// Why something does not hold: a reason of the API, and words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: &'static str,
    pub(super) message: Box<str>,
}

impl Fault {
    pub(super) fn new(reason: &'static str, message: impl Into<Box<str>>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl Condition {
    /// One that holds unless there is a fault. `good`: the reason if it holds.
    pub(super) fn of(
        kind: &'static str,
        good: &'static str,
        fault: Option<&Fault>,
        observed_generation: i64,
    ) -> Self {
        let (status, reason, message) = match fault {
            None => (Truth::True, good, "".into()),
            Some(fault) => (Truth::False, fault.reason, fault.message.clone()),
        };
        Self { kind, status, reason, message, observed_generation }
    }
}

/// A status, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Status {
    /// Of a GatewayClass.
    Class(ClassStatus),
    /// Of a Gateway.
    Gateway(GatewayStatus),
    /// Of a ListenerSet.
    ListenerSet(ListenerSetStatus),
    /// Of a route; only the entries that are ours.
    Route(RouteStatus),
    /// Of a BackendTLSPolicy; only the entries that are ours.
    Policy(PolicyStatus),
    /// Of a DestinationRule, which has none in the API.
    Rule(RuleStatus),
}

/// The status of a GatewayClass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassStatus {
    /// `Accepted`.
    pub conditions: Vec<Condition>,
    /// What this controller can do, in the order of the names.
    pub supported_features: Vec<Feature>,
}

/// Something that the API names and not every controller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// `TLSRouteModeTerminate`.
    pub name: &'static str,
}

/// The status of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Where it can be reached.
    pub addresses: Vec<StatusAddress>,
    /// `Accepted`, `Programmed`, `ResolvedRefs`.
    pub conditions: Vec<Condition>,
    /// One for each of `spec.listeners`.
    pub listeners: Vec<ListenerStatus>,
    /// ListenerSets that have a good listener.
    pub attached_listener_sets: usize,
    /// The ports that a load balancer is to have for it; none of the API's.
    #[serde(skip)]
    pub ports: BTreeSet<u16>,
}

/// An address of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "type", content = "value")]
pub enum StatusAddress {
    /// An address; IPv4 sorts first.
    #[serde(rename = "IPAddress")]
    Ip(IpAddr),
    /// A name that leads to some.
    Hostname(Box<str>),
}

impl StatusAddress {
    /// The address, unless it is a name.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            StatusAddress::Ip(ip) => Some(*ip),
            StatusAddress::Hostname(_) => None,
        }
    }
}

/// The status of a ListenerSet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerSetStatus {
    /// `Accepted`, `Programmed`.
    pub conditions: Vec<Condition>,
    /// One for each of `spec.listeners`.
    pub listeners: Vec<ListenerStatus>,
}

/// The status of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// As in the spec.
    pub name: Box<str>,
    /// The kinds of routes that it takes.
    pub supported_kinds: Vec<RouteKind>,
    /// Routes that are accepted by it.
    pub attached_routes: usize,
    /// `Accepted`, `Programmed`, `ResolvedRefs`, `Conflicted`.
    pub conditions: Vec<Condition>,
}

/// The status of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// One for each of `spec.parentRefs` that names a Gateway or ListenerSet of ours.
    pub parents: Vec<RouteParentStatus>,
}

/// The status of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// One for each Gateway of ours for which it counts.
    pub ancestors: Vec<PolicyAncestorStatus>,
}

/// What became of a DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleStatus {
    /// `Accepted`.
    pub conditions: Vec<Condition>,
}

/// What a parent says of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteParentStatus {
    /// Word by word as in the spec.
    pub parent_ref: ParentRef,
    /// Ours.
    pub controller_name: Box<str>,
    /// `Accepted`, `ResolvedRefs`; `PartiallyInvalid` where it is true.
    pub conditions: Vec<Condition>,
}

/// What becomes of a policy at a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestorStatus {
    /// The Gateway.
    pub ancestor_ref: ParentRef,
    /// Ours.
    pub controller_name: Box<str>,
    /// `Accepted`, `ResolvedRefs`.
    pub conditions: Vec<Condition>,
}

impl Status {
    /// Every condition, each with the part of the object that it is about: a listener or a parent.
    pub fn conditions(&self) -> Vec<(Option<String>, &Condition)> {
        fn all(
            part: Option<String>,
            conditions: &[Condition],
        ) -> impl Iterator<Item = (Option<String>, &Condition)> {
            conditions.iter().map(move |condition| (part.clone(), condition))
        }
        let listener = |listener: &'_ ListenerStatus| Some(format!("listener {}", listener.name));
        match self {
            Status::Class(status) => all(None, &status.conditions).collect(),
            Status::Rule(status) => all(None, &status.conditions).collect(),
            Status::Gateway(status) => {
                let listeners =
                    status.listeners.iter().flat_map(|each| all(listener(each), &each.conditions));
                all(None, &status.conditions).chain(listeners).collect()
            }
            Status::ListenerSet(status) => {
                let listeners =
                    status.listeners.iter().flat_map(|each| all(listener(each), &each.conditions));
                all(None, &status.conditions).chain(listeners).collect()
            }
            Status::Route(status) => {
                let parents = status.parents.iter();
                parents.flat_map(|each| all(Some(shown(&each.parent_ref)), &each.conditions)).collect()
            }
            Status::Policy(status) => {
                let ancestors = status.ancestors.iter();
                ancestors.flat_map(|each| all(Some(shown(&each.ancestor_ref)), &each.conditions)).collect()
            }
        }
    }

    /// The generation of the object that this is about; `None`: it says nothing.
    pub fn generation(&self) -> Option<i64> {
        self.conditions().first().map(|(_, condition)| condition.observed_generation)
    }

    /// Says that what is programmed here is not everywhere yet.
    pub fn wait(&mut self, message: &str) {
        let (own, listeners) = match self {
            Status::Gateway(status) => (&mut status.conditions, &mut status.listeners),
            Status::ListenerSet(status) => (&mut status.conditions, &mut status.listeners),
            Status::Class(_) | Status::Route(_) | Status::Policy(_) | Status::Rule(_) => return,
        };
        let of_listeners = listeners.iter_mut().flat_map(|listener| &mut listener.conditions);
        for condition in own.iter_mut().chain(of_listeners) {
            if condition.kind == "Programmed" && condition.status == Truth::True {
                (condition.status, condition.reason) = (Truth::False, "Pending");
                condition.message = message.into();
            }
        }
    }

    /// Says that a route is not served, for the check of the whole configuration has refused it.
    pub(in crate::config) fn refuse(&mut self, message: &str) {
        let Status::Route(status) = self else { return };
        for condition in status.parents.iter_mut().flat_map(|parent| &mut parent.conditions) {
            if condition.kind == "Accepted" {
                (condition.status, condition.reason) = (Truth::False, "UnsupportedValue");
                condition.message = message.into();
            }
        }
    }
}

/// As people are told of it.
fn shown(parent: &ParentRef) -> String {
    let ParentRef { kind, namespace, name, section_name, port, .. } = parent;
    let mut text = kind.as_deref().unwrap_or("Gateway").to_owned() + " ";
    text.extend(namespace.iter().flat_map(|namespace| [namespace, "/"]));
    text += name;
    text.extend(section_name.iter().flat_map(|section| [" listener ", section]));
    port.iter().for_each(|port| text += &format!(" port {port}"));
    text
}
