//! What objects say: the fields that are read, as the API writes them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::key::{GROUP, Key, Kind, Labels};
use crate::config::model::SniPattern;
use crate::config::san::San;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClassSpec {
    pub(super) controller_name: Box<str>,
    pub(super) parameters_ref: Option<Value>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GatewaySpec {
    pub(super) gateway_class_name: Box<str>,
    #[serde(default)]
    pub(super) listeners: Vec<ListenerSpec>,
    #[serde(default)]
    pub(super) addresses: Vec<AddressSpec>,
    #[serde(default)]
    pub(super) infrastructure: Infrastructure,
    #[serde(default)]
    pub(super) allowed_listeners: Allowed,
    #[serde(default)]
    pub(super) tls: GatewayTls,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Infrastructure {
    pub(super) parameters_ref: Option<Value>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct AddressSpec {
    #[serde(rename = "type")]
    pub(super) kind: Option<Box<str>>,
    #[serde(default)]
    pub(super) value: Box<str>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct GatewayTls {
    pub(super) frontend: Option<Frontend>,
    pub(super) backend: Option<BackendTls>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Frontend {
    #[serde(default)]
    pub(super) default: FrontendTls,
    #[serde(default)]
    pub(super) per_port: Vec<FrontendPort>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct FrontendPort {
    pub(super) port: u16,
    #[serde(default)]
    pub(super) tls: FrontendTls,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct FrontendTls {
    pub(super) validation: Option<Validation>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Validation {
    #[serde(default)]
    pub(super) ca_certificate_refs: Vec<Reference>,
    pub(super) mode: Option<Box<str>>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BackendTls {
    pub(super) client_certificate_ref: Option<Reference>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListenerSetSpec {
    pub(super) parent_ref: ParentRef,
    #[serde(default)]
    pub(super) listeners: Vec<ListenerSpec>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListenerSpec {
    pub(super) name: Box<str>,
    pub(super) hostname: Option<Box<str>>,
    pub(super) port: NonZeroU16,
    pub(super) protocol: Box<str>,
    #[serde(default)]
    pub(super) tls: ListenerTls,
    #[serde(default)]
    pub(super) allowed_routes: Allowed,
    /// It stands for a host of a server of Istio's Gateway.
    #[serde(skip)]
    pub(super) istio: Option<Box<Server>>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListenerTls {
    pub(super) mode: Option<Box<str>>,
    #[serde(default)]
    pub(super) certificate_refs: Vec<Reference>,
    #[serde(default)]
    pub(super) options: BTreeMap<String, Value>,
}

/// Who may attach: `allowedRoutes`, `allowedListeners`.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct Allowed {
    #[serde(default)]
    pub(super) namespaces: Namespaces,
    /// Absent: all that the protocol takes.
    pub(super) kinds: Option<Vec<RouteKind>>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct Namespaces {
    pub(super) from: Option<FromNamespaces>,
    /// Absent it selects nothing, empty everything.
    pub(super) selector: Option<Selector>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum FromNamespaces {
    All,
    Same,
    Selector,
    None,
}

/// Labels that a namespace has; without any condition it is every namespace.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Selector {
    #[serde(default)]
    match_labels: Labels,
    #[serde(default)]
    match_expressions: Vec<Expression>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whatever has one of these values for a label.
    pub(super) fn one_of(key: &str, values: Vec<String>) -> Self {
        let expression = Expression { key: key.to_owned(), operator: Operator::In, values };
        Self { match_labels: Labels::new(), match_expressions: vec![expression] }
    }

    pub(super) fn matches(&self, labels: &Labels) -> bool {
        let fits = |expression: &Expression| {
            let value = labels.get(&expression.key);
            match expression.operator {
                Operator::In => value.is_some_and(|value| expression.values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !expression.values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(fits)
    }
}

/// A group and kind of routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteKind {
    /// Absent: that of the Gateway API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Box<str>>,
    /// `TLSRoute`.
    pub kind: Box<str>,
}

/// A reference to a Secret, ConfigMap or other object.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Reference {
    #[serde(default)]
    pub(super) group: Box<str>,
    pub(super) kind: Option<Box<str>>,
    pub(super) name: Box<str>,
    pub(super) namespace: Option<Box<str>>,
}

/// What a route or a ListenerSet hangs on, word by word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Absent: that of the Gateway API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Box<str>>,
    /// Absent: `Gateway`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Box<str>>,
    /// Absent: that of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Box<str>>,
    /// As it is.
    pub name: Box<str>,
    /// The listener; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<Box<str>>,
    /// The listeners of this port; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl ParentRef {
    /// The Gateway or ListenerSet that is meant, by an object of `namespace`; `None`: it is something else.
    pub(super) fn key(&self, namespace: &Arc<str>) -> Option<Key> {
        let kind = match (self.group.as_deref(), self.kind.as_deref()) {
            (None | Some(GROUP), None | Some("Gateway")) => Kind::Gateway,
            (None | Some(GROUP), Some("ListenerSet")) => Kind::ListenerSet,
            _ => return None,
        };
        Some(Key::new(kind, self.namespace.as_deref().unwrap_or(namespace), &self.name))
    }
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct BackendRef {
    #[serde(default)]
    pub(super) group: Box<str>,
    pub(super) kind: Option<Box<str>>,
    pub(super) name: Box<str>,
    pub(super) namespace: Option<Box<str>>,
    pub(super) port: Option<u16>,
    pub(super) weight: Option<u32>,
    /// It is a destination of Istio's VirtualService.
    #[serde(skip)]
    pub(super) istio: Option<Destination>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct GrantSpec {
    #[serde(default)]
    pub(super) from: Vec<GrantFrom>,
    #[serde(default)]
    pub(super) to: Vec<GrantTo>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct GrantFrom {
    pub(super) group: Box<str>,
    pub(super) kind: Box<str>,
    pub(super) namespace: Box<str>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct GrantTo {
    #[serde(default)]
    pub(super) group: Box<str>,
    pub(super) kind: Box<str>,
    /// Absent: all.
    pub(super) name: Option<Box<str>>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(super) kind: Box<str>,
    pub(super) external_name: Box<str>,
    pub(super) ports: Vec<ServicePort>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePort {
    #[serde(default)]
    pub(super) name: Box<str>,
    pub(super) port: u16,
    pub(super) protocol: Option<Box<str>>,
    pub(super) app_protocol: Option<Box<str>>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceSpec {
    #[serde(default)]
    pub(super) address_type: Box<str>,
    #[serde(default)]
    pub(super) endpoints: Vec<Endpoint>,
    #[serde(default)]
    pub(super) ports: Vec<SlicePort>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct SlicePort {
    #[serde(default)]
    pub(super) name: Box<str>,
    pub(super) port: Option<u16>,
}

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Endpoint {
    #[serde(default)]
    pub(super) addresses: Vec<Box<str>>,
    #[serde(default)]
    pub(super) conditions: EndpointConditions,
    /// The pod that it is, in the namespace of the slice.
    #[serde(default, rename = "targetRef", deserialize_with = "pod")]
    pub(super) pod: Option<Box<str>>,
}

/// The name of the Pod that a `targetRef` means; of other kinds nothing.
fn pod<'de, D: Deserializer<'de>>(target: D) -> Result<Option<Box<str>>, D::Error> {
    #[derive(Deserialize)]
    struct Target {
        #[serde(default)]
        kind: Box<str>,
        #[serde(default)]
        name: Box<str>,
    }
    let Target { kind, name } = Target::deserialize(target)?;
    Ok((&*kind == "Pod").then_some(name))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(super) struct EndpointConditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

/// What a listener has besides that stands for a host of a server, or for a whole server of TCP.
#[derive(Debug, PartialEq)]
pub(super) struct Server {
    /// In `spec.servers`.
    pub(super) number: usize,
    /// Why it is not served.
    pub(super) fault: Option<Box<str>>,
    /// What is asked of the certificates of clients.
    pub(super) clients: Option<Arc<Clients>>,
    /// All hosts of one of TCP.
    pub(super) hosts: Vec<SniPattern>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Clients {
    /// The Secrets that may have the authorities: the first that is there counts.
    pub(super) secrets: Vec<Box<str>>,
    /// A client without a certificate is turned away.
    pub(super) required: bool,
    /// Names of which a certificate must have one; none: every name will do.
    pub(super) sans: Vec<San>,
}

/// What a destination of Istio's VirtualService says besides the Service.
#[derive(Debug, PartialEq)]
pub(super) struct Destination {
    /// Lower case.
    pub(super) subset: Option<Box<str>>,
    /// The client's own TLS goes to the server.
    pub(super) is_passed_through: bool,
}
