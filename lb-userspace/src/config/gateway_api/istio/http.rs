//! Rules of `spec.http` of a VirtualService, as far as an HTTPRoute could say the same.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use http::{Method, StatusCode};
use serde::Deserialize;

use super::destination::{Destined, HeadersSpec, Weighted, shares};
use super::text::{Only, Text};
use crate::config::diagnostic::quote;
use crate::config::gateway_api::decode::Given;
use crate::config::gateway_api::http_filters::{
    check_cors, header_name, header_value, host_name, path_text, redirect_status,
};
use crate::config::gateway_api::requests::{Expressions, read_duration, retry};
use crate::config::gateway_api::route::RequestRule;
use crate::config::gateway_api::specs::BackendRef;
use crate::config::http::{
    Cors, Fraction, Mirror, PathMatch, PathRewrite, Redirect, RequestMatch, Retry, Rewrite, Rule,
    RuleBackend, Timeouts,
};

/// A rule, without its matches. What it has besides is not served.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HttpSpec {
    #[serde(default, rename = "match")]
    pub(super) matches: Vec<MatchSpec>,
    #[serde(flatten)]
    pub(super) action: Action,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Action {
    #[serde(default)]
    route: Vec<Weighted>,
    redirect: Option<RedirectSpec>,
    rewrite: Option<RewriteSpec>,
    timeout: Option<Box<str>>,
    retries: Option<RetriesSpec>,
    mirror: Option<Destined>,
    mirror_percentage: Option<Percent>,
    #[serde(default)]
    mirrors: Vec<MirrorSpec>,
    cors_policy: Option<CorsSpec>,
    #[serde(default)]
    headers: HeadersSpec,
    #[serde(default, rename = "name")]
    _name: Given,
    #[serde(flatten)]
    rest: BTreeMap<Box<str>, Given>,
}

