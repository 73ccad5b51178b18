//! The store: objects in by their changes.
//!
//! Which objects there are is kept in maps by what refers to them, and what has changed since the last build is noted, so that
//! the next one makes anew only what that has to do with ([`Memo`]). A change of endpoints alone takes no build at all.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, OnceLock};

use super::context::Lacking;
use super::key::{Key, Kind, Name};
use super::memo::Memo;
use super::objects::{Object, Spec};
use super::status::Statuses;
use super::target::Parts;
use crate::config::controller::Settings;
use crate::config::draft::{ListenerDraft, PoolDraft, RouteDraft};

/// The label by which an EndpointSlice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// All objects of a source.
#[derive(Debug)]
pub struct Index {
    pub(super) settings: Settings,
    pub(super) objects: BTreeMap<Key, Arc<Object>>,
    pub(super) lists: Lists,
    /// Made when somebody asks, and again when that has changed.
    census: OnceLock<Arc<Census>>,
    /// The EndpointSlices of each Service, by their names.
    pub(super) slices: HashMap<Name, BTreeSet<Name>>,
    /// The ReferenceGrants of each namespace, by their names.
    pub(super) grants: HashMap<Arc<str>, BTreeSet<Name>>,
    /// The DestinationRules of each Service, the oldest first.
    pub(super) rules: HashMap<Name, BTreeSet<Age>>,
    /// The BackendTLSPolicies of each Service's port, by its name, which is empty for all ports; the oldest first.
    pub(super) policies: HashMap<(Name, Box<str>), BTreeSet<Age>>,
    /// The parts of the last build.
    pub(super) memo: Memo,
    /// What the last build has read beside its parts.
    pub(super) read: HashSet<Key>,
    /// What has changed since of what the last build has read: as [`View`](super::view::View) notes it when it reads it.
    pub(super) differs: HashSet<Key>,
    /// What the build has used that is in force.
    pub(super) used: Used,
    /// What the last build has used, if it is not in force.
    pub(super) used_last: Option<Used>,
    /// The Services with pools of which endpoints have changed since the build that is in force.
    pub(super) changed: BTreeSet<Name>,
}

/// Those objects that can be read of which the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) routes: BTreeMap<Age, Arc<Object>>,
    pub(super) virtual_services: BTreeMap<Age, Arc<Object>>,
    pub(super) policies: BTreeMap<Age, Arc<Object>>,
}

impl Lists {
    fn of(&mut self, object: &Object) -> Option<&mut BTreeMap<Age, Arc<Object>>> {
        match &object.spec {
            Spec::Route(_) => Some(&mut self.routes),
            Spec::VirtualService(_) => Some(&mut self.virtual_services),
            Spec::BackendTlsPolicy(_) => Some(&mut self.policies),
            _ => None,
        }
    }
}

/// Which objects there are.
#[derive(Debug, Default)]
pub struct Census {
    /// All of them.
    pub keys: Vec<Key>,
    /// Those that cannot be read, and why.
    pub refusals: HashMap<Key, String>,
}

/// What a build has used that is not only looked at.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// The Secrets and ConfigMaps that it has asked for, also in vain.
    named: BTreeSet<Key>,
    /// The Services that have pools, and which.
    pub(super) pools: HashMap<Name, Parts>,
    /// Those of them, by their namespaces, of which some pods are told from others.
    selected: HashMap<Arc<str>, BTreeSet<Name>>,
}

/// What a change of objects asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing: nobody looks at what has changed.
    Nothing,
    /// Other servers of pools that there are: [`Index::take_servers`].
    Servers,
    /// [`Index::build`], and [`Index::in_force`] if that is served.
    All,
}

/// What objects make.
#[derive(Debug, Default)]
pub struct Built {
    pub(in crate::config) listeners: Vec<ListenerDraft>,
    pub(in crate::config) routes: Vec<Arc<RouteDraft>>,
    pub(in crate::config) pools: Vec<Arc<PoolDraft>>,
    /// The status of each object that has one.
    pub statuses: Statuses,
    /// The listeners whose ports this machine cannot give.
    pub lacking: Lacking,
    /// How many parts are new, of routes and pools.
    pub made: usize,
}

