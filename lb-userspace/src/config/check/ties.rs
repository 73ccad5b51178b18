//! What routes do to one another: ties, and what the names of their certificates mean for their neighbours.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::config::certificate::Loaded;
use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::model::SniPattern;
use crate::config::place::{Place, Placed};

/// What of a route matters to the others.
pub(super) struct Claim<'a> {
    pub(super) name: &'a str,
    pub(super) listener: usize,
    /// Where it names its listener.
    pub(super) reference: &'a Place,
    pub(super) sni: &'a [Placed<SniPattern>],
    /// Empty: any.
    pub(super) alpn: Vec<&'a str>,
    /// Its connections carry requests, each of which goes where its own host is served.
    pub(super) http: bool,
    /// Of a terminated route, and where the route names it.
    pub(super) certificate: Option<(&'a Place, Arc<Loaded>)>,
}

/// Two routes of one listener must differ in a pattern or, for the same pattern, in ALPN: else it would be the
/// order in the file that decides. "Any" and a list of protocols differ: the list wins.
pub(super) fn report_ties(claims: &[Claim<'_>], report: &mut Report) {
    /// Listener, pattern and protocol: what only one route can have.
    type Slot<'s> = (usize, &'s SniPattern, Option<&'s str>);
    let mut taken: HashMap<Slot<'_>, (usize, &Place)> = HashMap::with_capacity(claims.len());
    for (index, claim) in claims.iter().enumerate() {
        for pattern in claim.sni {
            for protocol in protocols(claim) {
                let (first, place) = match taken.entry((claim.listener, &pattern.value, protocol)) {
                    Entry::Vacant(entry) => {
                        entry.insert((index, &pattern.place));
                        continue;
                    }
                    Entry::Occupied(entry) => *entry.get(),
                };
                if first == index {
                    // A duplicate inside one list: reported where the list was read.
                    continue;
                }
                let with = protocol.map(|p| format!(" with ALPN {}", quote(p))).unwrap_or_default();
                let (one, other) = (quote(claims[first].name), quote(claim.name));
                let message = format!("routes {one} and {other} tie: both take `{}`{with}", pattern.value);
                let error = Diagnostic::error(&pattern.place, message).related(place, "also here");
                report.push(error.help("take it out of one of them, or tell them apart by `alpn`"));
                break;
            }
        }
    }
}

fn protocols<'c>(claim: &'c Claim<'_>) -> impl Iterator<Item = Option<&'c str>> {
    let any = claim.alpn.is_empty().then_some(None);
    any.into_iter().chain(claim.alpn.iter().copied().map(Some))
}

/// Clients that verify will refuse a certificate that does not bear the name they asked for.
pub(super) fn warn_of_uncovered_names(claims: &[Claim<'_>], report: &mut Report) {
    for claim in claims {
        // What an object names is its author's affair, and the API says that it is not compared.
        let Some((_, certificate)) = claim.certificate.as_ref().filter(|(_, loaded)| !loaded.is_held) else {
            continue;
        };
        for pattern in claim.sni.iter().filter(|pattern| !covers(certificate, &pattern.value)) {
            let message = format!("the certificate of this route is not for `{}`", pattern.value);
            let mut names: Vec<_> =
                certificate.termination.names.iter().take(5).map(|name| quote(name)).collect();
            if certificate.termination.names.len() > names.len() {
                names.push("…".to_owned());
            }
            let help = match names.as_slice() {
                [] => "it has no DNS name (subjectAltName) at all".to_owned(),
                _ => format!("it is for {}", names.join(", ")),
            };
            report.push(Diagnostic::warning(&pattern.place, message).help(help));
        }
    }
}

/// Whether the certificate suits some name of the pattern.
fn covers(certificate: &Loaded, pattern: &SniPattern) -> bool {
    match pattern {
        SniPattern::Any => true,
        SniPattern::Exact(name) => {
            let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            certificate.termination.names.contains(&**name)
                || wildcard.is_some_and(|wildcard| certificate.termination.names.contains(wildcard.as_str()))
        }
        SniPattern::Wildcard(parent) => certificate
            .termination
            .names
            .iter()
            .any(|name| name.strip_suffix(&**parent).is_some_and(|rest| rest.ends_with('.'))),
    }
}

/// HTTP/2 clients reuse a connection for any name its certificate bears (RFC 9113, section 9.1.1), without a new
/// ClientHello: requests for a neighbour's names then arrive at the wrong route.
pub(super) fn warn_of_coalescing(claims: &[Claim<'_>], report: &mut Report) {
    let terminates_h2 =
        |claim: &&Claim<'_>| claim.certificate.is_some() && claim.alpn.contains(&H2) && !claim.http;
    if !claims.iter().any(|claim| terminates_h2(&claim)) {
        return;
    }
    let served = Served::new(claims);
    for (index, claim) in claims.iter().enumerate().filter(|(_, claim)| terminates_h2(claim)) {
        let Some((place, certificate)) = &claim.certificate else {
            continue;
        };
        let neighbour = certificate
            .termination
            .names
            .iter()
            .find_map(|name| served.by_other(index, claim.listener, name));
        let Some((other, pattern)) = neighbour else {
            continue;
        };
        let (name, other) = (quote(claim.name), quote(claims[other].name));
        let message = format!(
            "HTTP/2 clients of route {name} may send requests for `{}` to it, which route {other} serves",
            pattern.value
        );
        let warning = Diagnostic::warning(*place, message).related(&pattern.place, "served here");
        report.push(warning.help(
            "they reuse a connection for every name of its certificate: \
             give each route a certificate of its own, or take `h2` out of `alpn`",
        ));
    }
}

const H2: &str = "h2";

/// Which routes an HTTP/2 client reaches, by listener and name.
struct Served<'a> {
    exact: HashMap<(usize, &'a str), Owner<'a>>,
    wildcard: HashMap<(usize, &'a str), Owner<'a>>,
    /// Exact names by what follows their first label: up to two, of different routes.
    siblings: HashMap<(usize, &'a str), Vec<Owner<'a>>>,
}

/// Index of a route, and the pattern by which it serves.
type Owner<'a> = (usize, &'a Placed<SniPattern>);

impl<'a> Served<'a> {
    fn new(claims: &'a [Claim<'_>]) -> Self {
        let mut served = Self { exact: HashMap::new(), wildcard: HashMap::new(), siblings: HashMap::new() };
        let claims = || claims.iter().enumerate();
        // A route that lists `h2` beats one that takes any protocol.
        let listed = claims().filter(|(_, claim)| claim.alpn.contains(&H2));
        let any = claims().filter(|(_, claim)| claim.alpn.is_empty());
        for (index, claim) in listed.chain(any) {
            for pattern in claim.sni {
                let owner = (index, pattern);
                match &pattern.value {
                    SniPattern::Any => {}
                    SniPattern::Wildcard(parent) => {
                        served.wildcard.entry((claim.listener, parent)).or_insert(owner);
                    }
                    SniPattern::Exact(name) => {
                        served.exact.entry((claim.listener, name)).or_insert(owner);
                        let Some((_, parent)) = name.split_once('.') else {
                            continue;
                        };
                        let siblings = served.siblings.entry((claim.listener, parent)).or_default();
                        if siblings.len() < 2 && siblings.iter().all(|(other, _)| *other != index) {
                            siblings.push(owner);
                        }
                    }
                }
            }
        }
        served
    }

    /// A route other than `index` that serves `name`, which is a certificate's: a wildcard is one label.
    fn by_other(&self, index: usize, listener: usize, name: &str) -> Option<Owner<'a>> {
        let is_other = |(owner, _): &Owner<'a>| *owner != index;
        match name.strip_prefix("*.") {
            Some(parent) => {
                let siblings = self.siblings.get(&(listener, parent)).into_iter().flatten().copied();
                siblings.chain(self.wildcard.get(&(listener, parent)).copied()).find(is_other)
            }
            None => {
                let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
                let wildcards = parents.filter_map(|parent| self.wildcard.get(&(listener, parent)));
                // The first of these is the route that gets the connection.
                self.exact
                    .get(&(listener, name))
                    .into_iter()
                    .chain(wildcards)
                    .next()
                    .copied()
                    .filter(is_other)
            }
        }
    }
}
