//! Checks `client_rate` of a listener or a route.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::num::NonZeroU32;

use crate::config::client_rate::{ClientRate, NewConnections};
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::draft::{ClientRateDraft, Field};
use crate::config::toml::CLIENT_RATE_EXAMPLE;

/// `max`: connections that all clients together may have open.
pub(super) fn check(draft: &Field<ClientRateDraft>, max: usize, report: &mut Report) -> Option<ClientRate> {
    let given = draft.given()?;
    let ClientRateDraft { connections, per, open } = &given.value;
    if let (Some(per), true) = (per.place(), connections.is_absent()) {
        let error = Diagnostic::error(per, "`per` of a `client_rate` without `connections`");
        report.push_absence(error.help("say how many in that time: `connections = 50`"));
    } else if connections.is_absent() && open.is_absent() {
        let error = Diagnostic::error(&given.place, "this `client_rate` limits nothing");
        report.push_absence(error.help(format!("for example `client_rate = {CLIENT_RATE_EXAMPLE}`")));
    }
    if let Some(open) = open.given().filter(|open| open.value >= max) {
        let message = format!("one client may have all {max} connections that `max_connections` allows");
        report.push(Diagnostic::warning(&open.place, message).help("a smaller `open`"));
    }
    let per = per.or(NewConnections::PER);
    let new = connections.get().and_then(NonZeroU32::new).map(|most| NewConnections { most, per });
    Some(ClientRate { new, open: open.get() })
}
