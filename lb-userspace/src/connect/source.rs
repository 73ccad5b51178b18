//! The source port of a connection to a server: one of our own, which no spliced connection on this host has.

use super::foreign::Foreign;
use super::ports::SourcePorts;
use crate::clock::now_ms;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

/// The source ports of this gateway, and a look at those of others on this host.
pub struct GatewayPorts {
    own: SourcePorts,
    foreign: Foreign,
}

/// A source port toward a server, taken until dropped.
pub struct SourcePort {
    ports: Arc<GatewayPorts>,
    /// The server's address and port: as a `SocketAddr` half as large again, in each idle connection.
    server: (IpAddr, u16),
    port: u16,
}

impl GatewayPorts {
    /// All of `range` are free. `bpffs`: where this gateway pins its flow table, so that it is not taken for another's.
    pub fn new(range: RangeInclusive<u16>, bpffs: PathBuf) -> Self {
        Self { foreign: Foreign::new(bpffs, range.clone()), own: SourcePorts::new(range) }
    }

    /// The ports that are handed out.
    pub fn range(&self) -> RangeInclusive<u16> {
        self.own.range()
    }

    /// A port of our own toward the server, which no spliced connection has, be it another gateway's.
    pub fn take(self: &Arc<Self>, server: SocketAddr) -> Option<SourcePort> {
        let foreign = self.foreign.toward(server);
        let server = (server.ip(), server.port());
        let take = || {
            let port = self.own.take(server.into(), now_ms())?;
            Some(SourcePort { ports: self.clone(), server, port })
        };
        // One that is passed over rests like one of ours, so each is looked at once.
        std::iter::from_fn(take).find(|port| !foreign.as_ref().is_some_and(|foreign| foreign.has(port.port)))
    }

    /// The port of a connection of an earlier process.
    pub fn reserve(self: &Arc<Self>, server: SocketAddr, port: u16) -> SourcePort {
        let server = (server.ip(), server.port());
        self.own.reserve(server.into(), port);
        SourcePort { ports: self.clone(), server, port }
    }

    /// Nobody has answered a connection to the server: the next one is not from the next port.
    pub fn look_elsewhere(&self, server: SocketAddr) {
        self.own.look_elsewhere((server.ip(), server.port()).into());
    }

    /// Takes notice of other gateways that have come or gone.
    pub fn follow_others(&self) {
        self.foreign.look();
    }
}

impl SourcePort {
    /// Its number.
    pub fn number(&self) -> u16 {
        self.port
    }
}

impl Drop for SourcePort {
    fn drop(&mut self) {
        self.ports.own.give_back(self.server.into(), self.port, now_ms());
    }
}
