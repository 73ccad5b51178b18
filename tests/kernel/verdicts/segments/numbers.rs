//! Numbers, options and flags of a segment as it leaves, and what is accounted of it.

use anyhow::{Result, ensure};
use etherparse::Ipv4Header;
use lb_common::packet::track::{Half, Track, closing};
use lb_common::packet::{Count, Flow, Handover, PerLeg, Side, flag};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use super::packets::{blocks, leaves, stamped};
use crate::connection::{Connection, FROM_CLIENT, FROM_SERVER, SLOT, frame, framed};
use crate::generate;
use crate::programs::{Fate, check, with_programs};
use crate::properties::model::{ACK, AE, CWR, ECE, FIN, NOP, PSH, RST, SYN, Segment, URG};

#[test]
fn a_segment_leaves_in_the_numbers_of_the_other_leg() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let came = |options: Vec<u8>| frame(&Segment { options, ..connection.request() });
            let left = |options: Vec<u8>| leaves(Segment { options, ..connection.forwarded_request() });
            let four = [2_000, 2_010, 2_020, 2_030, 2_040, 2_050, 2_060, u32::MAX];
            let four_left = four.map(|edge: u32| edge.wrapping_add(90_000));
            let around = |options: &[u8]| [&[NOP][..], options, &[NOP]].concat();
            let rows = [
                ("without options", came(vec![]), left(vec![])),
                ("timestamps", came(stamped(5, 60)), left(stamped(1_005, 67))),
                ("timestamps with nothing to echo", came(stamped(5, 0)), left(stamped(1_005, 0))),
                (
                    "timestamps at an odd offset",
                    came(around(&stamped(5, 60)[2..])),
                    left(around(&stamped(1_005, 67)[2..])),
                ),
                (
                    "a block of SACK behind timestamps",
                    came([&stamped(5, 60)[..], &[NOP, NOP], &blocks(&[2_001, 2_003])].concat()),
                    left([&stamped(1_005, 67)[..], &[NOP, NOP], &blocks(&[92_001, 92_003])].concat()),
                ),
                (
                    "four blocks of SACK at an odd offset",
                    came(around(&[&[NOP, NOP][..], &blocks(&four)].concat())),
                    left(around(&[&[NOP, NOP][..], &blocks(&four_left)].concat())),
                ),
                (
                    "an unknown kind and an MSS",
                    came([&[253, 6, 1, 2, 3, 4][..], &[2, 4, 5, 0xb4], &[NOP, NOP]].concat()),
                    left(vec![NOP; 12]),
                ),
                ("what stands behind the end", came(vec![NOP, 0, 8, 10]), left(vec![NOP, 0, 8, 10])),
                (
                    "an odd number of bytes",
                    frame(&Segment { payload: b"abc".to_vec(), ..connection.request() }),
                    leaves(Segment { payload: b"abc".to_vec(), ..connection.forwarded_request() }),
                ),
                (
                    "urgent data, and every other flag that ends nothing",
                    frame(&Segment {
                        flags: AE | CWR | ECE | URG | ACK | PSH,
                        urgent: 3,
                        ..connection.request()
                    }),
                    leaves(Segment {
                        flags: AE | CWR | ECE | URG | ACK | PSH,
                        urgent: 3,
                        ..connection.forwarded_request()
                    }),
                ),
                (
                    "no acknowledgement",
                    frame(&Segment { flags: PSH, ack: 77, ..connection.request() }),
                    Fate::Counted(
                        Count::NoAck,
                        frame(&Segment { flags: PSH, ack: 77, ..connection.forwarded_request() }),
                    ),
                ),
                (
                    "a closed window",
                    frame(&Segment { window: 0, ..connection.request() }),
                    leaves(Segment { window: 0, ..connection.forwarded_request() }),
                ),
                (
                    "a window beyond its field",
                    frame(&Segment { window: 40_000, ..connection.request() }),
                    leaves(Segment { window: 65_535, ..connection.forwarded_request() }),
                ),
                (
                    "a SYN-ACK again, which the receiver answers with a challenge",
                    frame(&Segment { flags: SYN | ACK, seq: 999, payload: vec![], ..connection.request() }),
                    leaves(Segment {
                        flags: SYN | ACK,
                        seq: 500_999,
                        window: 300,
                        payload: vec![],
                        ..connection.forwarded_request()
                    }),
                ),
                ("of the server", frame(&connection.response()), leaves(connection.forwarded_response())),
                (
                    "timestamps of the server",
                    frame(&Segment { options: stamped(67, 1_005), ..connection.response() }),
                    leaves(Segment { options: stamped(60, 5), ..connection.forwarded_response() }),
                ),
                (
                    "a window of one",
                    frame(&Segment { window: 1, ..connection.response() }),
                    leaves(Segment { window: 1, ..connection.forwarded_response() }),
                ),
            ];
            check(programs, &connection, rows)?;

            let both = || [&stamped(5, 60)[..], &[NOP, NOP], &blocks(&[2_001, 2_003])].concat();
            let without = connection.with(|flow| flow.flags &= !flag::TIMESTAMPS);
            let sack = [&[NOP; 14][..], &blocks(&[92_001, 92_003])].concat();
            check(programs, &without, [("timestamps that one leg has", came(both()), left(sack))])?;
            check(programs, &without, [("those alone", came(stamped(5, 60)), left(vec![NOP; 12]))])?;
            let without = connection.with(|flow| flow.flags &= !flag::SACK);
            let stamps = [&stamped(1_005, 67)[..], &[NOP; 12]].concat();
            check(programs, &without, [("SACK that one leg has", came(both()), left(stamps))])?;
        }
        Ok(())
    })
}

