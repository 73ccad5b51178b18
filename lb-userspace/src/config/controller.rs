//! What `[gateway_api]` says: where objects come from, and how they are taken.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

/// `[gateway_api]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayApi {
    /// Where objects come from.
    pub source: Source,
    /// What is made of them.
    pub settings: Settings,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The files of this directory.
    Directory(PathBuf),
    /// An API server.
    Cluster {
        /// How it is reached; absent: as a pod of it.
        kubeconfig: Option<PathBuf>,
        /// The last good objects are kept.
        keep: bool,
    },
}

/// How objects are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The GatewayClasses with this `controllerName` are ours.
    pub controller: Arc<str>,
    /// How Gateways get their addresses.
    pub mode: Mode,
    /// Modes `pool` and `service`: how this machine comes to have the addresses.
    pub attach: Attach,
    /// Modes `pool` and `service`: the Gateways of a class share their addresses.
    pub merge: bool,
    /// Mode `service`: which load balancer the Services are for; absent: the cluster's default.
    pub load_balancer_class: Option<Box<str>>,
    /// What `spec.addresses` may name.
    pub addresses: Vec<RangeInclusive<IpAddr>>,
    /// Services of type ExternalName are followed.
    pub external_names: bool,
    /// Objects of these namespaces only; empty: of all.
    pub namespaces: Vec<Arc<str>>,
}

/// How a machine comes to have an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attach {
    /// This device gets it.
    Device(Box<str>),
    /// It need not have it: sockets are bound without.
    Freebind,
}

/// How Gateways get their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They share those of the node.
    Node,
    /// Each has some of its own, which are assigned to it: [`Context::assigned`](super::gateway_api::Context::assigned).
    Pool,
    /// Each has those that a load balancer has given to a Service of it, and the ports of the node that this Service has.
    Service,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            controller: "snisplice.dev/gateway".into(),
            mode: Mode::Node,
            attach: Attach::Device("lo".into()),
            merge: false,
            load_balancer_class: None,
            addresses: Vec::new(),
            external_names: false,
            namespaces: Vec::new(),
        }
    }
}

impl Settings {
    /// Whether objects of this namespace count; those of the whole cluster have none.
    pub fn takes(&self, namespace: &str) -> bool {
        let listed = || self.namespaces.iter().any(|known| **known == *namespace);
        namespace.is_empty() || self.namespaces.is_empty() || listed()
    }

    /// Whether `spec.addresses` may name this one.
    pub(crate) fn may_name(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|range| range.contains(&address))
    }
}
