//! The gateway's books: live connections, counters, access log and histograms.

use super::{AccessLog, Ledger};
use crate::histogram::Histogram;
use crate::serving::GatewayStats;

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
}
