//! TLS as the gateway speaks it: certificates, sessions, and why they fail.

mod cause;
mod client_auth;
mod server;
mod session;

pub use server::server_config;
pub use session::{HandshakeError, Session};
