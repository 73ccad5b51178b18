//! `[[route.rule]]`: which keys there are, and what each means on its own.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use toml::de::DeValue;

use super::keys::{
    ATTEMPTS, BACKEND_WEIGHT, CORS, FAILURES, HEADER_CHANGES, MATCH, MAX_AGE, MIRROR, PERCENT, PORT,
    REDIRECT, REDIRECTIONS, RETRY, REWRITE, RULE_BACKEND, SCHEMES, SESSION, VALUE,
};
use super::reader::{Reader, Section, Value};
use super::value;
use crate::config::diagnostic::{Diagnostic, Problem, quote};
use crate::config::draft::rule::{
    MatchDraft, MirrorDraft, RedirectDraft, RetryDraft, RewriteDraft, RuleBackendDraft, RuleDraft,
    SessionDraft,
};
use crate::config::draft::{Field, values};
use crate::config::http::{
    Cors, HeaderChanges, Pattern, ValueMatch, compared, host_value, is_changeable, is_origin,
};
use crate::config::place::Placed;

pub(super) fn rule(mut s: Section<'_, '_>) -> RuleDraft {
    RuleDraft {
        place: s.span.clone().into(),
        name: s.read("name", |r, v| r.parse(v, value::name)),
        hosts: s.read("hosts", |r, v| {
            let hosts = r.list(v, |r, v| r.parse(v, value::sni_pattern))?;
            r.reject_duplicates(&hosts, |host| quote(&host.to_string()));
            Some(hosts)
        }),
        matches: s.read("match", |r, v| r.list(v, |r, v| r.section(v, &MATCH).map(a_match))),
        backends: s.read("backends", |r, v| r.list(v, backend)),
        request_headers: s.read("request_headers", header_changes),
        response_headers: s.read("response_headers", header_changes),
        rewrite: s.read("rewrite", |r, v| r.section(v, &REWRITE).map(rewrite)),
        redirect: s.read("redirect", |r, v| r.section(v, &REDIRECT).map(redirect)),
        mirror: s.read("mirror", |r, v| r.list(v, |r, v| r.section(v, &MIRROR).map(mirror))),
        cors: s.read("cors", |r, v| r.section(v, &CORS).map(cors)),
        request_timeout: s.read("request_timeout", |r, v| r.timeout(v)),
        backend_timeout: s.read("backend_timeout", |r, v| r.timeout(v)),
        retry: s.read("retry", |r, v| r.section(v, &RETRY).map(retry)),
        session: s.read("session", |r, v| r.section(v, &SESSION).map(session)),
    }
}

fn a_match(mut s: Section<'_, '_>) -> MatchDraft {
    MatchDraft {
        path: s.read("path", |r, v| r.parse(v, path)),
        path_prefix: s.read("path_prefix", prefix),
        path_regex: s.read("path_regex", pattern),
        method: s.read("method", |r, v| r.parse(v, method)),
        headers: s.read("headers", |r, v| {
            let headers = r.pairs(v, matched_header_name, wanted)?;
            Some(headers.into_iter().map(|pair| pair.value).collect())
        }),
        query: s.read("query", |r, v| {
            let parameters = r.pairs(v, |name| Ok(Box::from(name)), wanted)?;
            Some(parameters.into_iter().map(|pair| pair.value).collect())
        }),
    }
}

/// A text that is compared, or `{ regex = … }`.
fn wanted(r: &mut Reader<'_>, v: &Value<'_>) -> Option<ValueMatch> {
    match v.get_ref() {
        DeValue::Table(_) => {
            let expression = r.section(v, &VALUE)?.read("regex", pattern);
            expression.into_value().map(ValueMatch::Regex)
        }
        _ => r.string(v).map(|text| ValueMatch::Exact(text.into())),
    }
}

