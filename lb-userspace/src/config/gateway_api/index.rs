//! The store: objects in by their changes, and what a build sees of them.
//!
//! Which objects there are is kept in maps by what refers to them, so that a build takes time in proportion to the objects
//! that take part, and a change of endpoints alone takes no build at all.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::key::{Key, Kind, Labels, Name};
use super::objects::{NAMESPACE_LABEL, Object, Spec};
use super::secret::{AuthoritySpec, SecretSpec};
use super::specs::{GrantSpec, RouteSpec, ServiceSpec, SliceSpec};
use super::status::{StatusAddress, Statuses};
use crate::config::controller::Settings;
use crate::config::draft::{ListenerDraft, PoolDraft, RouteDraft};

/// The label by which an EndpointSlice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// All objects of a source.
#[derive(Debug)]
pub struct Index {
    pub(super) settings: Settings,
    objects: BTreeMap<Key, Object>,
    /// The EndpointSlices of each Service, by their names.
    slices: HashMap<Name, BTreeSet<Name>>,
    /// The ReferenceGrants of each namespace, by their names.
    grants: HashMap<Arc<str>, BTreeSet<Name>>,
    /// What the last build has asked for, also in vain.
    pub(super) asked: HashSet<Key>,
    /// It has asked for every Service.
    pub(super) asked_for_all_services: bool,
    /// The Services that have pools since the last build, and of which ports.
    pub(super) pools: HashMap<Name, BTreeSet<u16>>,
    /// Those of them of which endpoints have changed since.
    pub(super) changed: BTreeSet<Name>,
}

/// What a change of objects asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing: nobody looks at what has changed.
    Nothing,
    /// Other servers of pools that there are: [`Index::take_servers`].
    Servers,
    /// [`Index::build`].
    All,
}

/// What is outside the objects, and counts.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The addresses of this machine, but for loopback and link-local ones: what a Gateway on the node is reached by. An
    /// endpoint with one of them is refused, as it may be the gateway's own.
    pub own: Vec<IpAddr>,
    /// Modes `node` and `service`: where all machines are reached that serve the same objects. Empty: there is only this one.
    pub nodes: Vec<IpAddr>,
    /// Whether this machine has IPv6.
    pub ipv6: bool,
    /// Ports that cannot be listened on, and why: those of the file's listeners, and those that the system refuses.
    pub unavailable: BTreeMap<u16, Box<str>>,
    /// Modes `pool` and `service`: where each Gateway is.
    pub assigned: BTreeMap<Name, Assigned>,
}

/// Where a Gateway is that has addresses of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The addresses for which packets arrive here.
    pub addresses: Vec<IpAddr>,
    /// Where else its clients find it: what sends their connections on to node ports.
    pub elsewhere: Vec<StatusAddress>,
    /// Mode `service`: the ports of every node that stand for its ports.
    pub node_ports: BTreeMap<u16, u16>,
    /// An address that its load balancer gives and that it cannot have here, and why.
    pub refused: Option<Box<str>>,
}

/// What objects make.
#[derive(Debug, Default)]
pub struct Built {
    pub(in crate::config) listeners: Vec<ListenerDraft>,
    pub(in crate::config) routes: Vec<RouteDraft>,
    pub(in crate::config) pools: Vec<PoolDraft>,
    /// The status of each object that has one.
    pub statuses: Statuses,
}

/// What a build asks of the store; it notes what was asked for.
pub(super) struct View<'i> {
    pub(super) index: &'i Index,
    pub(super) context: &'i Context,
    pub(super) asked: HashSet<Key>,
    pub(super) asked_for_all_services: bool,
}

impl<'i> View<'i> {
    pub(super) fn new(index: &'i Index, context: &'i Context) -> Self {
        View { index, context, asked: HashSet::new(), asked_for_all_services: false }
    }
}

impl Index {
    /// An empty store.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            objects: BTreeMap::new(),
            slices: HashMap::new(),
            grants: HashMap::new(),
            asked: HashSet::new(),
            asked_for_all_services: false,
            pools: HashMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Takes an object that is new or has changed.
    pub fn apply(&mut self, object: Object) -> Change {
        if !self.settings.takes(&object.key.name.namespace) || self.objects.get(&object.key) == Some(&object)
        {
            return Change::Nothing;
        }
        let key = object.key.clone();
        let before = self.unlink(&key);
        let name = &object.key.name;
        match &object.spec {
            Spec::EndpointSlice(_) => {
                if let Some(service) = service_of(&object) {
                    self.slices.entry(service).or_default().insert(name.clone());
                }
            }
            Spec::ReferenceGrant(_) => {
                _ = self.grants.entry(name.namespace.clone()).or_default().insert(name.clone());
            }
            _ => {}
        }
        self.objects.insert(key.clone(), object);
        before.max(self.weigh(&key))
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &Key) -> Change {
        let change = self.unlink(key);
        self.objects.remove(key);
        change
    }

    /// Takes an object that is about to change or to go out of the lists by which it is found.
    fn unlink(&mut self, key: &Key) -> Change {
        let change = self.weigh(key);
        let Some(object) = self.objects.get(key) else { return change };
        match &object.spec {
            Spec::EndpointSlice(_) => {
                if let Some(service) = service_of(object)
                    && let Some(slices) = self.slices.get_mut(&service)
                {
                    slices.remove(&key.name);
                }
            }
            Spec::ReferenceGrant(_) => {
                if let Some(grants) = self.grants.get_mut(&key.name.namespace) {
                    grants.remove(&key.name);
                }
            }
            _ => {}
        }
        change
    }

