//! Fragments, IPv4 options and IPv6 extension headers.

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpFragOffset, Ipv4Header};
use lb_common::packet::{Count, FORWARD_BARE};

use crate::connection::{Connection, FROM_SERVER, frame, framed};
use crate::programs::{Arrival, Fate, Programs, check, with_programs};
use crate::properties::model::{NOP, Segment, tuple};
use crate::segments::{ipv4, with_ip_header};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const UDP: u8 = 17;

/// A piece of an IPv4 segment: bytes of payload before it, how many it has, and whether more follow.
fn piece(segment: &Segment, id: u16, offset: usize, length: usize, more: bool) -> Vec<u8> {
    let change = |header: &mut Ipv4Header| {
        header.identification = id;
        header.fragment_offset = IpFragOffset::try_new(offset as u16 / 8).expect("13 bits");
        header.more_fragments = more;
    };
    let whole = with_ip_header(segment, ipv4(change));
    let (head, payload) = whole.split_at(34);
    let mut piece = [head, &payload[offset..offset + length]].concat();
    let total = (20 + length as u16).to_be_bytes();
    piece[16..18].copy_from_slice(&total);
    piece
}

/// An IPv6 packet with these extension headers, each eight bytes: its own number, and what follows the length byte.
fn extended(segment: &Segment, headers: &[(u8, [u8; 6])], last: u8, part: &[u8]) -> Vec<u8> {
    let packet = segment.packet();
    let mut chain = Vec::new();
    for (at, (_, content)) in headers.iter().enumerate() {
        chain.push(headers.get(at + 1).map_or(last, |(kind, _)| *kind));
        chain.push(0);
        chain.extend(content);
    }
    let length = ((chain.len() + part.len()) as u16).to_be_bytes();
    let first = headers.first().map_or(last, |(kind, _)| *kind);
    framed(&[&packet[..4], &length, &[first], &packet[7..40], &chain, part].concat())
}

const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

fn fragment(id: u8, offset: u16, more: bool) -> (u8, [u8; 6]) {
    let [high, low] = (offset | u16::from(more)).to_be_bytes();
    (FRAGMENT, [high, low, 0, 0, 0, id])
}

/// Checks what becomes of frames, and which of them were copied.
fn taken(programs: &mut Programs, rows: Vec<(&str, Vec<u8>, Fate, bool)>) -> Result<()> {
    for (what, frame, expected, copied) in rows {
        let fate = programs.run(&frame).with_context(|| what.to_owned())?;
        ensure!(fate == expected, "{what}: {frame:02x?} becomes {fate:02x?}, not {expected:02x?}");
        let found = programs.odd();
        let expected: Vec<_> = copied.then_some((1, 0, frame)).into_iter().collect();
        ensure!(found == expected, "{what}: copied {found:02x?}");
    }
    Ok(())
}

#[test]
fn odd_ipv4_packets_of_a_flow_are_handed_up_and_no_others() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false);
        programs.splice(&connection)?;
        programs.read_odd()?;
        let ours = connection.request();
        let other = Segment { from: ([10, 0, 1, 2], 50_001).into(), ..ours.clone() };
        let options =
            |segment: &Segment| with_ip_header(segment, ipv4(|header| header.options = [NOP; 40].into()));
        let passed = || Fate::Passed;
        let rows = vec![
            ("options", options(&ours), Fate::HandedUp, true),
            ("options of another connection", options(&other), passed(), false),
            ("a later fragment, nothing known", piece(&ours, 5, 8, 8, true), passed(), false),
            ("a first fragment", piece(&ours, 5, 0, 8, true), Fate::HandedUp, true),
            ("a later one", piece(&ours, 5, 8, 8, true), Fate::HandedUp, true),
            ("the last one, shorter than a TCP header", piece(&ours, 5, 24, 1, false), Fate::HandedUp, true),
            ("one that comes before its first", piece(&ours, 6, 8, 8, true), passed(), true),
            ("the first of another connection", piece(&other, 5, 0, 8, true), passed(), false),
            ("a later one of that", piece(&other, 5, 8, 8, true), passed(), true),
        ];
        taken(programs, rows)?;
        let mut short = options(&ours);
        short.truncate(14 + 60 + 3);
        let mut cut = frame(&ours);
        cut.truncate(14 + 20 + 19);
        let rows = vec![("cut off in the ports", short, passed(), false), ("cut off", cut, passed(), false)];
        taken(programs, rows)
    })
}

