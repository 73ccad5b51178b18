//! What a destination of a VirtualService is: a Service, its port, and some of its pods.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::destination_rule::{DestinationRule, Subset};
use crate::config::diagnostic::quote;
use crate::config::gateway_api::index::View;
use crate::config::gateway_api::key::Name;
use crate::config::gateway_api::pools::is_tcp;
use crate::config::gateway_api::status::Fault;

/// What a destination of a VirtualService says besides the Service.
#[derive(Debug, PartialEq)]
pub(in crate::config::gateway_api) struct Destination {
    /// Lower case.
    pub(super) subset: Option<Box<str>>,
    /// The client's own TLS goes to the server.
    pub(super) is_passed_through: bool,
}

/// The subset that a destination means; `None`: it means all pods.
pub(in crate::config::gateway_api) fn subset<'i>(
    view: &View<'i>,
    service: &Name,
    port: u16,
    destination: &Destination,
) -> Result<Option<&'i Subset>, Fault> {
    let rules = view.rules(service);
    let visible = || rules.iter().copied().filter(|rule| rule.is_exported);
    let found = match destination.subset.as_deref() {
        None => visible().next().map(|rule| (rule, None)),
        Some(name) => {
            let of = |rule: &'i DestinationRule| rule.subsets.iter().find(|subset| *subset.name == *name);
            let Some(found) = visible().find_map(|rule| Some((rule, Some(of(rule)?)))) else {
                let message = format!("no DestinationRule gives Service {service} a subset {}", quote(name));
                return Err(Fault::new("BackendNotFound", message));
            };
            Some(found)
        }
    };
    let Some((rule, subset)) = found else { return Ok(None) };
    if !destination.is_passed_through && rule.encrypts(port, subset) {
        let message = format!("a DestinationRule asks for TLS to Service {service}, which is not begun here");
        return Err(Fault::new("UnsupportedValue", message));
    }
    Ok(subset)
}

/// The subsets of a Service; of one name the first.
pub(in crate::config::gateway_api) fn subsets<'i>(view: &View<'i>, service: &Name) -> Vec<&'i Subset> {
    let rules = view.rules(service).into_iter().filter(|rule| rule.is_exported);
    rules.flat_map(|rule| &rule.subsets).collect()
}

/// The port of a Service that has only one.
pub(in crate::config::gateway_api) fn only_port(view: &mut View<'_>, service: &Name) -> Option<u16> {
    let mut ports = view.service(service)?.ports.iter().filter(|port| is_tcp(port));
    ports.next().map(|port| port.port).filter(|_| ports.next().is_none())
}
