//! Segments of a connection that is spliced, and what only looks like one.

use anyhow::{Result, ensure};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, Ipv4Header, PacketBuilder, SingleVlanHeader,
};
use lb_common::packet::{Count, Ethernet, Event, FORWARD_BARE, Flow, Handover, Tuple, event, exit, flag};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::connection::{
    ADDRESSES, Connection, FROM_CLIENT, FROM_SERVER, LISTENER_PORT, SOURCE_PORT, frame, framed,
    with_link_header,
};
use crate::generate;
use crate::programs::{Arrival, Fate, check, with_programs};
use crate::properties::model::{ACK, AE, CWR, ECE, FIN, NOP, PSH, SYN, Segment, URG, packet_between, tuple};

fn leaves(segment: Segment) -> Fate {
    Fate::Leaves(frame(&segment))
}

/// NOP, NOP, timestamps: what nearly every segment has.
fn stamped(tsval: u32, tsecr: u32) -> Vec<u8> {
    [&[NOP, NOP, 8, 10][..], &tsval.to_be_bytes(), &tsecr.to_be_bytes()].concat()
}

fn blocks(edges: &[u32]) -> Vec<u8> {
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

#[test]
fn what_is_not_of_a_flow_passes_untouched() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let segment = connection.request();
            let [mut sender, mut receiver] = [segment.from, segment.to];
            sender.set_port(sender.port() + 1);
            receiver.set_ip(connection.forwarded_request().to.ip());
            let mut udp = Vec::new();
            packet_between(segment.from.ip(), segment.to.ip(), 0)
                .udp(segment.from.port(), segment.to.port())
                .write_to_vec(&mut udp, &segment.payload)?;
            let whole = frame(&segment);
            let [mut tagged, mut neither] = [whole.clone(), whole.clone()];
            let tag = SingleVlanHeader {
                vlan_id: 7.try_into()?,
                ether_type: if v6 { EtherType::IPV6 } else { EtherType::IPV4 },
                ..SingleVlanHeader::default()
            };
            tagged.splice(Ethernet2Header::LEN.., [&tag.to_bytes(), &segment.packet()[..]].concat());
            tagged[12..14].copy_from_slice(&EtherType::VLAN_TAGGED_FRAME.0.to_be_bytes());
            neither[12..14].copy_from_slice(&EtherType::ARP.0.to_be_bytes());
            let ip = if v6 { 40 } else { 20 };

            let rows = [
                ("another port of the sender", frame(&Segment { from: sender, ..segment.clone() })),
                ("another receiver", frame(&Segment { to: receiver, ..segment.clone() })),
                ("what leaves", frame(&connection.forwarded_request())),
                ("UDP of the same addresses and ports", framed(&udp)),
                ("with a VLAN tag", tagged),
                ("of another protocol than IP", neither),
                ("cut off in the TCP header", whole[..14 + ip + 19].to_vec()),
            ];
            check(programs, &connection, rows.map(|(what, packet)| (what, packet, Fate::Passed)))?;
        }

        let connection = Connection::new(false);
        let segment = connection.request();
        let later = |headers: &mut Ipv4Header| {
            headers.fragment_offset = IpFragOffset::try_new(3).expect("13 bits");
        };
        let mut echo = Vec::new();
        PacketBuilder::ipv4([10, 0, 1, 2], [10, 0, 1, 1], 64)
            .icmpv4_echo_request(1, 1)
            .write_to_vec(&mut echo, &segment.payload)?;
        let mut short = frame(&segment);
        short[14] = 0x44;
        let rows = [
            ("a later fragment of what has not begun", with_ip_header(&segment, ipv4(later))),
            ("an echo request", framed(&echo)),
            ("an IP header that is too short to be one", short),
        ];
        check(programs, &connection, rows.map(|(what, packet)| (what, packet, Fate::Passed)))?;

        for tuple in connection.tuples.iter().chain(&Connection::new(true).tuples) {
            ensure!(programs.flows.get(tuple, 0)?.packets == 0, "counted for a flow");
        }
        Ok(())
    })
}

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
                    leaves(Segment { flags: PSH, ack: 77, ..connection.forwarded_request() }),
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
                    "a SYN, which the receiver answers with a challenge",
                    frame(&Segment { flags: SYN, payload: vec![], ..connection.request() }),
                    leaves(Segment {
                        flags: SYN,
                        ack: 2_000,
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
            let flow = Flow { handover: 1, ..flow };
            let handover = Handover {
                // Nothing is for the sockets any more.
                await_ack: [segment.ack; 2],
                tsecr_floor: [floor.unwrap_or_default(); 2],
                // More than any window.
                promised: [segment.ack.wrapping_add(flow.ack_delta).wrapping_add(1 << 30); 2],
                ..Handover::default()
            };
            match floor {
                Some(_) => programs.handovers.insert(flow.id, handover, 0)?,
                None => drop(programs.handovers.remove(&flow.id)),
            }
            programs.flows.insert(segment.tuple(), flow, 0)?;
            let expected = match segment.translated(&flow, floor) {
                Some(segment) => leaves(segment),
                None => Fate::Dropped(Count::BadOptions),
            };
            let fate = programs.run(&frame(&segment))?;
            ensure!(fate == expected, "{flow:?}\n{floor:?}\n{segment:02x?}\n{fate:02x?}\n{expected:02x?}");
            match fate {
                Fate::Leaves(_) => left += 1,
                _ => dropped += 1,
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
            ensure!(programs.flows.get(&connection.tuples[FROM_CLIENT], 0)?.bytes == 5);
        }
        Ok(())
    })
}

