//! Route: which route serves a ClientHello, by SNI and ALPN. Pure; no I/O, no clock.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod choose;
pub mod http;
mod names;
mod schedule;

pub use choose::{Candidate, Choice, Rank, WHOLE, choose, keep_one, schedules, warmth};
pub use names::{Named, SniMatch};
pub use schedule::Schedule;

use crate::config::SniPattern;
use crate::reason::RejectReason;
use names::Names;

/// How well a route covers a ClientHello. SNI decides first; of two routes with equal patterns, one with an ALPN protocol
/// beats one without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Match {
    /// By server name.
    pub sni: SniMatch,
    /// The route names an ALPN protocol and the client offered it.
    pub alpn: bool,
}

/// The routes of one listener, indexed so that a lookup takes one hash probe per label of the name, whatever the number of
/// routes.
#[derive(Debug)]
pub struct Table<T> {
    by_name: Names<Entries<T>>,
}

/// The routes of one pattern.
#[derive(Debug)]
enum Entries<T> {
    /// One that takes any ALPN, as most patterns have: it takes no memory of its own.
    One(T),
    /// At least one.
    Several(Box<Several<T>>),
}

#[derive(Debug)]
struct Several<T> {
    /// Those with an ALPN protocol come before the one without.
    list: Vec<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    alpn: Box<[Box<str>]>,
    route: T,
}

impl<T> Entries<T> {
    fn new(alpn: &[Box<str>], route: T) -> Self {
        match alpn {
            [] => Entries::One(route),
            _ => Entries::of(vec![Entry { alpn: alpn.into(), route }]),
        }
    }

    fn of(mut list: Vec<Entry<T>>) -> Self {
        list.sort_by_key(|entry| entry.alpn.is_empty());
        Entries::Several(Box::new(Several { list }))
    }

    fn into_list(self) -> Vec<Entry<T>> {
        match self {
            Entries::One(route) => vec![Entry { alpn: Box::default(), route }],
            Entries::Several(several) => several.list,
        }
    }

    fn extend(&mut self, later: Self) {
        let mut list = std::mem::replace(self, Entries::of(Vec::new())).into_list();
        list.extend(later.into_list());
        *self = Entries::of(list);
    }
}

impl<T: Named> Named for Entries<T> {
    fn name(&self) -> &str {
        match self {
            Entries::One(route) => route.name(),
            Entries::Several(several) => several.list.first().map_or("", |entry| entry.route.name()),
        }
    }
}

impl<T: Named> Table<T> {
    /// An empty table: every lookup fails.
    pub fn new() -> Self {
        Table { by_name: Names::new() }
    }

    /// An empty table with room for so many exact names.
    pub fn with_capacity(names: usize) -> Self {
        Table { by_name: Names::with_capacity(names) }
    }

    /// Adds a route under one of its patterns, whose name it knows. The configuration has checked that no two routes tie.
    pub fn insert(&mut self, pattern: &SniPattern, alpn: &[Box<str>], route: T) {
        let (known, later) = self.by_name.insert(pattern, Entries::new(alpn, route));
        if let Some(later) = later {
            known.extend(later);
        }
    }

    /// The best route for `sni` (lower case, no trailing dot; `None` when the client sent none) among those whose
    /// ALPN the client `offers`: the greatest [`Match`].
    pub fn lookup(
        &self,
        sni: Option<&str>,
        offers: impl Fn(&str) -> bool,
    ) -> Result<(&T, Match), RejectReason> {
        let mut covered = false;
        for (sni, entries) in self.by_name.covering(sni) {
            covered = true;
            let fits = |entry: &&Entry<T>| {
                entry.alpn.is_empty() || entry.alpn.iter().any(|protocol| offers(protocol))
            };
            let found = match entries {
                Entries::One(route) => Some((route, false)),
                Entries::Several(several) => {
                    several.list.iter().find(fits).map(|entry| (&entry.route, !entry.alpn.is_empty()))
                }
            };
            if let Some((route, alpn)) = found {
                return Ok((route, Match { sni, alpn }));
            }
        }
        Err(match (covered, sni) {
            (true, _) => RejectReason::AlpnMismatch,
            (false, Some(_)) => RejectReason::UnknownSni,
            (false, None) => RejectReason::NoSni,
        })
    }
}

