//! Counters that outlive connections and reloads. They are relaxed atomics: nothing is ordered by them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::{Epoch, Limit, Setbacks};
use crate::histogram::Histogram;
use crate::reason::{
    CloseReason, EchResult, FallbackReason, HttpAnswer, OddName, RejectReason, Tier, TlsError,
};
use once_cell::race::OnceBox;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

/// One counter per variant of a closed set of reasons. They take memory once there is something to count: of many routes,
/// most have no connection for long.
#[derive(Debug, Default)]
pub struct PerReason<const N: usize>(OnceBox<[AtomicU64; N]>);

impl<const N: usize> PerReason<N> {
    /// Counts one of the variant with this index.
    pub fn add(&self, index: usize) {
        let counters = self.0.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        counters[index].fetch_add(1, Relaxed);
    }

    /// The count of the variant with this index.
    pub fn get(&self, index: usize) -> u64 {
        self.0.get().map_or(0, |counters| counters[index].load(Relaxed))
    }
}

/// Connections of one tier.
#[derive(Debug, Default)]
pub struct TierStats {
    /// Carried by it now.
    pub active: AtomicU64,
    /// That began in it.
    pub total: AtomicU64,
}

/// A listener's counters; kept across reloads under its name.
#[derive(Debug, Default)]
pub struct ListenerStats {
    /// Connections accepted and not yet closed.
    pub live: Arc<Limit>,
    /// Connections accepted.
    pub total: AtomicU64,
    /// The MSS that its SYN-ACKs announce, at most; 0: the kernel's choice.
    mss: AtomicU16,
    /// Clients turned away.
    pub rejects: PerReason<{ RejectReason::ALL.len() }>,
    /// Clients whose server name is no DNS host name, routed or turned away.
    pub odd_names: PerReason<{ OddName::ALL.len() }>,
    /// Clients with an Encrypted ClientHello, if the listener has keys for it.
    pub ech: PerReason<{ EchResult::ALL.len() }>,
    /// Why PostgreSQL clients failed a moment ago.
    pub setbacks: Setbacks,
}

impl ListenerStats {
    /// Notes that a server behind this listener takes no larger segments than this. `false`: that was known.
    pub fn clamp_mss(&self, mss: u16) -> bool {
        let smaller = |old| if old == 0 || mss < old { Some(mss) } else { None };
        self.mss.fetch_update(Relaxed, Relaxed, smaller).is_ok()
    }

    /// The MSS that its SYN-ACKs are to announce, at most; `None`: the kernel's choice.
    pub fn mss(&self) -> Option<u16> {
        Some(self.mss.load(Relaxed)).filter(|mss| *mss != 0)
    }
}

/// A route's counters; kept across reloads under its name. They take memory once the route has had a connection: of very
/// many routes, most have none for long.
///
/// The places of routes that come with one configuration lie side by side: scattered among the routes themselves, they would
/// keep nearly every page of memory that a reload frees.
#[derive(Clone, Debug)]
pub struct RouteStats {
    // With a thin pointer and a short index, each route is 8 bytes smaller.
    block: Arc<Vec<OnceBox<RouteCounts>>>,
    index: u32,
}

impl RouteStats {
    /// Those of so many new routes.
    pub fn of_new(routes: usize) -> impl Iterator<Item = Self> {
        let block = Arc::new(Vec::from_iter((0..routes).map(|_| OnceBox::new())));
        (0..).take(routes).map(move |index| RouteStats { block: block.clone(), index })
    }

    /// The counters, to count with.
    pub fn counting(&self) -> &RouteCounts {
        self.place().get_or_init(Box::default)
    }

    /// The counters, to be read; as long as there was no connection, those of no route.
    pub fn counts(&self) -> &RouteCounts {
        static NONE: LazyLock<RouteCounts> = LazyLock::new(RouteCounts::default);
        self.place().get().unwrap_or(&NONE)
    }

    fn place(&self) -> &OnceBox<RouteCounts> {
        &self.block[self.index as usize]
    }
}

impl Default for RouteStats {
    fn default() -> Self {
        RouteStats { block: Arc::new(vec![OnceBox::new()]), index: 0 }
    }
}

/// What is counted of a route's connections.
#[derive(Debug, Default)]
pub struct RouteCounts {
    /// Connections routed and not yet closed.
    pub live: Arc<Limit>,
    /// Connections routed.
    pub total: AtomicU64,
    /// By tier.
    pub tiers: [TierStats; Tier::ALL.len()],
    /// Connections ended.
    pub closes: PerReason<{ CloseReason::ALL.len() }>,
    /// Why TLS with clients failed.
    pub tls_errors: PerReason<{ TlsError::ALL.len() }>,
    /// Client to server, of connections that have ended.
    pub bytes_in: AtomicU64,
    /// Server to client, of connections that have ended.
    pub bytes_out: AtomicU64,
    /// Of its requests; there once it has had one.
    http: OnceBox<HttpCounts>,
}

/// What is counted of a route's requests of HTTP.
#[derive(Debug, Default)]
pub struct HttpCounts {
    /// By the first digit of the status of their answer; at 0 those that have got none.
    pub by_class: [AtomicU64; 6],
    /// Those that the gateway has answered itself, or broken off.
    pub answers: PerReason<{ HttpAnswer::ALL.len() }>,
    /// From the head of the request to the end of the answer.
    pub seconds: Histogram,
    /// Advanced when all that are under way are ended.
    pub epoch: Epoch,
}

impl RouteCounts {
    /// The counters of requests, to count with.
    pub fn counting_http(&self) -> &HttpCounts {
        self.http.get_or_init(Box::default)
    }

    /// The counters of requests, if there were any.
    pub fn http(&self) -> Option<&HttpCounts> {
        self.http.get()
    }
}

/// The gateway's own counters.
#[derive(Debug, Default)]
pub struct GatewayStats {
    /// Connections accepted and not yet closed.
    pub live: Arc<Limit>,
    /// By tier, over all routes, also those removed since.
    pub tiers: [TierStats; Tier::ALL.len()],
    /// Connections that did not get the first tier of the order.
    pub fallbacks: PerReason<{ FallbackReason::ALL.len() }>,
    /// Reloads that put a new configuration in place.
    pub reloads_succeeded: AtomicU64,
    /// Reloads that changed nothing.
    pub reloads_failed: AtomicU64,
}
