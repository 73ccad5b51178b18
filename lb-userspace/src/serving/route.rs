//! Routes. There may be very many, so each is small: what many have in common they share, and what few have is apart.

use super::client_limit::ClientLimit;
use super::http::Requests;
use super::label::{Label, Place};
use super::terminator::{CertificateRefused, Terminator};
use super::{Pool, RouteStats};
use crate::config::{self, ClientAuth, OnRemoval};
use crate::route::Schedule;
use crate::tls::Verifiers;
use std::collections::HashSet;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A route.
pub struct Route {
    label: Label,
    terms: Arc<Terms>,
    /// Where its connections go, unless there are several.
    pool: Option<Arc<Pool>>,
    /// `None`: it has nothing of it, as most routes.
    special: Option<Box<Special>>,
    /// Kept across reloads.
    pub stats: RouteStats,
}

const _: () = assert!(size_of::<Route>() <= 56);

/// What a route says of its connections, as many others of its configuration do: those share it.
#[derive(PartialEq, Eq, Hash)]
struct Terms {
    /// The name of the listener.
    listener: Arc<str>,
    /// After how long without a byte in either direction a connection is ended; `None`: never.
    idle_timeout: Option<Duration>,
    /// How long after its accept a connection is ended; `None`: never.
    max_age: Option<Duration>,
    /// Most connections at a time.
    max_connections: Option<usize>,
    /// What becomes of open connections when the route is gone.
    on_removal: OnRemoval,
}

impl Terms {
    fn new(route: &config::Route, listener: &config::Listener) -> Self {
        Terms {
            listener: listener.name.clone(),
            idle_timeout: route.idle_timeout,
            max_age: route.max_age,
            max_connections: route.max_connections,
            on_removal: route.on_removal,
        }
    }
}

/// What few routes have.
#[derive(Default)]
struct Special {
    /// Ends the TLS of its connections; `None`: their bytes are passed on as they are.
    terminator: Option<Terminator>,
    /// Present: they carry requests of HTTP, for which these rules are.
    http: Option<Box<Requests>>,
    /// What one client address may have of it; `None`: there is no bound.
    clients: Option<Box<ClientLimit>>,
    /// Present: there is not just one pool.
    shares: Option<Box<Shares>>,
}

impl Special {
    fn boxed(self) -> Option<Box<Self>> {
        let Self { terminator, http, clients, shares } = &self;
        let is_any = terminator.is_some() || http.is_some() || clients.is_some() || shares.is_some();
        is_any.then(|| Box::new(self))
    }
}

/// Pools with their shares of a route's connections.
#[derive(Default)]
struct Shares {
    pools: Box<[Arc<Pool>]>,
    /// Where no server of one pool can be reached, the next is tried.
    retry_other_pool: bool,
    schedule: Schedule,
    choices: AtomicU64,
}

impl Shares {
    fn new(route: &config::Route, pools: &[Arc<Pool>], known: Option<&Shares>) -> Self {
        Shares {
            pools: route.backends.iter().map(|backend| pools[backend.pool].clone()).collect(),
            retry_other_pool: route.retry_other_pool,
            schedule: schedule_of(route),
            choices: known.map_or(0, |known| known.choices.load(Relaxed)).into(),
        }
    }

    /// Whether they would be made the same of this, but for the turn that it is.
    fn are_of(&self, route: &config::Route, pools: &[Arc<Pool>]) -> bool {
        let Self { pools: own, retry_other_pool, schedule, choices: _ } = self;
        own.len() == route.backends.len()
            && own.iter().zip(&route.backends).all(|(own, backend)| Arc::ptr_eq(own, &pools[backend.pool]))
            && *retry_other_pool == route.retry_other_pool
            && *schedule == schedule_of(route)
    }

    /// The pools for the connection with this ticket.
    fn pools_for(&self, ticket: u64) -> impl Iterator<Item = &Arc<Pool>> {
        let first = self.schedule.pick(ticket);
        let others = self.retry_other_pool.then(|| {
            let mut tried = Vec::from_iter(first);
            iter::from_fn(move || {
                let next =
                    self.schedule.pick_among(ticket, tried.len() as u64, |index| !tried.contains(&index))?;
                tried.push(next);
                Some(next)
            })
        });
        first.into_iter().chain(others.into_iter().flatten()).map(|index| &self.pools[index])
    }
}

fn schedule_of(route: &config::Route) -> Schedule {
    Schedule::new(&route.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>())
}

