//! A live API server as the source of the Gateway API's objects: what it has is watched, and it is told what became of it.
//!
//! The edge of `config::gateway_api`, which is pure. Each node watches for itself, and serves on without an API server; the
//! holder of a Lease writes the statuses.

mod addresses;
mod asked;
mod balancers;
mod client;
mod connection;
mod definitions;
mod endpoints;
mod health;
mod keep;
mod kinds;
mod lease;
mod liveness;
mod names;
mod nodes;
mod place;
mod refused;
mod scope;
mod serves;
mod services;
mod settings;
mod status;
mod store;
mod watch;
mod write;

pub use balancers::Balancers;
pub use client::digest as kubeconfig_digest;
pub use connection::ApiServer;
pub use keep::file as keep_file;
pub use settings::Settings;
pub use store::{Denial, Freshness};
