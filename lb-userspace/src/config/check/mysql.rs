//! Listeners of MySQL clients: what they, their routes and the pools of those must have.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::names::Names;
use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::draft::{CheckKind, Draft, Field, ListenerDraft, RouteDraft, Tls, items};
use crate::config::model::Protocol;

/// Other protocols have no greeting.
pub(super) fn reject_greeting(listener: &ListenerDraft, report: &mut Report) {
    if listener.protocol.is_invalid() || listener.protocol.get() == Some(Protocol::Mysql) {
        return;
    }
    for (key, place) in [("version", listener.version.place()), ("plugin", listener.plugin.place())] {
        if let Some(place) = place {
            let error = Diagnostic::error(place, format!("`{key}` of a listener that greets nobody"));
            report.push(error.help("take it out; it goes with `protocol = \"mysql\"`"));
        }
    }
}

/// The pools of a route of a MySQL listener.
pub(super) fn check_pools(draft: &Draft, route: &RouteDraft, pools: &Names, report: &mut Report) {
    let terminates = route.tls.given().filter(|tls| tls.value == Tls::Terminate);
    for backend in items(&route.backends) {
        let Some(name) = backend.value.pool.given() else { continue };
        let Some(pool) = pools.find(&name.value).map(|index| &draft.pools[index]) else { continue };
        if let (Some(tls), true) = (terminates, pool.tls.is_absent()) {
            let message = format!("MySQL's TLS ends here, and the pool {} has no `tls`", quote(&name.value));
            let error = Diagnostic::error(&name.place, message).related(&tls.place, "it ends here");
            report.push_absence(error.help(
                "clients send passwords that only TLS protects: add `tls = {}` to the pool, or pass the client's TLS \
                 through: `tls = \"passthrough\"`",
            ));
        }
        let health = pool.health.given().map(|health| &health.value);
        if let Some(check) = health.and_then(|health| health.check.given())
            && matches!(check.value, CheckKind::Tcp | CheckKind::Tls)
            && health.is_some_and(|health| matches!(health.port, Field::Absent))
        {
            let message = "to a MySQL server each of these checks is a connection that failed";
            let warning = Diagnostic::warning(&check.place, message);
            report.push(warning.related(&name.place, "clients of MySQL go there").help(
                "after `max_connect_errors` of them (100) it refuses the gateway: make it `check = \"mysql\"`",
            ));
        }
    }
}