/// The pool of a route that has no other.
fn only<'p>(route: &config::Route, pools: &'p [Arc<Pool>]) -> Option<&'p Arc<Pool>> {
    match route.backends.as_slice() {
        [only] => Some(&pools[only.pool]),
        _ => None,
    }
}

/// What the routes of a configuration are made with.
pub(super) struct Workshop<'p> {
    /// As the configuration has them.
    pub(super) pools: &'p [Arc<Pool>],
    pub(super) verifiers: Verifiers,
    /// How many clients without open connections each limit remembers.
    pub(super) remembered: usize,
    terms: HashSet<Arc<Terms>>,
}

impl<'p> Workshop<'p> {
    pub(super) fn new(pools: &'p [Arc<Pool>], remembered: usize) -> Self {
        Workshop { pools, verifiers: Verifiers::default(), remembered, terms: HashSet::new() }
    }

    fn terms(&mut self, terms: Terms) -> Arc<Terms> {
        if let Some(known) = self.terms.get(&terms) {
            return known.clone();
        }
        let terms = Arc::new(terms);
        self.terms.insert(terms.clone());
        terms
    }
}

impl Route {
    /// `known`: the route of the same name before a reload, if there was one.
    pub(super) fn new(
        route: &config::Route,
        listener: &config::Listener,
        with: &mut Workshop<'_>,
        known: Option<&Route>,
        stats: RouteStats,
    ) -> Result<Self, CertificateRefused> {
        let terminator = match &route.action {
            config::Action::Pass => None,
            config::Action::Terminate(source) => {
                let known = known.and_then(Route::terminator);
                Some(Terminator::new(source, route, listener.protocol, &mut with.verifiers, known)?)
            }
        };
        let http = route.http.as_ref();
        let http = http.map(|rules| Box::new(Requests::new(rules, with.pools, known.and_then(Route::http))));
        let clients = route
            .client_rate
            .map(|rate| Box::new(ClientLimit::new(rate, with.remembered, known.and_then(Route::clients))));
        let pool = only(route, with.pools).cloned();
        let shares =
            pool.is_none().then(|| Box::new(Shares::new(route, with.pools, known.and_then(Route::shares))));
        Ok(Route {
            label: Label::new(&route.name, &route.sni),
            terms: with.terms(Terms::new(route, listener)),
            pool,
            special: Special { terminator, http, clients, shares }.boxed(),
            stats,
        })
    }

    /// A route that is not configured any more; connections that it was chosen for still live, with its bounds.
    pub fn retired(
        name: &str,
        listener: &str,
        idle_timeout: Option<Duration>,
        max_age: Option<Duration>,
    ) -> Self {
        let (listener, max_connections, on_removal) = (listener.into(), None, OnRemoval::Keep);
        Route {
            label: Label::new(name, &[]),
            terms: Arc::new(Terms { listener, idle_timeout, max_age, max_connections, on_removal }),
            pool: None,
            special: None,
            stats: RouteStats::default(),
        }
    }

    /// Of the connections of a listener of HTTP.
    pub(super) fn of_listener(listener: &config::Listener, stats: RouteStats) -> Self {
        let http = Some(Box::new(Requests::new(&[], &[], None)));
        Route {
            special: Special { http, ..Special::default() }.boxed(),
            stats,
            ..Route::retired(&listener.name, &listener.name, None, None)
        }
    }

    /// Whether it would be made the same of this.
    pub(super) fn is_of(&self, route: &config::Route, of: &config::Listener, pools: &[Arc<Pool>]) -> bool {
        // Taken apart in full: a field that is not compared does not compile.
        let Self { label, terms, pool, special, stats: _ } = self;
        let nothing = Special::default();
        let Special { terminator, http, clients, shares } = special.as_deref().unwrap_or(&nothing);
        let is_same_action = match (terminator, &route.action) {
            (None, config::Action::Pass) => true,
            (Some(known), config::Action::Terminate(source)) => known.is_of(source, route, of.protocol),
            (None, _) | (Some(_), _) => false,
        };
        let is_same_http = match (http, &route.http) {
            (Some(known), Some(rules)) => known.are_of(rules, pools),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let are_same_pools = match (pool, shares, only(route, pools)) {
            (Some(own), None, Some(only)) => Arc::ptr_eq(own, only),
            (None, Some(shares), None) => shares.are_of(route, pools),
            _ => false,
        };
        // How many clients a limit remembers depends on how many limits there are.
        label.is_of(&route.name, &route.sni)
            && **terms == Terms::new(route, of)
            && clients.is_none()
            && route.client_rate.is_none()
            && is_same_action
            && is_same_http
            && are_same_pools
    }

    /// As configured.
    pub fn name(&self) -> &str {
        self.label.name()
    }

    /// The server names that it covers, as configured; none on a plain TCP listener.
    pub fn sni(&self) -> impl Iterator<Item = &str> {
        self.label.patterns()
    }

    /// Where the names of its patterns are.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.label.places()
    }