    /// What a change of this object asks for.
    fn weigh(&mut self, key: &Key) -> Change {
        let Some(object) = self.objects.get(key) else { return Change::Nothing };
        match &object.spec {
            Spec::EndpointSlice(_) => match service_of(object) {
                Some(service) if self.pools.contains_key(&service) => {
                    self.changed.insert(service);
                    Change::Servers
                }
                _ => Change::Nothing,
            },
            Spec::Namespace | Spec::Service(_) | Spec::Secret(_) | Spec::ConfigMap(_) => {
                let is_asked =
                    self.asked.contains(key) || (self.asked_for_all_services && key.kind == Kind::Service);
                if is_asked { Change::All } else { Change::Nothing }
            }
            _ => Change::All,
        }
    }

    /// Every object that is there.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    /// The Secrets and ConfigMaps that the last build has asked for, also those that are not there: the others need not be
    /// known.
    pub fn wanted(&self) -> impl Iterator<Item = &Key> {
        self.asked.iter().filter(|key| matches!(key.kind, Kind::Secret | Kind::ConfigMap))
    }
}

impl<'i> View<'i> {
    /// All objects of a kind.
    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = &'i Object> + use<'i> {
        let first = Key::new(kind, "", "");
        let objects = self.index.objects.range(first..);
        objects.take_while(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    fn get(&mut self, kind: Kind, name: &Name) -> Option<&'i Object> {
        let key = Key { kind, name: name.clone() };
        let found = self.index.objects.get(&key);
        self.asked.insert(key);
        found
    }

    pub(super) fn service(&mut self, name: &Name) -> Option<&'i ServiceSpec> {
        match &self.get(Kind::Service, name)?.spec {
            Spec::Service(service) => Some(service),
            _ => None,
        }
    }

    /// All Services.
    pub(super) fn services(&mut self) -> impl Iterator<Item = (&'i Key, &'i ServiceSpec)> + use<'i> {
        self.asked_for_all_services = true;
        self.all(Kind::Service).filter_map(|object| match &object.spec {
            Spec::Service(service) => Some((&object.key, service)),
            _ => None,
        })
    }

    pub(super) fn secret(&mut self, name: &Name) -> Option<&'i SecretSpec> {
        match &self.get(Kind::Secret, name)?.spec {
            Spec::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    pub(super) fn authority(&mut self, name: &Name) -> Option<&'i AuthoritySpec> {
        match &self.get(Kind::ConfigMap, name)?.spec {
            Spec::ConfigMap(authority) => Some(authority),
            _ => None,
        }
    }

    /// The labels of a namespace; those of one that is not known are none but its name.
    pub(super) fn labels_of(&mut self, namespace: &Arc<str>) -> Labels {
        let name = Name { namespace: Arc::from(""), name: namespace.clone() };
        match self.get(Kind::Namespace, &name) {
            Some(object) => object.labels.clone(),
            None => Labels::from([(NAMESPACE_LABEL.into(), namespace.to_string())]),
        }
    }

    /// The EndpointSlices of a Service, in the order of their names.
    pub(super) fn slices(
        &self,
        service: &Name,
    ) -> impl Iterator<Item = (&'i Object, &'i SliceSpec)> + use<'i> {
        let index = self.index;
        let names = index.slices.get(service).into_iter().flatten();
        names.filter_map(move |name| {
            let object = index.objects.get(&Key { kind: Kind::EndpointSlice, name: name.clone() })?;
            match &object.spec {
                Spec::EndpointSlice(slice) => Some((object, slice)),
                _ => None,
            }
        })
    }

    /// Whether objects of this kind in `namespace` may name that Secret, ConfigMap or Service: it is in the same namespace, or a
    /// ReferenceGrant beside it says so.
    pub(super) fn is_granted(&self, from: Kind, namespace: &str, to: Kind, target: &Name) -> bool {
        if *namespace == *target.namespace {
            return true;
        }
        let grants = self.index.grants.get(&target.namespace).into_iter().flatten();
        let grants = grants.filter_map(|name| {
            self.index.objects.get(&Key { kind: Kind::ReferenceGrant, name: name.clone() })
        });
        grants
            .filter_map(|object| match &object.spec {
                Spec::ReferenceGrant(grant) => Some(grant),
                _ => None,
            })
            .any(|grant| grants_it(grant, from, namespace, to, &target.name))
    }
}

fn grants_it(grant: &GrantSpec, from: Kind, namespace: &str, to: Kind, target: &str) -> bool {
    let is_from = grant.from.iter().any(|entry| {
        *entry.group == *from.group() && *entry.kind == *from.name() && *entry.namespace == *namespace
    });
    let is_to = grant.to.iter().any(|entry| {
        *entry.group == *to.group()
            && *entry.kind == *to.name()
            && entry.name.as_deref().is_none_or(|name| name.is_empty() || name == target)
    });
    is_from && is_to
}

/// The Service that a slice belongs to.
fn service_of(slice: &Object) -> Option<Name> {
    let service = slice.labels.get(SERVICE_LABEL)?;
    Some(Name { namespace: slice.key.name.namespace.clone(), name: service.as_str().into() })
}

/// Routes with their specs, the oldest first; of those that are equally old by namespace and name.
pub(super) fn by_age<'i, S>(
    objects: impl Iterator<Item = &'i Object>,
    spec: impl Fn(&'i Object) -> Option<&'i S>,
) -> Vec<(&'i Object, &'i S)> {
    let mut found: Vec<_> = objects.filter_map(|object| Some((object, spec(object)?))).collect();
    found.sort_by(|(one, _), (other, _)| {
        (&one.created, &one.key.name, one.key.kind).cmp(&(&other.created, &other.key.name, other.key.kind))
    });
    found
}

pub(super) fn route_of(object: &Object) -> Option<&RouteSpec> {
    match &object.spec {
        Spec::Route(route) => Some(route),
        _ => None,
    }
}
