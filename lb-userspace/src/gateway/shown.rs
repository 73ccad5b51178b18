//! Objects as operators are shown them. That is put together only when somebody asks: it takes longer than most changes.

use crate::admin::view;
use crate::config::gateway_api::{At, Census, Index, Key, Kind, Problem, Status, Statuses};
use crate::kubernetes::{ApiServer, Denial, Freshness};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Watches that are not allowed of which people are told.
const MOST_DENIALS: usize = 20;

/// The objects at one time.
#[derive(Default)]
pub(super) struct Shown {
    census: Arc<Census>,
    places: Arc<HashMap<Key, At>>,
    problems: Arc<Vec<Problem>>,
    statuses: Arc<Statuses>,
    api: Option<Arc<ApiServer>>,
    /// Why the addresses of Gateways should not be relied on.
    faults: Vec<String>,
    view: OnceLock<Vec<view::Object>>,
}

impl Shown {
    pub(super) fn new(
        index: &Index,
        places: Arc<HashMap<Key, At>>,
        problems: Arc<Vec<Problem>>,
        statuses: Arc<Statuses>,
        api: Option<Arc<ApiServer>>,
        faults: Vec<String>,
    ) -> Self {
        Self { census: index.census(), places, problems, statuses, api, faults, view: OnceLock::new() }
    }

    /// Why the gateway is not ready, as far as objects are the reason.
    pub(super) fn unready(&self) -> Vec<String> {
        let is_awaited = self.api.as_ref().is_some_and(|api| api.freshness() == Freshness::Stale(None));
        let awaited = is_awaited.then(|| "the API server has not been read yet".to_owned());
        let closed = self.denials().into_iter().filter(closes).map(|denial| denied(&denial));
        awaited.into_iter().chain(closed).chain(self.faults.iter().cloned()).collect()
    }

    /// What the API server does not let this gateway watch.
    pub(super) fn denied(&self) -> Vec<String> {
        let mut all: Vec<_> = self.denials().iter().map(denied).collect();
        all.dedup();
        if all.len() > MOST_DENIALS {
            all.truncate(MOST_DENIALS);
            all.push("and others".to_owned());
        }
        all
    }

    fn denials(&self) -> Vec<Denial> {
        self.api.as_ref().map(|api| api.denials()).unwrap_or_default()
    }

    /// Since when they are not those of the API server any more, as far as that is known.
    pub(super) fn stale_since(&self) -> Option<SystemTime> {
        match self.api.as_ref()?.freshness() {
            Freshness::Current => None,
            Freshness::Stale(since) => since,
        }
    }

    pub(super) fn objects(&self) -> &[view::Object] {
        self.view.get_or_init(|| self.view())
    }

    fn view(&self) -> Vec<view::Object> {
        let objects = self.census.keys.iter().map(|key| view::Object {
            kind: key.kind.shown().into(),
            namespace: key.name.namespace.to_string(),
            name: key.name.name.to_string(),
            place: self.places.get(key).map(ToString::to_string),
            refused: self.census.refusals.get(key).cloned(),
            status: self.statuses.get(key).map(|status| status_of(status)),
        });
        let refused = self.problems.iter().map(|problem| {
            let (kind, name) = match &problem.object {
                Some(object) => object.split_once(' ').unwrap_or(("", object)),
                None => ("", ""),
            };
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            view::Object {
                kind: kind.into(),
                namespace: namespace.into(),
                name: name.into(),
                place: Some(problem.at.to_string()),
                refused: Some(problem.reason.clone()),
                status: None,
            }
        });
        objects.chain(refused).collect()
    }
}

/// Whether somebody is refused because of it: servers that a policy may be for are not spoken to in the clear.
fn closes(denial: &Denial) -> bool {
    denial.is_unseen && matches!(denial.kind, Kind::BackendTlsPolicy | Kind::DestinationRule)
}

pub(super) fn denied(denial: &Denial) -> String {
    let Denial { kind, namespace, code, is_unseen } = denial;
    let of = namespace.as_ref().map(|namespace| format!(" of {namespace}")).unwrap_or_default();
    let outcome = match (closes(denial), is_unseen) {
        (true, _) => "servers for which there may be one that asks for TLS are not spoken to",
        (false, true) => "they count as if there were none",
        (false, false) => "what was known of them stays",
    };
    format!(
        "the API server does not let this gateway watch objects of the kind {}{of} ({code}): {outcome}",
        kind.shown()
    )
}

fn status_of(status: &Status) -> serde_json::Value {
    serde_json::to_value(status).unwrap_or_default()
}
