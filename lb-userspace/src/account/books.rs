//! What a connection's account is entered in.

use super::{AccessLog, Histogram, Ledger};
use crate::serving::GatewayStats;

/// The gateway's books: written by whoever carries a connection, read by operators.
pub struct Books {
    /// The live connections.
    pub ledger: Ledger,
    /// The gateway's own counters.
    pub stats: GatewayStats,
    /// Absent: off.
    pub access_log: Option<AccessLog>,
    /// How long the stages take.
    pub histograms: Histograms,
}

/// Times of the stages, in seconds.
pub struct Histograms {
    /// From accept to a whole ClientHello.
    pub sniff: Histogram,
    /// From the first dial to a connected server.
    pub connect: Histogram,
    /// From a known route, the server connected meanwhile, to flows in the kernel.
    pub handover: Histogram,
}

impl Books {
    /// Empty ones, for this many workers.
    pub fn new(workers: usize, access_log: Option<AccessLog>) -> Self {
        let histograms =
            Histograms { sniff: Histogram::new(), connect: Histogram::new(), handover: Histogram::new() };
        Books { ledger: Ledger::new(workers), stats: GatewayStats::default(), access_log, histograms }
    }
}
