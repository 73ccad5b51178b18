//! Packets of the tables.

use etherparse::{IpHeaders, Ipv4Header};

use crate::connection::{frame, framed};
use crate::programs::Fate;
use crate::properties::model::{NOP, Segment};

pub(super) fn leaves(segment: Segment) -> Fate {
    Fate::Leaves(frame(&segment))
}

/// NOP, NOP, timestamps: what nearly every segment has.
pub(super) fn stamped(tsval: u32, tsecr: u32) -> Vec<u8> {
    [&[NOP, NOP, 8, 10][..], &tsval.to_be_bytes(), &tsecr.to_be_bytes()].concat()
}

pub(super) fn blocks(edges: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = edges.iter().flat_map(|edge| edge.to_be_bytes()).collect();
    [&[5, 2 + bytes.len() as u8][..], &bytes].concat()
}

/// With the IP header changed, and its checksum right again.
pub(crate) fn with_ip_header(segment: &Segment, change: impl FnOnce(&mut IpHeaders)) -> Vec<u8> {
    let packet = segment.packet();
    let (mut headers, payload) = IpHeaders::from_slice(&packet).expect("whole headers");
    change(&mut headers);
    headers.set_payload_len(payload.payload.len()).expect("short");
    if let IpHeaders::Ipv4(header, _) = &mut headers {
        header.header_checksum = header.calc_header_checksum();
    }
    let mut packet = Vec::new();
    headers.write(&mut packet).expect("room");
    framed(&[&packet, payload.payload].concat())
}

pub(crate) fn ipv4(change: impl FnOnce(&mut Ipv4Header)) -> impl FnOnce(&mut IpHeaders) {
    |headers| match headers {
        IpHeaders::Ipv4(header, _) => change(header),
        IpHeaders::Ipv6(..) => panic!("an IPv4 packet"),
    }
}
