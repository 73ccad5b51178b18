//! Subsets of Services, as DestinationRules of Istio define them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::istio::{DestinationRule, Subset};
use super::key::{Kind, Name};
use super::specs::Destination;
use super::status::Fault;
use super::view::View;
use crate::config::diagnostic::quote;

/// The subset that a destination means; `None`: it means all pods.
pub(super) fn subset<'i>(
    view: &View<'i>,
    service: &Name,
    port: u16,
    destination: &Destination,
) -> Result<Option<&'i Subset>, Fault> {
    let rules = view.rules(service);
    let kind = Kind::DestinationRule;
    if rules.is_empty() && !destination.is_passed_through && view.context.is_unseen(kind, &service.namespace)
    {
        let message = format!(
            "the API server does not let this gateway watch DestinationRules, of which one may ask for TLS to {service}"
        );
        return Err(Fault::new("PoliciesUnknown", message));
    }
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
pub(super) fn subsets<'i>(view: &View<'i>, service: &Name) -> Vec<&'i Subset> {
    let rules = view.rules(service).into_iter().filter(|rule| rule.is_exported);
    rules.flat_map(|rule| &rule.subsets).collect()
}
