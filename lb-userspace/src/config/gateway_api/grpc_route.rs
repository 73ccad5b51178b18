//! GRPCRoute: which calls its rules are for.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde::Deserialize;
use serde_json::Value;

use super::decode::decode;
use super::key::Key;
use super::refusal::Refusal;
use super::requests::{Expressions, RuleSpec, ValueSpec, header_matches, pattern, rules};
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
    #[serde(default = "Vec::new")]
    rules: Vec<RuleSpec<MatchSpec>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchSpec {
    method: Option<MethodSpec>,
    #[serde(default)]
    headers: Vec<ValueSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MethodSpec {
    #[serde(rename = "type")]
    kind: Option<Box<str>>,
    service: Option<Box<str>>,
    method: Option<Box<str>>,
}

/// Reads the `spec` of one.
pub(super) fn read(key: &Key, spec: Value) -> Result<RouteSpec, Refusal> {
    let Spec { parent_refs, hostnames, rules: specs } = decode("spec", spec)?;
    let requests = rules(key, specs, true, MatchSpec::read);
    Ok(RouteSpec { parent_refs, hostnames, rules: Vec::new(), requests })
}

impl MatchSpec {
    fn read(self, expressions: &mut Expressions) -> Result<RequestMatch, String> {
        Ok(RequestMatch {
            path: self.method.map(|method| method.read(expressions)).transpose()?.flatten(),
            headers: header_matches(self.headers, expressions)?,
            ..RequestMatch::default()
        })
    }
}

impl MethodSpec {
    /// The path of a call is `/SERVICE/METHOD`.
    fn read(self, expressions: &mut Expressions) -> Result<Option<PathMatch>, String> {
        let is_exact = match self.kind.as_deref() {
            None | Some("Exact") => true,
            Some("RegularExpression") => false,
            Some(other) => return Err(format!("{} is no type of a method", quote(other))),
        };
        let some = |name: Option<Box<str>>| name.filter(|name| !name.is_empty());
        let (service, method) = (some(self.service), some(self.method));
        if let Some(bad) = service.iter().chain(&method).find(|name| is_exact && name.contains('/')) {
            return Err(format!("{} is no name of a service or method", quote(bad)));
        }
        Ok(match (is_exact, service, method) {
            (_, None, None) => None,
            (true, Some(service), Some(method)) => {
                Some(PathMatch::Exact(format!("/{service}/{method}").into()))
            }
            (true, Some(service), None) => Some(PathMatch::Prefix(format!("/{service}").into())),
            (true, None, Some(method)) => {
                let expression = format!("/[^/]+/{}", regex_syntax::escape(&method));
                Some(PathMatch::Regex(expressions.make(&expression)?))
            }
            (false, service, method) => {
                let [service, method] = [service, method].map(|part| part.unwrap_or_else(|| "[^/]+".into()));
                let whole = expressions.read(&format!("/(?:{service})/(?:{method})"))?;
                // Each by itself, too: one could close what this opens.
                pattern(&service)?;
                pattern(&method)?;
                Some(PathMatch::Regex(whole))
            }
        })
    }
}
