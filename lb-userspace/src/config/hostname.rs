//! Host names of listeners and routes, and what they have in common.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;
use std::sync::Arc;

use crate::config::sni::SniPattern;

/// Reads a host name of an object; `None`: it is none.
pub(super) fn read(text: &str) -> Option<SniPattern> {
    let name = text.to_ascii_lowercase();
    let (bare, wildcard) = match name.strip_prefix("*.") {
        Some(parent) => (parent, true),
        None => (name.as_str(), false),
    };
    crate::config::address::host_name(bare).ok()?;
    Some(if wildcard { SniPattern::Wildcard(bare.into()) } else { SniPattern::Exact(bare.into()) })
}

/// The names that both cover; `None`: there are none. Of two patterns that have names in common one covers the other.
pub(in crate::config) fn intersection(one: &SniPattern, other: &SniPattern) -> Option<SniPattern> {
    if covers(one, other) {
        Some(other.clone())
    } else if covers(other, one) {
        Some(one.clone())
    } else {
        None
    }
}

fn covers(wide: &SniPattern, narrow: &SniPattern) -> bool {
    match (wide, narrow) {
        (SniPattern::Any, _) => true,
        (SniPattern::Exact(_), _) => wide == narrow,
        (SniPattern::Wildcard(parent), SniPattern::Wildcard(below)) if parent == below => true,
        (SniPattern::Wildcard(parent), SniPattern::Exact(name) | SniPattern::Wildcard(name)) => {
            name.strip_suffix(&**parent).is_some_and(|rest| rest.ends_with('.'))
        }
        (SniPattern::Wildcard(_), SniPattern::Any) => false,
    }
}

/// The patterns that cover this one, itself first, the narrowest before the wider ones.
pub(super) fn wider(pattern: &SniPattern) -> impl Iterator<Item = SniPattern> + '_ {
    let name = pattern.name();
    let parents = name.match_indices('.').map(|(dot, _)| SniPattern::Wildcard(Arc::from(&name[dot + 1..])));
    let any = (*pattern != SniPattern::Any).then_some(SniPattern::Any);
    std::iter::once(pattern.clone()).chain(parents).chain(any)
}

/// Patterns, of which one may have names in common with another.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    patterns: HashSet<SniPattern>,
    /// Whatever covers one of `patterns`.
    wider: HashSet<SniPattern>,
}

impl Hosts {
    pub(super) fn insert(&mut self, pattern: &SniPattern) {
        self.wider.extend(wider(pattern));
        self.patterns.insert(pattern.clone());
    }

    /// Whether one of them has names in common with this one.
    pub(super) fn meets(&self, pattern: &SniPattern) -> bool {
        self.wider.contains(pattern) || wider(pattern).any(|wider| self.patterns.contains(&wider))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersections() {
        for (one, other, both) in [
            ("a.example.com", "a.example.com", Some("a.example.com")),
            ("a.example.com", "b.example.com", None),
            ("*.example.com", "a.example.com", Some("a.example.com")),
            ("*.example.com", "a.b.example.com", Some("a.b.example.com")),
            ("*.example.com", "example.com", None),
            ("*.example.com", "notexample.com", None),
            ("*.example.com", "*.b.example.com", Some("*.b.example.com")),
            ("*.example.com", "*.example.org", None),
            ("*.com", "*.example.com", Some("*.example.com")),
            ("A.Example.com", "a.example.com", Some("a.example.com")),
        ] {
            let [one, other] = [one, other].map(|text| read(text).unwrap());
            let both = both.map(|text| read(text).unwrap());
            assert_eq!(intersection(&one, &other), both, "{one} and {other}");
            assert_eq!(intersection(&other, &one), both, "{other} and {one}");
            let mut hosts = Hosts::default();
            hosts.insert(&one);
            assert_eq!(hosts.meets(&other), both.is_some(), "{one} meets {other}");
            assert!(hosts.meets(&SniPattern::Any));
        }
        assert_eq!(intersection(&SniPattern::Any, &SniPattern::Any), Some(SniPattern::Any));
    }

    #[test]
    fn what_is_no_host_name() {
        for text in ["", "*", "*.", "a b", "*.*.example.com", "a..b", "10.0.0.1:80"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
