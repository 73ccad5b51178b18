//! TLS as the gateway speaks it: certificates, and why it fails.

mod cause;
mod client_auth;
mod identity;
mod server;

pub(crate) use cause::cause;
pub use client_auth::Verifiers;
pub(crate) use identity::client_name;
pub use server::server_config;
