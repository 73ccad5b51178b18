//! What routes say: whom they hang on, and where they lead.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use serde::Deserialize;

use super::specs::{BackendRef, ParentRef};
use crate::config::http::{self, Filters, RequestMatch, Timeouts};

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RouteSpec {
    #[serde(default)]
    pub(super) parent_refs: Vec<ParentRef>,
    #[serde(default)]
    pub(super) hostnames: Vec<Box<str>>,
    #[serde(default)]
    pub(super) rules: Vec<Rule>,
    /// The rules of an HTTPRoute or a GRPCRoute.
    #[serde(skip)]
    pub(super) requests: Vec<RequestRule>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    #[serde(default)]
    pub(super) backend_refs: Vec<BackendRef>,
}

/// A rule of an object.
#[derive(Debug, PartialEq)]
pub(super) struct RequestRule {
    /// `spec.rules[0]`.
    pub(super) path: String,
    /// Its pools are indices into `backends`; `None`: it is left out.
    pub(super) rule: Option<http::Rule<usize>>,
    /// All that it names.
    pub(super) backends: Vec<BackendRef>,
    /// Why it is left out, or answers with 500.
    pub(super) fault: Option<String>,
}

impl RequestRule {
    /// `fill`: puts in what the rule has besides its matches, in which pools are indices into the backends that it names.
    pub(super) fn new(
        path: String,
        name: Arc<str>,
        grpc: bool,
        matches: Result<Vec<RequestMatch>, String>,
        fill: impl FnOnce(&mut http::Rule<usize>, &mut Vec<BackendRef>, &str) -> Result<(), String>,
    ) -> Self {
        let matches = match matches {
            Ok(matches) => matches,
            Err(why) => return Self { path, rule: None, backends: Vec::new(), fault: Some(why) },
        };
        let hosts = Arc::from([]);
        let (filters, timeouts) = (Filters::default(), Timeouts::default());
        let bare = http::Rule {
            name,
            grpc,
            hosts,
            list: None,
            matches,
            filters,
            backends: Vec::new(),
            timeouts,
            retry: None,
            persistence: None,
        };
        let (mut rule, mut backends) = (bare.clone(), Vec::new());
        match fill(&mut rule, &mut backends, &path) {
            Ok(()) => Self { path, rule: Some(rule), backends, fault: None },
            Err(why) => Self { path, rule: Some(bare), backends: Vec::new(), fault: Some(why) },
        }
    }

    /// What is to be said of it: for a rule that is left out, in the words that the API asks for.
    pub(super) fn told(&self) -> Option<String> {
        let fault = self.fault.as_ref()?;
        Some(match self.rule {
            None => format!("Dropped Rule {}: {fault}", self.path),
            Some(_) => format!("{} answers with 500: {fault}", self.path),
        })
    }
}
