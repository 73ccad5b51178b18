//! What BackendTLSPolicies say.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;
use std::sync::Arc;

use rustls::pki_types::{DnsName, ServerName};
use serde::Deserialize;
use serde_json::Value;

use super::decode::decode;
use super::key::{Key, Name};
use super::refusal::Refusal;
use super::specs::Reference;
use crate::config::address::dns_name;
use crate::config::diagnostic::quote;
use crate::config::san::San;

/// A policy. What cannot be read of it does not make it ineffective: without it servers would be spoken to in the clear.
#[derive(Debug, PartialEq)]
pub(super) struct PolicySpec {
    targets: Vec<TargetRef>,
    pub(super) validation: Result<Validation, Box<str>>,
}

/// A Service of its namespace, or a port of one.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetRef {
    #[serde(default)]
    group: Box<str>,
    kind: Box<str>,
    name: Box<str>,
    section_name: Option<Box<str>>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Validation {
    pub(super) authorities: Vec<Reference>,
    pub(super) server_name: ServerName<'static>,
    pub(super) sans: Vec<San>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Whole {
    target_refs: Vec<TargetRef>,
    #[serde(default)]
    validation: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ValidationSpec {
    #[serde(default)]
    ca_certificate_refs: Vec<Reference>,
    #[serde(rename = "wellKnownCACertificates")]
    well_known_ca_certificates: Option<Box<str>>,
    hostname: Box<str>,
    #[serde(default)]
    subject_alt_names: Vec<SanSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SanSpec {
    #[serde(rename = "type")]
    kind: Box<str>,
    hostname: Option<Box<str>>,
    uri: Option<Box<str>>,
}

impl PolicySpec {
    pub(super) fn read(spec: Value) -> Result<Self, Refusal> {
        let Whole { target_refs, validation } = decode("spec", spec)?;
        let validation = decode::<ValidationSpec>("spec.validation", validation);
        let validation = validation.map_err(|refusal| refusal.to_string().into());
        Ok(Self { targets: target_refs, validation: validation.and_then(ValidationSpec::read) })
    }

    /// Of one that has been refused, for those of its targets that can be read; `None`: there are none.
    pub(super) fn unread(spec: &Value, refusal: &Refusal) -> Option<Self> {
        let targets = spec["targetRefs"].as_array()?.iter();
        let targets: Vec<_> = targets.filter_map(|target| TargetRef::deserialize(target).ok()).collect();
        let validation = Err(refusal.to_string().into());
        (!targets.is_empty()).then_some(Self { targets, validation })
    }

    /// The Services that it is for, in the namespace of the policy, each with the name of the port that is meant, which is empty
    /// for all ports.
    pub(super) fn services<'p>(&'p self, key: &'p Key) -> impl Iterator<Item = (Name, &'p str)> + 'p {
        self.targets.iter().filter_map(move |target| Some((target.service(key)?, target.port())))
    }
}

impl TargetRef {
    fn service(&self, policy: &Key) -> Option<Name> {
        let is_service = self.group.is_empty() && &*self.kind == "Service";
        is_service.then(|| Name { namespace: policy.name.namespace.clone(), name: Arc::from(&*self.name) })
    }

    fn port(&self) -> &str {
        self.section_name.as_deref().unwrap_or_default()
    }
}

impl ValidationSpec {
    fn read(self) -> Result<Validation, Box<str>> {
        let Self { ca_certificate_refs, well_known_ca_certificates, hostname, subject_alt_names } = self;
        let well_known = well_known_ca_certificates.as_deref().filter(|name| !name.is_empty());
        match (well_known, ca_certificate_refs.as_slice()) {
            (None, [_, ..]) | (Some("System"), []) => {}
            (Some(other), []) => {
                let message =
                    format!("spec.validation.wellKnownCACertificates: {} is not known", quote(other));
                return Err(message.into());
            }
            (None, []) => return Err("spec.validation names no authorities".into()),
            (Some(_), _) => {
                return Err("spec.validation: caCertificateRefs exclude wellKnownCACertificates".into());
            }
        }
        let name = dns_name(&hostname).ok().and_then(|name| DnsName::try_from(String::from(name)).ok());
        let no_name = || format!("spec.validation.hostname: {} is no host name", quote(&hostname));
        let server_name = ServerName::DnsName(name.ok_or_else(no_name)?);
        let mut sans = subject_alt_names.into_iter().map(SanSpec::read).collect::<Result<Vec<_>, _>>()?;
        // To the API a name that is listed twice is no mistake.
        let mut seen = HashSet::new();
        sans.retain(|san| seen.insert(san.clone()));
        Ok(Validation { authorities: ca_certificate_refs, server_name, sans })
    }
}

impl SanSpec {
    fn read(self) -> Result<San, Box<str>> {
        let bad =
            |text: &str| format!("spec.validation.subjectAltNames: {} cannot be looked for", quote(text));
        match (&*self.kind, self.hostname, self.uri) {
            ("Hostname", Some(host), None) => match host.strip_prefix("*.") {
                Some(parent) => dns_name(parent).map(San::DnsBelow).map_err(|_| bad(&host).into()),
                None => dns_name(&host).map(San::Dns).map_err(|_| bad(&host).into()),
            },
            ("URI", None, Some(uri)) if uri.contains(':') => Ok(San::Uri(uri)),
            (kind, ..) => Err(bad(kind).into()),
        }
    }
}
