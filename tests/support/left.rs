//! Connections of the packet tier that nobody has: the pinned maps of a gateway, filled as one leaves them at its end. Far more
//! than there can be sockets on a machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::packet::track::{Half, Track};
use lb_common::packet::{
    CONNECTIONS, FLOWS, Flow, HANDOVERS, Handover, NAMES, Name, PerLeg, Record, Side, TICK_SHIFT, TRACKS,
    Tuple, exit, flag,
};
use rustix::time::{ClockId, clock_gettime};

use crate::topology::{CLIENT, GATEWAY, GATEWAY_BACK, SERVER, Triangle};

/// Where their clients are, by the client's namespace. The addresses are for benchmarks (RFC 2544), and no packet has them.
pub const CLIENTS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Where their servers are, by the server's namespace.
pub const SERVERS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// Connections between one client, or one server, and the gateway.
const PER_ADDRESS: u32 = 50_000;

/// Bytes that each end has sent.
pub const SENT: u32 = 1000;

/// Keys of the names.
const KEYS: [u64; 4] = [1, 2, 3, 4];

/// What is left of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// All: it is open.
    Open,
    /// All, and its handover is under way.
    HandedOver,
    /// Its flows without a record: it was closed a moment ago.
    Closed,
    /// Its record and one of its flows.
    OneFlow,
    /// Its record.
    NoFlow,
}

/// What connections belong to.
#[derive(Clone, Copy, Debug)]
pub struct Belonging<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// The listener's port.
    pub port: u16,
    /// The name of route and pool.
    pub route: &'a str,
    /// The server's name in the pool.
    pub server: SocketAddr,
    /// The server name that the clients have asked for.
    pub sni: &'a str,
}

/// The maps of a gateway that does not run.
pub struct LeftMaps<'a> {
    belonging: Belonging<'a>,
    flows: HashMap<MapData, Tuple, Flow>,
    tracks: Array<MapData, Track>,
    records: HashMap<MapData, u64, Record>,
    handovers: HashMap<MapData, u64, Handover>,
    /// Toward the client, and toward the server.
    devices: [u32; 2],
}

/// Adds routes to the ends of all such connections.
pub fn route_to_ends(net: &Triangle) -> Result<()> {
    for (ends, via) in [(CLIENTS, CLIENT), (SERVERS, SERVER)] {
        net.gateway.ip(&format!("route add {ends}/16 via {via}"))?;
    }
    Ok(())
}

/// A map of the packet tier. `pins`: the directory of its pins.
pub fn pinned<M: TryFrom<Map, Error = aya::maps::MapError>>(
    pins: &Path,
    name: &str,
    kind: fn(MapData) -> Map,
) -> Result<M> {
    let path = pins.join(name);
    let data = MapData::from_pin(&path).with_context(|| format!("the map {}", path.display()))?;
    Ok(M::try_from(kind(data))?)
}

/// The keys of a hash of the packet tier.
pub fn keys<K: Pod, V: Pod>(pins: &Path, name: &str) -> Result<Vec<K>> {
    let map: HashMap<MapData, K, V> = pinned(pins, name, Map::HashMap)?;
    Ok(map.keys().collect::<Result<_, _>>()?)
}

impl<'a> LeftMaps<'a> {
    /// `pins`: the directory of the packet tier's pins.
    pub fn open(pins: &Path, net: &Triangle, belonging: Belonging<'a>) -> Result<Self> {
        let mut names: HashMap<MapData, u64, Name> = pinned(pins, NAMES, Map::HashMap)?;
        let server = belonging.server.to_string();
        let texts = [belonging.listener, belonging.route, belonging.route, &server];
        for (key, name) in KEYS.iter().zip(texts) {
            let mut text = [0; 270];
            text[..name.len()].copy_from_slice(name.as_bytes());
            names.insert(key, Name { length: name.len() as u16, text }, 0)?;
        }
        let [front, back] = net.gateway.run(|| ["front", "back"].map(nix::net::if_::if_nametoindex));
        Ok(Self {
            belonging,
            flows: pinned(pins, FLOWS, Map::HashMap)?,
            tracks: pinned(pins, TRACKS, Map::Array)?,
            records: pinned(pins, CONNECTIONS, Map::HashMap)?,
            handovers: pinned(pins, HANDOVERS, Map::HashMap)?,
            devices: [front?, back?],
        })
    }

