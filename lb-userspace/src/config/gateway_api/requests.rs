//! Rules of requests, as HTTPRoutes and GRPCRoutes have them: what both kinds share.
//!
//! They are read when their object comes, so that a build compiles no expression anew. A rule of which the matches cannot be
//! read is left out: nobody knows whose requests those would be. One that asks for something else that is not served keeps its
//! requests and answers them with 500: without it they would go on in another way than was asked for.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderName};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::http_filters::{self, FilterSpec, header_name};
use super::key::{Key, Name};
use super::route::RequestRule;
use super::specs::BackendRef;
use crate::config::diagnostic::quote;
use crate::config::http::{
    Carrier, MAX_MATCHES, PathMatch, Pattern, Persistence, RequestMatch, Retry, Rule, RuleBackend, Timeouts,
    ValueMatch,
};
use crate::config::toml::BACKOFF;

/// A rule, with matches of its kind. A key that is not known may narrow whose requests are meant, or who may send them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RuleSpec<M> {
    name: Option<Box<str>>,
    #[serde(default = "Vec::new")]
    matches: Vec<M>,
    #[serde(default)]
    filters: Vec<FilterSpec>,
    #[serde(default)]
    backend_refs: Vec<BackendSpec>,
    timeouts: Option<TimeoutsSpec>,
    retry: Option<RetrySpec>,
    session_persistence: Option<PersistenceSpec>,
}

