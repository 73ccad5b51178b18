//! TLS as the gateway speaks it: certificates, and why it fails.

mod cause;
mod client_auth;
mod server;

pub(crate) use cause::cause;
pub use server::server_config;
