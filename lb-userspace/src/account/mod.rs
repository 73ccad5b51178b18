//! Account: bytes and duration of each connection, counted once, with the reason it ended.

mod access_log;
mod books;
pub mod histogram;
mod ledger;
mod visit;

pub use access_log::{AccessLog, LogRecord};
pub use books::{Books, Histograms};
pub use histogram::Histogram;
pub use ledger::{Connection, Ledger, LiveConnections};
pub use visit::{Account, Visitor};
