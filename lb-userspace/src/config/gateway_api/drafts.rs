//! What drafts of all listeners, routes and pools have in common.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::key::{Key, Kind};
use super::listeners::Listener;
use crate::config::draft::{
    CertificateDraft, ClientAuthDraft, Field, PoolDraft, RouteDraft, ServerDraft, Tls,
};
use crate::config::place::{ObjectField, Place, Placed};

pub(super) fn place(key: &Key, path: impl Into<String>) -> Place {
    Place::Object(Box::new(ObjectField {
        object: key.to_string().into(),
        path: path.into().into_boxed_str(),
    }))
}

pub(super) fn given<T>(place: Place, value: T) -> Field<T> {
    Field::Given(Placed::new(place, value))
}

pub(super) fn route(at: Place, name: String, listener: &str) -> RouteDraft {
    RouteDraft {
        name: given(at.clone(), name.into()),
        listener: given(at.clone(), listener.to_owned()),
        ..RouteDraft::new(at)
    }
}

pub(super) fn pool(at: Place, name: &str, servers: Vec<Placed<ServerDraft>>) -> PoolDraft {
    PoolDraft {
        name: given(at.clone(), name.into()),
        servers: given(at.clone(), servers),
        ..PoolDraft::new(at)
    }
}

/// Ends TLS with the listener's certificates.
pub(super) fn terminate(draft: &mut RouteDraft, listener: &Listener<'_>, at: &Place) {
    draft.tls = given(at.clone(), Tls::Terminate);
    draft.certificate = given(at.clone(), Box::new(CertificateDraft::Held(listener.certificates.clone())));
    if let Some(auth) = &listener.client_auth {
        draft.client_auth = given(at.clone(), ClientAuthDraft::Held(auth.clone()));
    }
}

/// `NAMESPACE.GATEWAY.LISTENER`, and what is a ListenerSet's or Istio's says so before that. Dots in names are `_`, which no name
/// has: no two listeners are called the same.
pub(super) fn listener_name(listener: &Listener<'_>) -> String {
    let Key { kind, name } = listener.owner;
    let [owner, own] = [&*name.name, &*listener.spec.name].map(|name| name.replace('.', "_"));
    let set = match kind {
        Kind::ListenerSet => "set.",
        Kind::IstioGateway => "istio.",
        _ => "",
    };
    format!("{set}{}.{owner}.{own}", name.namespace)
}
