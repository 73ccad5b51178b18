//! What a build sees of the store. It notes what was asked for.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::context::Context;
use super::index::{Age, Index, all_in, all_of};
use super::istio::{DestinationRule, VirtualService};
use super::kept::Trust;
use super::key::{Key, Kind, Labels, NAMESPACE_LABEL, Name};
use super::memo::{Memo, Table};
use super::named::Named;
use super::objects::{Object, Spec};
use super::policies::PolicySpec;
use super::route::RouteSpec;
use super::secret::{AuthoritySpec, SecretSpec};
use super::specs::{GrantSpec, ServiceSpec, SliceSpec};
use super::status::StatusAddress;
use crate::config::client_auth::ClientAuth;

/// What a build asks of the store; it notes what was asked for.
pub(super) struct View<'i> {
    pub(super) index: &'i Index,
    pub(super) context: &'i Context,
    /// The addresses of gateways and Gateways: no endpoint may have one of them.
    pub(super) own: HashSet<IpAddr>,
    /// What was read, also in vain, for what is being made; all of something is noted as in [`Index::differs`].
    pub(super) reads: RefCell<Vec<Key>>,
    pub(super) memo: Memo,
    /// What of that was made in this build of BackendTLSPolicies.
    remade: HashSet<Key>,
    /// What policies say of servers: of those by whose Services somebody comes.
    pub(super) trusts: HashMap<&'i Key, Arc<Trust>>,
    /// What was asked for by name, and is watched by it.
    pub(super) named: Named,
    /// What servers of Istio's ask of clients, by their Gateways and numbers.
    pub(super) client_auths: HashMap<(Key, usize), Arc<ClientAuth>>,
}

impl<'i> View<'i> {
    pub(super) fn new(index: &'i Index, context: &'i Context, memo: Memo) -> Self {
        let Context { own, nodes, peers, assigned, .. } = context;
        let assigned = assigned.values().flat_map(|place| {
            place.addresses.iter().copied().chain(place.elsewhere.iter().filter_map(StatusAddress::ip))
        });
        let own = own.iter().chain(nodes).chain(peers).copied().chain(assigned);
        let own = own.map(|ip| ip.to_canonical()).collect();
        View {
            index,
            context,
            own,
            reads: RefCell::default(),
            memo,
            remade: HashSet::new(),
            trusts: HashMap::new(),
            named: Named::new(index.settings.max_watches),
            client_auths: HashMap::new(),
        }
    }

    /// What `make` makes, or what it has made in the last build, if nothing has changed since that it had read of the store.
    /// `fits`: whether whatever else it is made of is the same, but for Gateways and their listeners, which are.
    pub(super) fn remembered<K: Eq + Hash, V>(
        &mut self,
        table: impl Fn(&mut Memo) -> &mut Table<K, V>,
        key: K,
        fits: impl FnOnce(&V) -> bool,
        make: impl FnOnce(&mut Self) -> V,
    ) -> Arc<V> {
        if let Some(found) = self.found(&table, &key).filter(|found| fits(found)) {
            return found;
        }
        self.made(table, key, make)
    }

    fn found<K: Eq + Hash, V>(
        &mut self,
        table: impl Fn(&mut Memo) -> &mut Table<K, V>,
        key: &K,
    ) -> Option<Arc<V>> {
        let differs = [&self.index.differs, &self.remade];
        table(&mut self.memo).find(key, differs)
    }

    fn made<K: Eq + Hash, V>(
        &mut self,
        table: impl Fn(&mut Memo) -> &mut Table<K, V>,
        key: K,
        make: impl FnOnce(&mut Self) -> V,
    ) -> Arc<V> {
        let outside = self.reads.take();
        let value = Arc::new(make(self));
        let reads = self.reads.replace(outside);
        self.memo.keep(table, key, value.clone(), reads);
        value
    }

    /// Sees to it that it is known what a policy says of servers: what `make` makes, or has made in the last build, as for
    /// [`remembered`](Self::remembered).
    pub(super) fn trust(&mut self, policy: &'i Key, make: impl FnOnce(&mut Self) -> Trust) {
        let found = self.found(|memo| &mut memo.trusts, policy).filter(|trust| !trust.is_refused);
        // Others may have come before it by now.
        let found = found.filter(|_| {
            let named = self.memo.trusts.named(policy);
            named.into_iter().all(|key| self.named.ask(key).is_ok())
        });
        let trust = found.unwrap_or_else(|| {
            self.remade.insert(policy.clone());
            self.made(|memo| &mut memo.trusts, policy.clone(), make)
        });
        self.trusts.insert(policy, trust);
    }

    /// Notes that something was read.
    pub(super) fn note(&self, read: Key) {
        self.reads.borrow_mut().push(read);
    }

