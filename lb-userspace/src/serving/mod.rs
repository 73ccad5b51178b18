//! Serving: what is served, as the configuration says and as it runs now: listeners, routes, pools, servers, and their
//! counters. It knows nothing of who counts, connects or splices.

mod addresses;
mod drains;
mod limit;
mod pool;
mod setback;
mod snapshot;
mod stats;

pub use addresses::Addresses;
pub use limit::{Limit, Permit};
pub use pool::{Member, Pool, Server, ServerGuard, ServerRecord};
pub use setback::Setbacks;
pub use snapshot::{Action, CertificateRefused, Listener, Route, Snapshot, Terminator};
pub use stats::{GatewayStats, ListenerStats, PerReason, RouteStats, TierStats};
