//! Filters of rules: what is changed in requests and answers, or done besides.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::num::NonZeroU32;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;

use super::decode::Given;
use super::specs::BackendRef;
use crate::config::address::dns_name;
use crate::config::diagnostic::quote;
use crate::config::http::{
    Cors, Filters, Fraction, HeaderChanges, Mirror, PathRewrite, Redirect, Rewrite, is_changeable, is_origin,
};

/// A filter. A key that is not known may ask for more than is served.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FilterSpec {
    #[serde(rename = "type")]
    kind: Box<str>,
    request_header_modifier: Option<HeadersSpec>,
    response_header_modifier: Option<HeadersSpec>,
    request_mirror: Option<MirrorSpec>,
    request_redirect: Option<RedirectSpec>,
    url_rewrite: Option<RewriteSpec>,
    cors: Option<CorsSpec>,
    #[serde(default, rename = "externalAuth")]
    _external_auth: Given,
    #[serde(default, rename = "extensionRef")]
    _extension_ref: Given,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadersSpec {
    #[serde(default)]
    set: Vec<HeaderSpec>,
    #[serde(default)]
    add: Vec<HeaderSpec>,
    #[serde(default)]
    remove: Vec<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderSpec {
    name: Box<str>,
    value: Box<str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MirrorSpec {
    backend_ref: BackendRef,
    percent: Option<u32>,
    fraction: Option<FractionSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FractionSpec {
    numerator: u32,
    denominator: Option<NonZeroU32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RedirectSpec {
    scheme: Option<Box<str>>,
    hostname: Option<Box<str>>,
    path: Option<PathSpec>,
    port: Option<u16>,
    status_code: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RewriteSpec {
    hostname: Option<Box<str>>,
    path: Option<PathSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PathSpec {
    #[serde(rename = "type")]
    kind: Box<str>,
    replace_full_path: Option<Box<str>>,
    replace_prefix_match: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CorsSpec {
    #[serde(default)]
    allow_origins: Vec<Box<str>>,
    #[serde(default)]
    allow_credentials: bool,
    #[serde(default)]
    allow_methods: Vec<Box<str>>,
    #[serde(default)]
    allow_headers: Vec<Box<str>>,
    #[serde(default)]
    expose_headers: Vec<Box<str>>,
    max_age: Option<u32>,
}

/// What the API takes for a `maxAge` that is not there, in seconds.
const MAX_AGE: u32 = 5;
/// Of a redirect without `statusCode`.
const FOUND: u16 = 302;
/// Filters of a list at most: each mirror is a request more.
const MOST: usize = 16;

/// The filters of a list, which stands at `path`; or why one of them is not served. `has_prefix`: what is changed in paths may
/// be the prefix that has matched.
pub(super) fn read(
    specs: Vec<FilterSpec>,
    path: &str,
    has_prefix: bool,
    named: &mut Vec<BackendRef>,
) -> Result<Filters<usize>, String> {
    if specs.len() > MOST {
        return Err(format!("{path}: more than {MOST} filters"));
    }
    let mut filters = Filters::default();
    let (mut request_headers, mut response_headers) = (None, None);
    for (number, spec) in specs.into_iter().enumerate() {
        let path = format!("{path}[{number}]");
        let at = |why: String| format!("{path}: {why}");
        let kind = spec.kind.clone();
        let is_new = match &*spec.kind {
            "RequestHeaderModifier" => {
                let headers = changes(needed(&kind, spec.request_header_modifier)?).map_err(at)?;
                request_headers.replace(headers).is_none()
            }
            "ResponseHeaderModifier" => {
                let headers = changes(needed(&kind, spec.response_header_modifier)?).map_err(at)?;
                response_headers.replace(headers).is_none()
            }
            "RequestRedirect" => {
                let redirect = redirect(needed(&kind, spec.request_redirect)?, has_prefix).map_err(at)?;
                filters.redirect.replace(redirect).is_none()
            }
            "URLRewrite" => {
                let rewrite = rewrite(needed(&kind, spec.url_rewrite)?, has_prefix).map_err(at)?;
                filters.rewrite.replace(rewrite).is_none()
            }
            "RequestMirror" => {
                let MirrorSpec { backend_ref, percent, fraction } = needed(&kind, spec.request_mirror)?;
                let share = share(percent, fraction).map_err(at)?;
                filters.mirrors.push(Mirror { pool: Some(named.len()), share });
                named.push(backend_ref);
                true
            }
            "CORS" => {
                let cors = cors(needed(&kind, spec.cors)?).map_err(at)?;
                filters.cors.replace(Arc::new(cors)).is_none()
            }
            other => return Err(at(format!("the filter {} is not served", quote(other)))),
        };
        if !is_new {
            return Err(at(format!("a second filter {kind}")));
        }
    }
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        return Err(format!("{path}: RequestRedirect excludes URLRewrite"));
    }
    filters.request_headers = request_headers.unwrap_or_default();
    filters.response_headers = response_headers.unwrap_or_default();
    Ok(filters)
}

fn needed<T>(kind: &str, part: Option<T>) -> Result<T, String> {
    part.ok_or_else(|| format!("a filter {kind} does not say what it does"))
}

fn changes(spec: HeadersSpec) -> Result<HeaderChanges, String> {
    let header = |HeaderSpec { name, value }: HeaderSpec| Ok((changed_header(&name)?, header_value(&value)?));
    // Of several with one name the API takes the first.
    let all = |headers: Vec<HeaderSpec>| {
        let mut found: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(headers.len());
        for (name, value) in headers.into_iter().map(header).collect::<Result<Vec<_>, String>>()? {
            if found.iter().all(|(known, _)| *known != name) {
                found.push((name, value));
            }
        }
        Ok::<_, String>(found)
    };
    Ok(HeaderChanges {
        set: all(spec.set)?,
        add: all(spec.add)?,
        remove: spec.remove.iter().map(|name| changed_header(name)).collect::<Result<_, _>>()?,
    })
}

pub(super) fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{} is no name of a header", quote(name)))
}

/// Of a header that rules may change.
pub(super) fn changed_header(name: &str) -> Result<HeaderName, String> {
    let found = header_name(name)?;
    match is_changeable(&found) {
        true => Ok(found),
        false => Err(format!("{} is not for rules to change", quote(name))),
    }
}

pub(super) fn header_value(value: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(value).map_err(|_| format!("{} is no value of a header", quote(value)))
}

fn redirect(spec: RedirectSpec, has_prefix: bool) -> Result<Redirect, String> {
    let RedirectSpec { scheme, hostname, path, port, status_code } = spec;
    if let Some(other) = scheme.as_deref().filter(|scheme| !matches!(*scheme, "http" | "https")) {
        return Err(format!("{} is no scheme of a redirect", quote(other)));
    }
    if port == Some(0) {
        return Err("a redirect to port 0".to_owned());
    }
    Ok(Redirect {
        scheme,
        host: hostname.map(|host| host_name(&host)).transpose()?,
        path: path.map(|path| path_rewrite(path, has_prefix)).transpose()?,
        port,
        status: redirect_status(status_code.unwrap_or(FOUND))?,
    })
}

pub(super) fn redirect_status(code: u16) -> Result<StatusCode, String> {
    let found = StatusCode::from_u16(code).ok().filter(|_| matches!(code, 301 | 302 | 303 | 307 | 308));
    found.ok_or_else(|| format!("{code} is no status of a redirect"))
}

fn rewrite(spec: RewriteSpec, has_prefix: bool) -> Result<Rewrite, String> {
    let host = spec.hostname.map(|host| header_value(&host_name(&host)?)).transpose()?;
    Ok(Rewrite { host, path: spec.path.map(|path| path_rewrite(path, has_prefix)).transpose()? })
}

pub(super) fn host_name(host: &str) -> Result<Box<str>, String> {
    dns_name(host).map_err(|why| format!("{} is no host name: {why}", quote(host)))
}

fn path_rewrite(spec: PathSpec, has_prefix: bool) -> Result<PathRewrite, String> {
    match (&*spec.kind, spec.replace_full_path, spec.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), None) => Ok(PathRewrite::Full(path_text(path)?)),
        ("ReplacePrefixMatch", None, Some(_)) if !has_prefix => {
            Err("only what has matched a PathPrefix can be replaced".to_owned())
        }
        ("ReplacePrefixMatch", None, Some(path)) => Ok(PathRewrite::Prefix(path_text(path)?)),
        (other, ..) => Err(format!("{} is no change of a path, or does not say to what", quote(other))),
    }
}

/// What can stand in a request's first line, before the query, and behind a host in a `Location`; empty: the path of the root.
pub(super) fn path_text(path: Box<str>) -> Result<Box<str>, String> {
    let is_good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    match path.bytes().all(is_good) && (path.is_empty() || path.starts_with('/')) {
        true => Ok(path),
        false => Err(format!("{} is no path that begins with a `/`", quote(&path))),
    }
}

fn share(percent: Option<u32>, fraction: Option<FractionSpec>) -> Result<Fraction, String> {
    const HUNDRED: NonZeroU32 = NonZeroU32::new(100).unwrap();
    let share = match (percent, fraction) {
        (None, None) => Fraction { numerator: 1, denominator: NonZeroU32::MIN },
        (Some(percent), None) => Fraction { numerator: percent, denominator: HUNDRED },
        (None, Some(FractionSpec { numerator, denominator })) => {
            Fraction { numerator, denominator: denominator.unwrap_or(HUNDRED) }
        }
        (Some(_), Some(_)) => return Err("`percent` excludes `fraction`".to_owned()),
    };
    match share.numerator <= share.denominator.get() {
        true => Ok(share),
        false => Err("a share of more than all".to_owned()),
    }
}

fn cors(spec: CorsSpec) -> Result<Cors, String> {
    let made = Cors {
        origins: spec.allow_origins,
        credentials: spec.allow_credentials,
        methods: spec.allow_methods,
        headers: spec.allow_headers,
        exposed: spec.expose_headers,
        max_age: spec.max_age.unwrap_or(MAX_AGE),
    };
    check_cors(&made)?;
    Ok(made)
}

/// Whether what is listed can stand in headers.
pub(super) fn check_cors(cors: &Cors) -> Result<(), String> {
    if let Some(bad) = cors.origins.iter().find(|origin| !is_origin(origin)) {
        return Err(format!("{} is no origin", quote(bad)));
    }
    if let Some(bad) = cors.methods.iter().find(|method| Method::from_bytes(method.as_bytes()).is_err()) {
        return Err(format!("{} is no method", quote(bad)));
    }
    cors.headers.iter().chain(&cors.exposed).try_for_each(|name| header_name(name).map(drop))
}