#[test]
fn what_cannot_be_translated_is_dropped_and_counted() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let came = |options: &[u8]| frame(&Segment { options: options.to_vec(), ..connection.request() });
            let tcp = 14 + if v6 { 40 } else { 20 };
            let mut short = frame(&connection.request());
            short[tcp + 12] = 0x40;
            let mut long = frame(&connection.request());
            long[tcp + 12] = 0x70;
            let rows = [
                ("an option of no size", came(&[254, 0, NOP, NOP])),
                ("an option of one byte with a size", came(&[NOP, 254, 1, NOP])),
                ("an option that is longer than the header", came(&[NOP, 254, 4, 0])),
                ("a kind without a size", came(&[NOP, NOP, NOP, 254])),
                ("timestamps of the wrong size", came(&[8, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
                ("half a block of SACK", came(&[5, 6, 0, 0, 0, 0, NOP, NOP])),
                ("a TCP header that is too short to be one", short),
                ("a TCP header that is longer than the packet", long),
            ];
            let dropped = rows.map(|(what, packet)| (what, packet, Fate::Dropped(Count::BadOptions)));
            check(programs, &connection, dropped)?;
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
fn what_is_too_big_for_its_device_is_dropped_and_told_of() -> Result<()> {
    const IFINDEX: u32 = 77;
    const MTU: u32 = 1_400;
    with_programs(|programs| {
        programs.ns.ip(&format!("link add narrow index {IFINDEX} mtu {MTU} type veth peer name other"))?;
        for v6 in [false, true] {
            let narrow = Connection::new(v6).with(|flow| flow.ifindex = IFINDEX);
            let local = narrow.with(|flow| flow.exit = exit::LOCAL);
            let headers = if v6 { 60 } else { 40 };
            let of_length = |segment: Segment, length: u32| Segment {
                payload: vec![7; length as usize - headers],
                ..segment
            };
            let came = |length| frame(&of_length(narrow.request(), length));
            let left = |length| leaves(of_length(narrow.forwarded_request(), length));
            check(programs, &narrow, [("as long as may be", came(MTU), left(MTU))])?;
            ensure!(programs.events().is_empty());

            let too_big = || Fate::Dropped(Count::TooBig);
            let of_server = frame(&of_length(narrow.response(), MTU + 1));
            check(
                programs,
                &narrow,
                [("a byte too long", came(MTU + 1), too_big()), ("from the server", of_server, too_big())],
            )?;
            let told = Event { id: 1, kind: event::TOO_BIG, from_server: 0, seq: 1_000, mtu: MTU };
            let events = programs.events();
            ensure!(events == [told, Event { from_server: 1, seq: 92_000, ..told }], "{events:?}");

            // As GRO makes it of several; it is cut again.
            let merged = |segment| Arrival { segment, ..Arrival::PLAIN };
            let fits = MTU - headers as u32;
            programs.splice(&narrow)?;
            ensure!(programs.run_from(merged(fits), &came(3_000))? == left(3_000));
            ensure!(programs.run_from(merged(fits + 1), &came(3_000))? == too_big());
            ensure!(programs.events().len() == 1);

            let with_link_header =
                |segment: Segment| Fate::Leaves(with_link_header([0; 12], &segment.packet()));
            let left = with_link_header(of_length(narrow.forwarded_request(), 3_000));
            check(programs, &local, [("to a socket of this host", came(3_000), left)])?;
        }
        Ok(())
    })
}

#[test]
fn every_way_out_has_its_ethernet_addresses() -> Result<()> {
    const TO_CLIENT: Ethernet = [3; 12];
    const TO_SERVER: Ethernet = [4; 12];
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let by = |exit| connection.with(|flow| flow.exit = exit);
            let rows = |[to_server, to_client]: [Ethernet; 2]| {
                [
                    ("to the server", connection.request(), connection.forwarded_request(), to_server),
                    ("to the client", connection.response(), connection.forwarded_response(), to_client),
                ]
                .map(|(what, came, left, addresses)| {
                    (what, frame(&came), Fate::Leaves(with_link_header(addresses, &left.packet())))
                })
            };
            programs.connections.insert(1, connection.record([TO_CLIENT, TO_SERVER]), 0)?;
            // The kernel finds the neighbour's later.
            check(programs, &by(exit::NEIGHBOUR), rows([ADDRESSES; 2]))?;
            check(programs, &by(exit::PEER), rows([TO_SERVER, TO_CLIENT]))?;
            // The loopback device's.
            check(programs, &by(exit::LOCAL), rows([[0; 12]; 2]))?;
            // Forgotten, it is left to the kernel.
            programs.connections.remove(&1)?;
            check(programs, &by(exit::PEER), rows([ADDRESSES; 2]))?;
        }
        Ok(())
    })
}

