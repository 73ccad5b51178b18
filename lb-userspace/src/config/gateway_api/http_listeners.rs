//! Rules of requests to a draft: what the data plane has of a listener of HTTP.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use super::backend_tls::Speech;
use super::drafts::{given, listener_name, place, route, terminate};
use super::kept::{Requests, Ruled};
use super::key::Key;
use super::listeners::{Listener, Use};
use super::pools;
use super::route::RequestRule;
use super::specs::BackendRef;
use super::target::Target;
use super::view::View;
use crate::config::draft::RulesDraft;
use crate::config::http::Rule;
use crate::config::model::SniPattern;
use crate::config::place::Placed;

impl Ruled {
    pub(super) fn new(
        view: &mut View<'_>,
        key: &Key,
        rules: &[RequestRule],
        listener: &Listener<'_>,
        hosts: &[SniPattern],
    ) -> Self {
        view.note(key.clone());
        let of_rules: Arc<[SniPattern]> = hosts.into();
        let (mut found, mut targets) = (Vec::with_capacity(rules.len()), Vec::new());
        for RequestRule { rule, backends, .. } in rules {
            let Some(rule) = rule else { continue };
            let speech = if rule.grpc { Speech::Grpc } else { Speech::Http };
            let mut pool = |backend: &BackendRef| {
                let target = pools::resolve(view, key.kind, &key.name.namespace, backend).ok()?;
                targets.push(target.spoken_to(view, speech, listener).ok()?);
                Some(targets.len() - 1)
            };
            let pools: Vec<_> = backends.iter().map(&mut pool).collect();
            let mut made = rule.with_pools(|number| pools[*number]);
            if let Some(redirect) = made.filters.redirect.as_mut().filter(|to| to.scheme.is_none()) {
                // The Gateway's, which need not be the one that the connection has come to.
                redirect.port = redirect.port.or(Some(listener.port()));
            }
            found.push(Rule { hosts: of_rules.clone(), ..made });
        }
        let pools = targets.iter().map(Target::pool).collect();
        let rules = RulesDraft { list: found.into(), pools };
        Self { hosts: hosts.to_vec(), rules: rules.into(), targets }
    }
}

impl Requests {
    pub(super) fn new(listener: &Listener<'_>, port: &str, ruled: Vec<Arc<Ruled>>) -> Self {
        let at = place(listener.owner, listener.path());
        let is_https = listener.is_for == Some(Use::Https);
        let scheme = if is_https { "https" } else { "http" };
        let mut draft = route(at.clone(), format!("{scheme}@{}", listener_name(listener)), port);
        draft.sni = given(at.clone(), vec![Placed::new(at.clone(), listener.host.clone())]);
        if is_https {
            terminate(&mut draft, listener, &at);
        }
        draft.http = given(at, ruled.iter().map(|ruled| ruled.rules.clone()).collect());
        Self { ruled, draft: draft.into() }
    }

    pub(super) fn is_of(&self, ruled: &[Arc<Ruled>]) -> bool {
        self.ruled.len() == ruled.len()
            && self.ruled.iter().zip(ruled).all(|(own, other)| Arc::ptr_eq(own, other))
    }
}
