//! The operator's side: a Unix socket for the commands, an HTTP address for scrapers, probes and a browser.
//!
//! Both read the gateway through [`Operations`] and hold no state of their own. HTTP changes nothing; what changes
//! something (reload, drain, kill) goes through the socket, which only its owner can open.

mod client;
mod clients;
#[cfg(test)]
pub(crate) mod fake;
pub mod http;
mod metrics;
mod objects;
pub(crate) mod protocol;
pub mod socket;
pub mod text;
pub mod top;
pub mod view;

pub use client::{Client, ClientError};
pub use objects::{counted, objects};

use crate::memory::give_back;
use std::pin::Pin;
use tokio::net::UnixStream;

/// Bytes of an answer about thousands of routes or connections.
const LONG: usize = 8 << 20;

/// An answer of so many bytes was made. What it was made of takes about as much memory as the answer, and is free now.
fn made(bytes: usize) {
    if bytes >= LONG {
        give_back();
    }
}

/// What operators can ask of the gateway and have it do. Calls come from the control runtime and must not block.
pub trait Operations: Send + Sync + 'static {
    /// For `snisplice status`, `/status` and the status page.
    fn status(&self) -> view::Status;

    /// For `snisplice objects`.
    fn objects(&self) -> Vec<view::Object>;

    /// The live connections that pass `filter`, those of an earlier process included.
    fn connections(&self, filter: &view::ConnectionFilter) -> Vec<view::Connection>;

    /// For `/metrics`.
    fn scrape(&self) -> view::Scrape;

    /// Whether clients can be served: configuration loaded, listeners bound, a server in every pool.
    /// Then what an operator might want to know nevertheless, and otherwise each reason why not.
    fn ready(&self) -> Result<Vec<String>, Vec<String>>;

    /// Reads the configuration again. On an error nothing has changed, and the text says why.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<view::Reloaded, String>> + Send>>;

    /// Stops (`draining`) or resumes new connections to `target`: a server, written `POOL/SERVER`, or all of a pool, `POOL`.
    fn drain(&self, target: &str, draining: bool) -> Result<(), String>;

    /// Resets one connection.
    fn kill(&self, connection: u64) -> Result<(), String>;

    /// The process at the other end, which may, wants to take over; the conversation goes on over this connection.
    fn take_over(&self, successor: UnixStream);
}
