//! Segments of a connection that is spliced, and what only looks like one.

use anyhow::{Result, ensure};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, Ipv4Header, PacketBuilder, SingleVlanHeader,
};
use lb_common::packet::track::{Half, Track, asked, closing};
use lb_common::packet::{
    Count, Ethernet, Event, FORWARD_BARE, Flow, Handover, Path, PerLeg, Side, event, exit, flag,
};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::connection::{
    ADDRESSES, Connection, FROM_CLIENT, FROM_SERVER, LISTENER_PORT, SLOT, SOURCE_PORT, frame, framed,
    with_link_header,
};
use crate::generate;
use crate::programs::{Arrival, Fate, check, with_programs};
use crate::properties::model::{
    ACK, AE, CWR, ECE, FIN, NOP, PSH, RST, SYN, Segment, URG, packet_between, tuple,
};

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

        ensure!(programs.track()? == connection.track, "noted for a connection");
        Ok(())
    })
}

/// A device that hears everything hands up what is addressed to others as well, and the stack takes none of it.
#[test]
fn what_is_not_addressed_to_this_host_passes_untouched() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let packet = connection.request().packet();
            let to = |destination: [u8; 6]| {
                let mut addresses = ADDRESSES;
                addresses[..6].copy_from_slice(&destination);
                with_link_header(addresses, &packet)
            };
            let rows = [
                ("to another host", to([2, 0, 0, 0, 0, 9])),
                ("to a group", to([1, 0, 0x5e, 0, 0, 1])),
                ("to all", to([0xff; 6])),
            ];
            check(programs, &connection, rows.map(|(what, packet)| (what, packet, Fate::Passed)))?;
            ensure!(programs.track()? == connection.track, "noted for a connection");
        }
        Ok(())
    })
}

/// Up the stack it would be answered with a reset that the other end takes.
#[test]
fn what_comes_by_a_device_that_does_not_lead_to_its_sender_is_dropped() -> Result<()> {
    const IFINDEX: u32 = 77;
    const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 7];
    with_programs(|programs| {
        programs.ns.ip(&format!(
            "link add front index {IFINDEX} address 02:00:00:00:00:07 type veth peer name other"
        ))?;
        let from_front = Arrival { ifindex: IFINDEX, ..Arrival::PLAIN };
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let mut addresses = ADDRESSES;
            addresses[..6].copy_from_slice(&ADDRESS);
            let framed = |segment: Segment| with_link_header(addresses, &segment.packet());
            programs.splice(&connection)?;
            let sides = [
                (connection.request(), connection.forwarded_request()),
                (connection.response(), connection.forwarded_response()),
            ];
            for (from_server, (came, left)) in (0..).zip(sides) {
                let reset = Segment { flags: RST, payload: vec![], ..came.clone() };
                let syn = Segment { flags: SYN, ..reset.clone() };
                let mut told =
                    vec![Event { id: 1, kind: event::WRONG_DEVICE, from_server, number: IFINDEX, mtu: 0 }];
                for segment in [came.clone(), reset, syn] {
                    let fate = programs.run_from(from_front, &framed(segment))?;
                    ensure!(fate == Fate::Dropped(Count::WrongDevice), "{fate:02x?}");
                    // Once, until userspace has looked.
                    let events = programs.events();
                    ensure!(events == std::mem::take(&mut told), "{events:?}");
                }
                let mut track = connection.track;
                track.halves.each_mut()[from_server as usize].asked = asked::DEVICE;
                ensure!(programs.track()? == track, "noted for a connection");

                // Of another device it does not speak, nor of another sender.
                let path = Path { device: IFINDEX, expected: 1, peer: came.tuple().source };
                programs.paths.insert(Path { expected: 2, ..path }, 1, 0)?;
                programs.paths.insert(Path { peer: came.tuple().destination, ..path }, 1, 0)?;
                let fate = programs.run_from(from_front, &framed(came.clone()))?;
                ensure!(fate == Fate::Dropped(Count::WrongDevice), "{fate:02x?}");
                programs.events();
                programs.paths.insert(path, 1, 0)?;
                let fate = programs.run_from(from_front, &framed(came))?;
                ensure!(fate == Fate::Leaves(framed(left)), "{fate:02x?}");
                ensure!(programs.events().is_empty());
                programs.paths.remove(&path)?;
                programs.splice(&connection)?;
            }
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
                    "a SYN-ACK, which the receiver answers with a challenge",
                    frame(&Segment { flags: SYN | ACK, payload: vec![], ..connection.request() }),
                    leaves(Segment {
                        flags: SYN | ACK,
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
                _ if segment.flags & (SYN | ACK | RST) == SYN => fate == Fate::Dropped(Count::SynOnLive),
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
            let told = Event { id: 1, kind: event::TOO_BIG, from_server: 0, number: 1_000, mtu: MTU };
            let events = programs.events();
            ensure!(events == [told, Event { from_server: 1, number: 92_000, ..told }], "{events:?}");

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
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let rows = |addresses: Ethernet| {
                [
                    ("to the server", connection.request(), connection.forwarded_request()),
                    ("to the client", connection.response(), connection.forwarded_response()),
                ]
                .map(|(what, came, left)| {
                    (what, frame(&came), Fate::Leaves(with_link_header(addresses, &left.packet())))
                })
            };
            // The neighbour's are found by the kernel, later; where a packet ends none matter; the loopback device's are
            // zeros.
            for (exit, addresses) in
                [(exit::NEIGHBOUR, ADDRESSES), (exit::PEER, ADDRESSES), (exit::LOCAL, [0; 12])]
            {
                check(programs, &connection.with(|flow| flow.exit = exit), rows(addresses))?;
            }
        }
        Ok(())
    })
}

