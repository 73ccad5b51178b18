//! TLS as the gateway speaks it: certificates, sessions, and why they fail.

mod cause;
mod certificate;
mod client;
mod client_auth;
mod facts;
mod identity;
pub(crate) mod ktls;
mod server;
mod server_auth;
mod session;
mod upstream;

pub(crate) use client::client_config;
pub use client_auth::Verifiers;
pub use facts::{ClientCertificate, ClientTls};
pub(crate) use identity::client_name;
pub use server::server_config;
#[cfg(test)]
pub(crate) use session::FULL_RECORD;
pub(crate) use session::goes_on;
pub use session::{Dialling, HandshakeError, Role, Serving, Session};
pub use upstream::ServerTls;
