//! BackendTLSPolicy: TLS toward the servers of a Service.
//!
//! It counts where TLS of clients has been ended, or there was none: for requests of HTTP, and for TLSRoutes on listeners that
//! terminate.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls::RootCertStore;

use super::attach::{Attached, Work};
use super::drafts::place;
use super::gateways::Gateways;
use super::key::{Key, Kind, Name};
use super::listeners::{Listener, Use};
use super::objects::{Object, Spec};
use super::policies::{PolicySpec, Validation};
use super::pools;
use super::references::authority;
use super::specs::ParentRef;
use super::status::{Condition, Fault, PolicyAncestorStatus, PolicyStatus, Status, Statuses};
use super::target::{Client, Target};
use super::view::View;
use crate::config::authorities::Authorities;
use crate::config::diagnostic::quote;
use crate::config::draft::{AuthoritiesDraft, CertificateDraft, Field, UpstreamTlsDraft};
use crate::config::place::{Place, Placed};

/// Gateways that the API lets a policy's status name.
const MOST_ANCESTORS: usize = 16;
/// The application protocols of a Service's port (KEP-3726, and Istio's) of which the servers speak HTTP/2.
const HTTP2: [&str; 3] = ["kubernetes.io/h2c", "http2", "grpc"];

/// How servers are spoken to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// With whatever the client sends.
    Bytes,
    /// In HTTP, of which version the Service's port tells.
    Http,
    /// In HTTP/2, whatever it tells.
    Grpc,
}

impl Target {
    /// The same with what its Service's port and policies say of how its servers are spoken to, by clients of a listener; or why
    /// nobody may speak to them.
    pub(super) fn spoken_to(
        mut self,
        view: &mut View<'_>,
        speech: Speech,
        listener: &Listener<'_>,
    ) -> Result<Self, Fault> {
        let Some(service) = view.service(&self.service) else { return Ok(self) };
        let Some(port) = service.ports.iter().find(|port| pools::is_port(port, self.part.0)) else {
            return Ok(self);
        };
        let says_http2 = port.app_protocol.as_deref().is_some_and(|protocol| HTTP2.contains(&protocol));
        self.http2 = match speech {
            Speech::Bytes => false,
            Speech::Http => says_http2,
            Speech::Grpc => true,
        };
        let mut manner = String::new();
        if self.http2 {
            manner += "+h2";
        }
        if let Some((object, policy)) = in_force(view, &self.service, &port.name) {
            policy.authorities(view, object)?;
            let Listener { gateway, client_certificate, .. } = listener;
            manner += "+tls";
            if client_certificate.is_some() {
                manner += &format!("@{}.{}", gateway.name.namespace, gateway.name.name);
            }
            self.tls = Some(Client { certificate: client_certificate.clone(), gateway: (*gateway).clone() });
        }
        if !manner.is_empty() {
            self.part.1 = format!("{}{manner}", self.part.1).into();
        }
        Ok(self)
    }
}

/// The policy of a Service's port: one of the port before one of the whole Service, and the oldest of them.
fn in_force<'i>(view: &View<'i>, service: &Name, port: &str) -> Option<(&'i Object, &'i PolicySpec)> {
    let is_for = |(object, policy): &(&'i Object, &'i PolicySpec), section: Option<&str>| {
        policy.targets.iter().any(|target| {
            target.section() == section && target.service(&object.key).as_ref() == Some(service)
        })
    };
    let all = view.policies(service);
    let of = |section| all.iter().find(|policy| is_for(policy, section));
    let own = (!port.is_empty()).then(|| of(Some(port))).flatten();
    own.or_else(|| of(None)).copied()
}

