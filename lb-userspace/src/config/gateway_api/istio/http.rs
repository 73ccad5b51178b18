//! Rules of `spec.http` of a VirtualService, as far as an HTTPRoute could say the same.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;

use super::destination::{Destined, HeadersSpec, Weighted, shares};
use super::wanted::{Common, Only, Paths, Text, Wanted};
use crate::config::diagnostic::quote;
use crate::config::gateway_api::decode::Given;
use crate::config::gateway_api::http_filters::{
    check_cors, header_value, host_name, path_text, redirect_status,
};
use crate::config::gateway_api::requests::{Expressions, read_duration, retry};
use crate::config::gateway_api::route::RequestRule;
use crate::config::gateway_api::specs::BackendRef;
use crate::config::http::{
    Cors, Fraction, MAX_MATCHES, Mirror, PathRewrite, Redirect, Rewrite, Rule, RuleBackend, Timeouts,
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

/// A match with what becomes of its requests.
pub(super) struct Drafted {
    wanted: Result<Wanted, String>,
    /// What of it is not looked at: its requests are refused.
    pub(super) unserved: Option<Box<str>>,
    action: Action,
    name: Arc<str>,
    path: String,
    /// Others that it goes before, though they may be narrower.
    before: Vec<Wanted>,
}

impl MatchSpec {
    pub(super) fn drafted(self, action: Action, name: Arc<str>, path: String) -> Drafted {
        let unserved = self.rest.into_iter().find_map(|(key, given)| given.0.then_some(key));
        let paths = match self.uri.map(Text::only) {
            None | Some(Ok(Only::Any)) => Ok(Paths::All),
            Some(Ok(Only::Begin(begin))) if *begin == *"/" => Ok(Paths::All),
            Some(Ok(Only::Exact(path))) => Ok(Paths::Exact(path)),
            Some(Ok(Only::Begin(begin))) => Ok(Paths::Begin(begin)),
            Some(Ok(Only::Regex(regex))) => Ok(Paths::Regex(regex)),
            Some(Err(why)) => Err(why),
        };
        let method = match self.method.map(Text::only).transpose() {
            Ok(None | Some(Only::Any)) => Ok(None),
            Ok(Some(Only::Exact(method))) => Ok(Some(method)),
            Ok(Some(_)) => Err("only exact methods are told apart".to_owned()),
            Err(why) => Err(why),
        };
        let lower = |(name, text): (Box<str>, Text)| (name.to_ascii_lowercase().into(), text);
        let headers = self.headers.into_iter().map(lower).collect();
        let wanted =
            paths.and_then(|paths| Ok(Wanted { paths, method: method?, headers, query: self.query_params }));
        Drafted { wanted, unserved, action, name, path, before: Vec::new() }
    }
}

/// For VirtualServices the first match counts, for the API's routes the narrowest. A match that goes before another is given
/// what both have in common besides, which is as narrow as that; then it stands before it in the list. What is to be told of
/// those of which that cannot be said.
pub(super) fn keep_order(drafted: &mut [Drafted]) -> Vec<String> {
    let mut told = Vec::new();
    for first in (0..drafted.len()).rev() {
        let (head, later) = drafted.split_at_mut(first + 1);
        let Some(own) = head.last_mut() else { continue };
        let Ok(wanted) = &own.wanted else { continue };
        let mut common: Vec<Wanted> = Vec::new();
        for other in later.iter() {
            let Ok(theirs) = &other.wanted else { continue };
            for theirs in std::iter::once(theirs).chain(&other.before) {
                match wanted.and(theirs) {
                    Common::Nothing => {}
                    Common::All(both) if both == *wanted || common.contains(&both) => {}
                    Common::All(both) if common.len() + 1 < MAX_MATCHES => common.push(both),
                    Common::All(_) | Common::Unknown => {
                        let message = format!(
                            "{}: of what {} may take as well, the narrower of both has it, and not the first",
                            other.path, own.path
                        );
                        if !told.contains(&message) {
                            told.push(message);
                        }
                    }
                }
            }
        }
        own.before = common;
    }
    told
}

impl Drafted {
    /// `namespace`: of the object. What is to be told of it is added to `told`.
    pub(super) fn read(
        self,
        namespace: &str,
        expressions: &mut Expressions,
        told: &mut Vec<String>,
    ) -> RequestRule {
        let Self { wanted, unserved, action, name, path, before } = self;
        let rewrites = action.rewrite.as_ref().is_some_and(|rewrite| rewrite.uri.is_some());
        // The path of a prefix, or of all, is changed by what it begins with.
        let by_prefix = rewrites
            && wanted.as_ref().is_ok_and(|wanted| matches!(wanted.paths, Paths::All | Paths::Begin(_)));
        let paths = wanted.as_ref().map(|wanted| wanted.paths.clone()).ok();
        if let (true, Some(Paths::Begin(begin))) = (by_prefix, &paths) {
            told.push(format!("{path}: {} is taken by whole segments, for it is rewritten", quote(begin)));
        }
        let fits = |other: &&Wanted| !by_prefix || Some(&other.paths) == paths.as_ref();
        let matches = wanted.and_then(|wanted| {
            let all = std::iter::once(&wanted).chain(before.iter().filter(fits));
            all.map(|wanted| wanted.read(by_prefix, expressions)).collect()
        });
        RequestRule::new(path, name, false, matches, |rule, named, _| {
            if let Some(key) = unserved {
                return Err(format!("{key} is not looked at"));
            }
            action.fill(rule, named, namespace, by_prefix)
        })
    }
}

impl Action {
    fn fill(
        self,
        rule: &mut Rule<usize>,
        named: &mut Vec<BackendRef>,
        namespace: &str,
        by_prefix: bool,
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
        if let Some(retries) = self.retries {
            rule.timeouts.backend = bound("retries.perTryTimeout", retries.per_try_timeout.clone())?;
            let backoff = retries.backoff.as_ref().map(|text| read_duration("retries.backoff", text));
            let codes = codes(retries.retry_on.as_deref())?;
            rule.retry = retry(codes, retries.attempts, backoff.transpose()?)?;
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

/// The statuses of answers that are tried again. Failures to connect are in any case.
fn codes(retry_on: Option<&str>) -> Result<Vec<u16>, String> {
    let mut codes = Vec::new();
    for word in retry_on.unwrap_or("503").split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "5xx" => codes.extend([500, 501, 502, 503, 504]),
            "gateway-error" => codes.extend([502, 503, 504]),
            "retriable-4xx" => codes.push(409),
            "connect-failure" | "refused-stream" | "reset" | "reset-before-request" => {}
            "unavailable" | "cancelled" => codes.push(503),
            code => {
                let code = code.parse().ok().filter(|code| StatusCode::from_u16(*code).is_ok());
                codes.push(code.ok_or_else(|| format!("retries.retryOn: {} is not served", quote(word)))?);
            }
        }
    }
    codes.sort_unstable();
    codes.dedup();
    Ok(codes)
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
        let uri = uri.map(|uri| match uri.contains('%') {
            true => Err(format!("redirect.uri: {} is not served", quote(&uri))),
            false => path_text(uri).map(PathRewrite::Full),
        });
        Ok(Redirect {
            scheme,
            host: authority.map(|host| host_name(&host)).transpose()?,
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
        let path = self.uri.map(path_text).transpose()?;
        let host = self.authority.map(|host| header_value(&host_name(&host)?)).transpose()?;
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