/// What is known when this is the next segment, so that even a reset may pass.
fn track_of_the_next(flow: &Flow, segment: &Segment) -> Track {
    let half = |next: u32, ack: u32| Half {
        position: 1 << 32 | u64::from(next),
        gap: next,
        ack,
        edge: ack.wrapping_add(1_000),
        most: 1_000,
        closing: closing::HANDOVER,
        ..Half::default()
    };
    let own = half(segment.seq, segment.ack);
    let peer = half(segment.ack.wrapping_add(flow.ack_delta), segment.seq.wrapping_add(flow.seq_delta));
    let (client, server) = match flow.side() {
        Side::Client => (own, peer),
        Side::Server => (peer, own),
    };
    Track { halves: PerLeg { client, server } }
}

/// What is generated for lb-common's own tests.
#[test]
fn generated_segments_leave_as_the_model_says() -> Result<()> {
    const SEGMENTS: usize = 3_000;
    with_programs(|programs| {
        let mut runner = TestRunner::deterministic();
        let arrivals = generate::flow().prop_flat_map(|(flow, ends, floor)| {
            (proptest::strategy::Just((flow, floor)), generate::segment(ends))
        });
        let (mut left, mut dropped) = (0, 0);
        for _ in 0..SEGMENTS {
            let ((flow, floor), segment) = arrivals.new_tree(&mut runner).expect("no filters").current();
            let flow = Flow { slot: SLOT, ..flow };
            let handover = Handover {
                // Nothing is for the sockets any more.
                await_ack: [segment.ack; 2].into(),
                tsecr_floor: [floor.unwrap_or_default(); 2].into(),
                // More than any window.
                promised: [segment.ack.wrapping_add(flow.ack_delta).wrapping_add(1 << 30); 2].into(),
            };
            match floor {
                Some(_) => programs.handovers.insert(flow.id, handover, 0)?,
                None => drop(programs.handovers.remove(&flow.id)),
            }
            programs.know(&track_of_the_next(&flow, &segment))?;
            programs.flows.insert(segment.tuple(), flow, 0)?;
            let fate = programs.run(&frame(&segment))?;
            let translated = segment.translated(&flow, floor).map(|segment| frame(&segment));
            let is_right = match &translated {
                _ if segment.flags & (SYN | RST) == SYN => fate == Fate::Dropped(Count::SynOnLive),
                Some(translated) => fate.left() == Some(translated),
                None => fate == Fate::Dropped(Count::BadOptions),
            };
            ensure!(is_right, "{flow:?}\n{floor:?}\n{segment:02x?}\n{fate:02x?}\n{translated:02x?}");
            match fate.left() {
                Some(_) => left += 1,
                None => dropped += 1,
            }
            programs.flows.remove(&segment.tuple())?;
            programs.events();
        }
        ensure!(left > SEGMENTS / 2 && dropped > SEGMENTS / 100, "{left} left, {dropped} dropped");
        Ok(())
    })
}

