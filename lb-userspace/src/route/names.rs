//! Which patterns cover the name of a server, or the host of a request.

use crate::config::SniPattern;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::hash::BuildHasher as _;

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

/// What knows the pattern that it is for: there may be very many, and an index that had their names, too, would take as much
/// memory again.
pub trait Named {
    /// The exact name, or the suffix of a wildcard without `*.`; nobody asks for that of `*`.
    fn name(&self) -> &str;
}

/// Something for each of some patterns, indexed so that a lookup takes one hash probe per label of the name, whatever their
/// number.
#[derive(Debug)]
pub(super) struct Names<V> {
    exact: Index<V>,
    wildcard: Index<V>,
    any: Option<V>,
}

/// No two have the same name. Clients put none in; whoever writes the configuration does, tenants of the Gateway API too. The hash
/// has a seed of its own in each process, but no proof against names that were made to clash: these would make lookups slower.
#[derive(Debug)]
struct Index<V> {
    table: HashTable<V>,
    hasher: RandomState,
}

impl<V: Named> Index<V> {
    fn with_capacity(names: usize) -> Self {
        Index { table: HashTable::with_capacity(names), hasher: RandomState::default() }
    }

    fn get(&self, name: &str) -> Option<&V> {
        self.table.find(self.hasher.hash_one(name), |value| value.name() == name)
    }

    fn insert(&mut self, value: V) -> (&mut V, Option<V>) {
        let hash = |value: &V| self.hasher.hash_one(value.name());
        match self.table.entry(hash(&value), |known| known.name() == value.name(), hash) {
            Entry::Occupied(known) => (known.into_mut(), Some(value)),
            Entry::Vacant(place) => (place.insert(value).into_mut(), None),
        }
    }
}

impl<V: Named> Names<V> {
    pub(super) fn new() -> Self {
        Names::with_capacity(0)
    }

    /// With room for so many exact names.
    pub(super) fn with_capacity(names: usize) -> Self {
        Names { exact: Index::with_capacity(names), wildcard: Index::with_capacity(0), any: None }
    }

    /// What is there for this very pattern: `value`, which is for it, unless there was something before. Then `value` comes back.
    pub(super) fn insert(&mut self, pattern: &SniPattern, value: V) -> (&mut V, Option<V>) {
        match pattern {
            SniPattern::Exact(_) => self.exact.insert(value),
            SniPattern::Wildcard(_) => self.wildcard.insert(value),
            SniPattern::Any => match &mut self.any {
                Some(known) => (known, Some(value)),
                any @ None => (any.insert(value), None),
            },
        }
    }

    /// What is there for each pattern, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.exact.table.iter_mut().chain(self.wildcard.table.iter_mut()).chain(&mut self.any)
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
