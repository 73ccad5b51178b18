//! The gateway's books: live connections, counters, access log and histograms.

use super::{AccessLog, Connection, Ledger};
use crate::histogram::Histogram;
use crate::reason::{FallbackReason, Tier};
use crate::serving::GatewayStats;
use crate::tier::Choice;
use std::sync::atomic::Ordering::Relaxed;

/// The gateway's books. The tasks that carry connections write them, operators read them.
pub struct Books {
    /// The live connections.
    pub ledger: Ledger,
    /// The gateway's own counters.
    pub stats: GatewayStats,
    /// `None`: there is no access log.
    pub access_log: Option<AccessLog>,
    /// How long the stages take.
    pub histograms: Histograms,
}

/// Times of the stages, in seconds.
pub struct Histograms {
    /// From accept to the complete ClientHello.
    pub sniff: Histogram,
    /// From the first dial to a connected server.
    pub connect: Histogram,
    /// From the choice of the route, over the connect to the server, to the flows in the kernel.
    pub handover: Histogram,
}

impl Books {
    /// Empty books, for this many workers.
    pub fn new(workers: usize, access_log: Option<AccessLog>) -> Self {
        let histograms =
            Histograms { sniff: Histogram::new(), connect: Histogram::new(), handover: Histogram::new() };
        Books { ledger: Ledger::new(workers), stats: GatewayStats::default(), access_log, histograms }
    }

    /// Notes that a connection of the copy tier goes on in the kTLS tier. It is in the total of both.
    pub fn promoted(&self, connection: &Connection) {
        // What the order has before kTLS is still why it is not there.
        let reason = connection.choice().and_then(|choice| choice.reason);
        let reason = reason.filter(|reason| *reason != FallbackReason::KtlsLater);
        self.moved(connection, Choice { tier: Tier::Ktls, reason });
        for tiers in [&self.stats.tiers, &connection.route.stats.counting().tiers] {
            tiers[Tier::Ktls as usize].total.fetch_add(1, Relaxed);
        }
        tracing::debug!(id = connection.id, "its records are the kernel's");
    }

    /// Notes that a connection goes on in another tier.
    pub(super) fn moved(&self, connection: &Connection, choice: Choice) {
        let Some(before) = connection.choice() else { return };
        connection.set_choice(choice);
        for tiers in [&self.stats.tiers, &connection.route.stats.counting().tiers] {
            tiers[before.tier as usize].active.fetch_sub(1, Relaxed);
            tiers[choice.tier as usize].active.fetch_add(1, Relaxed);
        }
    }
}
