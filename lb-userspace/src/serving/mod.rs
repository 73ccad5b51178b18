//! Serving: the listeners, routes, pools and servers at run time, with their counters. It depends on no stage that counts,
//! connects or splices.

mod addresses;
mod availability;
mod client_limit;
mod clients;
mod drains;
mod epoch;
mod health;
mod heard;
mod http;
mod known;
mod label;
mod limit;
mod mysql;
mod pool;
mod room;
mod route;
mod server;
mod setback;
mod snapshot;
mod stats;
mod terminator;

pub use addresses::Addresses;
pub use client_limit::{ClientLimit, ClientPermit};
pub use clients::Excess;
pub use epoch::Epoch;
pub use health::{Checked, HealthRecord, Turn};
pub use heard::Heard;
pub use http::{HttpRule, Requests, is_copied};
pub use known::Known;
pub use limit::{Limit, Permit, Permits};
pub use mysql::{Entered, Numbering, Reception, Threads};
pub use pool::{Member, Pool, Unavailable};
pub use room::Room;
pub use route::Route;
pub use server::{Server, ServerGuard, ServerRecord};
pub use setback::Setbacks;
pub use snapshot::{Ech, Listener, Snapshot};
pub use stats::{GatewayStats, HttpCounts, ListenerStats, PerReason, RouteCounts, RouteStats, TierStats};
pub use terminator::{CertificateRefused, Terminator};
