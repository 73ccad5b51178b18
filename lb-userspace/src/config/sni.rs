//! Patterns of server names.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
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
