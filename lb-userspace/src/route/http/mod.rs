//! Which rule a request of HTTP falls under, as the Gateway API's HTTPRoute says it: of the matches that fit, the greatest
//! [`Rank`], and of equal ones the first in the list. Of rules whose own order counts (Istio's VirtualService) it is the first
//! that fits, where any of them would have the request.

mod path;
mod query;
#[cfg(test)]
mod tests;
mod value;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use http::{HeaderMap, Method};

use super::names::{Named, Names, SniMatch};
use crate::config::{PathMatch, RequestMatch, SniPattern};
pub use path::PathRank;
use query::Query;

/// Of a request, what rules look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestParts<'r> {
    /// Of its `Host` or `:authority`: lower case, without port and trailing dot; empty: there is none.
    pub host: &'r str,
    /// Its method.
    pub method: &'r Method,
    /// As [`compared`](crate::config::compared) makes it of the request's.
    pub path: &'r str,
    /// What follows the `?`, if there is one.
    pub query: Option<&'r str>,
    /// Its headers.
    pub headers: &'r HeaderMap,
}

/// How well a match fits a request. The derived order is the precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Its rule is for the request's host.
    pub host: SniMatch,
    /// By its path.
    pub path: PathRank,
    /// It names a method.
    pub method: bool,
    /// How many headers it names.
    pub headers: usize,
    /// How many parameters of the query it names.
    pub query: usize,
}

impl Rank {
    /// Of this match, in a rule for such a host.
    pub fn new(host: SniMatch, of: &RequestMatch) -> Self {
        Rank {
            host,
            path: PathRank::new(of.path.as_ref()),
            method: of.method.is_some(),
            headers: of.headers.len(),
            query: of.query.len(),
        }
    }
}

/// The rules of one route, indexed: a lookup takes one hash probe per label of the host, and for each pattern that covers it
/// one for the path and one for each length of a prefix. Only rules for the same path, those with regular expressions, and those
/// of one list are tried one after another.
#[derive(Debug)]
pub struct HttpRules<T> {
    rules: Vec<Rule<T>>,
    by_host: Names<OfHost>,
}

#[derive(Debug)]
struct Rule<T> {
    what: T,
    matches: Box<[RequestMatch]>,
    /// The first rule of its list; itself: it is of none.
    first: usize,
}

/// A rule for [`HttpRules`].
#[derive(Clone, Copy, Debug)]
pub struct Given<'c, T> {
    /// Empty: any.
    pub hosts: &'c [SniPattern],
    /// One of them must fit; empty: any request does.
    pub matches: &'c [RequestMatch],
    /// Rules of one list and with the same hosts, one after another, are tried in this order.
    pub list: Option<&'c str>,
    /// What it is.
    pub what: T,
}

/// The rules for one pattern of hosts.
#[derive(Debug)]
struct OfHost {
    host: SniPattern,
    paths: Paths,
}

impl Named for OfHost {
    fn name(&self) -> &str {
        self.host.name()
    }
}

/// The matches of the rules for one pattern of hosts, by their paths. All lists are in the order of precedence.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Vec<Entry>>,
    /// But for `/`.
    prefixes: HashMap<Box<str>, Vec<Entry>>,
    /// Of the prefixes there, longest first; whether one of them may end in the middle of a segment.
    lengths: BTreeMap<Reverse<usize>, bool>,
    regexes: Vec<Entry>,
    any: Vec<Entry>,
}

/// One match of a rule.
#[derive(Clone, Copy, Debug)]
struct Entry {
    rank: Rank,
    rule: usize,
    matching: usize,
}