/// A merged packet may be longer than the field of its IP header, which then says 0.
#[test]
fn a_packet_without_a_length_is_as_long_as_it_is() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            programs.splice(&connection)?;
            let unsaid = |segment: Segment| {
                let mut packet = segment.packet();
                if v6 {
                    packet[4..6].fill(0);
                } else {
                    let (mut header, _) = Ipv4Header::from_slice(&packet).expect("a whole header");
                    header.total_len = 0;
                    header.header_checksum = header.calc_header_checksum();
                    packet[..20].copy_from_slice(&header.to_bytes());
                }
                framed(&packet)
            };
            let fate = programs.run(&unsaid(connection.request()))?;
            let expected = Fate::Leaves(unsaid(connection.forwarded_request()));
            ensure!(fate == expected, "{fate:02x?}\n{expected:02x?}");
            let position = programs.track()?.halves.client.position;
            ensure!(position - connection.flows[FROM_CLIENT].origin == 5, "{position}");
        }
        Ok(())
    })
}

#[test]
fn a_leg_without_ecn_hears_nothing_of_it() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let both = Connection::new(v6);
            let one = both.with(|flow| flow.flags |= flag::STRIP_ECN);
            let said = |traffic_class| Segment { traffic_class, flags: ACK | ECE | CWR, ..both.request() };
            let same = |traffic_class| {
                leaves(Segment { traffic_class, flags: ACK | ECE | CWR, ..both.forwarded_request() })
            };
            let stripped =
                |traffic_class| leaves(Segment { traffic_class, flags: ACK, ..both.forwarded_request() });
            // The upper six bits are another field, and nobody's business.
            let rows = [0, 1, 2, 3, 0xff].map(|class| ("both have it", frame(&said(class)), same(class)));
            check(programs, &both, rows)?;
            let rows = [(0, 0), (1, 0), (2, 0), (0xb8 | 2, 0xb8)]
                .map(|(class, left)| ("one has it", frame(&said(class)), stripped(left)));
            check(programs, &one, rows)?;
            let rows = [3, 0xff].map(|class| {
                ("congestion was experienced", frame(&said(class)), Fate::Dropped(Count::Congestion))
            });
            check(programs, &one, rows)?;
        }
        Ok(())
    })
}

#[test]
fn each_byte_is_accounted_once_and_an_acknowledgement_does_not_go_back() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            programs.splice(&connection)?;
            let next = connection.request();
            let at = |seq, ack| Segment { seq, ack, ..next.clone() };
            let empty = |seq| Segment { payload: vec![], ..at(seq, 2_101) };
            // The server has sent so much.
            let sent = Segment { payload: vec![7; 101], ..connection.response() };
            ensure!(programs.run(&frame(&sent))?.left().is_some());
            for (what, segment, bytes, ack) in [
                ("the next", at(1_000, 2_000), 5, 2_000),
                ("once more", at(1_000, 2_000), 5, 2_000),
                ("half of it new, with news", at(1_003, 2_100), 8, 2_100),
                ("one that overtook another", at(1_020, 2_050), 25, 2_100),
                ("the other", at(1_008, 2_100), 25, 2_100),
                ("far out of the window", at(0x8000_0000, 0x8000_0000), 25, 2_100),
                ("no bytes", empty(1_025), 25, 2_101),
                ("a FIN", Segment { flags: FIN | ACK, ..empty(1_025) }, 25, 2_101),
                ("what follows the FIN", empty(1_026), 25, 2_101),
            ] {
                let fate = programs.run(&frame(&segment))?;
                ensure!(fate.left().is_some(), "{what}: {fate:02x?}");
                let half = programs.track()?.halves.client;
                let seen = (half.position - connection.flows[FROM_CLIENT].origin, half.ack);
                ensure!(seen == (bytes, ack), "{what}: {seen:?}");
                ensure!(half.heard != 0, "{what}: without a time");
            }
            let position = programs.track()?.halves.server.position;
            ensure!(position - connection.flows[FROM_SERVER].origin == 101, "{position}");
        }
        Ok(())
    })
}