impl<T: Named> Default for Table<T> {
    fn default() -> Self {
        Table::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> SniPattern {
        match text.strip_prefix("*.") {
            Some(suffix) => SniPattern::Wildcard(suffix.into()),
            None if text == "*" => SniPattern::Any,
            None => SniPattern::Exact(text.into()),
        }
    }

    /// A pattern, and what the route is called.
    #[derive(Debug)]
    struct Known(String, &'static str);

    impl Named for Known {
        fn name(&self) -> &str {
            self.0.trim_start_matches("*.")
        }
    }

    impl Table<Known> {
        fn add(&mut self, text: &str, alpn: &[&str], called: &'static str) {
            let alpn: Vec<Box<str>> = alpn.iter().map(|a| Box::from(*a)).collect();
            self.insert(&pattern(text), &alpn, Known(text.into(), called));
        }
    }

    fn table(routes: &[(&'static str, &[&str])]) -> Table<Known> {
        let mut table = Table::new();
        routes.iter().for_each(|(name, alpn)| table.add(name, alpn, name));
        table
    }

    fn find(table: &Table<Known>, sni: &str, alpn: &[&str]) -> Result<&'static str, RejectReason> {
        let sni = (!sni.is_empty()).then_some(sni);
        table.lookup(sni, |protocol| alpn.contains(&protocol)).map(|(route, _)| route.1)
    }

    #[test]
    fn precedence_is_the_derived_order() {
        let exact = Match { sni: SniMatch::Exact, alpn: false };
        let long = Match { sni: SniMatch::Wildcard(20), alpn: false };
        let short = Match { sni: SniMatch::Wildcard(3), alpn: true };
        let any = Match { sni: SniMatch::Any, alpn: true };
        assert!(exact > long && long > short && short > any);
        assert!(Match { sni: SniMatch::Exact, alpn: true } > exact);
    }

    #[test]
    fn exact_beats_longer_wildcard_beats_shorter_beats_default() {
        let t = table(&[("*", &[]), ("*.com", &[]), ("*.example.com", &[]), ("a.example.com", &[])]);
        assert_eq!(find(&t, "a.example.com", &[]), Ok("a.example.com"));
        assert_eq!(find(&t, "b.example.com", &[]), Ok("*.example.com"));
        assert_eq!(find(&t, "x.y.example.com", &[]), Ok("*.example.com"));
        assert_eq!(find(&t, "example.com", &[]), Ok("*.com"));
        assert_eq!(find(&t, "example.org", &[]), Ok("*"));
        assert_eq!(find(&t, "", &[]), Ok("*"));
    }

    #[test]
    fn a_wildcard_does_not_cover_its_own_suffix() {
        let t = table(&[("*.example.com", &[])]);
        assert_eq!(find(&t, "example.com", &[]), Err(RejectReason::UnknownSni));
        assert_eq!(find(&t, "badexample.com", &[]), Err(RejectReason::UnknownSni));
    }

    #[test]
    fn a_client_without_sni_needs_a_default_route() {
        let t = table(&[("a.example.com", &[]), ("*.example.com", &[])]);
        assert_eq!(find(&t, "", &[]), Err(RejectReason::NoSni));
    }

    #[test]
    fn alpn_is_asked_for_before_any_is_taken_and_falls_to_wider_patterns() {
        let mut t = table(&[("a.com", &["h2"]), ("*.com", &["http/1.1"])]);
        assert_eq!(find(&t, "a.com", &["http/1.1", "h2"]), Ok("a.com"));
        assert_eq!(find(&t, "a.com", &["postgresql"]), Err(RejectReason::AlpnMismatch));
        t.add("a.com", &[], "a.com any");
        assert_eq!(find(&t, "a.com", &["h2"]), Ok("a.com"));
        assert_eq!(find(&t, "a.com", &[]), Ok("a.com any"));
    }

    #[test]
    fn alpn_is_asked_for_in_whatever_order_routes_come() {
        let mut t = table(&[("a.com", &[]), ("b.com", &[])]);
        t.add("a.com", &["h2"], "a.com h2");
        t.add("a.com", &["http/1.1"], "a.com http/1.1");
        assert_eq!(find(&t, "a.com", &["h2"]), Ok("a.com h2"));
        assert_eq!(find(&t, "a.com", &["http/1.1"]), Ok("a.com http/1.1"));
        for other in [&["postgresql"][..], &[]] {
            assert_eq!(find(&t, "a.com", other), Ok("a.com"));
        }
        // Of two that take any, as where a name is reserved besides, the first counts.
        t.add("b.com", &[], "b.com again");
        assert_eq!(find(&t, "b.com", &["h2"]), Ok("b.com"));
    }

    proptest! {
        /// The indexed lookup against the definition: of all patterns that cover the name, the greatest match.
        #[test]
        fn lookup_is_the_greatest_match(
            patterns in prop::collection::btree_set(r"(\*|(\*\.)?[ab](\.[ab]){0,3})", 1..20),
            sni in r"[ab](\.[ab]){0,4}",
        ) {
            let covers = |p: &str| match p.strip_prefix("*.") {
                Some(suffix) => sni.strip_suffix(suffix).is_some_and(|head| head.ends_with('.') && head.len() > 1)
                    .then_some(SniMatch::Wildcard(suffix.len())),
                None if p == "*" => Some(SniMatch::Any),
                None => (p == sni).then_some(SniMatch::Exact),
            };
            let mut t = Table::new();
            for p in &patterns {
                t.add(p, &[], "");
            }
            let best = patterns.iter().filter_map(|p| Some((covers(p)?, p))).max_by_key(|(m, _)| *m);
            let found = t.lookup(Some(&sni), |_| false);
            match best {
                Some((m, p)) => {
                    let (route, found) = found.unwrap();
                    prop_assert_eq!(&route.0, p);
                    prop_assert_eq!(found.sni, m);
                }
                None => prop_assert_eq!(found.unwrap_err(), RejectReason::UnknownSni),
            }
        }
    }
}
