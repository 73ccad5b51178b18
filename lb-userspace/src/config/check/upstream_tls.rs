//! `tls` of pools: TLS toward servers.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use super::certificate::{Certificates, load_certificate};
use super::names::Names;
use crate::config::address::{Address, Host, Origin};
use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::draft::{
    AuthoritiesDraft, Draft, Field, PoolDraft, RouteDraft, Tls, UpstreamTlsDraft, items, reject_repeated,
    values,
};
use crate::config::model::{MinVersion, Protocol, UpstreamTls};
use crate::config::place::Place;

/// The TLS toward a pool's servers, if there is to be any and nothing is wrong with its files.
pub(super) fn check(
    pool: &PoolDraft,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<Arc<UpstreamTls>> {
    let given = pool.tls.given()?;
    let draft = &given.value;
    reject_repeated(items(&draft.san), |san| format!("{} is listed twice", quote(&san.to_string())), report);
    reject_nameless_servers(pool, draft, &given.place, report);
    let certificate = load_certificate(&draft.certificate, None, certificates, report);
    if draft.ca.is_invalid() {
        return None;
    }
    let ca = draft.ca.given();
    let found = match ca.map(|ca| &ca.value) {
        Some(AuthoritiesDraft::Held(held)) => Ok(held.clone()),
        Some(AuthoritiesDraft::File(file)) => certificates.server_authorities(Some(file)),
        None => certificates.server_authorities(None),
    };
    let authorities = match found {
        Ok(authorities) => authorities,
        Err(problem) => {
            let error = problem.at(ca.map_or(&given.place, |ca| &ca.place));
            // What an object asks for is right; the machine cannot do it.
            let is_object = given.place.object().is_some();
            report.push(if is_object { error.into_warning() } else { error });
            return None;
        }
    };
    Some(Arc::new(UpstreamTls {
        authorities,
        server_name: draft.server_name.get(),
        san: values(&draft.san),
        certificate: certificate.map(|(_, loaded)| loaded.termination.clone()),
        alpn: values(&draft.alpn),
        min_version: draft.min_version.or(MinVersion::Tls12),
    }))
}

/// A server that is known by its IP address alone has no name to look for in its certificate.
fn reject_nameless_servers(pool: &PoolDraft, draft: &UpstreamTlsDraft, place: &Place, report: &mut Report) {
    if !draft.server_name.is_absent() || !draft.san.is_absent() {
        return;
    }
    let addresses = items(&pool.servers).iter().filter_map(|server| server.value.address.given());
    let is_nameless = |origin: &Origin| matches!(origin, Origin::Address(Address { host: Host::Ip(_), .. }));
    for address in addresses.filter(|address| is_nameless(&address.value)).take(1) {
        let message = format!("`tls` does not know the name of the server `{}`", address.value);
        let error = Diagnostic::error(place, message).related(&address.place, "it has none here");
        report.push_absence(error.help(
            "add the name that its certificate is for: `server_name = \"redis.internal\"`; or, if it is for the IP address, \
             `san = [\"IP:…\"]`",
        ));
    }
}

/// What is passed through is TLS already.
pub(super) fn reject_passed_through(
    draft: &Draft,
    route: &RouteDraft,
    protocol: Protocol,
    pools: &Names,
    report: &mut Report,
) {
    let passes = match &route.tls {
        Field::Absent => true,
        Field::Given(tls) => tls.value == Tls::Passthrough,
        Field::Invalid => false,
    };
    if matches!(protocol, Protocol::Tcp | Protocol::Http) || !passes {
        return;
    }
    for backend in items(&route.backends) {
        let Some(name) = backend.value.pool.given() else { continue };
        let pool = pools.find(&name.value).map(|index| &draft.pools[index]);
        let Some(tls) = pool.and_then(|pool| pool.tls.place()) else { continue };
        let message = format!("TLS is passed through to the pool {}, which has `tls`", quote(&name.value));
        let error = Diagnostic::error(&name.place, message).related(tls, "it has it here");
        report.push(error.help(
            "the client's own TLS goes to the servers already: take `tls` out of the pool; or end the client's here: \
             `tls = \"terminate\"`",
        ));
    }
}
