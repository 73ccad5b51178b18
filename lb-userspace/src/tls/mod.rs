//! TLS as the gateway speaks it: certificates, sessions, and why they fail.

mod cause;
mod client;
mod client_auth;
mod identity;
mod server;
mod session;

pub(crate) use client::client_config;
pub use client_auth::Verifiers;
use client_auth::check_dates;
pub(crate) use identity::client_name;
pub use server::server_config;
pub use session::{HandshakeError, Session};
