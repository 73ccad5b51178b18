//! What backends lead to: a part of a Service, spoken to in one way, which is a pool.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::istio::{DOMAIN, Subset};
use super::key::{Key, Labels, Name};
use crate::config::certificate::Loaded;

/// A port of a Service, and a subset of its pods, which is empty for all of them, with how they are spoken to: what has a pool.
pub(super) type Part = (u16, Arc<str>);

/// The labels that the pods of each part have; none: it is all pods.
pub(super) type Parts = BTreeMap<Part, Arc<Labels>>;

/// What a pool is called: a namespace has no dots, so that no two Services have one name. `part`: the subset, which is empty for
/// all pods, and behind a `+`, which no subset's name has, how its servers are spoken to.
pub(super) fn name(service: &Name, port: u16, part: &str) -> String {
    let separator = if part.is_empty() || part.starts_with('+') { "" } else { ":" };
    format!("{}.{}:{port}{separator}{part}", service.namespace, service.name)
}

/// What a backend is.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) service: Name,
    pub(super) part: Part,
    pub(super) labels: Arc<Labels>,
    /// Its servers are spoken to in HTTP/2.
    pub(super) http2: bool,
    /// And over TLS, as a policy has it.
    pub(super) tls: Option<Client>,
}

impl Target {
    pub(super) fn new(service: Name, port: u16, subset: Option<&Subset>) -> Self {
        let (subset, labels) = match subset {
            Some(subset) => (subset.name.clone(), subset.labels.clone()),
            None => ("".into(), Arc::default()),
        };
        Self { service, part: (port, subset), labels, http2: false, tls: None }
    }

    pub(super) fn pool(&self) -> String {
        name(&self.service, self.part.0, &self.part.1)
    }

    /// The name by which clients ask Istio's gateways between clusters for it.
    pub(super) fn outbound_name(&self) -> String {
        let (Name { namespace, name }, (port, subset)) = (&self.service, &self.part);
        format!("outbound_.{port}_.{subset}_.{name}.{namespace}{}", DOMAIN)
    }
}

/// Who a gateway is to servers that it begins TLS with.
#[derive(Debug)]
pub(super) struct Client {
    /// What it shows them.
    pub(super) certificate: Option<Arc<Loaded>>,
    pub(super) gateway: Key,
}
