//! Account: bytes and duration of each connection, counted once, with the reason it ended.

mod access_log;
pub mod histogram;
mod ledger;
mod stats;
mod visit;

pub use access_log::{AccessLog, Record};
pub use histogram::Histogram;
pub use ledger::{Connection, Ledger, Live};
pub use stats::{GatewayStats, ListenerStats, PerReason, RouteStats, TierStats};
pub use visit::{Account, Visitor};