    /// All objects of a kind.
    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = &'i Object> + use<'i> {
        let first = all_of(kind);
        self.note(first.clone());
        let objects = self.index.objects.range(first..);
        objects.take_while(move |(key, _)| key.kind == kind).map(|(_, object)| &**object)
    }

    /// Routes with their specs, the oldest first. Each notes by itself that it was read.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&'i Object, &'i RouteSpec)> + use<'i> {
        self.index.lists.routes.values().filter_map(|object| match &object.spec {
            Spec::Route(route) => Some((&**object, &**route)),
            _ => None,
        })
    }

    /// VirtualServices with their specs, the oldest first. Each notes by itself that it was read.
    pub(super) fn virtual_services(
        &self,
    ) -> impl Iterator<Item = (&'i Object, &'i VirtualService)> + use<'i> {
        self.index.lists.virtual_services.values().filter_map(|object| match &object.spec {
            Spec::VirtualService(service) => Some((&**object, &**service)),
            _ => None,
        })
    }

    /// The same of BackendTLSPolicies.
    pub(super) fn policies(&self) -> impl Iterator<Item = (&'i Object, &'i PolicySpec)> + use<'i> {
        self.index.lists.policies.values().filter_map(|object| match &object.spec {
            Spec::BackendTlsPolicy(policy) => Some((&**object, &**policy)),
            _ => None,
        })
    }

    fn get(&self, kind: Kind, name: &Name) -> Option<&'i Object> {
        let key = Key { kind, name: name.clone() };
        let found = self.index.objects.get(&key);
        self.note(key);
        found.map(|object| &**object)
    }

    pub(super) fn service(&mut self, name: &Name) -> Option<&'i ServiceSpec> {
        match &self.get(Kind::Service, name)?.spec {
            Spec::Service(service) => Some(service),
            _ => None,
        }
    }

    /// All Services.
    pub(super) fn services(&mut self) -> impl Iterator<Item = (&'i Key, &'i ServiceSpec)> + use<'i> {
        self.all(Kind::Service).filter_map(|object| match &object.spec {
            Spec::Service(service) => Some((&object.key, service)),
            _ => None,
        })
    }

    /// Sees to it that a Secret or ConfigMap is known, if it is there; an error says why it is not.
    pub(super) fn ask(&mut self, kind: Kind, name: &Name) -> Result<(), String> {
        self.named.ask(Key { kind, name: name.clone() })
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
        self.note(all_in(Kind::EndpointSlice, service.clone()));
        let index = self.index;
        let names = index.slices.get(service).into_iter().flatten();
        names.filter_map(move |name| {
            let object = index.objects.get(&Key { kind: Kind::EndpointSlice, name: name.clone() })?;
            match &object.spec {
                Spec::EndpointSlice(slice) => Some((&**object, slice)),
                _ => None,
            }
        })
    }

    /// The DestinationRules of a Service, the oldest first.
    pub(super) fn rules(&self, service: &Name) -> Vec<&'i DestinationRule> {
        self.note(all_in(Kind::DestinationRule, service.clone()));
        let index = self.index;
        let names = index.rules.get(service).into_iter().flatten();
        let rules = names.filter_map(|Age { name, .. }| {
            match &index.objects.get(&Key { kind: Kind::DestinationRule, name: name.clone() })?.spec {
                Spec::DestinationRule(rule) => Some(&**rule),
                _ => None,
            }
        });
        rules.collect()
    }

    /// The oldest BackendTLSPolicy of a Service's port by its name; no name: of those of all its ports.
    pub(super) fn policy(&self, service: &Name, port: &str) -> Option<(&'i Object, &'i PolicySpec)> {
        self.note(all_in(Kind::BackendTlsPolicy, service.clone()));
        let index = self.index;
        let Age { name, .. } = index.policies.get(&(service.clone(), port.into()))?.first()?;
        let object = index.objects.get(&Key { kind: Kind::BackendTlsPolicy, name: name.clone() })?;
        match &object.spec {
            Spec::BackendTlsPolicy(policy) => Some((&**object, &**policy)),
            _ => None,
        }
    }

    /// Whether a pod is known, and has these labels.
    pub(super) fn pod_has(&self, namespace: &str, pod: &str, labels: &Labels) -> bool {
        let pod = self.get(Kind::Pod, &Name::new(namespace, pod));
        pod.is_some_and(|pod| labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
    }

    /// Whether objects of this kind in `namespace` may name that Secret, ConfigMap or Service: it is in the same namespace, or a
    /// ReferenceGrant beside it says so.
    pub(super) fn is_granted(&self, from: Kind, namespace: &str, to: Kind, target: &Name) -> bool {
        if *namespace == *target.namespace {
            return true;
        }
        self.note(all_in(Kind::ReferenceGrant, Name::new(&target.namespace, "")));
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
