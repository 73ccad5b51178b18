//! Services and their endpoints: pools and servers.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;
use std::net::IpAddr;

use super::drafts::place;
use super::key::{Key, Kind, Labels, Name};
use super::specs::{BackendRef, Endpoint, ServicePort};
use super::status::Fault;
use super::subsets::subset;
use super::target::Target;
use super::view::View;
use crate::config::address::{Address, Host, Origin};
use crate::config::diagnostic::quote;
use crate::config::model::Server;
use crate::config::place::Placed;

/// What a backend of a route in `namespace` means, or why the route cannot have it.
pub(super) fn resolve(
    view: &mut View<'_>,
    from: Kind,
    namespace: &str,
    backend: &BackendRef,
) -> Result<Target, Fault> {
    let kind = backend.kind.as_deref().unwrap_or("Service");
    if !backend.group.is_empty() || kind != "Service" {
        let message = format!("{} of the group {} is no Service", quote(kind), quote(&backend.group));
        return Err(Fault::new("InvalidKind", message));
    }
    let service = Name::new(backend.namespace.as_deref().unwrap_or(namespace), &backend.name);
    if !view.is_granted(from, namespace, Kind::Service, &service) {
        let message = format!("no ReferenceGrant lets a {} of {namespace} name {service}", from.name());
        return Err(Fault::new("RefNotPermitted", message));
    }
    let not_found = |why: String| Fault::new("BackendNotFound", why);
    let only = if backend.istio.is_some() { only_port(view, &service) } else { None };
    let Some(port) = backend.port.or(only) else {
        return Err(not_found(format!("the port of Service {service} is missing")));
    };
    let is_external = {
        let Some(found) = view.service(&service) else {
            return Err(not_found(format!("there is no Service {service}")));
        };
        if !found.ports.iter().any(|known| is_port(known, port)) {
            return Err(not_found(format!("Service {service} has no TCP port {port}")));
        }
        &*found.kind == "ExternalName"
    };
    if is_external && !view.index.settings.external_names {
        let why = "is of type ExternalName, which only `external_names = true` follows";
        return Err(not_found(format!("Service {service} {why}")));
    }
    let subset = match &backend.istio {
        Some(destination) => subset(view, &service, port, destination)?,
        None => None,
    };
    Ok(Target::new(service, port, subset))
}

/// Why nobody may speak to the servers of some Services: there may be policies for them of which nobody here knows.
pub(super) fn unseen(view: &View<'_>, services: &[Name]) -> Option<Fault> {
    let is_unseen = |service: &&Name| view.context.is_unseen(Kind::BackendTlsPolicy, &service.namespace);
    let service = services.iter().find(is_unseen)?;
    let message = format!(
        "the API server does not let this gateway watch BackendTLSPolicies, of which one may ask for TLS to {service}"
    );
    Some(Fault::new("PoliciesUnknown", message))
}

/// The port of a Service that has only one.
fn only_port(view: &mut View<'_>, service: &Name) -> Option<u16> {
    let mut ports = view.service(service)?.ports.iter().filter(|port| is_tcp(port));
    ports.next().map(|port| port.port).filter(|_| ports.next().is_none())
}

pub(super) fn is_tcp(known: &ServicePort) -> bool {
    known.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
}

pub(super) fn is_port(known: &ServicePort, port: u16) -> bool {
    known.port == port && is_tcp(known)
}

/// The servers of a Service's port of which the pods have these labels, each with its place: those that are ready, or if there
/// are none those that still serve while they end.
pub(super) fn servers(
    view: &mut View<'_>,
    service: &Name,
    port: u16,
    labels: &Labels,
) -> Vec<Placed<Origin>> {
    let Some(spec) = view.service(service) else { return Vec::new() };
    let Some(named) = spec.ports.iter().find(|known| is_port(known, port)) else { return Vec::new() };
    if &*spec.kind == "ExternalName" {
        let origin = Address::of_host(&spec.external_name, port).map(Origin::Address);
        let key = Key { kind: Kind::Service, name: service.clone() };
        let place = place(&key, "spec.externalName");
        let origin = origin.filter(|_| labels.is_empty());
        return origin.map(|origin| Placed::new(place, origin)).into_iter().collect();
    }
    let (mut ready, mut ending) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for (object, slice) in view.slices(service) {
        if &*slice.address_type == "FQDN" {
            continue;
        }
        let Some(port) = slice.ports.iter().find(|port| port.name == named.name).and_then(|port| port.port)
        else {
            continue;
        };
        for (number, endpoint) in slice.endpoints.iter().enumerate() {
            let pod = endpoint.pod.as_deref();
            if !labels.is_empty() && !pod.is_some_and(|pod| view.pod_has(&service.namespace, pod, labels)) {
                continue;
            }
            let Some(list) = (match state(endpoint) {
                State::Ready => Some(&mut ready),
                State::Ending => Some(&mut ending),
                State::Gone => None,
            }) else {
                continue;
            };
            for address in &endpoint.addresses {
                let Ok(ip) = address.parse::<IpAddr>() else { continue };
                if port != 0 && is_allowed(ip, &view.own) && seen.insert((ip, port)) {
                    let place = place(&object.key, format!("endpoints[{number}]"));
                    list.push(Placed::new(place, Origin::Address(Address { host: Host::Ip(ip), port })));
                }
            }
        }
    }
    if ready.is_empty() { ending } else { ready }
}

/// With the defaults of everything else.
pub(super) fn server(origin: Origin) -> Server {
    Server::new(origin)
}

enum State {
    /// It takes connections.
    Ready,
    /// It takes them if nobody else does.
    Ending,
    Gone,
}

/// EndpointConditions of the API: absent is ready, and a server that is ready serves.
fn state(endpoint: &Endpoint) -> State {
    let conditions = endpoint.conditions;
    let ready = conditions.ready.unwrap_or(true);
    let terminating = conditions.terminating.unwrap_or(false);
    match (ready, conditions.serving.unwrap_or(ready), terminating) {
        (true, _, _) => State::Ready,
        (false, true, true) => State::Ending,
        (false, ..) => State::Gone,
    }
}

/// Whoever may write EndpointSlices must not reach the node's own services by the gateway (CVE-2021-25740), nor make two
/// gateways connect to each other in a circle.
fn is_allowed(ip: IpAddr, own: &HashSet<IpAddr>) -> bool {
    let canonical = ip.to_canonical();
    let is_link_local = match canonical {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let is_own = canonical.is_loopback() || own.contains(&canonical);
    !(is_own || is_link_local || canonical.is_unspecified() || canonical.is_multicast())
}