/// An error is shown where in the expression it is, if that is written as it is meant.
fn pattern(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Pattern> {
    let text = r.string(v)?;
    let error = match Pattern::new(text) {
        Ok(pattern) => return Some(pattern),
        Err(error) => error,
    };
    let whole = r.span(v);
    let inside = error.at.clone().filter(|at| !at.is_empty() && whole.len() == text.len() + 2);
    let at = inside.map_or(whole.clone(), |at| whole.start + 1 + at.start..whole.start + 1 + at.end);
    let help = "the syntax is that of Rust's regex; quotes of the kind `'…'` leave backslashes alone";
    r.report.push(Diagnostic::error(at, format!("this is no regular expression: {error}")).help(help));
    None
}

/// A pool's name stands for `{ pool = NAME }`.
fn backend(r: &mut Reader<'_>, v: &Value<'_>) -> Option<RuleBackendDraft> {
    if let DeValue::String(pool) = v.get_ref() {
        let pool = Field::Given(Placed::new(r.span(v), pool.clone().into_owned()));
        let (request_headers, response_headers) = (Field::Absent, Field::Absent);
        return Some(RuleBackendDraft { pool, weight: Field::Absent, request_headers, response_headers });
    }
    let mut s = r.section(v, &RULE_BACKEND)?;
    Some(RuleBackendDraft {
        pool: s.read("pool", |r, v| r.string(v).map(str::to_owned)),
        weight: s.read("weight", |r, v| r.integer(v, BACKEND_WEIGHT)),
        request_headers: s.read("request_headers", header_changes),
        response_headers: s.read("response_headers", header_changes),
    })
}

fn header_changes(r: &mut Reader<'_>, v: &Value<'_>) -> Option<HeaderChanges> {
    let mut s = r.section(v, &HEADER_CHANGES)?;
    let pairs =
        |r: &mut Reader<'_>, v: &Value<'_>| r.pairs(v, changed_header_name, |r, v| r.parse(v, header_value));
    let (set, add) = (s.read("set", pairs), s.read("add", pairs));
    let remove = s.read("remove", |r, v| r.items(v, |r, v| r.parse(v, changed_header_name)));
    Some(HeaderChanges { set: values(&set), add: values(&add), remove: values(&remove) })
}

fn rewrite(mut s: Section<'_, '_>) -> RewriteDraft {
    RewriteDraft {
        host: s.read("host", |r, v| r.parse(v, new_host)),
        path: s.read("path", |r, v| r.parse(v, path)),
        path_prefix: s.read("path_prefix", prefix),
    }
}

fn redirect(mut s: Section<'_, '_>) -> RedirectDraft {
    RedirectDraft {
        scheme: s.read("scheme", |r, v| r.choice(v, &SCHEMES)),
        host: s.read("host", |r, v| r.parse(v, other_host)),
        port: s.read("port", |r, v| r.integer(v, PORT)),
        path: s.read("path", |r, v| r.parse(v, path)),
        path_prefix: s.read("path_prefix", prefix),
        status: s.read("status", |r, v| {
            let status: u16 = r.integer(v, 301..=308)?;
            let known = Some(status).filter(|status| REDIRECTIONS.contains(status));
            match known.and_then(|status| StatusCode::from_u16(status).ok()) {
                Some(status) => Some(status),
                None => r.error(v, format!("{status} is no redirect"), "one of 301, 302, 303, 307, 308"),
            }
        }),
    }
}

fn mirror(mut s: Section<'_, '_>) -> MirrorDraft {
    MirrorDraft {
        pool: s.read("pool", |r, v| r.string(v).map(str::to_owned)),
        percent: s.read("percent", |r, v| r.integer(v, PERCENT)),
    }
}

fn cors(mut s: Section<'_, '_>) -> Cors {
    let names =
        |r: &mut Reader<'_>, v: &Value<'_>| all_or(r, v, |text| header_name(text).map(|_| text.into()));
    let methods = |r: &mut Reader<'_>, v: &Value<'_>| all_or(r, v, |text| method(text).map(|_| text.into()));
    let origins = s.read("origins", |r, v| r.list(v, |r, v| r.parse(v, origin)));
    Cors {
        methods: values(&s.read("methods", methods)),
        headers: values(&s.read("headers", names)),
        exposed: values(&s.read("exposed", names)),
        credentials: s.read("credentials", |r, v| r.boolean(v)).or(false),
        max_age: {
            let age = s.read("max_age", |r, v| r.parse(v, value::duration)).or(MAX_AGE);
            u32::try_from(age.as_secs()).unwrap_or(u32::MAX)
        },
        origins: values(&origins),
    }
}

/// Words, or `*` for all of them.
fn all_or(
    r: &mut Reader<'_>,
    v: &Value<'_>,
    word: impl Fn(&str) -> Result<Box<str>, Problem>,
) -> Option<Vec<Placed<Box<str>>>> {
    r.items(v, |r, v| r.parse(v, |text| if text == "*" { Ok(text.into()) } else { word(text) }))
}

fn retry(mut s: Section<'_, '_>) -> RetryDraft {
    RetryDraft {
        attempts: s.read("attempts", |r, v| r.integer(v, ATTEMPTS)),
        statuses: s.read("statuses", |r, v| {
            r.items(v, |r, v| {
                r.integer(v, FAILURES).and_then(|status: u16| StatusCode::from_u16(status).ok())
            })
        }),
        backoff: s.read("backoff", |r, v| r.parse(v, value::duration)),
    }
}

fn session(mut s: Section<'_, '_>) -> SessionDraft {
    SessionDraft {
        cookie: s.read("cookie", |r, v| r.parse(v, cookie_name)),
        header: s.read("header", |r, v| r.parse(v, |text| changed_header_name(text).map(|_| text.into()))),
        timeout: s.read("timeout", |r, v| {
            let timeout = r.timeout(v)?;
            match timeout < Duration::from_secs(1) {
                true => r.error(v, "`timeout` of a session is counted in seconds", "at least `\"1s\"`"),
                false => Some(timeout),
            }
        }),
        permanent: s.read("permanent", |r, v| r.boolean(v)),
    }
}

/// Of requests, as rules compare them.
fn path(text: &str) -> Result<Box<str>, Problem> {
    let problem = |why: &str| Problem::new(format!("{} is no path of a rule: {why}", quote(text)));
    if text.contains(['?', '#']) {
        return Err(problem("it has no query and no fragment").help("a query is matched with `query`"));
    }
    let path = value::http_path(text)?;
    match compared(&path) {
        Ok(path) => Ok(Box::from(&*path)),
        Err(why) => Err(problem(&why.to_string()).help("no request that has such a path is taken")),
    }
}

/// Without a `/` at its end, which does not count.
fn prefix(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Box<str>> {
    let path = r.parse(v, path)?;
    let trimmed = path.trim_end_matches('/');
    Some(if trimmed.is_empty() { "/".into() } else { trimmed.into() })
}

fn method(text: &str) -> Result<Method, Problem> {
    let upper = text.to_ascii_uppercase();
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if upper == text => Ok(method),
        Ok(_) => Err(Problem::new(format!("{} is no method that clients send", quote(text)))
            .help(format!("methods are told apart by case: `{upper:?}`"))),
        Err(_) => Err(Problem::new(format!("{} is no method", quote(text))).help("for example `\"GET\"`")),
    }
}

fn header_name(text: &str) -> Result<HeaderName, Problem> {
    HeaderName::try_from(text).map_err(|_| {
        Problem::new(format!("{} is no name of a header", quote(text)))
            .help("letters, digits and `-`: for example `x-version`")
    })
}

/// Of a header that requests are told apart by.
fn matched_header_name(text: &str) -> Result<HeaderName, Problem> {
    match header_name(text)? {
        http::header::HOST => Err(Problem::new("the host is not matched as a header")
            .help("name it in the route's `sni`, or in the rule's `hosts`")),
        name => Ok(name),
    }
}

/// Of a header that rules may change.
fn changed_header_name(text: &str) -> Result<HeaderName, Problem> {
    let name = header_name(text)?;
    match is_changeable(&name) {
        true => Ok(name),
        false if name == http::header::HOST => Err(Problem::new("the host is not changed as a header")
            .help("`rewrite = { host = \"…\" }` gives servers another")),
        false => Err(Problem::new(format!("`{name}` is not for rules to change")).help(
            "it says where a message ends, or how its connection goes on, which the gateway does itself",
        )),
    }
}

fn header_value(text: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(text).map_err(|_| {
        Problem::new(format!("{} is no value of a header", quote(text))).help("it has no control characters")
    })
}

/// That servers are asked for.
fn new_host(text: &str) -> Result<HeaderValue, Problem> {
    host_value(text).ok_or_else(|| {
        Problem::new(format!("{} is no host", quote(text))).help("for example `\"internal.example.com\"`")
    })
}

/// That clients are sent to.
fn other_host(text: &str) -> Result<Box<str>, Problem> {
    let name = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match (value::server_name(name), name.contains(':') == text.starts_with('[')) {
        (Ok(_), true) => Ok(text.into()),
        _ => Err(Problem::new(format!("{} is no host to go to", quote(text)))
            .help("a name without port: for example `\"www.example.com\"`; the port is for `port`")),
    }
}

fn origin(text: &str) -> Result<Box<str>, Problem> {
    match is_origin(text) {
        true => Ok(text.into()),
        false => Err(Problem::new(format!("{} is no origin", quote(text))).help(
            "a scheme and a host: `\"https://example.com\"` or `\"https://*.example.com\"`; or `\"*\"`",
        )),
    }
}

/// A token (RFC 6265, section 4.1.1).
fn cookie_name(text: &str) -> Result<Box<str>, Problem> {
    match HeaderName::try_from(text).is_ok() && text.len() <= 128 {
        true => Ok(text.into()),
        false => {
            Err(Problem::new(format!("{} is no name of a cookie", quote(text)))
                .help("for example `\"server\"`"))
        }
    }
}
