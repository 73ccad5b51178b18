// Flows, and segments that are theirs.

use std::net::{IpAddr, SocketAddr};

use lb_common::packet::Flow;
use lb_common::packet::options::MAX;
use proptest::prelude::*;

use crate::properties::flow as plain_flow;
use crate::properties::model::{NOP, Segment};

/// Any number, and more often than chance would have it one where arithmetic goes wrong.
pub(crate) fn number() -> impl Strategy<Value = u32> {
    const EDGES: [u32; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_0000];
    prop_oneof![2 => any::<u32>(), 1 => prop::sample::select(&EDGES[..])]
}

fn ends(v6: bool) -> impl Strategy<Value = [SocketAddr; 2]> {
    let end = move || {
        let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
        let v6_addresses = any::<[u8; 16]>().prop_map(IpAddr::from);
        let ip = if v6 { v6_addresses.boxed() } else { v4.boxed() };
        (ip, any::<u16>()).prop_map(SocketAddr::from)
    };
    [end(), end()]
}

/// A flow, the ends that its packets arrive with, and a floor for their TSecr.
pub(crate) fn flow() -> impl Strategy<Value = (Flow, [SocketAddr; 2], Option<u32>)> {
    any::<bool>().prop_flat_map(|v6| {
        let deltas = [number(), number(), number(), number()];
        let floor = prop::option::of(number());
        (ends(v6), ends(v6), deltas, [0_u8..=14, 0..=14], 0_u8..16, floor).prop_map(
            |(
                arriving,
                [from, to],
                [seq_delta, ack_delta, tsval_delta, tsecr_delta],
                [own_scale, promised_scale],
                flags,
                floor,
            )| {
                let flow = Flow {
                    seq_delta,
                    ack_delta,
                    tsval_delta,
                    tsecr_delta,
                    own_scale,
                    promised_scale,
                    flags,
                    ..plain_flow(from, to)
                };
                (flow, arriving, floor)
            },
        )
    })
}

/// A segment with whatever options.
pub(crate) fn segment(ends: [SocketAddr; 2]) -> impl Strategy<Value = Segment> {
    let window = prop_oneof![any::<u16>(), prop::sample::select(&[0, 1, 2, 0x7fff, 0x8000, 0xffff][..])];
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let numbers = [number(), number()];
    (numbers, 0_u16..0x200, window, any::<u16>(), options(), payload).prop_map(
        move |([seq, ack], flags, window, urgent, options, payload)| {
            let [from, to] = ends;
            Segment { from, to, traffic_class: 0, seq, ack, flags, window, urgent, options, payload }
        },
    )
}

/// Options in any order, at any alignment; now and then damaged. A multiple of four bytes.
pub(crate) fn options() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::option::weighted(0.4, (any::<prop::sample::Index>(), any::<u8>()));
    (prop::collection::vec(option(), 0..6), damage).prop_map(|(options, damage)| {
        let mut bytes = Vec::new();
        for option in options {
            if bytes.len() + option.len() <= MAX {
                bytes.extend(option);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(4), NOP);
        if let Some((at, byte)) = damage.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

/// One option: padding, the end, what segments have, what SYNs have, what nobody knows.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let numbers = |count| prop::collection::vec(number(), count);
    let of_numbers = |kind: u8, numbers: Vec<u32>| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
        [&[kind, 2 + bytes.len() as u8][..], &bytes].concat()
    };
    prop_oneof![
        6 => Just(vec![NOP]),
        1 => Just(vec![0]),
        6 => numbers(2).prop_map(move |stamps| of_numbers(8, stamps)),
        6 => (1_usize..=4).prop_flat_map(move |blocks| numbers(2 * blocks)).prop_map(move |e| of_numbers(5, e)),
        2 => any::<[u8; 2]>().prop_map(|mss| [&[2, 4][..], &mss].concat()),
        2 => any::<u8>().prop_map(|scale| vec![3, 3, scale]),
        2 => Just(vec![4, 2]),
        2 => (9_u8.., prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(kind, data)| [&[kind, 2 + data.len() as u8][..], &data].concat()),
    ]
}
