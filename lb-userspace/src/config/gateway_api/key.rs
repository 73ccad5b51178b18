//! What objects are known by: their kinds, names and labels.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// The group of the Gateway API.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// The group of Istio's objects.
pub(super) const ISTIO: &str = "networking.istio.io";

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `gateway.networking.k8s.io/v1`, of the whole cluster.
    GatewayClass,
    /// `gateway.networking.k8s.io/v1`.
    Gateway,
    /// `gateway.networking.k8s.io/v1`.
    ListenerSet,
    /// `gateway.networking.k8s.io/v1`; in files also `v1alpha2` and `v1alpha3`.
    TlsRoute,
    /// `gateway.networking.k8s.io/v1`; in files also `v1alpha2`.
    TcpRoute,
    /// `gateway.networking.k8s.io/v1`.
    HttpRoute,
    /// `gateway.networking.k8s.io/v1`.
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1`; in files also `v1alpha3`.
    BackendTlsPolicy,
    /// `gateway.networking.k8s.io/v1` and `v1beta1`.
    ReferenceGrant,
    /// `v1`, of the whole cluster.
    Namespace,
    /// `v1`.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `v1`; of the type `kubernetes.io/tls`.
    Secret,
    /// `v1`.
    ConfigMap,
    /// `networking.istio.io`: its Gateway.
    IstioGateway,
    /// `networking.istio.io`.
    VirtualService,
    /// `networking.istio.io`.
    DestinationRule,
    /// `v1`, of which the labels are read.
    Pod,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 18] = [
        Kind::GatewayClass,
        Kind::Gateway,
        Kind::ListenerSet,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::BackendTlsPolicy,
        Kind::ReferenceGrant,
        Kind::Namespace,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::IstioGateway,
        Kind::VirtualService,
        Kind::DestinationRule,
        Kind::Pod,
    ];

    /// As objects have it in `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::GatewayClass => "GatewayClass",
            Kind::Gateway | Kind::IstioGateway => "Gateway",
            Kind::ListenerSet => "ListenerSet",
            Kind::TlsRoute => "TLSRoute",
            Kind::TcpRoute => "TCPRoute",
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::BackendTlsPolicy => "BackendTLSPolicy",
            Kind::ReferenceGrant => "ReferenceGrant",
            Kind::Namespace => "Namespace",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Secret => "Secret",
            Kind::ConfigMap => "ConfigMap",
            Kind::VirtualService => "VirtualService",
            Kind::DestinationRule => "DestinationRule",
            Kind::Pod => "Pod",
        }
    }

    /// As people are told of it: with its group where two kinds have one name, as kubectl knows them.
    pub fn shown(self) -> &'static str {
        match self {
            Kind::IstioGateway => "Gateway.networking.istio.io",
            other => other.name(),
        }
    }

    /// The group of its `apiVersion`; empty: the core's.
    pub fn group(self) -> &'static str {
        match self {
            Kind::Namespace | Kind::Service | Kind::Secret | Kind::ConfigMap | Kind::Pod => "",
            Kind::EndpointSlice => "discovery.k8s.io",
            Kind::IstioGateway | Kind::VirtualService | Kind::DestinationRule => ISTIO,
            _ => GROUP,
        }
    }

    /// Whether its objects are in no namespace.
    pub fn is_of_cluster(self) -> bool {
        matches!(self, Kind::GatewayClass | Kind::Namespace)
    }

    /// Whether it is a route.
    pub fn is_route(self) -> bool {
        matches!(self, Kind::TlsRoute | Kind::TcpRoute | Kind::HttpRoute | Kind::GrpcRoute)
    }

    pub(super) fn of(group: &str, kind: &str) -> Option<Self> {
        Kind::ALL.into_iter().find(|known| known.group() == group && known.name() == kind)
    }

    /// The versions of its `apiVersion` that are read, the best first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::TlsRoute => &["v1", "v1alpha3", "v1alpha2"],
            Kind::TcpRoute => &["v1", "v1alpha2"],
            Kind::BackendTlsPolicy => &["v1", "v1alpha3"],
            Kind::IstioGateway | Kind::VirtualService | Kind::DestinationRule => {
                &["v1", "v1beta1", "v1alpha3"]
            }
            Kind::ReferenceGrant | Kind::Gateway | Kind::GatewayClass | Kind::HttpRoute => &["v1", "v1beta1"],
            _ => &["v1"],
        }
    }
}

/// A namespace and a name in it; of an object of the whole cluster the namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// A label of DNS: it has no dots.
    pub namespace: Arc<str>,
    /// As it is.
    pub name: Arc<str>,
}

impl Name {
    /// The name in a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What identifies an object. Displayed as `TLSRoute databases/redis-1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub name: Name,
}

impl Key {
    /// The key of an object.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, name: Name::new(namespace, name) }
    }

    /// The key of an object as the API server has it; `None`: its kind is of no interest here.
    pub fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let (version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        Self::named(version, kind, namespace, metadata["name"].as_str()?)
    }

    /// The same by the words that the object has for it; `version`: its `apiVersion`.
    pub fn named(version: &str, kind: &str, namespace: &str, name: &str) -> Option<Self> {
        let (group, _) = version.rsplit_once('/').unwrap_or_default();
        Some(Self::new(Kind::of(group, kind)?, namespace, name))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.shown(), self.name)
    }
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The label with its name that every namespace has.
pub(super) const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";
