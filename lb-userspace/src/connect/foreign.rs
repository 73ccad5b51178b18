//! Source ports that other gateways on this host use toward a server.

use crate::kernel::foreign::{FlowTable, flow_tables};
use crate::kernel::tuples::tuple;
use arc_swap::ArcSwap;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

/// The other gateways on this host that have pinned flow tables. If there are none, a connection costs one look at an empty
/// list.
pub(super) struct Foreign {
    bpffs: PathBuf,
    /// Our source ports.
    source_ports: RangeInclusive<u16>,
    tables: ArcSwap<Vec<FlowTable>>,
}

/// The connections of other gateways to one server.
pub(super) struct Toward {
    tables: Arc<Vec<FlowTable>>,
    server: SocketAddr,
    /// Our address in connections to that server.
    address: IpAddr,
}

impl Foreign {
    /// Looks for other gateways for the first time.
    pub(super) fn new(bpffs: PathBuf, source_ports: RangeInclusive<u16>) -> Self {
        let foreign = Self { bpffs, source_ports, tables: ArcSwap::default() };
        foreign.look();
        foreign
    }

    /// Looks for other gateways anew, and warns of new ones whose source ports overlap ours. Until a new one is noticed,
    /// `connect` tries another port if one is not answered.
    pub(super) fn look(&self) {
        let (known, tables) = (self.tables.load(), flow_tables(&self.bpffs));
        if known.iter().map(FlowTable::id).eq(tables.iter().map(FlowTable::id)) {
            return;
        }
        for new in tables.iter().filter(|table| known.iter().all(|known| known.id() != table.id())) {
            self.tell_overlap(new);
        }
        self.tables.store(Arc::new(tables));
    }

    fn tell_overlap(&self, table: &FlowTable) {
        let ours = &self.source_ports;
        if let Some(theirs) = table.overlapping(&self.bpffs, ours) {
            tracing::warn!(
                directory = %table.directory().display(),
                "another gateway on this host uses source ports {}-{}, this one {}-{}: give each its own (`source_ports`)",
                theirs.start(), theirs.end(), ours.start(), ours.end(),
            );
        }
    }

    /// `None`: there is no other gateway. `address`: our address in connections to that server, if the route does not
    /// say it.
    pub(super) fn toward(&self, server: SocketAddr, address: Option<IpAddr>) -> Option<Toward> {
        let tables = self.tables.load();
        if tables.is_empty() {
            return None;
        }
        // An error: there is no route to the server, and the attempt to connect will say so.
        let address = address.or_else(|| address_toward(server).ok())?;
        Some(Toward { tables: Arc::clone(&tables), server, address })
    }
}

impl Toward {
    /// Whether a connection from this port of ours to the server belongs to another gateway.
    pub(super) fn has(&self, port: u16) -> bool {
        let tuple = tuple(self.server, SocketAddr::new(self.address, port));
        self.tables.iter().any(|table| table.contains(&tuple))
    }
}

/// Our address in a connection to the server. Found out by connecting a datagram socket, which sends nothing.
fn address_toward(server: SocketAddr) -> io::Result<IpAddr> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, None)?;
    socket.connect(&server.into())?;
    let local = socket.local_addr()?.as_socket();
    local.map(|local| local.ip()).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_address_toward_a_server_is_that_of_the_route() {
        assert_eq!(address_toward("127.0.0.1:9".parse().unwrap()).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
