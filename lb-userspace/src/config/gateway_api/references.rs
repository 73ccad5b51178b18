//! What objects may have of others: Secrets and ConfigMaps that they name, and the namespaces that they let in.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::key::{Key, Kind, Name};
use super::specs::{Allowed, FromNamespaces, Reference};
use super::status::Fault;
use super::view::View;
use crate::config::certificate::Loaded;
use crate::config::diagnostic::quote;

/// The certificate of the Secret that `owner` names, or why it cannot have it.
pub(super) fn certificate(
    view: &mut View<'_>,
    owner: &Key,
    reference: &Reference,
) -> Result<Arc<Loaded>, Fault> {
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    let invalid = |message: String| Fault::new("InvalidCertificateRef", message);
    if !reference.group.is_empty() || kind != "Secret" {
        return Err(invalid(format!(
            "{} of the group {} is no Secret",
            quote(kind),
            quote(&reference.group)
        )));
    }
    let own = &owner.name.namespace;
    let secret = Name::new(reference.namespace.as_deref().unwrap_or(own), &reference.name);
    if !view.is_granted(owner.kind, own, Kind::Secret, &secret) {
        let message = format!("no ReferenceGrant lets a {} of {own} name Secret {secret}", owner.kind.name());
        return Err(Fault::new("RefNotPermitted", message));
    }
    view.ask(Kind::Secret, &secret).map_err(invalid)?;
    let found = view.secret(&secret).ok_or_else(|| invalid(format!("there is no Secret {secret}")))?;
    // For Istio a Secret of any type will do.
    let certificate = if owner.kind == Kind::Gateway || owner.kind == Kind::ListenerSet {
        found.of_type_tls()
    } else {
        found.certificate.clone()
    };
    certificate.map_err(|why| invalid(format!("Secret {secret}: {why}")))
}

/// The authorities of the first of these Secrets, in the namespace of a Gateway of Istio's, that is there.
pub(super) fn istio_authorities<'i>(
    view: &mut View<'i>,
    owner: &Key,
    secrets: &[Box<str>],
) -> Result<&'i [CertificateDer<'static>], Fault> {
    let own = &owner.name.namespace;
    let invalid = |message: String| Fault::new("InvalidCACertificateRef", message);
    for secret in secrets {
        let name = Name::new(own, secret);
        view.ask(Kind::Secret, &name).map_err(invalid)?;
        if let Some(found) = view.secret(&name) {
            let authorities = found.authorities.as_deref();
            return authorities.map_err(|why| invalid(format!("Secret {name}: {why}")));
        }
    }
    Err(match secrets.last() {
        Some(secret) => invalid(format!("there is no Secret {own}/{secret}")),
        None => invalid("`tls.credentialName` names no Secret".to_owned()),
    })
}

/// The authorities of the ConfigMap that `owner` names, or why it cannot have them.
pub(super) fn authority<'i>(
    view: &mut View<'i>,
    owner: &Key,
    reference: &Reference,
) -> Result<&'i [CertificateDer<'static>], Fault> {
    let kind = reference.kind.as_deref().unwrap_or_default();
    if !reference.group.is_empty() || kind != "ConfigMap" {
        let message = format!("{} of the group {} is no ConfigMap", quote(kind), quote(&reference.group));
        return Err(Fault::new("InvalidCACertificateKind", message));
    }
    let own = &owner.name.namespace;
    let name = Name::new(reference.namespace.as_deref().unwrap_or(own), &reference.name);
    if !view.is_granted(owner.kind, own, Kind::ConfigMap, &name) {
        let message =
            format!("no ReferenceGrant lets a {} of {own} name ConfigMap {name}", owner.kind.name());
        return Err(Fault::new("RefNotPermitted", message));
    }
    let invalid = |message: String| Fault::new("InvalidCACertificateRef", message);
    view.ask(Kind::ConfigMap, &name).map_err(invalid)?;
    let found = view.authority(&name).ok_or_else(|| invalid(format!("there is no ConfigMap {name}")))?;
    found.authorities.as_deref().map_err(|why| invalid(format!("ConfigMap {name}: {why}")))
}

/// Whether `allowed` takes something of `namespace`. `own`: that of the object it is in.
pub(super) fn admits(
    view: &mut View<'_>,
    allowed: &Allowed,
    default: FromNamespaces,
    own: &Arc<str>,
    namespace: &Arc<str>,
) -> bool {
    match allowed.namespaces.from.unwrap_or(default) {
        FromNamespaces::All => true,
        FromNamespaces::Same => own == namespace,
        FromNamespaces::None => false,
        FromNamespaces::Selector => {
            let selector = allowed.namespaces.selector.as_ref();
            selector.is_some_and(|selector| selector.matches(&view.labels_of(namespace)))
        }
    }
}