impl Index {
    /// An empty store.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            objects: BTreeMap::new(),
            lists: Lists::default(),
            census: OnceLock::new(),
            slices: HashMap::new(),
            grants: HashMap::new(),
            rules: HashMap::new(),
            policies: HashMap::new(),
            memo: Memo::default(),
            read: HashSet::new(),
            differs: HashSet::new(),
            used: Used::default(),
            used_last: None,
            changed: BTreeSet::new(),
        }
    }

    /// Takes an object that is new or has changed.
    pub fn apply(&mut self, object: Object) -> Change {
        let is_known = self.objects.get(&object.key).is_some_and(|known| **known == object);
        let key = &object.key;
        if is_known || !self.settings.takes(&key.name.namespace) || !key.kind.is_read(&self.settings) {
            return Change::Nothing;
        }
        let object = Arc::new(object);
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
            Spec::DestinationRule(rule) => {
                let rules = self.rules.entry(rule.service.clone()).or_default();
                rules.insert(Age::of(&object));
            }
            Spec::BackendTlsPolicy(policy) => {
                for (service, port) in policy.services(&key) {
                    let policies = self.policies.entry((service, port.into())).or_default();
                    policies.insert(Age::of(&object));
                }
            }
            _ => {}
        }
        if let Some(list) = self.lists.of(&object) {
            list.insert(Age::of(&object), object.clone());
        }
        let is_unread = object.as_unread().is_some();
        let known = self.objects.insert(key.clone(), object);
        if is_unread || known.is_none_or(|known| known.as_unread().is_some()) {
            self.census.take();
        }
        before.max(self.weigh(&key))
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &Key) -> Change {
        let change = self.unlink(key);
        if self.objects.remove(key).is_some() {
            self.census.take();
        }
        change
    }

    /// Takes an object that is about to change or to go out of the lists by which it is found.
    fn unlink(&mut self, key: &Key) -> Change {
        let change = self.weigh(key);
        let Some(object) = self.objects.get(key) else { return change };
        match &object.spec {
            Spec::EndpointSlice(_) => {
                if let Some(service) = service_of(object) {
                    take_out(&mut self.slices, &service, &key.name);
                }
            }
            Spec::ReferenceGrant(_) => take_out(&mut self.grants, &key.name.namespace, &key.name),
            Spec::DestinationRule(rule) => take_out(&mut self.rules, &rule.service, &Age::of(object)),
            Spec::BackendTlsPolicy(policy) => {
                for (service, port) in policy.services(key) {
                    take_out(&mut self.policies, &(service, port.into()), &Age::of(object));
                }
            }
            _ => {}
        }
        if let Some(list) = self.lists.of(object) {
            list.remove(&Age::of(object));
        }
        change
    }

    /// What a change of this object asks for.
    fn weigh(&mut self, key: &Key) -> Change {
        let Some(object) = self.objects.get(key) else { return Change::Nothing };
        let (read, memo) = (&self.read, &self.memo);
        self.differs.extend(noted(object).filter(|key| read.contains(key) || memo.has_read(key)));
        match &object.spec {
            Spec::EndpointSlice(_) => match service_of(object) {
                Some(service) if self.used.pools.contains_key(&service) => {
                    self.changed.insert(service);
                    Change::Servers
                }
                _ => Change::Nothing,
            },
            // Which endpoints of Services it is, is not known from here.
            Spec::Pod => match self.used.selected.get(&key.name.namespace) {
                Some(services) => {
                    self.changed.extend(services.iter().cloned());
                    Change::Servers
                }
                None => Change::Nothing,
            },
            Spec::Namespace | Spec::Service(_) | Spec::Secret(_) | Spec::ConfigMap(_) => {
                let is_read = |key| self.read.contains(key) || self.memo.has_read(key);
                if is_read(key) || is_read(&all_of(key.kind)) { Change::All } else { Change::Nothing }
            }
            _ => Change::All,
        }
    }

    /// Every object that is there.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    /// Which objects there are.
    pub fn census(&self) -> Arc<Census> {
        let unread = |(key, object): (&Key, &Arc<Object>)| {
            Some((key.clone(), object.as_unread()?.refusal.to_string()))
        };
        let refusals = || self.objects.iter().filter_map(unread).collect();
        let make = || Census { keys: self.objects.keys().cloned().collect(), refusals: refusals() };
        self.census.get_or_init(|| make().into()).clone()
    }

    /// What the last builds have asked for, also in vain, of the kinds of which the other objects need not be known.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> {
        std::iter::once(&self.used).chain(&self.used_last).flat_map(Used::wanted)
    }
}

impl Used {
    pub(super) fn new(named: BTreeSet<Key>, pools: HashMap<Name, Parts>) -> Self {
        let mut selected: HashMap<Arc<str>, BTreeSet<Name>> = HashMap::new();
        for (service, parts) in &pools {
            if parts.values().any(|labels| !labels.is_empty()) {
                selected.entry(service.namespace.clone()).or_default().insert(service.clone());
            }
        }
        Self { named, pools, selected }
    }

    fn wanted(&self) -> impl Iterator<Item = Wanted> {
        let named = self.named.iter().map(|Key { kind, name: Name { namespace, name } }| Wanted {
            kind: *kind,
            namespace: namespace.clone(),
            name: Some(name.clone()),
        });
        let pods = self.selected.keys();
        named.chain(pods.map(|own| Wanted { kind: Kind::Pod, namespace: own.clone(), name: None }))
    }
}

/// An object that is asked for, or all of a kind in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Secret, ConfigMap or Pod.
    pub kind: Kind,
    /// Of the object.
    pub namespace: Arc<str>,
    /// Absent: all.
    pub name: Option<Arc<str>>,
}

/// The kinds of which every object is to be known, with these settings.
pub fn watched(settings: &Settings) -> Vec<Kind> {
    let named = [Kind::Secret, Kind::ConfigMap, Kind::Pod];
    Kind::ALL.into_iter().filter(|kind| !named.contains(kind) && kind.is_read(settings)).collect()
}

