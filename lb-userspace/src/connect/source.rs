//! The source port of a connection to a server: one of our own, which no spliced connection on this host has.

use super::foreign::Foreign;
use super::ports::SourcePorts;
use crate::clock::now_ms;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

/// The source ports of this gateway, without those that other gateways on this host use.
pub struct GatewayPorts {
    own: SourcePorts,
    foreign: Foreign,
}

/// A source port toward a server. It is taken until this is dropped.
pub struct SourcePort {
    ports: Arc<GatewayPorts>,
    /// The server's address and port. A `SocketAddr` would be half as large again, and every idle connection has one.
    server: (IpAddr, u16),
    port: u16,
}

impl GatewayPorts {
    /// All of `range` are free. `bpffs`: where this gateway's own flow table is pinned.
    pub fn new(range: RangeInclusive<u16>, bpffs: PathBuf) -> Self {
        Self { foreign: Foreign::new(bpffs, range.clone()), own: SourcePorts::new(range) }
    }

    /// The ports that are handed out.
    pub fn range(&self) -> RangeInclusive<u16> {
        self.own.range()
    }

    /// A port toward the server that no spliced connection has, neither ours nor another gateway's. `client`: the source
    /// is this client's address; and its port, if that is one of ours and free.
    pub fn take(self: &Arc<Self>, server: SocketAddr, client: Option<SocketAddr>) -> Option<SourcePort> {
        let foreign = self.foreign.toward(server, client.map(|client| client.ip()));
        let server = (server.ip(), server.port());
        let take = || {
            let port = self.own.take(server.into(), client.map(|client| client.port()), now_ms())?;
            Some(SourcePort { ports: self.clone(), server, port })
        };
        // A port that is passed over is given back and rests, so each port is looked at once.
        std::iter::from_fn(take).find(|port| !foreign.as_ref().is_some_and(|foreign| foreign.has(port.port)))
    }

    /// Takes the port of an adopted connection.
    pub fn reserve(self: &Arc<Self>, server: SocketAddr, port: u16) -> SourcePort {
        let server = (server.ip(), server.port());
        self.own.reserve(server.into(), port);
        SourcePort { ports: self.clone(), server, port }
    }

    /// A connection to the server got no answer: the next port is taken from another place in the range.
    pub fn look_elsewhere(&self, server: SocketAddr) {
        self.own.look_elsewhere((server.ip(), server.port()).into());
    }

    /// Looks for other gateways anew.
    pub fn follow_others(&self) {
        self.foreign.look();
    }
}

impl SourcePort {
    /// Its number.
    pub fn number(&self) -> u16 {
        self.port
    }

    /// The server.
    pub fn server(&self) -> SocketAddr {
        self.server.into()
    }
}

impl Drop for SourcePort {
    fn drop(&mut self) {
        self.ports.own.give_back(self.server.into(), self.port, now_ms());
    }
}
