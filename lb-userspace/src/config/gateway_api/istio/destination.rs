//! Where rules of a VirtualService lead: destinations, each with its share, and what is changed in requests for it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use serde::Deserialize;

use super::host::{DOMAIN, service};
use crate::config::gateway_api::http_filters::{changed_header, header_value};
use crate::config::gateway_api::key::ISTIO;
use crate::config::gateway_api::specs::{BackendRef, Destination};
use crate::config::http::{Filters, HeaderChanges};

#[derive(Clone, Deserialize)]
pub(super) struct Weighted {
    destination: Destined,
    weight: Option<u32>,
    /// Of requests.
    #[serde(default)]
    headers: HeadersSpec,
}

#[derive(Clone, Deserialize)]
pub(super) struct Destined {
    host: Box<str>,
    subset: Option<Box<str>>,
    port: Option<Port>,
}

#[derive(Clone, Deserialize)]
struct Port {
    number: u16,
}

/// Changes of headers.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeadersSpec {
    #[serde(default)]
    request: ChangesSpec,
    #[serde(default)]
    response: ChangesSpec,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangesSpec {
    #[serde(default)]
    set: BTreeMap<Box<str>, Box<str>>,
    #[serde(default)]
    add: BTreeMap<Box<str>, Box<str>>,
    #[serde(default)]
    remove: Vec<Box<str>>,
}

/// The destinations of a rule of requests, each with what is changed for it.
pub(super) fn shares(
    route: Vec<Weighted>,
    namespace: &str,
) -> impl Iterator<Item = (BackendRef, HeadersSpec)> {
    all_shares(route, namespace, false)
}

/// The destinations of a rule.
pub(super) fn all_shares(
    route: Vec<Weighted>,
    namespace: &str,
    is_tls: bool,
) -> impl Iterator<Item = (BackendRef, HeadersSpec)> {
    let is_alone = route.len() == 1;
    route.into_iter().map(move |Weighted { destination, weight, headers }| {
        // Of several, one without a weight gets nothing.
        let weight = if is_alone { 1 } else { weight.unwrap_or(0) };
        (destination.backend(namespace, is_tls, Some(weight)), headers)
    })
}

impl Destined {
    pub(super) fn backend(self, namespace: &str, is_tls: bool, weight: Option<u32>) -> BackendRef {
        let Self { host, subset, port } = self;
        let subset = subset.map(|subset| subset.to_ascii_lowercase().into());
        let port = port.map(|port| port.number);
        let istio = Some(Destination { subset, is_passed_through: is_tls });
        match service(&host, namespace) {
            Some(service) => BackendRef {
                group: "".into(),
                kind: None,
                name: Box::from(&*service.name),
                namespace: Some(Box::from(&*service.namespace)),
                port,
                weight,
                istio,
            },
            // Everything else is described by a ServiceEntry, or by nothing.
            None => {
                let host = host.strip_suffix(DOMAIN).unwrap_or(&host);
                let (group, kind) = (ISTIO.into(), Some("ServiceEntry".into()));
                BackendRef { group, kind, name: host.into(), namespace: None, port, weight, istio }
            }
        }
    }
}

impl HeadersSpec {
    pub(super) fn filters(self) -> Result<Filters<usize>, String> {
        Ok(Filters {
            request_headers: self.request.read()?,
            response_headers: self.response.read()?,
            ..Filters::default()
        })
    }
}

impl ChangesSpec {
    fn read(self) -> Result<HeaderChanges, String> {
        let all = |headers: BTreeMap<Box<str>, Box<str>>| {
            let header =
                |(name, value): (Box<str>, Box<str>)| Ok((changed_header(&name)?, header_value(&value)?));
            headers.into_iter().map(header).collect::<Result<Vec<_>, String>>()
        };
        Ok(HeaderChanges {
            set: all(self.set)?,
            add: all(self.add)?,
            remove: self.remove.iter().map(|name| changed_header(name)).collect::<Result<_, _>>()?,
        })
    }
}