impl Kind {
    /// Whether its objects count, with these settings.
    pub(super) fn is_read(self, settings: &Settings) -> bool {
        match self {
            Kind::IstioGateway | Kind::VirtualService => !settings.istio.is_empty(),
            Kind::DestinationRule | Kind::Pod => settings.has_subsets(),
            _ => true,
        }
    }
}

/// The Service that a slice belongs to.
fn service_of(slice: &Object) -> Option<Name> {
    let service = slice.labels.get(SERVICE_LABEL)?;
    Some(Name { namespace: slice.key.name.namespace.clone(), name: service.as_str().into() })
}

/// Takes something out of the set of a key, and with the last of them the set.
fn take_out<K: Eq + Hash, T: Ord>(sets: &mut HashMap<K, BTreeSet<T>>, key: &K, item: &T) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(item);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// What a change of an object is noted as: the object itself, all of its kind, and all that are found by the same name.
fn noted(object: &Object) -> impl Iterator<Item = Key> + use<> {
    let Key { kind, name } = &object.key;
    let found_by: Vec<Name> = match &object.spec {
        Spec::EndpointSlice(_) => service_of(object).into_iter().collect(),
        Spec::DestinationRule(rule) => vec![rule.service.clone()],
        Spec::BackendTlsPolicy(policy) => policy.services(&object.key).map(|(service, _)| service).collect(),
        Spec::ReferenceGrant(_) => vec![Name::new(&name.namespace, "")],
        _ => Vec::new(),
    };
    let (kind, own) = (*kind, object.key.clone());
    [own, all_of(kind)].into_iter().chain(found_by.into_iter().map(move |name| all_in(kind, name)))
}

/// Stands for all objects of a kind.
pub(super) fn all_of(kind: Kind) -> Key {
    Key::new(kind, "", "")
}

/// Stands for all objects of a kind that are found by a name: EndpointSlices and DestinationRules by that of their Service,
/// ReferenceGrants by their namespace.
pub(super) fn all_in(kind: Kind, name: Name) -> Key {
    Key { kind, name }
}

/// Puts objects into the order in which the API lets one go before another: the oldest first, and of those that are equally old by
/// the text `namespace/name`, in which `a-b/x` comes before `a/x`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Age {
    created: Arc<str>,
    pub(super) name: Name,
    kind: Kind,
}

impl Age {
    fn of(object: &Object) -> Self {
        let Key { kind, name } = &object.key;
        Self { created: object.created.clone(), name: name.clone(), kind: *kind }
    }
}

impl Ord for Age {
    fn cmp(&self, other: &Self) -> Ordering {
        fn text(name: &Name) -> impl Iterator<Item = u8> {
            name.namespace.bytes().chain(*b"/").chain(name.name.bytes())
        }
        let by_name = || text(&self.name).cmp(text(&other.name));
        self.created.cmp(&other.created).then_with(by_name).then(self.kind.cmp(&other.kind))
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Objects with their specs, the oldest first.
pub(super) fn by_age<'i, S>(
    objects: impl Iterator<Item = &'i Object>,
    spec: impl Fn(&'i Object) -> Option<&'i S>,
) -> Vec<(&'i Object, &'i S)> {
    let mut found: Vec<_> = objects.filter_map(|object| Some((object, spec(object)?))).collect();
    found.sort_by_cached_key(|(object, _)| Age::of(object));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_older_goes_first_and_then_the_text_of_namespace_and_name() {
        let age = |created: &str, namespace: &str, name: &str, kind| Age {
            created: created.into(),
            name: Name::new(namespace, name),
            kind,
        };
        let route = Kind::HttpRoute;
        for (first, second) in [
            (age("2025", "z", "z", route), age("2026", "a", "a", route)),
            (age("", "a-b", "x", route), age("", "a", "x", route)),
            (age("", "a", "x", route), age("", "a", "x-y", route)),
            (age("", "a", "z", route), age("", "b", "a", route)),
            (age("", "a", "a", Kind::TlsRoute), age("", "a", "b", route)),
        ] {
            assert_eq!((first.cmp(&second), second.cmp(&first)), (Ordering::Less, Ordering::Greater));
        }
    }

    #[test]
    fn what_is_gone_leaves_nothing_behind() {
        let objects = [
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
                "metadata": {"name": "s", "namespace": "a", "labels": {(SERVICE_LABEL): "s"}}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
                "metadata": {"name": "g", "namespace": "a"}, "spec": {"from": [], "to": []}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy",
                "metadata": {"name": "p", "namespace": "a"},
                "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "s"}]}}),
        ];
        let mut index = Index::new(Settings::default());
        for object in objects {
            let object = Object::read(object).unwrap().unwrap();
            let key = object.key.clone();
            index.apply(object);
            index.delete(&key);
        }
        assert!(index.slices.is_empty() && index.grants.is_empty() && index.policies.is_empty());
        // Nobody has looked at anything.
        assert!(index.differs.is_empty(), "{:?}", index.differs);
    }
}
