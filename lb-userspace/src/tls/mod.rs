//! TLS as the gateway speaks it: certificates, sessions, and why they fail.

mod cause;
mod client;
mod client_auth;
mod server;
mod session;

pub(crate) use client::client_config;
use client_auth::check_dates;
pub use server::server_config;
pub use session::{HandshakeError, Session};
