//! BackendTLSPolicy: TLS toward the servers of a Service.
//!
//! It counts where TLS of clients has been ended, or there was none: for requests of HTTP, and for TLSRoutes on listeners that
//! terminate.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rustls::RootCertStore;

use super::attach::Attached;
use super::drafts::place;
use super::gateways::Gateways;
use super::kept::{Told, Trust};
use super::key::{Key, Name};
use super::listeners::Listener;
use super::objects::Object;
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
        if let Some((object, _)) = in_force(view, &self.service, &port.name) {
            trusted(view, object)?;
            let Listener { gateway, client_certificate, .. } = listener;
            manner += "+tls";
            if client_certificate.is_some() {
                manner += &format!("@{}.{}", gateway.name.namespace, gateway.name.name);
            }
            self.tls = Some(Client { certificate: client_certificate.clone(), gateway: (*gateway).clone() });
        } else if let Some(fault) = pools::unseen(view, std::slice::from_ref(&self.service)) {
            return Err(fault);
        }
        if !manner.is_empty() {
            self.part.1 = format!("{}{manner}", self.part.1).into();
        }
        Ok(self)
    }
}

/// The policy of a Service's port: one of the port before one of the whole Service, and the oldest of them.
fn in_force<'i>(view: &View<'i>, service: &Name, port: &str) -> Option<(&'i Object, &'i PolicySpec)> {
    let own = (!port.is_empty()).then(|| view.policy(service, port)).flatten();
    own.or_else(|| view.policy(service, ""))
}

/// What policies ask for toward the servers of a target; `None`: nothing that can be done.
pub(super) fn draft(view: &mut View<'_>, target: &Target, client: &Client) -> Option<UpstreamTlsDraft> {
    let port =
        view.service(&target.service)?.ports.iter().find(|port| pools::is_port(port, target.part.0))?;
    let (object, policy) = in_force(view, &target.service, &port.name)?;
    let Validation { server_name, sans, .. } = policy.validation.as_ref().ok()?;
    let at = place(&object.key, "spec.validation");
    let given = |value| Field::Given(Placed::new(at.clone(), value));
    let authorities = trusted(view, object).ok()?;
    let certificate = client.certificate.clone().map_or(Field::Absent, |certificate| {
        let held = CertificateDraft::Held(vec![certificate]);
        Field::Given(Placed::new(place(&client.gateway, "spec.tls.backend"), Box::new(held)))
    });
    let alpn: &[&str] = if target.http2 { &["h2"] } else { &[] };
    Some(UpstreamTlsDraft {
        ca: authorities.map_or(Field::Absent, |held| given(AuthoritiesDraft::Held(held))),
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

fn no_authority() -> Fault {
    Fault::new("NoValidCACertificate", "none of `spec.validation.caCertificateRefs` can be used")
}

/// Who signs the certificates of servers that a policy is for; `None`: whom the system trusts. Or why nobody may speak to them.
fn trusted(view: &View<'_>, policy: &Object) -> Result<Option<Arc<Authorities>>, Fault> {
    view.note(policy.key.clone());
    view.trusts.get(&policy.key).map_or_else(|| Err(no_authority()), |trust| trust.authorities.clone())
}

/// The Gateways by which somebody comes to each Service, of those that policies are for.
pub(super) type Users<'i> = HashMap<&'i Name, BTreeSet<&'i Key>>;

/// Looks at what policies say of servers by whose Services somebody comes.
pub(super) fn look<'i>(view: &mut View<'i>, gateways: &Gateways<'i>, attached: &[Attached<'_>]) -> Users<'i> {
    let users = users(view, gateways, attached);
    for (object, policy) in view.policies() {
        if policy
            .services(&object.key)
            .any(|(service, _)| users.get(&service).is_some_and(|by| !by.is_empty()))
        {
            view.trust(&object.key, |view| Trust::new(view, object, policy));
        }
    }
    users
}

impl Trust {
    fn new(view: &mut View<'_>, object: &Object, policy: &PolicySpec) -> Self {
        view.note(object.key.clone());
        let refusals = view.named.refusals;
        let (authorities, fault) = match &policy.validation {
            Err(why) => (Err(Fault::new("Invalid", why.clone())), None),
            Ok(validation) if validation.authorities.is_empty() => (Ok(None), None),
            Ok(validation) => {
                let (held, fault) = authorities(view, object, validation);
                (held.map(|held| Some(Arc::new(held))).ok_or_else(no_authority), fault)
            }
        };
        Self { authorities, fault, is_refused: view.named.refusals > refusals }
    }
}

