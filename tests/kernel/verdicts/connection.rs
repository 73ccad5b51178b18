//! The connection that all tables are about: its ends, its flows, a segment of each kind.
//!
//! The client's sequence numbers are 500 000 further at the server, the server's 90 000 less at the client; of their
//! timestamps, the client's are 1 000 further, the server's 7 less. The client's window counts twice as much, and what
//! the client is told as well: both have offered 300 units.

use std::net::{IpAddr, SocketAddr};

use lb_common::packet::track::{self, Half, Track, closing};
use lb_common::packet::{Ethernet, Flow, Tuple, flag};
use snisplice_tests::topology::{
    CLIENT, CLIENT6, GATEWAY, GATEWAY_BACK, GATEWAY6, GATEWAY6_BACK, SERVER, SERVER6,
};

use crate::model::wire::Wire;
use crate::properties::flow;
use crate::properties::model::{ACK, NOP, PSH, Segment, tuple};

/// The index of what comes from the client.
pub(crate) const FROM_CLIENT: usize = 0;
/// The index of what comes from the server.
pub(crate) const FROM_SERVER: usize = 1;

pub(crate) const LISTENER_PORT: u16 = 443;
/// From which the server is dialled.
pub(crate) const SOURCE_PORT: u16 = 40_000;

/// Where what is known of it stands.
pub(crate) const SLOT: u32 = 3;

#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) v6: bool,
    /// By what packets arrive; [`FROM_CLIENT`] first.
    pub(crate) tuples: [Tuple; 2],
    pub(crate) flows: [Flow; 2],
    /// What is known of it before the first packet.
    pub(crate) track: Track,
}

impl Connection {
    /// Both legs have timestamps and SACK.
    pub(crate) fn new(v6: bool) -> Self {
        let [[client, gateway], [back, server]] = [near(v6), far(v6)];
        let flags = flag::TIMESTAMPS | flag::SACK;
        let half = |seq: u32, ack: u32, window: u32| Half {
            position: 1 << 32 | u64::from(seq),
            gap: seq,
            ack,
            edge: ack + window,
            most: 300,
            ..Half::default()
        };
        let halves = [half(1_000, 2_000, 600), half(92_000, 501_000, 300)];
        let from_client = Flow {
            seq_delta: 500_000,
            ack_delta: 90_000,
            tsval_delta: 1_000,
            tsecr_delta: 7,
            origin: halves[FROM_CLIENT].position,
            slot: SLOT,
            own_scale: 1,
            flags,
            ..flow(back, server)
        };
        let from_server = Flow {
            seq_delta: 90_000_u32.wrapping_neg(),
            ack_delta: 500_000_u32.wrapping_neg(),
            tsval_delta: 7_u32.wrapping_neg(),
            tsecr_delta: 1_000_u32.wrapping_neg(),
            origin: halves[FROM_SERVER].position,
            slot: SLOT,
            peer_scale: 1,
            promised_scale: 1,
            flags: flags | flag::FROM_SERVER,
            ..flow(gateway, client)
        };
        let tuples = [tuple(client, gateway), tuple(server, back)];
        Self { v6, tuples, flows: [from_client, from_server], track: Track { halves: halves.into() } }
    }

    /// The same with other flows.
    pub(crate) fn with(&self, change: impl Fn(&mut Flow)) -> Self {
        let mut new = self.clone();
        new.flows.iter_mut().for_each(change);
        new
    }

    /// The same with the numbers, scales and knowledge of another.
    pub(crate) fn like(&self, wire: &Wire) -> Self {
        let mut new = Self { track: wire.track, ..self.clone() };
        for (flow, like) in new.flows.iter_mut().zip(&wire.flows) {
            *flow = Flow {
                origin: like.origin,
                seq_delta: like.seq_delta,
                ack_delta: like.ack_delta,
                own_scale: like.own_scale,
                peer_scale: like.peer_scale,
                promised_scale: like.promised_scale,
                ..*flow
            };
        }
        new
    }

    /// A packet of one end with these numbers.
    pub(crate) fn packet(&self, side: usize, segment: &track::Segment) -> Segment {
        let plain = if side == FROM_CLIENT { self.request() } else { self.response() };
        let stamps = [&[NOP, NOP, 8, 10][..], &segment.tsval.to_be_bytes(), &[0; 4]].concat();
        Segment {
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags.into(),
            window: segment.window,
            options: if segment.timestamps { stamps } else { Vec::new() },
            payload: vec![7; segment.payload as usize],
            ..plain
        }
    }

    /// The same when its halves are known to be otherwise.
    pub(crate) fn known(&self, change: impl Fn(&mut Half)) -> Self {
        let mut new = self.clone();
        new.track.halves.each_mut().into_iter().for_each(change);
        new
    }

    /// The same while sockets may still live.
    pub(crate) fn in_handover(&self) -> Self {
        self.known(|half| half.closing |= closing::HANDOVER)
    }

    /// A segment of five bytes, the next that the client sends.
    pub(crate) fn request(&self) -> Segment {
        let [client, gateway] = near(self.v6);
        segment(client, gateway, 1_000, 2_000, 300)
    }

    /// The same as it leaves.
    pub(crate) fn forwarded_request(&self) -> Segment {
        let [back, server] = far(self.v6);
        segment(back, server, 501_000, 92_000, 600)
    }

    /// A segment of five bytes, the next that the server sends.
    pub(crate) fn response(&self) -> Segment {
        let [back, server] = far(self.v6);
        segment(server, back, 92_000, 501_000, 300)
    }

    /// The same as it leaves.
    pub(crate) fn forwarded_response(&self) -> Segment {
        let [client, gateway] = near(self.v6);
        segment(gateway, client, 2_000, 1_000, 150)
    }
}

/// The client, and where it connects to.
fn near(v6: bool) -> [SocketAddr; 2] {
    let ips: [IpAddr; 2] =
        if v6 { [CLIENT6.into(), GATEWAY6.into()] } else { [CLIENT.into(), GATEWAY.into()] };
    [SocketAddr::new(ips[0], 50_000), SocketAddr::new(ips[1], LISTENER_PORT)]
}

/// From where the server is dialled, and the server.
fn far(v6: bool) -> [SocketAddr; 2] {
    let ips: [IpAddr; 2] =
        if v6 { [GATEWAY6_BACK.into(), SERVER6.into()] } else { [GATEWAY_BACK.into(), SERVER.into()] };
    [SocketAddr::new(ips[0], SOURCE_PORT), SocketAddr::new(ips[1], 6379)]
}

fn segment(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, window: u16) -> Segment {
    let (options, payload) = (Vec::new(), b"hello".to_vec());
    Segment { from, to, traffic_class: 0, seq, ack, flags: ACK | PSH, window, urgent: 0, options, payload }
}

/// By which Ethernet addresses packets arrive: at the loopback device, whose own is nothing but zeros.
pub(crate) const ADDRESSES: Ethernet = *b"\0\0\0\0\0\0\x02\0\0\0\0\x02";

/// An IP packet behind an Ethernet header.
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    with_link_header(ADDRESSES, packet)
}

/// An IP packet behind an Ethernet header with these addresses.
pub(crate) fn with_link_header(addresses: Ethernet, packet: &[u8]) -> Vec<u8> {
    let kind: &[u8] = if packet[0] >> 4 == 4 { b"\x08\0" } else { b"\x86\xdd" };
    [&addresses[..], kind, packet].concat()
}

/// A segment behind an Ethernet header.
pub(crate) fn frame(segment: &Segment) -> Vec<u8> {
    framed(&segment.packet())
}
