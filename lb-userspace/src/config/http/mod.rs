//! HTTP of a route: which of its requests go where, and what is changed on the way. The words are those of the Gateway API's
//! HTTPRoute, which says what each of them means.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod header;
mod origin;
mod path;
mod pattern;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::sni::SniPattern;
pub(in crate::config) use header::host_value;
pub use header::is_changeable;
pub use origin::covers_origin;
pub(in crate::config) use origin::is_origin;
pub use path::{BadPath, compared};
pub use pattern::{BadPattern, Pattern};

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
    /// The list that it is of, if the first rule of that counts and not the narrowest. Its rules stand one after another.
    pub list: Option<Arc<str>>,
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
    /// What begins with it, also in the middle of a segment.
    Begin(Box<str>),
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

/// Which failures are tried again. Failures to connect are, with it; and where a server has the request and gives no answer, those
/// requests that do no harm when they are done twice (RFC 9110, section 9.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts after the first one.
    pub attempts: u32,
    /// Answers that are tried again.
    pub statuses: Vec<StatusCode>,
    /// The others are, too, where a server gives no answer.
    pub lost: bool,
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
            list: self.list.clone(),
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
