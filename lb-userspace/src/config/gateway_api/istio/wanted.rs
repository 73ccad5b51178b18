//! What matches of `spec.http` of a VirtualService ask for, and what two of them have in common.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;

use crate::config::diagnostic::quote;
use crate::config::gateway_api::http_filters::header_name;
use crate::config::gateway_api::requests::{Expressions, pattern, prefix};
use crate::config::http::{PathMatch, RequestMatch, ValueMatch};

/// A text; empty: any.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Text {
    exact: Option<Box<str>>,
    prefix: Option<Box<str>>,
    regex: Option<Box<str>>,
}

/// Which paths a match is for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Paths {
    All,
    Exact(Box<str>),
    /// Those that begin with it, also in the middle of a segment.
    Begin(Box<str>),
    Regex(Box<str>),
}

/// What a match asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) paths: Paths,
    pub(super) method: Option<Box<str>>,
    pub(super) headers: BTreeMap<Box<str>, Text>,
    pub(super) query: BTreeMap<Box<str>, Text>,
}

/// The one thing that a text asks for.
pub(super) enum Only {
    Any,
    Exact(Box<str>),
    Begin(Box<str>),
    Regex(Box<str>),
}

impl Text {
    pub(super) fn only(self) -> Result<Only, String> {
        match (self.exact, self.prefix, self.regex) {
            (None, None, None) => Ok(Only::Any),
            (Some(exact), None, None) => Ok(Only::Exact(exact)),
            (None, Some(begin), None) => Ok(Only::Begin(begin)),
            (None, None, Some(regex)) => Ok(Only::Regex(regex)),
            _ => Err("of `exact`, `prefix` and `regex` there can be one".to_owned()),
        }
    }

    fn value(&self, expressions: &mut Expressions) -> Result<ValueMatch, String> {
        Ok(match self.clone().only()? {
            Only::Any => ValueMatch::Regex(expressions.make("(?s).*")?),
            Only::Exact(exact) => ValueMatch::Exact(exact),
            Only::Begin(begin) => {
                ValueMatch::Regex(expressions.make(&format!("(?s){}.*", regex_syntax::escape(&begin)))?)
            }
            Only::Regex(regex) => ValueMatch::Regex(expressions.read(&regex)?),
        })
    }
}

/// What two matches both take.
pub(super) enum Common {
    Nothing,
    All(Wanted),
    Unknown,
}

impl Wanted {
    /// What both take.
    pub(super) fn and(&self, other: &Self) -> Common {
        let method = match (&self.method, &other.method) {
            (Some(own), Some(theirs)) if own != theirs => return Common::Nothing,
            (own, theirs) => own.clone().or_else(|| theirs.clone()),
        };
        let Some(paths) = both_paths(&self.paths, &other.paths) else { return Common::Unknown };
        let [headers, query] = [(&self.headers, &other.headers), (&self.query, &other.query)]
            .map(|(own, theirs)| both_texts(own, theirs));
        match (paths, headers, query) {
            (None, ..) | (_, Some(None), _) | (.., Some(None)) => Common::Nothing,
            (Some(paths), Some(Some(headers)), Some(Some(query))) => {
                Common::All(Wanted { paths, method, headers, query })
            }
            (Some(_), ..) => Common::Unknown,
        }
    }

    /// As the matcher has it. `whole_segments`: of a prefix that is replaced.
    pub(super) fn read(
        &self,
        whole_segments: bool,
        expressions: &mut Expressions,
    ) -> Result<RequestMatch, String> {
        let path = match &self.paths {
            Paths::All if whole_segments => Some(PathMatch::Prefix("/".into())),
            Paths::All => None,
            Paths::Exact(path) => Some(PathMatch::Exact(path.clone())),
            Paths::Begin(begin) if whole_segments => Some(prefix(begin)),
            Paths::Begin(begin) => {
                Some(PathMatch::Regex(expressions.make(&format!("{}.*", regex_syntax::escape(begin)))?))
            }
            Paths::Regex(regex) => Some(PathMatch::Regex(expressions.read(regex)?)),
        };
        let method = self.method.as_ref().map(|method| {
            Method::from_bytes(method.as_bytes()).map_err(|_| format!("{} is no method", quote(method)))
        });
        let headers =
            self.headers.iter().map(|(name, text)| Ok((header_name(name)?, text.value(expressions)?)));
        let headers = headers.collect::<Result<_, String>>()?;
        let query = self.query.iter().map(|(name, text)| Ok((name.clone(), text.value(expressions)?)));
        Ok(RequestMatch {
            path,
            method: method.transpose()?,
            headers,
            query: query.collect::<Result<_, String>>()?,
        })
    }
}

/// `None`: nobody knows; inside: none that both take.
#[expect(clippy::option_option, reason = "three answers")]
fn both_paths(one: &Paths, other: &Paths) -> Option<Option<Paths>> {
    let is_in = |path: &str, paths: &Paths| match paths {
        Paths::All => Some(true),
        Paths::Exact(exact) => Some(**exact == *path),
        Paths::Begin(begin) => Some(path.starts_with(&**begin)),
        Paths::Regex(regex) => Some(pattern(regex).ok()?.is_match(path)),
    };
    match (one, other) {
        (Paths::All, paths) | (paths, Paths::All) => Some(Some(paths.clone())),
        (Paths::Exact(path), paths) | (paths, Paths::Exact(path)) => {
            Some(is_in(path, paths)?.then(|| Paths::Exact(path.clone())))
        }
        (Paths::Begin(one), Paths::Begin(other)) => {
            let (short, long) = if one.len() < other.len() { (one, other) } else { (other, one) };
            Some(long.starts_with(&**short).then(|| Paths::Begin(long.clone())))
        }
        (Paths::Regex(own), Paths::Regex(theirs)) if own == theirs => Some(Some(one.clone())),
        (Paths::Regex(_), _) | (_, Paths::Regex(_)) => None,
    }
}

/// The same of values of headers or parameters.
#[expect(clippy::option_option, reason = "three answers")]
fn both_texts(
    own: &BTreeMap<Box<str>, Text>,
    theirs: &BTreeMap<Box<str>, Text>,
) -> Option<Option<BTreeMap<Box<str>, Text>>> {
    let mut both = own.clone();
    for (name, text) in theirs {
        match own.get(name) {
            None => _ = both.insert(name.clone(), text.clone()),
            Some(own) if own == text => {}
            Some(own) if own.exact.is_some() && text.exact.is_some() => return Some(None),
            Some(_) => return None,
        }
    }
    Some(Some(both))
}