impl<T> HttpRules<T> {
    /// Of these.
    pub fn new<'c>(rules: impl Iterator<Item = Given<'c, T>>) -> Self {
        let mut table = HttpRules { rules: Vec::new(), by_host: Names::new() };
        let (mut before, mut first) = (None, 0);
        for (rule, Given { hosts, matches, list, what }) in rules.enumerate() {
            let own = list.map(|list| (list, hosts));
            if own.is_none() || own != before {
                (before, first) = (own, rule);
            }
            let any_request = [RequestMatch::default()];
            let matches = if matches.is_empty() { &any_request } else { matches };
            let hosts = if hosts.is_empty() { &[SniPattern::Any] } else { hosts };
            let matches: Box<[RequestMatch]> = matches.iter().map(path::as_compared).collect();
            for host in hosts {
                let of_host = OfHost { host: host.clone(), paths: Paths::default() };
                let (OfHost { paths, .. }, _) = table.by_host.insert(host, of_host);
                for (matching, of) in matches.iter().enumerate() {
                    // Entries of one list all have the same host.
                    paths.insert(Entry { rank: Rank::new(SniMatch::Any, of), rule, matching }, of);
                }
            }
            table.rules.push(Rule { what, matches, first });
        }
        table.by_host.values_mut().for_each(|of_host| of_host.paths.sort());
        table
    }

    /// The rule that the request falls under, and the match that fits.
    pub fn lookup(&self, request: &RequestParts<'_>) -> Option<(&T, &RequestMatch)> {
        let query = Query::new(request.query);
        let host = (!request.host.is_empty()).then_some(request.host);
        let entry = self
            .by_host
            .covering(host)
            .find_map(|(_, of)| of.paths.find(request.path, |entry| self.fits(entry, request, &query)))?;
        let entry = self.first_of_list(entry, |entry| self.fits(entry, request, &query));
        Some((&self.rules[entry.rule].what, self.matching(entry)))
    }

    fn matching(&self, entry: Entry) -> &RequestMatch {
        &self.rules[entry.rule].matches[entry.matching]
    }

    /// The first that fits of the list of the one that was found.
    fn first_of_list(&self, found: Entry, fits: impl Fn(Entry) -> bool) -> Entry {
        let earlier = self.rules[found.rule].first..found.rule;
        let of_rule = |rule: usize| {
            let matches = 0..self.rules[rule].matches.len();
            matches.map(move |matching| Entry { rule, matching, ..found })
        };
        earlier.flat_map(of_rule).find(|entry| fits(*entry)).unwrap_or(found)
    }

    /// Whether all fits but the host, which has been looked up.
    fn fits(&self, entry: Entry, request: &RequestParts<'_>, query: &Query<'_>) -> bool {
        let of = self.matching(entry);
        path::fits(of.path.as_ref(), request.path)
            && of.method.as_ref().is_none_or(|method| method == request.method)
            && of.headers.iter().all(|(name, wanted)| value::of_header(wanted, name, request.headers))
            && of.query.iter().all(|(name, wanted)| query.has(name, wanted))
    }
}

impl Paths {
    fn insert(&mut self, entry: Entry, of: &RequestMatch) {
        match &of.path {
            Some(PathMatch::Exact(path)) => self.exact.entry(path.clone()).or_default().push(entry),
            Some(PathMatch::Prefix(prefix)) if **prefix == *"/" => self.any.push(entry),
            Some(path @ (PathMatch::Prefix(prefix) | PathMatch::Begin(prefix))) => {
                self.prefixes.entry(prefix.clone()).or_default().push(entry);
                *self.lengths.entry(Reverse(prefix.len())).or_default() |=
                    matches!(path, PathMatch::Begin(_));
            }
            Some(PathMatch::Regex(_)) => self.regexes.push(entry),
            None => self.any.push(entry),
        }
    }

    fn sort(&mut self) {
        let lists = self.exact.values_mut().chain(self.prefixes.values_mut());
        // Stable: of equal ones the first stays the first.
        lists
            .chain([&mut self.regexes, &mut self.any])
            .for_each(|list| list.sort_by_key(|entry| Reverse(entry.rank)));
    }

    /// The first that the path falls under and that fits.
    fn find(&self, path: &str, fits: impl Fn(Entry) -> bool) -> Option<Entry> {
        let first = |list: &[Entry]| list.iter().copied().find(|entry| fits(*entry));
        let of_prefix = |(Reverse(length), anywhere): (&Reverse<usize>, &bool)| {
            let prefix = path::prefix_of(path, *length, *anywhere)?;
            first(self.prefixes.get(prefix)?)
        };
        None.or_else(|| first(self.exact.get(path)?))
            .or_else(|| self.lengths.iter().find_map(of_prefix))
            .or_else(|| first(&self.regexes))
            .or_else(|| first(&self.any))
    }
}
