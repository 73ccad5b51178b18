//! HTTPRoute: which requests its rules are for.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use http::Method;
use serde::Deserialize;
use serde_json::Value;

use super::decode::decode;
use super::key::Key;
use super::refusal::Refusal;
use super::requests::{Expressions, RuleSpec, ValueSpec, header_matches, prefix, query_matches, rules};
use super::route::RouteSpec;
use super::specs::ParentRef;
use crate::config::diagnostic::quote;
use crate::config::http::{PathMatch, RequestMatch};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    parent_refs: Vec<ParentRef>,
    #[serde(default)]
    hostnames: Vec<Box<str>>,
    rules: Option<Vec<RuleSpec<MatchSpec>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MatchSpec {
    path: Option<PathSpec>,
    #[serde(default)]
    headers: Vec<ValueSpec>,
    #[serde(default)]
    query_params: Vec<ValueSpec>,
    method: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathSpec {
    #[serde(rename = "type")]
    kind: Option<Box<str>>,
    value: Option<Box<str>>,
}

/// Reads the `spec` of one.
pub(super) fn read(key: &Key, spec: Value) -> Result<RouteSpec, Refusal> {
    let Spec { parent_refs, hostnames, rules: specs } = decode("spec", spec)?;
    // What the API server puts in for what is not there.
    let mut specs = specs.unwrap_or_else(|| vec![RuleSpec::default()]);
    specs.iter_mut().for_each(|spec| spec.match_something(MatchSpec::default));
    let requests = rules(key, specs, false, MatchSpec::read);
    Ok(RouteSpec { parent_refs, hostnames, rules: Vec::new(), requests })
}

impl MatchSpec {
    fn read(self, expressions: &mut Expressions) -> Result<RequestMatch, String> {
        let method = self.method.map(|method| {
            Method::from_bytes(method.as_bytes()).map_err(|_| format!("{} is no method", quote(&method)))
        });
        Ok(RequestMatch {
            path: Some(self.path.unwrap_or_default().read(expressions)?),
            method: method.transpose()?,
            headers: header_matches(self.headers, expressions)?,
            query: query_matches(self.query_params, expressions)?,
        })
    }
}

impl PathSpec {
    fn read(self, expressions: &mut Expressions) -> Result<PathMatch, String> {
        let value = self.value.unwrap_or_else(|| "/".into());
        let rooted = |value: Box<str>| match value.starts_with('/') {
            true => Ok(value),
            false => Err(format!("the path {} does not begin with a `/`", quote(&value))),
        };
        match self.kind.as_deref() {
            Some("Exact") => rooted(value).map(PathMatch::Exact),
            None | Some("PathPrefix") => rooted(value).map(|path| prefix(&path)),
            Some("RegularExpression") => expressions.read(&value).map(PathMatch::Regex),
            Some(other) => Err(format!("{} is no type of a path", quote(other))),
        }
    }
}
