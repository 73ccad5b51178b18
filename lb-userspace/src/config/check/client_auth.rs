//! Checks `client_auth` of a route, and `client_ca`, which is short for it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::client_auth::{Allowed, ClientAuth};
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::draft::{ClientAuthDraft, RouteDraft, items, values};
use crate::config::place::Place;

/// What a route asks of clients' certificates, with its files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClientPaths {
    pub(super) ca: Vec<PathBuf>,
    pub(super) crl: Vec<PathBuf>,
    pub(super) required: bool,
    pub(super) allowed: Allowed,
}

/// What a route asks of clients' certificates.
pub(super) enum Client<'r> {
    Files(ClientPaths, ClientPlaces<'r>),
    Held(Arc<ClientAuth>),
}

impl<'r> Client<'r> {
    pub(super) fn files(self) -> Option<(ClientPaths, ClientPlaces<'r>)> {
        match self {
            Client::Files(paths, places) => Some((paths, places)),
            Client::Held(_) => None,
        }
    }

    pub(super) fn held(self) -> Option<Arc<ClientAuth>> {
        match self {
            Client::Files(..) => None,
            Client::Held(auth) => Some(auth),
        }
    }
}

/// Where these files are named.
pub(super) struct ClientPlaces<'r> {
    pub(super) ca: Vec<&'r Place>,
    pub(super) crl: Vec<&'r Place>,
}

/// What a terminated route asks of clients' certificates, if anything.
pub(super) fn check<'r>(draft: &'r RouteDraft, report: &mut Report) -> Option<Client<'r>> {
    if let (Some(short), Some(_)) = (draft.client_ca.place(), draft.client_auth.place()) {
        let error = Diagnostic::error(short, "a route has `client_ca` or `client_auth`, not both");
        report.push(error.help("add its file to the `ca` of `client_auth`"));
        return None;
    }
    if let Some(ca) = draft.client_ca.given() {
        let paths = ClientPaths {
            ca: vec![ca.value.clone()],
            crl: Vec::new(),
            required: true,
            allowed: Allowed::default(),
        };
        return Some(Client::Files(paths, ClientPlaces { ca: vec![&ca.place], crl: Vec::new() }));
    }
    let auth = match &draft.client_auth.given()?.value {
        ClientAuthDraft::Files(auth) => auth,
        ClientAuthDraft::Held(auth) => return Some(Client::Held(auth.clone())),
    };
    let places = |files: &'r _| items(files).iter().map(|file| &file.place).collect();
    let paths = ClientPaths {
        ca: values(&auth.ca),
        crl: values(&auth.crl),
        required: auth.mode.or(true),
        allowed: Allowed { subjects: values(&auth.subjects), sans: values(&auth.sans) },
    };
    Some(Client::Files(paths, ClientPlaces { ca: places(&auth.ca), crl: places(&auth.crl) }))
}