/// A key that is not known may narrow who is meant.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MatchSpec {
    uri: Option<Text>,
    /// Of exact ones and of prefixes.
    #[serde(default)]
    ignore_uri_case: bool,
    method: Option<Text>,
    #[serde(default)]
    headers: BTreeMap<Box<str>, Text>,
    #[serde(default)]
    query_params: BTreeMap<Box<str>, Text>,
    pub(super) port: Option<u16>,
    #[serde(default)]
    pub(super) gateways: Vec<Box<str>>,
    #[serde(default, rename = "name")]
    _name: Given,
    #[serde(default, rename = "statPrefix")]
    _stat_prefix: Given,
    #[serde(flatten)]
    rest: BTreeMap<Box<str>, Given>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RedirectSpec {
    uri: Option<Box<str>>,
    authority: Option<Box<str>>,
    port: Option<u16>,
    scheme: Option<Box<str>>,
    redirect_code: Option<u16>,
    #[serde(default)]
    derive_port: Given,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RewriteSpec {
    uri: Option<Box<str>>,
    authority: Option<Box<str>>,
    #[serde(default)]
    uri_regex_rewrite: Given,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RetriesSpec {
    attempts: Option<u32>,
    per_try_timeout: Option<Box<str>>,
    retry_on: Option<Box<str>>,
    backoff: Option<Box<str>>,
    // The servers of a pool are all alike.
    #[serde(default, rename = "retryRemoteLocalities")]
    _localities: Given,
    #[serde(default, rename = "retryIgnorePreviousHosts")]
    _hosts: Given,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorSpec {
    destination: Destined,
    percentage: Option<Percent>,
}

#[derive(Clone, Copy, Deserialize)]
struct Percent {
    #[serde(default)]
    value: f64,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CorsSpec {
    #[serde(default)]
    allow_origins: Vec<Text>,
    #[serde(default)]
    allow_origin: Vec<Box<str>>,
    #[serde(default)]
    allow_methods: Vec<Box<str>>,
    #[serde(default)]
    allow_headers: Vec<Box<str>>,
    #[serde(default)]
    expose_headers: Vec<Box<str>>,
    max_age: Option<Box<str>>,
    #[serde(default)]
    allow_credentials: bool,
}

impl MatchSpec {
    /// What of it is not looked at: its requests are refused.
    pub(super) fn unserved(&self) -> Option<&str> {
        let by_pattern = self.method.as_ref().is_some_and(Text::is_pattern);
        let rest = self.rest.iter().find_map(|(key, given)| given.0.then_some(&**key));
        // Methods are told apart by their names.
        rest.or(by_pattern.then_some("a method by a pattern"))
    }

    /// The rule of this match alone, which stands at `path`. `namespace`: of the object.
    pub(super) fn rule(
        self,
        action: Action,
        name: Arc<str>,
        path: String,
        namespace: &str,
        expressions: &mut Expressions,
    ) -> RequestRule {
        let is_rewritten = action
            .rewrite
            .as_ref()
            .is_some_and(|rewrite| rewrite.uri.as_deref().is_some_and(|uri| !uri.is_empty()));
        let unserved = match self.unserved() {
            Some(key) => Some(format!("{key} is not looked at")),
            None if self.ignore_uri_case && is_rewritten => {
                Some("`rewrite.uri` beside `ignoreUriCase` is not served".to_owned())
            }
            None => None,
        };
        let matches = self.read(expressions).map(|of| vec![of]);
        RequestRule::new(path, name, false, matches, |rule, named, _| match unserved {
            Some(why) => Err(why),
            None => action.fill(rule, named, namespace),
        })
    }

    fn read(self, expressions: &mut Expressions) -> Result<RequestMatch, String> {
        let mut folded = |path: &str, rest: &str| {
            let expression = format!("(?i){}{rest}", regex_syntax::escape(path));
            expressions.make(&expression).map(|pattern| Some(PathMatch::Regex(pattern)))
        };
        let path = match self.uri.map_or(Ok(Only::Any), Text::only)? {
            Only::Any => None,
            Only::Begin(begin) if *begin == *"/" => None,
            Only::Exact(path) if self.ignore_uri_case => folded(&path, "")?,
            Only::Begin(begin) if self.ignore_uri_case => folded(&begin, ".*")?,
            Only::Exact(path) => Some(PathMatch::Exact(path)),
            Only::Begin(begin) => Some(PathMatch::Begin(begin)),
            Only::Regex(regex) => Some(PathMatch::Regex(expressions.read(&regex)?)),
        };
        let method = match self.method.map_or(Ok(Only::Any), Text::only)? {
            Only::Any | Only::Begin(_) | Only::Regex(_) => None,
            Only::Exact(method) => {
                let read = Method::from_bytes(method.as_bytes());
                Some(read.map_err(|_| format!("{} is no method", quote(&method)))?)
            }
        };
        let mut headers = BTreeMap::new();
        for (name, text) in self.headers {
            headers.insert(name.to_ascii_lowercase(), (header_name(&name)?, text));
        }
        let headers = headers.into_values().map(|(name, text)| Ok((name, text.value(expressions)?)));
        let headers = headers.collect::<Result<_, String>>()?;
        let query = self.query_params.into_iter().map(|(name, text)| Ok((name, text.value(expressions)?)));
        Ok(RequestMatch { path, method, headers, query: query.collect::<Result<_, String>>()? })
    }
}

/// To Istio an empty text is none.
fn some(text: Option<Box<str>>) -> Option<Box<str>> {
    text.filter(|text| !text.is_empty())
}

impl Action {
    fn fill(
        self,
        rule: &mut Rule<usize>,
        named: &mut Vec<BackendRef>,
        namespace: &str,
    ) -> Result<(), String> {
        if let Some(key) = self.rest.iter().find_map(|(key, given)| given.0.then_some(key)) {
            return Err(format!("{key} is not served"));
        }
        rule.filters = self.headers.filters()?;
        for (backend, headers) in shares(self.route, namespace) {
            let weight = backend.weight.unwrap_or(1);
            let pool = Some(named.len());
            named.push(backend);
            rule.backends.push(RuleBackend { pool, weight, filters: headers.filters()? });
        }
        rule.filters.redirect = self.redirect.map(RedirectSpec::read).transpose()?;
        // The path of a prefix, or of all, is changed by what it begins with.
        let by_prefix = rule.matches.iter().all(|of| matches!(of.path, None | Some(PathMatch::Begin(_))));
        rule.filters.rewrite = self.rewrite.map(|rewrite| rewrite.read(by_prefix)).transpose()?;
        let mirror =
            self.mirror.map(|destination| MirrorSpec { destination, percentage: self.mirror_percentage });
        for MirrorSpec { destination, percentage } in mirror.into_iter().chain(self.mirrors) {
            let share = percentage.map_or(Ok(ALL), Percent::read)?;
            rule.filters.mirrors.push(Mirror { pool: Some(named.len()), share });
            named.push(destination.backend(namespace, false, None));
        }
        rule.filters.cors = self.cors_policy.map(CorsSpec::read).transpose()?.map(Arc::new);
        let bound = |path: &str, text: Option<Box<str>>| {
            let bound = text.map(|text| read_duration(path, &text)).transpose();
            bound.map(|bound| bound.filter(|bound| !bound.is_zero()))
        };
        rule.timeouts = Timeouts { request: bound("timeout", self.timeout)?, backend: None };
        if let Some(RetriesSpec { attempts, per_try_timeout, retry_on, backoff, .. }) = self.retries {
            // Without a number there are none, and no bound for each.
            let attempts = attempts.unwrap_or(0);
            let per_try = bound("retries.perTryTimeout", per_try_timeout)?;
            rule.timeouts.backend = per_try.filter(|_| attempts > 0);
            let backoff = backoff.map(|text| read_duration("retries.backoff", &text)).transpose()?;
            let (codes, lost) = retried(retry_on.as_deref())?;
            rule.retry = retry(codes, Some(attempts), backoff)?.map(|retry| Retry { lost, ..retry });
        }
        Ok(())
    }
}

const ALL: Fraction = Fraction { numerator: 1, denominator: NonZeroU32::MIN };

impl Percent {
    fn read(self) -> Result<Fraction, String> {
        const DENOMINATOR: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();
        match self.value {
            share @ 0.0..=100.0 => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it is 0 to 1 000 000"
                )]
                let numerator = (share * 10_000.0).round() as u32;
                Ok(Fraction { numerator, denominator: DENOMINATOR })
            }
            other => Err(format!("{other} is no share in percent")),
        }
    }
}

/// The statuses of answers that are tried again, and whether requests are that may do harm when they are done twice, where a server
/// that has them gives no answer. Failures to connect are in any case.
fn retried(retry_on: Option<&str>) -> Result<(Vec<u16>, bool), String> {
    let (mut codes, mut lost) = (Vec::new(), false);
    let words = retry_on.filter(|words| !words.is_empty()).unwrap_or("503");
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "5xx" => codes.extend([500, 501, 502, 503, 504]),
            "gateway-error" => codes.extend([502, 503, 504]),
            "retriable-4xx" => codes.push(409),
            "reset" => lost = true,
            "connect-failure" | "refused-stream" | "reset-before-request" | "retriable-status-codes" => {}
            "unavailable" | "cancelled" => codes.push(503),
            code => {
                let code = code.parse().ok().filter(|code| StatusCode::from_u16(*code).is_ok());
                codes.push(code.ok_or_else(|| format!("retries.retryOn: {} is not served", quote(word)))?);
            }
        }
    }
    codes.sort_unstable();
    codes.dedup();
    Ok((codes, lost))
}