    /// The name that is there.
    pub(super) fn at(&self, place: Place) -> &str {
        self.label.at(place)
    }

    /// The name of its listener.
    pub fn listener(&self) -> &str {
        &self.terms.listener
    }

    /// After how long without a byte in either direction a connection is ended; `None`: never.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.terms.idle_timeout
    }

    /// How long after its accept a connection is ended; `None`: never.
    pub fn max_age(&self) -> Option<Duration> {
        self.terms.max_age
    }

    /// Most connections at a time.
    pub fn max_connections(&self) -> Option<usize> {
        self.terms.max_connections
    }

    /// What becomes of its open connections when it is gone.
    pub fn on_removal(&self) -> OnRemoval {
        self.terms.on_removal
    }

    /// Ends the TLS of its connections; `None`: their bytes are passed on as they are.
    pub fn terminator(&self) -> Option<&Terminator> {
        self.special.as_ref()?.terminator.as_ref()
    }

    /// What clients' certificates are held against; `None`: they are not asked for any.
    pub fn client_auth(&self) -> Option<&ClientAuth> {
        self.terminator()?.client_auth()
    }

    /// Present: its connections carry requests of HTTP, for which these rules are.
    pub fn http(&self) -> Option<&Requests> {
        self.special.as_ref()?.http.as_deref()
    }

    /// What one client address may have of it; `None`: there is no bound.
    pub fn clients(&self) -> Option<&ClientLimit> {
        self.special.as_ref()?.clients.as_deref()
    }

    fn shares(&self) -> Option<&Shares> {
        self.special.as_ref()?.shares.as_deref()
    }

    /// Its pools, in the order of the configuration.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pool.iter().chain(self.shares().into_iter().flat_map(|shares| &shares.pools))
    }

    /// For a new connection: see [`pools_for`](Self::pools_for).
    pub fn draw(&self) -> u64 {
        self.shares().map_or(0, |shares| shares.choices.fetch_add(1, Relaxed))
    }

    /// The pool for a connection that has drawn this ticket, by weight, and then those to try where it has no server that can
    /// be reached; none when every weight is 0.
    pub fn pools_for(&self, ticket: u64) -> impl Iterator<Item = &Arc<Pool>> {
        self.pool.iter().chain(self.shares().into_iter().flat_map(move |shares| shares.pools_for(ticket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(weights: &[u32], retry_other_pool: bool) -> Shares {
        let pool = |index: usize| {
            let config = config::Pool::new(index.to_string().into(), Vec::new());
            Arc::new(Pool::new(&config, None).unwrap())
        };
        Shares {
            pools: (0..weights.len()).map(pool).collect(),
            retry_other_pool,
            schedule: Schedule::new(weights),
            choices: 0.into(),
        }
    }

    fn tried(shares: &Shares, ticket: u64) -> Vec<usize> {
        let place =
            |pool: &Arc<Pool>| shares.pools.iter().position(|other| Arc::ptr_eq(other, pool)).unwrap();
        shares.pools_for(ticket).map(place).collect()
    }

    #[test]
    fn each_pool_with_a_weight_is_tried_once_if_others_are_tried_at_all() {
        for ticket in 0..100 {
            let mut all = tried(&shares(&[3, 0, 2, 1], true), ticket);
            assert_eq!(all[..1], tried(&shares(&[3, 0, 2, 1], false), ticket));
            all.sort();
            assert_eq!(all, [0, 2, 3]);
        }
        assert!(tried(&shares(&[0, 0], true), 0).is_empty());
    }

    #[test]
    fn the_other_pools_share_by_weight_what_one_cannot_take() {
        let shares = shares(&[2, 1, 3], true);
        // Each of the 2000 times that the first pool is the first, one of the others is the next.
        let orders = (0..6000).map(|ticket| tried(&shares, ticket)).filter(|order| order[0] == 0);
        let heavy = orders.filter(|order| order[1] == 2).count();
        assert!(heavy.abs_diff(1500) < 120, "{heavy} of 2000, 1500 expected");
    }
}
