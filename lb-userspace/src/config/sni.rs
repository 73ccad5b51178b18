//! Patterns of server names.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::ops::Deref;
use std::slice;
use std::sync::Arc;

/// The server names a route covers: lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SniPattern {
    /// This name.
    Exact(Arc<str>),
    /// `example.com` for `*.example.com`: one or more labels, then this name.
    Wildcard(Arc<str>),
    /// `*`: every name, and clients that send none.
    Any,
}

impl SniPattern {
    /// In memory of its own: one that is kept does not keep what was allocated around this one.
    pub(super) fn copied(&self) -> Self {
        match self {
            SniPattern::Exact(name) => SniPattern::Exact(Arc::from(&**name)),
            SniPattern::Wildcard(name) => SniPattern::Wildcard(Arc::from(&**name)),
            SniPattern::Any => SniPattern::Any,
        }
    }

    /// The exact name, or the suffix of a wildcard; of `*`, the empty one.
    pub(crate) fn name(&self) -> &str {
        match self {
            SniPattern::Exact(name) | SniPattern::Wildcard(name) => name,
            SniPattern::Any => "",
        }
    }
}

impl fmt::Display for SniPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SniPattern::Exact(name) => f.write_str(name),
            SniPattern::Wildcard(parent) => write!(f, "*.{parent}"),
            SniPattern::Any => f.write_str("*"),
        }
    }
}

/// The patterns of a route, in the order of the configuration. Made by `collect()`, which is why two that are alike are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SniPatterns {
    /// One, as most routes have: it takes no memory of its own.
    One(SniPattern),
    /// None, or more than one.
    Several(Arc<[SniPattern]>),
}

impl Default for SniPatterns {
    fn default() -> Self {
        SniPatterns::Several(Arc::default())
    }
}

impl Deref for SniPatterns {
    type Target = [SniPattern];

    fn deref(&self) -> &[SniPattern] {
        match self {
            SniPatterns::One(pattern) => slice::from_ref(pattern),
            SniPatterns::Several(patterns) => patterns,
        }
    }
}

impl FromIterator<SniPattern> for SniPatterns {
    fn from_iter<I: IntoIterator<Item = SniPattern>>(patterns: I) -> Self {
        match <[SniPattern; 1]>::try_from(Vec::from_iter(patterns)) {
            Ok([pattern]) => SniPatterns::One(pattern),
            Err(patterns) => SniPatterns::Several(patterns.into()),
        }
    }
}