/// What policies ask for toward the servers of a target; `None`: nothing that can be done.
pub(super) fn draft(view: &mut View<'_>, target: &Target, client: &Client) -> Option<UpstreamTlsDraft> {
    let port =
        view.service(&target.service)?.ports.iter().find(|port| pools::is_port(port, target.part.0))?;
    let (object, policy) = in_force(view, &target.service, &port.name)?;
    let Validation { server_name, sans, .. } = policy.validation.as_ref().ok()?;
    let at = place(&object.key, "spec.validation");
    let given = |value| Field::Given(Placed::new(at.clone(), value));
    let authorities = policy.authorities(view, object).ok()?;
    let certificate = client.certificate.clone().map_or(Field::Absent, |certificate| {
        let held = CertificateDraft::Held(vec![certificate]);
        Field::Given(Placed::new(place(&client.gateway, "spec.tls.backend"), Box::new(held)))
    });
    let alpn: &[&str] = if target.http2 { &["h2"] } else { &[] };
    Some(UpstreamTlsDraft {
        ca: authorities.map_or(Field::Absent, |held| given(AuthoritiesDraft::Held(Arc::new(held)))),
        server_name: Field::Given(Placed::new(at.clone(), server_name.clone())),
        san: placed(&at, sans.iter().cloned()),
        certificate,
        alpn: placed(&at, alpn.iter().map(|name| Box::from(*name))),
        min_version: Field::Absent,
    })
}

fn placed<T>(at: &Place, values: impl ExactSizeIterator<Item = T>) -> Field<Vec<Placed<T>>> {
    match values.len() {
        0 => Field::Absent,
        _ => {
            let values = values.map(|value| Placed::new(at.clone(), value)).collect();
            Field::Given(Placed::new(at.clone(), values))
        }
    }
}

const NOBODY: &str = "none of `spec.validation.caCertificateRefs` can be used";

impl PolicySpec {
    /// Who signs the certificates of servers; `None`: whom the system trusts.
    fn authorities(&self, view: &mut View<'_>, object: &Object) -> Result<Option<Authorities>, Fault> {
        let validation = self.validation.as_ref().map_err(|why| Fault::new("Invalid", why.clone()))?;
        if validation.authorities.is_empty() {
            return Ok(None);
        }
        let found = named(view, object, validation);
        found.held.map(Some).ok_or_else(|| Fault::new("NoValidCACertificate", NOBODY))
    }
}

/// The authorities that a policy names, and the first reference that names nobody.
struct Named {
    held: Option<Authorities>,
    fault: Option<Fault>,
}

fn named(view: &mut View<'_>, object: &Object, validation: &Validation) -> Named {
    let (mut certificates, mut fault) = (Vec::new(), None);
    for reference in &validation.authorities {
        match authority(view, &object.key, reference) {
            Ok(more) => certificates.extend(more.iter().cloned()),
            Err(why) => _ = fault.get_or_insert(why),
        }
    }
    let mut roots = RootCertStore::empty();
    certificates.retain(|certificate| roots.add(certificate.clone()).is_ok());
    Named { held: (!certificates.is_empty()).then_some(Authorities { certificates, roots }), fault }
}