impl RedirectSpec {
    fn read(self) -> Result<Redirect, String> {
        let Self { uri, authority, port, scheme, redirect_code, derive_port } = self;
        if derive_port.0 {
            return Err("redirect.derivePort is not served".to_owned());
        }
        if let Some(other) = scheme.as_deref().filter(|scheme| !matches!(*scheme, "http" | "https")) {
            return Err(format!("{} is no scheme of a redirect", quote(other)));
        }
        let uri = some(uri).map(|uri| match uri.contains('%') {
            true => Err(format!("redirect.uri: {} is not served", quote(&uri))),
            false => path_text(uri).map(PathRewrite::Full),
        });
        Ok(Redirect {
            scheme,
            host: some(authority).map(|host| host_name(&host)).transpose()?,
            path: uri.transpose()?,
            port: port.filter(|port| *port != 0),
            status: redirect_status(redirect_code.unwrap_or(301))?,
        })
    }
}

impl RewriteSpec {
    fn read(self, by_prefix: bool) -> Result<Rewrite, String> {
        if self.uri_regex_rewrite.0 {
            return Err("rewrite.uriRegexRewrite is not served".to_owned());
        }
        let path = some(self.uri).map(path_text).transpose()?;
        let host = some(self.authority).map(|host| header_value(&host_name(&host)?)).transpose()?;
        let path = path.map(if by_prefix { PathRewrite::Prefix } else { PathRewrite::Full });
        Ok(Rewrite { host, path })
    }
}

impl CorsSpec {
    fn read(self) -> Result<Cors, String> {
        let mut origins = self.allow_origin;
        for origin in self.allow_origins {
            match origin.only()? {
                Only::Exact(origin) => origins.push(origin),
                _ => return Err("corsPolicy: only exact origins are served".to_owned()),
            }
        }
        let max_age = self.max_age.map(|age| read_duration("corsPolicy.maxAge", &age)).transpose()?;
        let max_age = max_age.map_or(0, |age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        let made = Cors {
            origins,
            credentials: self.allow_credentials,
            methods: self.allow_methods,
            headers: self.allow_headers,
            exposed: self.expose_headers,
            max_age,
        };
        check_cors(&made)?;
        Ok(made)
    }
}
