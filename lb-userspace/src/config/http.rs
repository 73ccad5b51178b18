//! HTTP of a route: which of its requests go where, and what is changed on the way. The words are those of the Gateway API's
//! HTTPRoute, which says what each of them means.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use regex_automata::meta;
use regex_automata::nfa::thompson::WhichCaptures;
use regex_syntax::hir::{Hir, Look};

use super::sni::SniPattern;

/// What becomes of requests that match. `P` is what stands for a pool: its name in a draft, an index into
/// [`Config::pools`](super::Config::pools) in a configuration, the pool itself where it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<P> {
    /// What the log and metrics call it: the route's name, or that of the object that it comes from.
    pub name: Arc<str>,
    /// The requests are those of GRPCRoutes: where nothing matches, the answer is one of gRPC.
    pub grpc: bool,
    /// The hosts whose requests it takes; empty: all that the route takes.
    pub hosts: Arc<[SniPattern]>,
    /// One of them must match; empty: every request does. At most [`MAX_MATCHES`].
    pub matches: Vec<RequestMatch>,
    /// What is done for every backend.
    pub filters: Filters<P>,
    /// Without any, and without a redirect, the answer is 500.
    pub backends: Vec<RuleBackend<P>>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// Which failures are tried again.
    pub retry: Option<Retry>,
    /// Keeps a client at its server.
    pub persistence: Option<Persistence>,
}

/// Of one rule.
pub const MAX_MATCHES: usize = 64;

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleBackend<P> {
    /// Where they go; absent: what was named is not there, or may not be had, and the answer is 500.
    pub pool: Option<P>,
    /// As a share of the sum over the rule's backends; 0 takes none.
    pub weight: u32,
    /// What is done for this backend, after those of the rule.
    pub filters: Filters<P>,
}

/// What a request must have, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestMatch {
    /// Of its path; absent: any.
    pub path: Option<PathMatch>,
    /// Absent: any.
    pub method: Option<Method>,
    /// No name twice.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// Of its query, as it is written there after percent-decoding; no name twice. Of a parameter that occurs several times the first counts.
    pub query: Vec<(Box<str>, ValueMatch)>,
}

/// Of a path, without the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// This one.
    Exact(Box<str>),
    /// It, or what begins with it and goes on at a `/`; without a `/` at its end, but for `/` itself, which is every path.
    Prefix(Box<str>),
    /// The whole path.
    Regex(Pattern),
}

/// Of the value of a header or a parameter of the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// This one.
    Exact(Box<str>),
    /// The whole value.
    Regex(Pattern),
}

/// A regular expression that must match as a whole. It takes time in proportion to the text, whatever it is.
#[derive(Clone)]
pub struct Pattern {
    /// Shared: a clone of it would begin anew with what each thread remembers.
    whole: Arc<meta::Regex>,
    expression: Box<str>,
}

impl Pattern {
    /// Of this expression. An error is why it is none, or too large.
    pub fn new(expression: &str) -> Result<Self, BadPattern> {
        let parsed = regex_syntax::parse(expression).map_err(|error| match error {
            regex_syntax::Error::Parse(error) => BadPattern::at(error.kind(), error.span()),
            regex_syntax::Error::Translate(error) => BadPattern::at(error.kind(), error.span()),
            other => BadPattern { why: other.to_string(), at: None },
        })?;
        // Anchored in what was parsed, not in the text: a comment at the expression's end would take in what follows it there.
        let whole = Hir::concat(vec![Hir::look(Look::Start), parsed, Hir::look(Look::End)]);
        let config = meta::Config::new()
            .nfa_size_limit(Some(MAX_PATTERN))
            .onepass_size_limit(Some(MAX_PATTERN))
            .hybrid_cache_capacity(MAX_PATTERN)
            .which_captures(WhichCaptures::None);
        match meta::Regex::builder().configure(config).build_from_hir(&whole) {
            Ok(whole) => Ok(Self { whole: whole.into(), expression: expression.into() }),
            Err(_) => Err(BadPattern { why: "it is too large".into(), at: None }),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.expression
    }

    /// Bytes that it takes without what threads remember.
    pub(super) fn memory(&self) -> usize {
        self.whole.memory_usage()
    }

    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.expression).finish()
    }
}

/// Why an expression is none.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct BadPattern {
    why: String,
    /// The bytes of the expression that it is about.
    pub at: Option<Range<usize>>,
}

impl BadPattern {
    fn at(why: impl fmt::Display, span: &regex_syntax::ast::Span) -> Self {
        Self { why: why.to_string(), at: Some(span.start.offset..span.end.offset) }
    }
}

/// Bytes that a compiled expression may take, and what each thread remembers of where it has been in it.
const MAX_PATTERN: usize = 256 * 1024;

/// What is changed, or done besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filters<P> {
    /// In the request, before it goes on.
    pub request_headers: HeaderChanges,
    /// In the answer.
    pub response_headers: HeaderChanges,
    /// Of the request's host and path.
    pub rewrite: Option<Rewrite>,
    /// The answer is this instead of a backend's.
    pub redirect: Option<Redirect>,
    /// Copies of the request; their answers are dropped.
    pub mirrors: Vec<Mirror<P>>,
    /// For requests of other origins.
    pub cors: Option<Arc<Cors>>,
}

impl<P> Default for Filters<P> {
    fn default() -> Self {
        Self {
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
            rewrite: None,
            redirect: None,
            mirrors: Vec::new(),
            cors: None,
        }
    }
}

/// Changes of headers, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Instead of what there is.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Besides what there is.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Taken out.
    pub remove: Vec<HeaderName>,
}

/// Another host or path for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Its `Host`; absent: the client's.
    pub host: Option<HeaderValue>,
    /// Absent: the client's.
    pub path: Option<PathRewrite>,
}