/// BPF_PROG_TEST_RUN takes every packet for a frame, and its protocol from where an Ethernet header has it. There the
/// packets of this test have the number in their source address.
#[test]
fn a_packet_without_link_header_leaves_with_one() -> Result<()> {
    with_programs(|programs| {
        let bare = Arrival { program: FORWARD_BARE, ..Arrival::PLAIN };
        for (v6, address) in [(false, "8.0.0.2"), (true, "fd00:1:86dd::2")] {
            let connection = Connection::new(v6);
            let mut arrives = connection.request();
            arrives.from.set_ip(address.parse()?);
            let connection = Connection {
                tuples: [tuple(arrives.from, arrives.to), connection.tuples[FROM_SERVER]],
                ..connection
            };
            let with_options = |segment, options| Segment { options, ..segment };
            for (came, left) in [
                (vec![], vec![]),
                (stamped(5, 60), stamped(1_005, 67)),
                (
                    [&[NOP][..], &blocks(&[2_001, 2_003]), &[NOP]].concat(),
                    [&[NOP][..], &blocks(&[92_001, 92_003]), &[NOP]].concat(),
                ),
            ] {
                programs.splice(&connection)?;
                let fate = programs.run_from(bare, &with_options(arrives.clone(), came).packet())?;
                let left = with_options(connection.forwarded_request(), left).packet();
                let expected = Fate::Leaves(with_link_header([0; 12], &left));
                ensure!(fate == expected, "{fate:02x?}\n{expected:02x?}");
            }
            let mut other = arrives.clone();
            other.from.set_port(1);
            ensure!(programs.run_from(bare, &other.packet())? == Fate::Passed);

            programs.sight(LISTENER_PORT, SOURCE_PORT)?;
            let syn = Segment { flags: SYN, options: vec![2, 4, 5, 0xb4], ..other };
            ensure!(programs.run_from(bare, &syn.packet())? == Fate::Sighted);
            let sighting = programs.sightings.get(&syn.tuple(), 0)?;
            ensure!((sighting.mss, sighting.ethernet) == (1_460, [0; 12]), "{sighting:?}");
        }
        Ok(())
    })
}

#[test]
fn a_flow_counts_its_packets_and_each_byte_once() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            programs.splice(&connection)?;
            let flow = |programs: &crate::programs::Programs, tuple: &Tuple| programs.flows.get(tuple, 0);
            let next = connection.request();
            let at = |seq, ack| Segment { seq, ack, ..next.clone() };
            for (what, segment, packets, bytes, ack) in [
                ("the next", at(1_000, 2_000), 1, 5, 2_000),
                ("once more", at(1_000, 2_000), 2, 5, 2_000),
                ("half of it new, with news", at(1_003, 2_100), 3, 8, 2_100),
                ("one that overtook another", at(1_020, 2_050), 4, 25, 2_100),
                ("the other", at(1_008, 2_100), 5, 25, 2_100),
                ("far out of the window", at(0x8000_0000, 0x8000_0000), 6, 25, 2_100),
                ("no bytes", Segment { payload: vec![], ..at(1_025, 2_101) }, 7, 25, 2_101),
                ("a FIN", Segment { payload: vec![], flags: FIN | ACK, ..at(1_025, 2_101) }, 8, 25, 2_101),
                ("what follows the FIN", Segment { payload: vec![], ..at(1_026, 2_101) }, 9, 25, 2_101),
            ] {
                let fate = programs.run(&frame(&segment))?;
                ensure!(matches!(fate, Fate::Leaves(_)), "{what}: {fate:02x?}");
                let flow = flow(programs, &connection.tuples[FROM_CLIENT])?;
                let seen = (flow.packets, flow.bytes, flow.ack);
                ensure!(seen == (packets, bytes, ack), "{what}: {seen:?}");
                ensure!(flow.active != 0, "{what}: without a time");
            }
            ensure!(flow(programs, &connection.tuples[FROM_SERVER])?.packets == 0);
        }
        Ok(())
    })
}
