//! What a reload has replaced: configurations that connections may still be routed by, and routes whose open connections
//! are to end (`on_removal`).

use crate::config::OnRemoval;
use crate::reason::CloseReason;
use crate::running::RunningGateway;
use crate::serving::{RouteCounts, RouteStats, Snapshot};
use std::collections::{HashMap, HashSet};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Connections that are ended in one go: their workers have other connections to look after.
const AT_ONCE: usize = 500;

/// The pause before the next.
const PAUSE: Duration = Duration::from_millis(20);

/// How often it is looked whether a configuration is still in use.
const EVERY: Duration = Duration::from_millis(200);

/// What a reload has replaced.
#[derive(Default)]
pub(super) struct Removed {
    /// Clients that were accepted before the reload are routed by what was in force then. It is let go of here, and by none
    /// of their workers: to drop 100 000 routes takes long.
    /// Each with the number of its routes and pools that the next one does not have.
    snapshots: Vec<(Arc<Snapshot>, usize)>,
    /// Routes that are gone, by name.
    routes: HashMap<Arc<str>, Leaving>,
}

/// The connections of a route that is gone.
struct Leaving {
    /// When they are reset.
    at: Instant,
    /// Its requests of HTTP were ended.
    is_told: bool,
    /// The route's: they tell its connections apart, and whether there are any.
    stats: RouteStats,
}

impl Removed {
    /// `new` has taken the place of `old`.
    pub(super) fn note(&mut self, old: Arc<Snapshot>, new: &Snapshot) {
        let now = Instant::now();
        let names: HashSet<&str> = new.routes.iter().map(|route| route.name()).collect();
        for route in old.routes.iter().filter(|route| !names.contains(route.name())) {
            let at = match route.on_removal() {
                OnRemoval::Keep => continue,
                OnRemoval::Drain => now + new.gateway.drain_timeout,
                OnRemoval::Kill => now,
            };
            self.routes
                .insert(route.name().into(), Leaving { at, is_told: false, stats: route.stats.clone() });
        }
        self.routes.retain(|name, _| !names.contains(&**name));
        self.snapshots.push((old, new.made));
    }

    /// Ends when there is something to do.
    pub(super) async fn due(&self) {
        let at = self.routes.values().map(|route| route.at).min();
        let pause = match at.map(|at| at.saturating_duration_since(Instant::now()).max(PAUSE)) {
            Some(pause) if self.snapshots.is_empty() => pause,
            Some(pause) => pause.min(EVERY),
            None if self.snapshots.is_empty() => return std::future::pending().await,
            None => EVERY,
        };
        sleep(pause).await;
    }

    /// Resets connections whose time has come; gives the configurations that nobody uses any more, and how many parts are only
    /// theirs.
    pub(super) fn look(&mut self, gateway: &RunningGateway) -> (Vec<Arc<Snapshot>>, usize) {
        let unused = self.snapshots.extract_if(.., |(snapshot, _)| Arc::strong_count(snapshot) == 1);
        let (unused, parts): (Vec<_>, Vec<_>) = unused.unzip();
        let now = Instant::now();
        let mut is_news = false;
        for route in self.routes.values_mut().filter(|route| route.at <= now && !route.is_told) {
            route.is_told = true;
            // On a listener of HTTP, its requests come on connections of another route.
            if let Some(http) = route.stats.counts().http() {
                http.epoch.advance();
                is_news = true;
            }
        }
        if is_news {
            gateway.notice.send_modify(|_| {});
        }
        let due =
            self.routes.values().filter(|route| route.at <= now && route.stats.counts().live.active() > 0);
        let due: HashSet<*const RouteCounts> = due.map(|route| ptr::from_ref(route.stats.counts())).collect();
        if !due.is_empty() {
            let is_due = |stats: &RouteStats| due.contains(&ptr::from_ref(stats.counting()));
            for connection in gateway.books.ledger.find(AT_ONCE, |connection| is_due(&connection.route.stats))
            {
                gateway.end(&connection, CloseReason::RouteRemoved);
            }
        }
        // A client that was accepted before the reload may still get the route.
        if self.snapshots.is_empty() {
            self.routes.retain(|_, route| route.at > now || route.stats.counts().live.active() > 0);
        }
        (unused, parts.into_iter().sum())
    }
}