/// Another path. The query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// This one.
    Full(Box<str>),
    /// This instead of the prefix that has matched.
    Prefix(Box<str>),
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; absent: the request's.
    pub scheme: Option<Box<str>>,
    /// Absent: the request's.
    pub host: Option<Box<str>>,
    /// Absent: the request's.
    pub path: Option<PathRewrite>,
    /// Absent: the scheme's well-known port if `scheme` is given, else the listener's.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Copies for another pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror<P> {
    /// Absent: it is not there, or may not be had, and nothing is copied.
    pub pool: Option<P>,
    /// How many of the requests.
    pub share: Fraction,
}

/// A part of a whole: `numerator` of `denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    /// At most `denominator`.
    pub numerator: u32,
    /// Of so many.
    pub denominator: NonZeroU32,
}

/// Cross-origin resource sharing (Fetch standard, section 3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// `https://example.com`, `https://*.example.com` or `*`.
    pub origins: Vec<Box<str>>,
    /// Requests with credentials are allowed.
    pub credentials: bool,
    /// Empty: the simple ones; `*`: all.
    pub methods: Vec<Box<str>>,
    /// That requests may have; `*`: all.
    pub headers: Vec<Box<str>>,
    /// That scripts may see of the answer; `*`: all.
    pub exposed: Vec<Box<str>>,
    /// How long a browser may remember it, in seconds; 0: not at all.
    pub max_age: u32,
}

/// How long a request may take; absent: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head to the answer's end, with all that is tried.
    pub request: Option<Duration>,
    /// One attempt at a backend.
    pub backend: Option<Duration>,
}

/// Which failures are tried again. Failures to connect are, with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts after the first one.
    pub attempts: u32,
    /// Answers that are tried again.
    pub statuses: Vec<StatusCode>,
    /// Before each of them.
    pub backoff: Duration,
}

/// Keeps a client at the server that has answered its first request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Of the cookie or header.
    pub name: Box<str>,
    /// What carries it.
    pub carrier: Carrier,
    /// Until the client is to be balanced anew.
    pub absolute_timeout: Option<Duration>,
}

/// What carries a session's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A cookie for the time that the browser runs.
    SessionCookie,
    /// A cookie that lasts for the absolute timeout.
    PermanentCookie,
    /// A header that the client repeats.
    Header,
}

impl<P> Rule<P> {
    /// Every pool that it names.
    pub fn pools(&self) -> impl Iterator<Item = &P> {
        let of_backends = self.backends.iter().filter_map(|backend| backend.pool.as_ref());
        let filters =
            std::iter::once(&self.filters).chain(self.backends.iter().map(|backend| &backend.filters));
        let mirrors = filters.flat_map(|filters| &filters.mirrors);
        of_backends.chain(mirrors.filter_map(|mirror| mirror.pool.as_ref()))
    }

    /// The same with something else for its pools; `None`: the pool is not to be had.
    pub fn with_pools<Q>(&self, mut of: impl FnMut(&P) -> Option<Q>) -> Rule<Q> {
        let filters = |filters: &Filters<P>, of: &mut dyn FnMut(&P) -> Option<Q>| Filters {
            request_headers: filters.request_headers.clone(),
            response_headers: filters.response_headers.clone(),
            rewrite: filters.rewrite.clone(),
            redirect: filters.redirect.clone(),
            mirrors: filters
                .mirrors
                .iter()
                .map(|mirror| Mirror { pool: mirror.pool.as_ref().and_then(&mut *of), share: mirror.share })
                .collect(),
            cors: filters.cors.clone(),
        };
        Rule {
            name: self.name.clone(),
            grpc: self.grpc,
            hosts: self.hosts.clone(),
            matches: self.matches.clone(),
            filters: filters(&self.filters, &mut of),
            backends: self
                .backends
                .iter()
                .map(|backend| RuleBackend {
                    pool: backend.pool.as_ref().and_then(&mut of),
                    weight: backend.weight,
                    filters: filters(&backend.filters, &mut of),
                })
                .collect(),
            timeouts: self.timeouts,
            retry: self.retry.clone(),
            persistence: self.persistence.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_texts_whatever_stands_in_it() {
        for (expression, matches, differs) in [
            ("/a|/b", ["/a", "/b"], ["/ab", "x/b"]),
            ("/v[0-9]+/.*", ["/v1/", "/v22/x"], ["/v/", "/v1"]),
            ("(?x) /a # a comment", ["/a", "/a"], ["/ab", " /a"]),
            ("(?m)^a$", ["a", "a"], ["b\na", "a\nb"]),
            ("a??|ab", ["a", "ab"], ["b", "aa"]),
            ("", ["", ""], ["a", "\n"]),
            (r"\d", ["1", "٣"], ["", "11"]),
        ] {
            let pattern = Pattern::new(expression).unwrap();
            for text in matches {
                assert!(pattern.is_match(text), "{expression} {text:?}");
            }
            for text in differs {
                assert!(!pattern.is_match(text), "{expression} {text:?}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern_says_why_and_where() {
        let error = Pattern::new("/a(b").unwrap_err();
        assert_eq!((error.to_string().as_str(), error.at), ("unclosed group", Some(2..3)));
        assert_eq!(Pattern::new("a)|(?:b").unwrap_err().at, Some(1..2));
        for large in ["(?:a{1000}){1000}", r"\w{1000}", "((((a{100}){100}){100}){100}){100}"] {
            assert_eq!(Pattern::new(large).unwrap_err().to_string(), "it is too large", "{large}");
        }
        assert!(Pattern::new(&"(".repeat(10_000)).is_err());
    }
}