    /// Adds the connections of these numbers. Each end was last heard just now.
    pub fn leave(&mut self, numbers: Range<u32>, what: Left) -> Result<()> {
        let now = clock_gettime(ClockId::Monotonic);
        let now = (now.tv_sec * 1_000_000_000 + now.tv_nsec).unsigned_abs();
        let track = track((now >> TICK_SHIFT) as u32);
        for number in numbers {
            self.leave_one(number, what, &track, now / 1_000_000)
                .context("filling the packet tier's maps")?;
        }
        Ok(())
    }

    fn leave_one(&mut self, number: u32, what: Left, track: &Track, opened_ms: u64) -> Result<()> {
        let (id, slot, tuples) = (u64::from(number) + 1, number, tuples(number, self.belonging.port));
        let [front, back] = self.devices;
        self.tracks.set(slot, track, 0)?;
        if what != Left::Closed {
            self.records.insert(id, self.record(&tuples, opened_ms), 0)?;
        }
        if what == Left::HandedOver {
            self.handovers.insert(id, Handover::default(), 0)?;
        }
        for (side, devices) in [(Side::Client, [front, back]), (Side::Server, [back, front])] {
            if what != Left::NoFlow && (what != Left::OneFlow || side == Side::Client) {
                self.flows.insert(tuples.get(side), flow(id, slot, side, &tuples, devices), 0)?;
            }
        }
        Ok(())
    }

    fn record(&self, tuples: &PerLeg<Tuple>, opened_ms: u64) -> Record {
        let sni = self.belonging.sni.as_bytes();
        // A tag, a length and the name.
        let field = [&[1, sni.len() as u8], sni].concat();
        let mut facts = [0; Record::FACTS];
        facts[..field.len()].copy_from_slice(&field);
        Record {
            opened_ms,
            names: KEYS,
            from_client: tuples.client,
            from_server: tuples.server,
            client: tuples.client.source,
            client_port: tuples.client.source_port,
            facts_length: field.len() as u16,
            idle_timeout: 0,
            max_age: 0,
            facts,
        }
    }
}

/// What the packets of connection `number` would be addressed by, the client's to this port of the gateway.
pub fn tuples(number: u32, to: u16) -> PerLeg<Tuple> {
    let (host, port) = (number / PER_ADDRESS, (10_000 + (number % PER_ADDRESS) as u16).to_be());
    let address = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
    let end = |first: Ipv4Addr| (first.to_bits() + 1 + host).to_be();
    PerLeg {
        client: Tuple::v4(end(CLIENTS), address(GATEWAY), port, to.to_be()),
        server: Tuple::v4(end(SERVERS), address(GATEWAY_BACK), 6379_u16.to_be(), port),
    }
}

/// The flow of the packets of one end of such a connection, from one device to another.
pub fn flow(id: u64, slot: u32, side: Side, tuples: &PerLeg<Tuple>, [from, to]: [u32; 2]) -> Flow {
    Flow {
        id,
        origin: 0,
        out: tuples.get(side.other()).reversed(),
        seq_delta: 0,
        ack_delta: 0,
        tsval_delta: 0,
        tsecr_delta: 0,
        ifindex: to,
        from,
        slot,
        own_scale: 0,
        peer_scale: 0,
        promised_scale: 0,
        flags: if side == Side::Server { flag::FROM_SERVER } else { 0 },
        exit: exit::NEIGHBOUR,
        padding: [0; 3],
    }
}

/// Both ends have sent and acknowledged as much, and were heard at this tick.
fn track(heard: u32) -> Track {
    let half = Half {
        position: SENT.into(),
        gap: SENT,
        ack: SENT,
        edge: SENT + (1 << 16),
        heard,
        most: u16::MAX,
        ..Half::default()
    };
    Track { halves: PerLeg { client: half, server: half } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_connections_share_a_tuple() {
        let all: Vec<Tuple> = (0..1_000_000)
            .map(|number| tuples(number, 443))
            .flat_map(|tuples| [tuples.client, tuples.server])
            .collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }
}