/// Writes what has become of each policy, for each Gateway by which somebody comes to its Services.
pub(super) fn statuses(
    view: &mut View<'_>,
    gateways: &Gateways<'_>,
    attached: &[Attached<'_>],
    statuses: &mut Statuses,
) {
    if view.all(Kind::BackendTlsPolicy).next().is_none() {
        return;
    }
    let used = users(view, gateways, attached);
    for object in view.all(Kind::BackendTlsPolicy) {
        let Spec::BackendTlsPolicy(policy) = &object.spec else { continue };
        let ancestors: BTreeSet<&Key> = policy
            .services(&object.key)
            .filter_map(|service| used.get(&service))
            .flatten()
            .copied()
            .collect();
        if ancestors.is_empty() {
            continue;
        }
        let conditions = conditions(view, object, policy);
        let ancestor = |gateway: &&Key| PolicyAncestorStatus {
            ancestor_ref: ParentRef {
                group: Some(gateway.kind.group().into()),
                kind: Some(gateway.kind.name().into()),
                namespace: Some(Box::from(&*gateway.name.namespace)),
                name: Box::from(&*gateway.name.name),
                section_name: None,
                port: None,
            },
            controller_name: Box::from(&*view.index.settings.controller),
            conditions: conditions.clone(),
        };
        let ancestors = ancestors.iter().take(MOST_ANCESTORS).map(ancestor).collect();
        statuses.insert(object.key.clone(), Status::Policy(PolicyStatus { ancestors }).into());
    }
}

/// The Gateways by which somebody comes to each Service, of those that policies are for.
fn users<'g>(
    view: &mut View<'_>,
    gateways: &'g Gateways<'_>,
    attached: &[Attached<'_>],
) -> BTreeMap<Name, BTreeSet<&'g Key>> {
    let mut used: BTreeMap<Name, BTreeSet<&Key>> = BTreeMap::new();
    for route in attached {
        let backends: Vec<_> = match &route.work {
            Work::Requests(rules) => {
                rules.iter().flat_map(|rule| &rule.references).map(|each| &each.backend).collect()
            }
            Work::Connections(connections) => connections.backends.iter().collect(),
        };
        let is_connections = matches!(route.work, Work::Connections(_));
        let counts = |listener: &&Listener<'_>| !is_connections || listener.is_for == Some(Use::Terminate);
        let by = route.listeners.iter().map(|(number, _)| &gateways.listeners[*number]).filter(counts);
        let by: BTreeSet<&Key> = by.map(|listener| listener.gateway).collect();
        for backend in backends {
            let Ok(target) = pools::resolve(view, route.key.kind, &route.key.name.namespace, backend) else {
                continue;
            };
            if !view.policies(&target.service).is_empty() {
                used.entry(target.service).or_default().extend(by.iter().copied());
            }
        }
    }
    used
}

fn conditions(view: &mut View<'_>, object: &Object, policy: &PolicySpec) -> Vec<Condition> {
    let fault = policy.authorities(view, object).err();
    let refs = match &policy.validation {
        Ok(validation) => named(view, object, validation).fault,
        Err(_) => None,
    };
    let refs = refs.map(|fault| match fault.reason {
        "InvalidCACertificateKind" => Fault { reason: "InvalidKind", ..fault },
        _ => Fault { reason: "InvalidCACertificateRef", ..fault },
    });
    let fault = idle(view, object, policy).or(fault);
    vec![
        Condition::of("Accepted", "Accepted", fault.as_ref(), object.generation),
        Condition::of("ResolvedRefs", "ResolvedRefs", refs.as_ref(), object.generation),
    ]
}

/// Why nothing is done by a policy: all its targets have an older one, or are not there.
fn idle(view: &mut View<'_>, object: &Object, policy: &PolicySpec) -> Option<Fault> {
    let mut first = None;
    for target in &policy.targets {
        let Some(service) = target.service(&object.key) else { continue };
        let older = view.policies(&service).into_iter().take_while(|(other, _)| other.key != object.key);
        let is_rival = |(other, theirs): &(&Object, &PolicySpec)| {
            let mut theirs = theirs.targets.iter();
            theirs.any(|their| {
                their.section() == target.section() && their.service(&other.key).as_ref() == Some(&service)
            })
        };
        if let Some((winner, _)) = older.into_iter().find(is_rival) {
            let message = format!("{} is older, and for the same", winner.key);
            first.get_or_insert_with(|| Fault::new("Conflicted", message));
            continue;
        }
        let Some(spec) = view.service(&service) else { continue };
        match target.section() {
            Some(name) if !spec.ports.iter().any(|port| &*port.name == name) => {
                let message = format!("Service {service} has no port {}", quote(name));
                first.get_or_insert_with(|| Fault::new("TargetNotFound", message));
            }
            _ => return None,
        }
    }
    first
}
