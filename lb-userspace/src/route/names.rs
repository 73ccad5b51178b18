//! Which patterns cover the name of a server, or the host of a request.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::SniPattern;

/// How well a pattern covers a name. The derived order is the precedence: exact beats wildcard, a longer wildcard beats a
/// shorter one, `*` comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SniMatch {
    /// `*`, also for clients without SNI.
    Any,
    /// `*.suffix`, with the length of `suffix` in bytes.
    Wildcard(usize),
    /// The name itself.
    Exact,
}

/// Something for each of some patterns, indexed so that a lookup takes one hash probe per label of the name, whatever their
/// number.
#[derive(Debug)]
pub(super) struct Names<V> {
    exact: HashMap<Arc<str>, V>,
    /// Keyed by the suffix without `*.`.
    wildcard: HashMap<Arc<str>, V>,
    any: Option<V>,
}

impl<V: Default> Names<V> {
    pub(super) fn new() -> Self {
        Names { exact: HashMap::new(), wildcard: HashMap::new(), any: None }
    }

    /// With room for so many exact names.
    pub(super) fn with_capacity(names: usize) -> Self {
        Names { exact: HashMap::with_capacity(names), ..Names::new() }
    }

    /// What is there for this very pattern.
    pub(super) fn of(&mut self, pattern: &SniPattern) -> &mut V {
        match pattern {
            SniPattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
            SniPattern::Wildcard(suffix) => self.wildcard.entry(suffix.clone()).or_default(),
            SniPattern::Any => self.any.get_or_insert_default(),
        }
    }

    /// What is there for each pattern, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.exact.values_mut().chain(self.wildcard.values_mut()).chain(&mut self.any)
    }

    /// What is there for the patterns that cover the name (lower case, no trailing dot; `None` when there is none), best first.
    pub(super) fn covering<'t>(&'t self, name: Option<&str>) -> impl Iterator<Item = (SniMatch, &'t V)> {
        let exact = name.and_then(|name| self.exact.get(name)).map(|value| (SniMatch::Exact, value));
        let wildcards = suffixes(name.unwrap_or_default())
            .filter_map(|suffix| Some((SniMatch::Wildcard(suffix.len()), self.wildcard.get(suffix)?)));
        let any = self.any.as_ref().map(|value| (SniMatch::Any, value));
        exact.into_iter().chain(wildcards).chain(any)
    }
}

/// `a.b.c` -> `b.c`, `c`: what a wildcard may cover, longest first.
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[dot + 1..])
}
