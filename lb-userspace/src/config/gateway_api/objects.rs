//! Objects as the API server or a file has them: of each only what this program reads.
//!
//! These types are the program's own. Those of the crates `gateway-api` and `k8s-openapi` have one type of parent and backend
//! for each kind of route, refuse a whole object for one unknown word, ask for fields that older versions of a kind lack, keep
//! all that is never read in memory, and print what is in a Secret.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::decode::decode;
use super::istio::{DestinationRule, IstioGateway, VirtualService};
use super::key::{GROUP, Key, Kind, Labels, NAMESPACE_LABEL};
use super::policies::PolicySpec;
use super::refusal::Refusal;
use super::route::RouteSpec;
use super::secret::{AuthoritySpec, SecretSpec};
use super::specs::{
    ClassSpec, GatewaySpec, GrantSpec, ListenerSetSpec, ListenerSpec, ParentRef, ServiceSpec, SliceSpec,
};
use super::{grpc_route, http_route};
use crate::config::diagnostic::quote;

/// An object.
#[derive(Debug, PartialEq)]
pub struct Object {
    /// What identifies it.
    pub key: Key,
    /// Counts changes of its `spec`; 0 in files.
    pub generation: i64,
    /// When it was made, as RFC 3339 writes it in UTC: sorted as text it is sorted by time. Empty in files, where all are equally
    /// old.
    pub created: Arc<str>,
    /// Of namespaces, EndpointSlices and pods.
    pub(super) labels: Labels,
    pub(super) spec: Spec,
}

#[derive(Debug, PartialEq)]
pub(super) enum Spec {
    GatewayClass(ClassSpec),
    Gateway(Box<GatewaySpec>),
    ListenerSet(Box<ListenerSetSpec>),
    Route(Box<RouteSpec>),
    ReferenceGrant(GrantSpec),
    Namespace,
    Service(ServiceSpec),
    EndpointSlice(SliceSpec),
    Secret(SecretSpec),
    ConfigMap(AuthoritySpec),
    IstioGateway(Box<IstioGateway>),
    VirtualService(Box<VirtualService>),
    DestinationRule(Box<DestinationRule>),
    Pod,
    BackendTlsPolicy(Box<PolicySpec>),
    Unread(Box<Unread>),
}

/// Of an object that cannot be read: why, and whose it seems to be, so that its status can say so.
#[derive(Debug, PartialEq)]
pub(super) struct Unread {
    pub(super) refusal: Refusal,
    /// Of a Gateway.
    pub(super) class: Box<str>,
    /// Of a route or ListenerSet: those that can be read.
    pub(super) parents: Vec<ParentRef>,
}

/// The beginning of every object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    generation: i64,
    #[serde(default)]
    creation_timestamp: String,
    #[serde(default)]
    labels: Labels,
}

impl Object {
    /// Reads an object as JSON has it; `None`: its kind is of no interest here.
    pub fn read(mut value: Value) -> Result<Option<Object>, Refusal> {
        remove_nulls(&mut value);
        if !value.is_object() {
            return Err(Refusal::new("", "it is no object: `apiVersion`, `kind` and `metadata` are missing"));
        }
        // Everything but these may be a secret.
        let parts = ["apiVersion", "kind", "metadata"].map(|part| (part, value[part].take()));
        let parts = parts.into_iter().filter(|(_, value)| !value.is_null());
        let head = Value::Object(parts.map(|(part, value)| (part.to_owned(), value)).collect());
        let Head { api_version, kind, metadata } = decode("", head)?;
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let Some(kind) = Kind::of(group, &kind) else {
            // Of the Gateway API's own it may be a mistake, and what it asks for is not there.
            return match group {
                GROUP => {
                    Err(Refusal::new("kind", format!("{} is no kind that is served here", quote(&kind))))
                }
                _ => Ok(None),
            };
        };
        if !kind.versions().contains(&version) {
            let known = kind.versions().join(", ");
            let message = format!("version {} of {} is not known, but {known}", quote(version), kind.name());
            return Err(Refusal::new("apiVersion", message));
        }
        let key = key_of(kind, &metadata.namespace, &metadata.name)?;
        let namespace = &*key.name.namespace;
        let mut spec = || value["spec"].take();
        let spec = match kind {
            Kind::GatewayClass => Spec::GatewayClass(decode("spec", spec())?),
            Kind::Gateway => {
                let gateway: Box<GatewaySpec> = decode("spec", spec())?;
                check_names(&gateway.listeners)?;
                Spec::Gateway(gateway)
            }
            Kind::ListenerSet => {
                let set: Box<ListenerSetSpec> = decode("spec", spec())?;
                check_names(&set.listeners)?;
                Spec::ListenerSet(set)
            }
            Kind::HttpRoute => Spec::Route(Box::new(http_route::read(&key, spec())?)),
            Kind::GrpcRoute => Spec::Route(Box::new(grpc_route::read(&key, spec())?)),
            Kind::BackendTlsPolicy => Spec::BackendTlsPolicy(Box::new(PolicySpec::read(spec())?)),
            Kind::TlsRoute | Kind::TcpRoute => {
                let mut route: Box<RouteSpec> = decode("spec", spec())?;
                let is_alpha = version.starts_with("v1alpha");
                if kind == Kind::TlsRoute && !is_alpha && route.hostnames.is_empty() {
                    return Err(Refusal::new("spec.hostnames", "a TLSRoute of version v1 has one at least"));
                }
                if kind == Kind::TcpRoute {
                    route.hostnames.clear();
                }
                Spec::Route(route)
            }
            Kind::ReferenceGrant => Spec::ReferenceGrant(decode("spec", spec())?),
            Kind::Namespace => Spec::Namespace,
            Kind::Service => Spec::Service(decode("spec", spec())?),
            Kind::EndpointSlice => Spec::EndpointSlice(decode("", value)?),
            Kind::Secret => Spec::Secret(SecretSpec::read(&mut value)?),
            Kind::ConfigMap => Spec::ConfigMap(AuthoritySpec::read(&mut value)?),
            Kind::IstioGateway => Spec::IstioGateway(Box::new(IstioGateway::read(spec(), namespace)?)),
            Kind::VirtualService => Spec::VirtualService(Box::new(VirtualService::read(spec(), &key)?)),
            Kind::DestinationRule => {
                Spec::DestinationRule(Box::new(DestinationRule::read(spec(), namespace)?))
            }
            Kind::Pod => Spec::Pod,
        };
        let mut labels = metadata.labels;
        if kind == Kind::Namespace {
            // What the API server adds by itself.
            labels.insert(NAMESPACE_LABEL.into(), metadata.name);
        }
        Ok(Some(Object {
            key,
            generation: metadata.generation,
            created: metadata.creation_timestamp.into(),
            labels,
            spec,
        }))
    }
}

