//! What a watch covers.

use std::sync::Arc;

use crate::config::gateway_api::{Key, Kind};

/// What a watch covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

    /// A Secret or ConfigMap that some object names.
    pub(super) fn is_of_one(&self) -> bool {
        matches!(self.kind, Kind::Secret | Kind::ConfigMap)
    }

    /// One Secret or ConfigMap.
    pub(super) fn one(key: &Key) -> Self {
        let (namespace, name) = (key.name.namespace.clone(), key.name.name.clone());
        Self { kind: key.kind, namespace: Some(namespace), name: Some(name) }
    }

    /// Everything that is watched whoever names it, in these namespaces or, if there are none, in all.
    pub(super) fn always(namespaces: &[Arc<str>]) -> Vec<Self> {
        let kinds = Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Secret | Kind::ConfigMap));
        let of = |kind: Kind| {
            let all = Self { kind, namespace: None, name: None };
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
        kinds.flat_map(of).collect()
    }
}