impl<M> Default for RuleSpec<M> {
    fn default() -> Self {
        Self {
            name: None,
            matches: Vec::new(),
            filters: Vec::new(),
            backend_refs: Vec::new(),
            timeouts: None,
            retry: None,
            session_persistence: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BackendSpec {
    #[serde(default)]
    group: Box<str>,
    kind: Option<Box<str>>,
    name: Box<str>,
    namespace: Option<Box<str>>,
    port: Option<u16>,
    weight: Option<u32>,
    #[serde(default)]
    filters: Vec<FilterSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TimeoutsSpec {
    request: Option<Box<str>>,
    backend_request: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RetrySpec {
    #[serde(default)]
    codes: Vec<u16>,
    attempts: Option<u32>,
    backoff: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PersistenceSpec {
    session_name: Option<Box<str>>,
    absolute_timeout: Option<Box<str>>,
    idle_timeout: Option<Box<str>>,
    #[serde(rename = "type")]
    kind: Option<Box<str>>,
    cookie_config: Option<CookieSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CookieSpec {
    lifetime_type: Option<Box<str>>,
}

/// Of a header or a parameter of the query.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ValueSpec {
    #[serde(rename = "type")]
    kind: Option<Box<str>>,
    name: Box<str>,
    value: Box<str>,
}

impl<M> RuleSpec<M> {
    /// Puts in a match where there is none.
    pub(super) fn match_something(&mut self, of: impl FnOnce() -> M) {
        if self.matches.is_empty() {
            self.matches.push(of());
        }
    }
}

/// Regular expressions of an object, and what all that are made for it may take compiled, in bytes: whoever may write an object must
/// not fill the memory of the gateway.
const MOST_EXPRESSIONS: usize = 64;
const MOST_MEMORY: usize = 2 * 1024 * 1024;

/// The expressions of an object that were compiled.
#[derive(Default)]
pub(super) struct Expressions {
    count: usize,
    memory: usize,
}

impl Expressions {
    /// One that stands in the object.
    pub(super) fn read(&mut self, expression: &str) -> Result<Pattern, String> {
        if self.count >= MOST_EXPRESSIONS {
            return Err(format!("the object has more than {MOST_EXPRESSIONS} regular expressions"));
        }
        self.count += 1;
        self.make(expression)
    }

    /// One that stands for something simpler.
    pub(super) fn make(&mut self, expression: &str) -> Result<Pattern, String> {
        if self.memory <= MOST_MEMORY {
            let made = pattern(expression)?;
            self.memory += made.memory();
            if self.memory <= MOST_MEMORY {
                return Ok(made);
            }
        }
        Err(format!("the regular expressions of the object take more than {} MiB", MOST_MEMORY >> 20))
    }
}

/// The rules of an object. `of_match`: what one of its matches asks for.
pub(super) fn rules<M>(
    key: &Key,
    specs: Vec<RuleSpec<M>>,
    is_grpc: bool,
    of_match: fn(M, &mut Expressions) -> Result<RequestMatch, String>,
) -> Vec<RequestRule> {
    let mut expressions = Expressions::default();
    let rule = |(number, mut spec): (usize, RuleSpec<M>)| {
        let path = format!("spec.rules[{number}]");
        let Key { kind, name: Name { namespace, name } } = key;
        let part = spec.name.take().unwrap_or_else(|| number.to_string().into());
        let name: Arc<str> = format!("{}.{namespace}.{name}.{part}", kind.name()).into();
        let matches = match std::mem::take(&mut spec.matches) {
            many if many.len() > MAX_MATCHES => Err(format!("it has more than {MAX_MATCHES} matches")),
            matches => matches.into_iter().map(|each| of_match(each, &mut expressions)).collect(),
        };
        RequestRule::new(path, name, is_grpc, matches, |rule, named, path| spec.fill(rule, named, path))
    };
    specs.into_iter().enumerate().map(rule).collect()
}

impl<M> RuleSpec<M> {
    fn fill(self, rule: &mut Rule<usize>, named: &mut Vec<BackendRef>, path: &str) -> Result<(), String> {
        let is_prefix = |each: &RequestMatch| matches!(each.path, Some(PathMatch::Prefix(_)));
        let has_prefix = !rule.matches.is_empty() && rule.matches.iter().all(is_prefix);
        rule.filters = http_filters::read(self.filters, &format!("{path}.filters"), has_prefix, named)?;
        for (number, spec) in self.backend_refs.into_iter().enumerate() {
            let path = format!("{path}.backendRefs[{number}]");
            let BackendSpec { group, kind, name, namespace, port, weight, filters } = spec;
            let backend = BackendRef { group, kind, name, namespace, port, weight, istio: None };
            let pool = Some(named.len());
            named.push(backend);
            let filters = http_filters::read(filters, &format!("{path}.filters"), has_prefix, named)?;
            if filters.redirect.is_some() || filters.cors.is_some() {
                return Err(format!("{path}.filters: a backend has no redirect and no CORS"));
            }
            rule.backends.push(RuleBackend { pool, weight: weight.unwrap_or(1), filters });
        }
        if let Some(TimeoutsSpec { request, backend_request }) = self.timeouts {
            rule.timeouts = Timeouts {
                request: timeout("timeouts.request", request)?,
                backend: timeout("timeouts.backendRequest", backend_request)?,
            };
        }
        rule.retry = self.retry.map(RetrySpec::read).transpose()?.flatten();
        let name = rule.name.clone();
        rule.persistence = self.session_persistence.map(|spec| spec.read(&name)).transpose()?;
        Ok(())
    }
}

/// Attempts for whoever names no number, and how many there can be: each of them is a request to a server.
const ATTEMPTS: u32 = 1;
const MOST_ATTEMPTS: u32 = 100;

/// Retries; `None`: there are none.
pub(super) fn retry(
    codes: Vec<u16>,
    attempts: Option<u32>,
    backoff: Option<Duration>,
) -> Result<Option<Retry>, String> {
    let attempts = attempts.unwrap_or(ATTEMPTS);
    if attempts > MOST_ATTEMPTS {
        return Err(format!("more than {MOST_ATTEMPTS} attempts"));
    }
    let status = |code: u16| {
        let found = StatusCode::from_u16(code).ok().filter(|code| code.as_u16() >= 400);
        found.ok_or_else(|| format!("{code} is no status of an error"))
    };
    let statuses = codes.into_iter().map(status).collect::<Result<_, _>>()?;
    let backoff = backoff.unwrap_or(BACKOFF);
    Ok((attempts > 0).then_some(Retry { attempts, statuses, lost: false, backoff }))
}

impl RetrySpec {
    fn read(self) -> Result<Option<Retry>, String> {
        let Self { codes, attempts, backoff } = self;
        let backoff = backoff.map(|text| read_duration("retry.backoff", &text)).transpose()?;
        retry(codes, attempts, backoff).map_err(|why| format!("retry: {why}"))
    }
}

impl PersistenceSpec {
    /// `rule`: of whose name that of the cookie is made if it has none, so that two rules do not overwrite each other's.
    fn read(self, rule: &str) -> Result<Persistence, String> {
        let Self { session_name, absolute_timeout, idle_timeout, kind, cookie_config } = self;
        if idle_timeout.is_some() {
            return Err("sessionPersistence.idleTimeout is not served".to_owned());
        }
        let absolute_timeout = timeout("sessionPersistence.absoluteTimeout", absolute_timeout)?;
        let name = session_name.unwrap_or_else(|| {
            let digest = Sha256::digest(rule);
            format!("session-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3]).into()
        });
        // Names of cookies are tokens (RFC 6265, section 4.1.1), as those of headers are.
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(format!("sessionPersistence.sessionName: {} is no name", quote(&name)));
        }
        let lifetime = cookie_config.and_then(|cookie| cookie.lifetime_type);
        let carrier = match (kind.as_deref(), lifetime.as_deref()) {
            (Some("Header"), None) => Carrier::Header,
            (None | Some("Cookie"), None | Some("Session")) => Carrier::SessionCookie,
            (None | Some("Cookie"), Some("Permanent")) if absolute_timeout.is_some() => {
                Carrier::PermanentCookie
            }
            (None | Some("Cookie"), Some("Permanent")) => {
                return Err("sessionPersistence: a permanent cookie needs an absoluteTimeout".to_owned());
            }
            (kind, lifetime) => {
                let [kind, lifetime] = [kind, lifetime].map(|word| quote(word.unwrap_or_default()));
                return Err(format!("sessionPersistence: the type {kind} with {lifetime} is not known"));
            }
        };
        Ok(Persistence { name, carrier, absolute_timeout })
    }
}

/// A bound; 0: there is none.
fn timeout(path: &str, text: Option<Box<str>>) -> Result<Option<Duration>, String> {
    let bound = text.map(|text| read_duration(path, &text)).transpose()?;
    Ok(bound.filter(|bound| !bound.is_zero()))
}

pub(super) fn read_duration(path: &str, text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| format!("{path}: {} is no duration such as `10s`", quote(text)))
}

/// Numbers with units, one after another: `1h30m` (GEP-2257). Istio's may have fractions: `0.5s`.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let (unit, factor) = UNITS.into_iter().find(|(name, _)| unit.starts_with(name))?;
        seconds += number * factor;
        rest = &rest[end + unit.len()..];
    }
    // So long that nobody waits for it, and far from what a clock cannot count.
    let longest = f64::from(u32::MAX);
    (!text.is_empty()).then(|| Duration::from_secs_f64(seconds.min(longest)))
}

/// Of headers, each with its name in lower case. Of several with one name the API takes the first.
pub(super) fn header_matches(
    specs: Vec<ValueSpec>,
    expressions: &mut Expressions,
) -> Result<Vec<(HeaderName, ValueMatch)>, String> {
    let mut found: Vec<(HeaderName, ValueMatch)> = Vec::with_capacity(specs.len());
    for spec in specs {
        let name = header_name(&spec.name)?;
        if name == header::HOST {
            return Err("the host is not matched as a header, but by `hostnames`".to_owned());
        }
        if found.iter().all(|(known, _)| *known != name) {
            found.push((name, spec.read(expressions)?));
        }
    }
    Ok(found)
}

/// The same of parameters of the query.
pub(super) fn query_matches(
    specs: Vec<ValueSpec>,
    expressions: &mut Expressions,
) -> Result<Vec<(Box<str>, ValueMatch)>, String> {
    let mut found: Vec<(Box<str>, ValueMatch)> = Vec::with_capacity(specs.len());
    for spec in specs {
        if found.iter().all(|(known, _)| *known != spec.name) {
            found.push((spec.name.clone(), spec.read(expressions)?));
        }
    }
    Ok(found)
}

impl ValueSpec {
    fn read(self, expressions: &mut Expressions) -> Result<ValueMatch, String> {
        match self.kind.as_deref() {
            None | Some("Exact") => Ok(ValueMatch::Exact(self.value)),
            Some("RegularExpression") => expressions.read(&self.value).map(ValueMatch::Regex),
            Some(other) => Err(format!("{} is no type of a match", quote(other))),
        }
    }
}

/// Of a path, with or without a `/` at its end, that begins with one.
pub(super) fn prefix(path: &str) -> PathMatch {
    let bare = path.trim_end_matches('/');
    PathMatch::Prefix(if bare.is_empty() { "/".into() } else { bare.into() })
}

pub(super) fn pattern(expression: &str) -> Result<Pattern, String> {
    Pattern::new(expression).map_err(|why| format!("{}: {why}", quote(expression)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("1h30m5s10ms", Some(5_405_010)),
            ("0.5s", Some(500)),
            ("99999999999999999999h", Some(u128::from(u32::MAX) * 1000)),
            ("", None),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("1e3s", None),
            ("1..5s", None),
            ("1d", None),
        ] {
            assert_eq!(duration(text).map(|found| found.as_millis()), milliseconds, "{text}");
        }
    }
}
