//! Checks `ech` of a listener.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::certificate::Certificates;
use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::draft::{Draft, ListenerDraft};
use crate::config::model::{Action, Ech, Listener, Protocol, Route, SniPattern};
use crate::ech::Mode;

/// With the keys that can be used.
pub(super) fn check(
    draft: &ListenerDraft,
    certificates: &Certificates<'_>,
    report: &mut Report,
) -> Option<Ech> {
    let ech = draft.ech.given()?;
    if let Some(protocol @ (Protocol::Tcp | Protocol::Http)) = draft.protocol.get() {
        let protocol = if protocol == Protocol::Tcp { "tcp" } else { "http" };
        let message = format!("a `{protocol}` listener has no `ech`: it reads no ClientHello");
        let error = Diagnostic::error(&ech.place, message);
        report.push(error.help("take it out, or let the listener's `protocol` be `tls`"));
    }
    let (mut keys, mut numbers) = (Vec::new(), HashMap::new());
    for path in ech.value.keys.given().into_iter().flat_map(|list| &list.value) {
        let found = certificates.ech_keys(&path.value).unwrap_or_else(|problem| {
            report.push(problem.at(&path.place));
            Vec::new()
        });
        for key in found {
            let number = key.config().config_id;
            if let Some(first) = numbers.insert(number, &path.place) {
                let message = format!("two keys have the number {number}: each would cost an attempt");
                let error = Diagnostic::error(&path.place, message).related(first, "the other one");
                report.push(error.help("`snisplice ech-key --config-id NUMBER` makes one with another"));
            }
            keys.push(Arc::new(key));
        }
    }
    let openings = ech.value.openings.get().and_then(NonZeroU32::new).unwrap_or(Ech::OPENINGS);
    Some(Ech { keys: keys.into(), mode: ech.value.mode.or(Mode::default()), openings })
}

/// Warns of what clients with Encrypted ClientHello would run into.
pub(super) fn warn_of_names(draft: &Draft, listeners: &[Listener], routes: &[Route], report: &mut Report) {
    for (index, (draft, listener)) in draft.listeners.iter().zip(listeners).enumerate() {
        let Some(given) = draft.ech.given() else { continue };
        let of_listener = || routes.iter().filter(|route| route.listener == index);
        for key in listener.ech.iter().flat_map(|ech| &*ech.keys) {
            let name = &*key.config().public_name;
            if !of_listener().flat_map(|route| &*route.sni).any(|pattern| covers(pattern, name)) {
                let message =
                    format!("no route of the listener takes {}, the public name of a key", quote(name));
                let warning = Diagnostic::warning(&given.place, message);
                report.push(warning.help(
                    "clients with an outdated key ask for this name: a server with a certificate for it sends them the new one",
                ));
            }
        }
        if let Some(route) = of_listener().find(|route| matches!(route.action, Action::Terminate(_))) {
            let message = format!("the route {} ends TLS, which takes no ECH yet", quote(&route.name));
            let warning = Diagnostic::warning(&given.place, message);
            report.push(
                warning.help(
                    "its clients go by the route of the public name: let that one end TLS too, and they come again without ECH",
                ),
            );
        }
    }
}

fn covers(pattern: &SniPattern, name: &str) -> bool {
    match pattern {
        SniPattern::Exact(exact) => **exact == *name,
        SniPattern::Wildcard(parent) => {
            name.strip_suffix(&**parent).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
        }
        SniPattern::Any => true,
    }
}
