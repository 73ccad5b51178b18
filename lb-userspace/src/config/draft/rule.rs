//! What a `[[route.rule]]` says.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use http::header::HeaderValue;
use http::{Method, StatusCode};

use crate::config::field::Field;
use crate::config::http::{Cors, HeaderChanges, Pattern, ValueMatch};
use crate::config::place::{Place, Placed};
use crate::config::sni::SniPattern;

/// What connections of a route carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::config) enum Carried {
    #[default]
    Bytes,
    Http,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RuleDraft {
    /// Of the whole.
    pub(in crate::config) place: Place,
    pub(in crate::config) name: Field<Box<str>>,
    pub(in crate::config) hosts: Field<Vec<Placed<SniPattern>>>,
    pub(in crate::config) matches: Field<Vec<Placed<MatchDraft>>>,
    pub(in crate::config) backends: Field<Vec<Placed<RuleBackendDraft>>>,
    pub(in crate::config) request_headers: Field<HeaderChanges>,
    pub(in crate::config) response_headers: Field<HeaderChanges>,
    pub(in crate::config) rewrite: Field<RewriteDraft>,
    pub(in crate::config) redirect: Field<RedirectDraft>,
    pub(in crate::config) mirror: Field<Vec<Placed<MirrorDraft>>>,
    pub(in crate::config) cors: Field<Cors>,
    pub(in crate::config) request_timeout: Field<Duration>,
    pub(in crate::config) backend_timeout: Field<Duration>,
    pub(in crate::config) retry: Field<RetryDraft>,
    pub(in crate::config) session: Field<SessionDraft>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct MatchDraft {
    pub(in crate::config) path: Field<Box<str>>,
    pub(in crate::config) path_prefix: Field<Box<str>>,
    pub(in crate::config) path_regex: Field<Pattern>,
    pub(in crate::config) method: Field<Method>,
    pub(in crate::config) headers: Field<Vec<(http::HeaderName, ValueMatch)>>,
    pub(in crate::config) query: Field<Vec<(Box<str>, ValueMatch)>>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RuleBackendDraft {
    pub(in crate::config) pool: Field<String>,
    pub(in crate::config) weight: Field<u32>,
    pub(in crate::config) request_headers: Field<HeaderChanges>,
    pub(in crate::config) response_headers: Field<HeaderChanges>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RewriteDraft {
    pub(in crate::config) host: Field<HeaderValue>,
    pub(in crate::config) path: Field<Box<str>>,
    pub(in crate::config) path_prefix: Field<Box<str>>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RedirectDraft {
    pub(in crate::config) scheme: Field<&'static str>,
    pub(in crate::config) host: Field<Box<str>>,
    pub(in crate::config) port: Field<u16>,
    pub(in crate::config) path: Field<Box<str>>,
    pub(in crate::config) path_prefix: Field<Box<str>>,
    pub(in crate::config) status: Field<StatusCode>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct MirrorDraft {
    pub(in crate::config) pool: Field<String>,
    pub(in crate::config) percent: Field<u32>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RetryDraft {
    pub(in crate::config) attempts: Field<u32>,
    pub(in crate::config) statuses: Field<Vec<Placed<StatusCode>>>,
    pub(in crate::config) backoff: Field<Duration>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct SessionDraft {
    pub(in crate::config) cookie: Field<Box<str>>,
    pub(in crate::config) header: Field<Box<str>>,
    pub(in crate::config) timeout: Field<Duration>,
    pub(in crate::config) permanent: Field<bool>,
}
