//! Account: bytes and duration of each connection, counted once, with the reason it ended.

mod access_log;
mod books;
mod ledger;
mod request;
mod visit;

pub use access_log::{AccessLog, LogRecord};
pub use books::{Books, Histograms};
pub use ledger::{ById, Connection, Ledger, LiveConnections};
pub use request::RequestFacts;
pub use visit::{Account, Visitor};
