//! What `[gateway_api]` says: where objects come from, and how they are taken.

use std::collections::BTreeMap;
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
    /// Auto-passthrough listeners are served.
    pub auto_passthrough: bool,
    /// On how many ports Gateways may listen together, each of an address counted by itself.
    pub max_ports: usize,
    /// How many Secrets and ConfigMaps objects may name together, of one namespace a tenth of that.
    pub max_watches: usize,
    /// Objects of these namespaces only; empty: of all.
    pub namespaces: Vec<Arc<str>>,
    /// The labels of each of Istio's gateways whose place this one takes.
    pub istio: Vec<BTreeMap<String, String>>,
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
            auto_passthrough: false,
            max_ports: 1000,
            max_watches: 2000,
            namespaces: Vec::new(),
            istio: Vec::new(),
        }
    }
}

impl Settings {
    /// Whether objects of this namespace count; those of the whole cluster have none.
    pub fn takes(&self, namespace: &str) -> bool {
        let listed = || self.namespaces.iter().any(|known| **known == *namespace);
        namespace.is_empty() || self.namespaces.is_empty() || listed()
    }

    /// Whether a Gateway of Istio's with this `selector` is for this gateway.
    pub(super) fn is_selected(&self, selector: &BTreeMap<String, String>) -> bool {
        let has_all = |labels: &BTreeMap<String, String>| {
            selector.iter().all(|(label, value)| labels.get(label) == Some(value))
        };
        self.istio.iter().any(has_all)
    }

    /// Whether anything asks for subsets of Services.
    pub(super) fn has_subsets(&self) -> bool {
        !self.istio.is_empty() || self.auto_passthrough
    }

    /// Whether `spec.addresses` may name this one.
    pub(crate) fn may_name(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|range| range.contains(&address))
    }
}
