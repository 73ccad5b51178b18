//! Serving: what is served, as the configuration says and as it runs now: listeners, routes, pools, servers, and their
//! counters. It knows nothing of who counts, connects or splices.

mod addresses;
mod client_limit;
mod clients;
mod limit;
mod pool;
mod setback;
mod snapshot;
mod stats;

pub use addresses::Addresses;
pub use client_limit::{ClientLimit, ClientPermit};
pub use clients::Excess;
pub use limit::{Limit, Permit, Permits};
pub use pool::{Member, Pool, Server, ServerGuard, ServerRecord};
pub use setback::Setbacks;
pub use snapshot::{CertificateRefused, Listener, Route, Snapshot, TerminatedRoute};
pub use stats::{GatewayStats, ListenerStats, PerReason, RouteStats, TierStats};