#[test]
fn odd_ipv6_packets_of_a_flow_are_handed_up_and_no_others() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(true);
        programs.splice(&connection)?;
        programs.read_odd()?;
        let ours = connection.request();
        let other = Segment { from: (ours.from.ip(), 50_001).into(), ..ours.clone() };
        let whole = |segment: &Segment, headers: &[(u8, [u8; 6])]| {
            extended(segment, headers, 6, &segment.packet()[40..])
        };
        let tcp = ours.packet()[40..].to_vec();
        let options = (DESTINATION, PADDING);
        let all = [(HOP_BY_HOP, PADDING), options, (ROUTING, [0; 6]), fragment(9, 0, false), options];
        let passed = || Fate::Passed;
        let udp = |headers: &[_]| extended(&ours, headers, UDP, &tcp);
        let rows = vec![
            ("destination options", whole(&ours, &[options]), Fate::HandedUp, true),
            ("every header there is", whole(&ours, &all), Fate::HandedUp, true),
            ("more headers than that", whole(&ours, &[options; 7]), passed(), false),
            ("of another connection", whole(&other, &[options]), passed(), false),
            ("before UDP", udp(&[options]), passed(), false),
            (
                "a later fragment, nothing known",
                extended(&ours, &[fragment(7, 8, true)], 6, &tcp[8..16]),
                passed(),
                false,
            ),
            (
                "a first fragment",
                extended(&ours, &[fragment(7, 0, true)], 6, &tcp[..8]),
                Fate::HandedUp,
                true,
            ),
            ("a later one", extended(&ours, &[fragment(7, 8, true)], 6, &tcp[8..16]), Fate::HandedUp, true),
            ("the last one", extended(&ours, &[fragment(7, 24, false)], 6, &tcp[24..]), Fate::HandedUp, true),
            (
                "one before its first",
                extended(&ours, &[fragment(8, 8, true)], 6, &tcp[8..16]),
                passed(),
                true,
            ),
            ("the first of UDP", udp(&[fragment(7, 0, true)]), passed(), false),
            ("a header that is cut off", whole(&ours, &[options])[..14 + 40 + 7].to_vec(), passed(), false),
        ];
        taken(programs, rows)
    })
}

#[test]
fn a_device_without_a_link_layer_and_merged_segments_are_told_of() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false);
        let mut ours = connection.request();
        // A test run takes the two bytes behind twelve for the protocol, also where no Ethernet header is.
        ours.from.set_ip([8, 0, 0, 2].into());
        let connection =
            Connection { tuples: [tuple(ours.from, ours.to), connection.tuples[FROM_SERVER]], ..connection };
        programs.splice(&connection)?;
        programs.read_odd()?;
        let frame = with_ip_header(&ours, ipv4(|header| header.options = [NOP; 4].into()));
        let bare = Arrival { program: FORWARD_BARE, ..Arrival::PLAIN };
        for (arrival, bytes, segment) in
            [(bare, frame[14..].to_vec(), 0), (Arrival { segment: 3, ..Arrival::PLAIN }, frame, 3)]
        {
            ensure!(programs.run_from(arrival, &bytes)? == Fate::HandedUp);
            ensure!(programs.odd() == [(1, segment, bytes)]);
        }
        Ok(())
    })
}

#[test]
fn what_nobody_reads_is_counted_as_dropped() -> Result<()> {
    with_programs(|programs| {
        let lost = || Fate::Dropped(Count::OddLost);
        let connection = Connection::new(false);
        let ours = connection.request();
        let options = with_ip_header(&ours, ipv4(|header| header.options = [NOP; 4].into()));
        check(
            programs,
            &connection,
            [
                ("options of IP", options, lost()),
                ("a first fragment", piece(&ours, 5, 0, 8, true), lost()),
                ("a later one", piece(&ours, 5, 8, 8, true), lost()),
            ],
        )?;
        let connection = Connection::new(true);
        let ours = connection.request();
        let packet = extended(&ours, &[(DESTINATION, PADDING)], 6, &ours.packet()[40..]);
        check(programs, &connection, [("destination options", packet, lost())])
    })
}
