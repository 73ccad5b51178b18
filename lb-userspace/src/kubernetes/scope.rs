//! What a watch covers.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::gateway_api::{Key, Kind, Name, Wanted};

/// Whether only those objects of a kind are watched for which some object asks.
pub(super) fn is_asked_for(kind: Kind) -> bool {
    matches!(kind, Kind::Secret | Kind::ConfigMap | Kind::Pod)
}

/// What a watch covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Scope {
    pub(super) kind: Kind,
    /// Absent: all namespaces.
    pub(super) namespace: Option<Arc<str>>,
    /// Absent: all names.
    pub(super) name: Option<Arc<str>>,
}

impl Scope {
    pub(super) fn covers(&self, key: &Key) -> bool {
        key.kind == self.kind
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.name.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name.name)
    }

    /// The keys that it covers, which stand beside each other: a name is never without its namespace.
    pub(super) fn of<'o, T>(&self, objects: &'o BTreeMap<Key, T>) -> impl Iterator<Item = &'o Key> {
        let text = |part: &Option<Arc<str>>| part.clone().unwrap_or_else(|| "".into());
        let name = Name { namespace: text(&self.namespace), name: text(&self.name) };
        let first = Key { kind: self.kind, name };
        objects.range(first..).map(|(key, _)| key).take_while(|key| self.covers(key))
    }

    /// [`is_asked_for`].
    pub(super) fn is_asked_for(&self) -> bool {
        is_asked_for(self.kind)
    }

    /// Everything of these kinds, in these namespaces or, if there are none, in all.
    pub(super) fn always(kinds: &[Kind], namespaces: &[Arc<str>]) -> Vec<Self> {
        let of = |kind: &Kind| {
            let all = Self { kind: *kind, namespace: None, name: None };
            match (kind, namespaces) {
                (Kind::GatewayClass, _) | (_, []) => vec![all],
                (Kind::Namespace, some) => {
                    some.iter().map(|name| Self { name: Some(name.clone()), ..all.clone() }).collect()
                }
                (_, some) => {
                    some.iter().map(|own| Self { namespace: Some(own.clone()), ..all.clone() }).collect()
                }
            }
        };
        kinds.iter().flat_map(of).collect()
    }
}

impl From<Wanted> for Scope {
    fn from(Wanted { kind, namespace, name }: Wanted) -> Self {
        Self { kind, namespace: Some(namespace), name }
    }
}
