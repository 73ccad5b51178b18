//! The path of a request, as rules see it.

use crate::config::{PathMatch, RequestMatch, compared};

/// How well a match fits a request by its path. The derived order is the precedence: an expression comes after every prefix but
/// `/`, which is as good as no word about the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathRank {
    /// All paths.
    Any,
    /// By a regular expression of so many bytes.
    Regex(usize),
    /// By a prefix of so many bytes, whether or not in whole segments.
    Prefix(usize),
    /// By the whole path.
    Exact,
}

impl PathRank {
    /// Of this one.
    pub fn new(of: Option<&PathMatch>) -> Self {
        match of {
            Some(PathMatch::Exact(_)) => PathRank::Exact,
            Some(PathMatch::Prefix(prefix)) if **prefix != *"/" => PathRank::Prefix(prefix.len()),
            Some(PathMatch::Begin(begin)) => PathRank::Prefix(begin.len()),
            Some(PathMatch::Regex(pattern)) => PathRank::Regex(pattern.as_str().len()),
            Some(PathMatch::Prefix(_)) | None => PathRank::Any,
        }
    }
}

/// The first `length` bytes of the path; unless `anywhere`, if they are whole segments of it.
pub(super) fn prefix_of(path: &str, length: usize, anywhere: bool) -> Option<&str> {
    let is_whole = || path.as_bytes().get(length).is_none_or(|next| *next == b'/');
    path.get(..length).filter(|_| anywhere || is_whole())
}

/// Whether a path falls under this one.
pub(super) fn fits(of: Option<&PathMatch>, path: &str) -> bool {
    match of {
        None => true,
        Some(PathMatch::Exact(exact)) => **exact == *path,
        Some(PathMatch::Prefix(prefix)) => {
            let rest = path.strip_prefix(&**prefix);
            **prefix == *"/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Some(PathMatch::Begin(begin)) => path.starts_with(&**begin),
        Some(PathMatch::Regex(pattern)) => pattern.is_match(path),
    }
}

/// A match whose path is written as those of requests are compared. A path that no request can have stays what it is.
pub(super) fn as_compared(of: &RequestMatch) -> RequestMatch {
    let same = |path: &str| compared(path).map_or_else(|_| path.into(), |path| Box::from(&*path));
    let path = match &of.path {
        Some(PathMatch::Exact(path)) => Some(PathMatch::Exact(same(path))),
        Some(PathMatch::Begin(begin)) => Some(PathMatch::Begin(same(begin))),
        Some(PathMatch::Prefix(prefix)) => {
            let prefix = same(prefix);
            Some(PathMatch::Prefix(match prefix.trim_end_matches('/') {
                "" => "/".into(),
                trimmed => trimmed.into(),
            }))
        }
        other => other.clone(),
    };
    RequestMatch { path, ..of.clone() }
}
