//! The path of a request, as rules see it.

use std::borrow::Cow;

use crate::config::{PathMatch, RequestMatch};

/// How well a match fits a request by its path. The derived order is the precedence: an expression comes after every prefix but
/// `/`, which is as good as no word about the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathRank {
    /// All paths.
    Any,
    /// By a regular expression of so many bytes.
    Regex(usize),
    /// By a prefix of so many bytes.
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
            Some(PathMatch::Regex(pattern)) => PathRank::Regex(pattern.as_str().len()),
            Some(PathMatch::Prefix(_)) | None => PathRank::Any,
        }
    }
}

/// The first `length` bytes of the path, if they are whole segments of it.
pub(super) fn prefix_of(path: &str, length: usize) -> Option<&str> {
    match path.as_bytes().get(length) {
        None if path.len() == length => Some(path),
        Some(b'/') => Some(&path[..length]),
        _ => None,
    }
}

/// Why a path is not compared with any rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// A server may take it for a path that another rule is for.
    #[error("the path has a segment `.` or `..`")]
    DotSegment,
    /// RFC 3986, section 2.1.
    #[error("the path has a `%` without two hexadecimal digits after it")]
    Encoding,
    /// Which ends a text for some servers.
    #[error("the path has a zero byte")]
    Zero,
}

/// The path of a request as it is compared with rules, so that two notations of which servers make the same are the same:
/// a percent-encoded character that need not be encoded is decoded, and the digits of what stays encoded are upper case
/// (RFC 3986, section 6.2.2); several slashes in a row are one. `%2F` stays what it is: no slash.
///
/// Refused is what a server may resolve to a path that no rule has seen: segments `.` and `..`, also where they are encoded, stand
/// beside an encoded slash or a backslash, or have parameters (`..;`); an encoding that is none; and an encoded zero.
pub fn compared(path: &str) -> Result<Cow<'_, str>, BadPath> {
    let bytes = path.as_bytes();
    let special = |pair: &[u8]| matches!(pair, [b'/', b'/' | b'.']);
    if !bytes.iter().any(|b| matches!(b, b'%' | b'\\')) && !bytes.windows(2).any(special) {
        return Ok(Cow::Borrowed(path));
    }
    let mut made = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(special) = rest.find(['/', '%']) {
        made.push_str(&rest[..special]);
        let bytes = &rest.as_bytes()[special..];
        let length = if bytes[0] == b'/' {
            if !made.ends_with('/') {
                made.push('/');
            }
            1
        } else {
            let byte = encoded(bytes).ok_or(BadPath::Encoding)?;
            match byte {
                0 => return Err(BadPath::Zero),
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => made.push(byte.into()),
                _ => made.push_str(&rest[special..special + 3].to_ascii_uppercase()),
            }
            3
        };
        rest = &rest[special + length..];
    }
    made.push_str(rest);
    let dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    match made.split(['/', '\\']).flat_map(|s| s.split("%2F")).flat_map(|s| s.split("%5C")).any(dots) {
        true => Err(BadPath::DotSegment),
        false => Ok(Cow::Owned(made)),
    }
}

/// What `%` and two digits stand for.
fn encoded(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

/// A match whose path is written as those of requests are compared. A path that no request can have stays what it is.
pub(super) fn as_compared(of: &RequestMatch) -> RequestMatch {
    let same = |path: &str| compared(path).map_or_else(|_| path.into(), |path| Box::from(&*path));
    let path = match &of.path {
        Some(PathMatch::Exact(path)) => Some(PathMatch::Exact(same(path))),
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