/// BPF_PROG_TEST_RUN takes every packet for a frame: its protocol is where an Ethernet header has it, which is in the
/// source address, and its destination is what an IP header begins with, which is given to the device. IPv4 begins with
/// what would be a group's address; lost there is only what does not depend on the header's length.
#[test]
fn a_packet_without_link_header_leaves_with_one() -> Result<()> {
    const IFINDEX: u32 = 77;
    with_programs(|programs| {
        let plain = Arrival { program: FORWARD_BARE, ..Arrival::PLAIN };
        let bare = Arrival { ifindex: IFINDEX, ..plain };
        programs.ns.ip(&format!("link add bare index {IFINDEX} type veth peer name other"))?;
        for (v6, address) in [(false, "8.0.0.2"), (true, "fd00:1:86dd::2")] {
            let connection = Connection::new(v6).with(|flow| flow.from = IFINDEX);
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
                let packet = with_options(arrives.clone(), came).packet();
                if v6 {
                    let [a, b, c, d, e, f, ..] = packet[..] else { unreachable!("an IP header is longer") };
                    let address = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
                    programs.ns.ip(&format!("link set bare address {address}"))?;
                }
                let fate = programs.run_from(bare, &packet)?;
                let left = with_options(connection.forwarded_request(), left).packet();
                let expected = if v6 { Fate::Leaves(with_link_header([0; 12], &left)) } else { Fate::Passed };
                ensure!(fate == expected, "{fate:02x?}\n{expected:02x?}");
            }
            let mut other = arrives.clone();
            other.from.set_port(1);
            ensure!(programs.run_from(plain, &other.packet())? == Fate::Passed);

            programs.sight(LISTENER_PORT, SOURCE_PORT)?;
            let syn = Segment { flags: SYN, options: vec![2, 4, 5, 0xb4], ..other };
            ensure!(programs.run_from(plain, &syn.packet())? == Fate::Sighted);
            let sighting = programs.sightings.get(&syn.tuple(), 0)?;
            ensure!(sighting.mss == 1_460, "{sighting:?}");
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
