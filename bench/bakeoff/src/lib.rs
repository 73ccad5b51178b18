//! What both proxies have in common: their arguments, and their rules.

use std::collections::HashMap;
use std::net::SocketAddr;

/// Threads that carry requests.
pub const WORKERS: usize = 2;

/// Idle connections to servers that are kept, for each thread or for all.
pub const MOST_IDLE: usize = 512;

/// Where requests go, by the first segment of their path.
pub struct Rules(HashMap<String, SocketAddr>);

impl Rules {
    /// `/r0` to `/r9`, all to one server.
    pub fn new(server: SocketAddr) -> Self {
        Rules((0..10).map(|number| (format!("r{number}"), server)).collect())
    }

    /// The server for a path.
    pub fn server(&self, path: &str) -> Option<SocketAddr> {
        let first = path.strip_prefix('/')?.split('/').next()?;
        self.0.get(first).copied()
    }
}

/// The arguments: where to listen, the server, and the files of the certificate's chain and its key.
pub struct Args {
    pub listen: SocketAddr,
    pub server: SocketAddr,
    pub chain: String,
    pub key: String,
}

impl Args {
    pub fn parse() -> Self {
        let mut args = std::env::args().skip(1);
        let mut next =
            |what: &str| args.next().unwrap_or_else(|| panic!("no {what}: LISTEN SERVER CHAIN KEY"));
        Args {
            listen: next("address to listen on").parse().expect("an address to listen on"),
            server: next("server").parse().expect("the address of a server"),
            chain: next("chain"),
            key: next("key"),
        }
    }
}
