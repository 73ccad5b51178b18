//! Istio's DestinationRule: the subsets of a Service, by labels of its pods.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::host::{is_label, service};
use crate::config::diagnostic::quote;
use crate::config::gateway_api::decode::{Given, decode};
use crate::config::gateway_api::key::{Labels, Name};
use crate::config::gateway_api::refusal::Refusal;

/// Subsets of a rule at most: each is a route for each port of the Service.
const MOST_SUBSETS: usize = 100;

/// A DestinationRule, which is about a Service of its own namespace.
#[derive(Debug, PartialEq)]
pub(in crate::config::gateway_api) struct DestinationRule {
    pub(in crate::config::gateway_api) service: Name,
    pub(in crate::config::gateway_api) subsets: Vec<Subset>,
    policy: Policy,
    /// It is for some gateway, as far as that can be told.
    pub(in crate::config::gateway_api) is_exported: bool,
    /// What it asks for and has no effect.
    pub(in crate::config::gateway_api) ignored: Vec<String>,
}

/// Some pods of a Service.
#[derive(Debug, PartialEq)]
pub(in crate::config::gateway_api) struct Subset {
    pub(in crate::config::gateway_api) name: Arc<str>,
    /// Those that its pods have; none: it is all pods.
    pub(in crate::config::gateway_api) labels: Arc<Labels>,
    policy: Policy,
}

/// Whether gateways are to begin TLS of their own with servers.
#[derive(Debug, Default, PartialEq)]
struct Policy {
    tls: Option<bool>,
    ports: Vec<(u16, bool)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    host: Box<str>,
    #[serde(default)]
    traffic_policy: PolicySpec,
    #[serde(default)]
    subsets: Vec<SubsetSpec>,
    #[serde(default)]
    export_to: Vec<Box<str>>,
    #[serde(default)]
    workload_selector: Given,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubsetSpec {
    name: Box<str>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    traffic_policy: PolicySpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicySpec {
    tls: Option<Tls>,
    #[serde(default)]
    port_level_settings: Vec<PortPolicy>,
    #[serde(flatten)]
    rest: BTreeMap<Box<str>, IgnoredAny>,
}

#[derive(Deserialize)]
struct PortPolicy {
    port: Port,
    tls: Option<Tls>,
}

#[derive(Deserialize)]
struct Port {
    number: u16,
}

#[derive(Deserialize)]
struct Tls {
    mode: Option<Box<str>>,
}

impl DestinationRule {
    /// `namespace`: its own.
    pub(in crate::config::gateway_api) fn read(spec: Value, namespace: &str) -> Result<Self, Refusal> {
        let Spec { host, traffic_policy, subsets, export_to, workload_selector } = decode("spec", spec)?;
        // Who may write in one namespace must not say anything of the Services of another.
        let service = service(&host, namespace).filter(|service| *service.namespace == *namespace);
        let Some(service) = service else {
            let message = format!("{} is no Service of the namespace {namespace}", quote(&host));
            return Err(Refusal::new("spec.host", message));
        };
        if workload_selector.0 {
            return Err(Refusal::new(
                "spec.workloadSelector",
                "it is for some sidecars, and not for gateways",
            ));
        }
        if subsets.len() > MOST_SUBSETS {
            return Err(Refusal::new("spec.subsets", format!("more than {MOST_SUBSETS} subsets")));
        }
        let mut ignored = Vec::new();
        let policy = traffic_policy.read("spec.trafficPolicy", &mut ignored);
        let subset = |(number, subset): (usize, SubsetSpec)| {
            let SubsetSpec { name, labels, traffic_policy } = subset;
            let name = name.to_ascii_lowercase();
            if !is_label(&name) {
                let message = format!("{} cannot be a part of a host name", quote(&name));
                return Err(Refusal::new(format!("spec.subsets[{number}].name"), message));
            }
            let policy = traffic_policy.read(&format!("spec.subsets[{number}].trafficPolicy"), &mut ignored);
            Ok(Subset { name: name.into(), labels: Arc::new(labels), policy })
        };
        let subsets = subsets.into_iter().enumerate().map(subset).collect::<Result<_, _>>()?;
        // Which gateways see it, is not looked at one by one: a rule for its own namespace alone is for none.
        let is_exported = export_to.is_empty() || export_to.iter().any(|to| !matches!(&**to, "." | "~"));
        Ok(Self { service, subsets, policy, is_exported, ignored })
    }

    /// Whether gateways are to begin TLS of their own with the servers of a port.
    pub(in crate::config::gateway_api) fn encrypts(&self, port: u16, subset: Option<&Subset>) -> bool {
        let subset = subset.and_then(|subset| subset.policy.encrypts(port));
        subset.or_else(|| self.policy.encrypts(port)).unwrap_or(false)
    }
}

impl PolicySpec {
    fn read(self, path: &str, ignored: &mut Vec<String>) -> Policy {
        let rest = self.rest.into_keys().map(|key| format!("{path}.{}", quote(&key).trim_matches('`')));
        ignored.extend(rest);
        let ports = self.port_level_settings.into_iter();
        Policy {
            tls: self.tls.map(|tls| tls.encrypts()),
            ports: ports.map(|port| (port.port.number, port.tls.is_some_and(|tls| tls.encrypts()))).collect(),
        }
    }
}

impl Policy {
    fn encrypts(&self, port: u16) -> Option<bool> {
        let on_port = self.ports.iter().find(|(known, _)| *known == port).map(|(_, encrypts)| *encrypts);
        on_port.or(self.tls)
    }
}

impl Tls {
    fn encrypts(&self) -> bool {
        self.mode.as_deref().is_some_and(|mode| mode != "DISABLE")
    }
}