/// The authorities that a policy names, and the first reference that names nobody.
fn authorities(
    view: &mut View<'_>,
    object: &Object,
    validation: &Validation,
) -> (Option<Authorities>, Option<Fault>) {
    let (mut certificates, mut fault) = (Vec::new(), None);
    for reference in &validation.authorities {
        match authority(view, &object.key, reference) {
            Ok(more) => certificates.extend(more.iter().cloned()),
            Err(why) => _ = fault.get_or_insert(why),
        }
    }
    let mut roots = RootCertStore::empty();
    certificates.retain(|certificate| roots.add(certificate.clone()).is_ok());
    ((!certificates.is_empty()).then_some(Authorities { certificates, roots }), fault)
}

/// Writes what has become of each policy, for each Gateway by which somebody comes to its Services.
pub(super) fn statuses(view: &mut View<'_>, users: &Users<'_>, statuses: &mut Statuses) {
    for (object, policy) in view.policies() {
        let by = policy.services(&object.key).filter_map(|(service, _)| users.get(&service));
        let ancestors: BTreeSet<&Key> = by.flatten().copied().collect();
        let Some(trust) = view.trusts.get(&object.key).cloned() else { continue };
        let told = view.remembered(
            |memo| &mut memo.policies,
            object.key.clone(),
            |known| known.ancestors.iter().eq(ancestors.iter().copied()),
            |view| Told::new(view, object, policy, &trust, &ancestors),
        );
        statuses.insert(object.key.clone(), told.status.clone());
    }
}

fn users<'g>(view: &View<'g>, gateways: &Gateways<'g>, attached: &[Attached<'_>]) -> Users<'g> {
    let index = view.index;
    let mut used: Users<'g> = index.policies.keys().map(|(service, _)| (service, BTreeSet::new())).collect();
    if used.is_empty() {
        return used;
    }
    for route in attached {
        for service in &*route.services {
            let Some(by) = used.get_mut(service) else { continue };
            let listeners = route.listeners.iter().map(|(number, _)| &gateways.listeners[*number]);
            by.extend(listeners.filter(|each| each.follows_policies()).map(|each| each.gateway));
        }
    }
    used
}

impl Told {
    fn new(
        view: &mut View<'_>,
        object: &Object,
        policy: &PolicySpec,
        trust: &Trust,
        ancestors: &BTreeSet<&Key>,
    ) -> Self {
        view.note(object.key.clone());
        let conditions = conditions(view, object, policy, trust);
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
        let told = ancestors.iter().take(MOST_ANCESTORS).map(ancestor).collect();
        let status = Status::Policy(PolicyStatus { ancestors: told }).into();
        Self { ancestors: ancestors.iter().copied().cloned().collect(), status }
    }
}

fn conditions(view: &mut View<'_>, object: &Object, policy: &PolicySpec, trust: &Trust) -> Vec<Condition> {
    let refs = trust.fault.clone().map(|fault| match fault.reason {
        "InvalidCACertificateKind" => Fault { reason: "InvalidKind", ..fault },
        _ => Fault { reason: "InvalidCACertificateRef", ..fault },
    });
    let fault = idle(view, object, policy).or_else(|| trust.authorities.clone().err());
    vec![
        Condition::of("Accepted", "Accepted", fault.as_ref(), object.generation),
        Condition::of("ResolvedRefs", "ResolvedRefs", refs.as_ref(), object.generation),
    ]
}

/// Why nothing is done by a policy: all its targets have an older one, or are not there.
fn idle(view: &mut View<'_>, object: &Object, policy: &PolicySpec) -> Option<Fault> {
    let mut first = None;
    for (service, port) in policy.services(&object.key) {
        if let Some((winner, _)) = view.policy(&service, port).filter(|(first, _)| first.key != object.key) {
            let message = format!("{} is older, and for the same", winner.key);
            first.get_or_insert_with(|| Fault::new("Conflicted", message));
            continue;
        }
        let Some(spec) = view.service(&service) else { continue };
        if port.is_empty() || spec.ports.iter().any(|known| *known.name == *port) {
            return None;
        }
        let message = format!("Service {service} has no port {}", quote(port));
        first.get_or_insert_with(|| Fault::new("TargetNotFound", message));
    }
    first
}