impl Object {
    /// Stands for an object that [`read`](Self::read) has refused, of which that is to be said; `None`: of its kind nothing is. A
    /// policy stays one, which cannot be followed.
    pub fn unread(key: Key, value: &Value, refusal: Refusal) -> Option<Object> {
        let spec = &value["spec"];
        let (generation, created) = (
            value["metadata"]["generation"].as_i64().unwrap_or(0),
            value["metadata"]["creationTimestamp"].as_str().unwrap_or_default().into(),
        );
        if key.kind == Kind::BackendTlsPolicy {
            let policy = Box::new(PolicySpec::unread(spec, &refusal)?);
            let spec = Spec::BackendTlsPolicy(policy);
            return Some(Object { key, generation, created, labels: Labels::new(), spec });
        }
        let parents = match key.kind {
            Kind::Gateway | Kind::IstioGateway | Kind::VirtualService | Kind::DestinationRule => &[][..],
            Kind::ListenerSet => std::slice::from_ref(&spec["parentRef"]),
            kind if kind.is_route() => spec["parentRefs"].as_array().map(Vec::as_slice).unwrap_or_default(),
            _ => return None,
        };
        let parents = parents.iter().filter_map(|parent| ParentRef::deserialize(parent).ok()).collect();
        let class = spec["gatewayClassName"].as_str().unwrap_or_default().into();
        Some(Object {
            key,
            generation,
            created,
            labels: Labels::new(),
            spec: Spec::Unread(Box::new(Unread { refusal, class, parents })),
        })
    }

    pub(super) fn as_unread(&self) -> Option<&Unread> {
        match &self.spec {
            Spec::Unread(unread) => Some(unread),
            _ => None,
        }
    }
}

/// What identifies an object of a file, which without a namespace is in `default`, as it is for kubectl.
pub(super) fn key_of(kind: Kind, namespace: &str, name: &str) -> Result<Key, Refusal> {
    is_name(name).map_err(|why| Refusal::new("metadata.name", why))?;
    let namespace = match namespace {
        _ if kind.is_of_cluster() => "",
        "" => "default",
        namespace => namespace,
    };
    if namespace.contains('.') || (!namespace.is_empty() && is_name(namespace).is_err()) {
        return Err(Refusal::new("metadata.namespace", "it cannot be the name of a namespace"));
    }
    Ok(Key::new(kind, namespace, name))
}

/// A DNS subdomain (RFC 1123), as names of objects are.
fn is_name(name: &str) -> Result<(), &'static str> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    match name.chars().all(is_allowed) && (1..=253).contains(&name.len()) {
        true => Ok(()),
        false => Err("a name has 1 to 253 lower-case letters, digits, `-` and `.`"),
    }
}

/// Names of listeners come into names of routes.
fn check_names(listeners: &[ListenerSpec]) -> Result<(), Refusal> {
    listeners.iter().enumerate().try_for_each(|(number, listener)| {
        is_name(&listener.name).map_err(|why| Refusal::new(format!("spec.listeners[{number}].name"), why))
    })
}

/// To Kubernetes a field with `null` is one that is not there.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}
