//! TLS as the gateway speaks it: certificates, and why it fails.

mod cause;
mod client;
mod client_auth;
mod server;

pub(crate) use cause::cause;
pub(crate) use client::client_config;
use client_auth::check_dates;
pub use server::server_config;
