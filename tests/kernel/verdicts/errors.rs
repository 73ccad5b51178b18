//! ICMP errors about what the connection has sent.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use etherparse::icmpv4::{
    DestUnreachableHeader, ParameterProblemHeader as ParameterProblem, TimeExceededCode,
};
use etherparse::icmpv6::{self, DestUnreachableCode};
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type};
use lb_common::packet::track::closing;
use lb_common::packet::{Count, Event, Handover, event};

use crate::connection::{ADDRESSES, Connection, framed, with_link_header};
use crate::programs::{Arrival, Fate, check, with_programs};
use crate::properties::model::{Segment, packet_between};

#[derive(Clone)]
enum Kind {
    V4(Icmpv4Type),
    V6(Icmpv6Type),
}

/// An ICMP packet in a frame, with its checksums computed anew.
fn icmp(from: IpAddr, to: IpAddr, kind: Kind, quote: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = packet_between(from, to, 0);
    match kind {
        Kind::V4(kind) => builder.icmpv4(kind).write_to_vec(&mut packet, quote),
        Kind::V6(kind) => builder.icmpv6(kind).write_to_vec(&mut packet, quote),
    }
    .expect("a short packet");
    framed(&packet)
}

/// A router on the way to the server, and one on the way to the client.
fn routers(v6: bool) -> [IpAddr; 2] {
    let addresses = if v6 { ["fd00:2::99", "fd00:1::99"] } else { ["10.0.2.99", "10.0.1.99"] };
    addresses.map(|address| address.parse().expect("an address"))
}

/// Longer than the MTU that errors name.
fn long(segment: Segment) -> Segment {
    Segment { payload: vec![7; 1_400], ..segment }
}

fn errors(v6: bool) -> Vec<(&'static str, Kind)> {
    let v4 = [
        (
            "fragmentation needed",
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: 1_300,
            }),
        ),
        ("host unreachable", Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host)),
        ("time exceeded", Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit)),
        ("parameter problem", Icmpv4Type::ParameterProblem(ParameterProblem::BadLength)),
    ];
    let problem = icmpv6::ParameterProblemHeader {
        code: icmpv6::ParameterProblemCode::ErroneousHeaderField,
        pointer: 40,
    };
    let exceeded = icmpv6::TimeExceededCode::HopLimitExceeded;
    let v6_errors = [
        ("packet too big", Icmpv6Type::PacketTooBig { mtu: 1_300 }),
        ("address unreachable", Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address)),
        ("hop limit exceeded", Icmpv6Type::TimeExceeded(exceeded)),
        ("parameter problem", Icmpv6Type::ParameterProblem(problem)),
    ];
    match v6 {
        false => v4.map(|(name, kind)| (name, Kind::V4(kind))).to_vec(),
        true => v6_errors.map(|(name, kind)| (name, Kind::V6(kind))).to_vec(),
    }
}

#[test]
fn an_error_reaches_who_sent_the_packet_in_its_own_numbers() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let [behind_server, behind_client] = routers(v6);
            // The IP header and eight bytes: what every error quotes at least.
            let quoted = if v6 { 48 } else { 28 };
            for (what, kind) in errors(v6) {
                let rows = [
                    (behind_server, long(connection.forwarded_request()), long(connection.request())),
                    (behind_client, long(connection.forwarded_response()), long(connection.response())),
                ]
                .into_iter()
                .flat_map(|(router, left, sent)| {
                    let [old, new] = [left.packet(), sent.packet()];
                    let kind = &kind;
                    // What lies beyond the eight bytes nobody reads.
                    [quoted, quoted + 1, old.len()].map(|length| {
                        let arrives = icmp(router, left.from.ip(), kind.clone(), &old[..length]);
                        let quote = [&new[..quoted], &old[quoted..length]].concat();
                        (what, arrives, Fate::Tells(icmp(sent.to.ip(), sent.from.ip(), kind.clone(), &quote)))
                    })
                })
                .collect::<Vec<_>>();
                check(programs, &connection, rows)?;
            }
        }
        Ok(())
    })
}

#[test]
fn while_the_sockets_live_errors_are_theirs() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6).in_handover();
            let [sent, left] = [connection.request(), connection.forwarded_request()].map(long);
            let quoted = if v6 { 48 } else { 28 };
            let kind = || errors(v6).swap_remove(0).1;
            let error = icmp(routers(v6)[0], left.from.ip(), kind(), &left.packet()[..quoted]);
            programs.handovers.insert(1, Handover::default(), 0)?;
            check(programs, &connection, [("with sockets", error.clone(), Fate::Passed)])?;
            programs.handovers.remove(&1)?;
            let told = Fate::Tells(icmp(sent.to.ip(), sent.from.ip(), kind(), &sent.packet()[..quoted]));
            check(programs, &connection, [("without", error, told)])?;
        }
        Ok(())
    })
}

/// RFC 5927, section 4.1: who knows addresses and ports alone must not be believed, and the end may not check.
#[test]
fn an_error_about_bytes_that_are_not_under_way_is_dropped() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            // The client has sent 100 bytes more than the server has acknowledged.
            let mut connection = Connection::new(v6);
            connection.track.halves.client.position += 100;
            let quoted = if v6 { 48 } else { 28 };
            for (what, kind) in errors(v6) {
                let rows = [(-1, false), (0, true), (50, true), (100, true), (101, false), (1 << 31, false)]
                    .map(|(further, is_under_way): (i64, bool)| {
                        let further = |segment: Segment| {
                            let seq = segment.seq.wrapping_add(further as u32);
                            long(Segment { seq, ..segment })
                        };
                        let [left, sent] =
                            [connection.forwarded_request(), connection.request()].map(further);
                        let arrives =
                            icmp(routers(v6)[0], left.from.ip(), kind.clone(), &left.packet()[..quoted]);
                        let leaves =
                            icmp(sent.to.ip(), sent.from.ip(), kind.clone(), &sent.packet()[..quoted]);
                        let dropped = Fate::Dropped(Count::IcmpUnrelated);
                        (what, arrives, if is_under_way { Fate::Tells(leaves) } else { dropped })
                    });
                check(programs, &connection, rows)?;
            }
            ensure!(programs.track()? == connection.track, "an error moves nothing");
        }
        Ok(())
    })
}

/// Nor do the programs know of a connection whose SYN the error is about.
#[test]
fn an_error_that_is_not_about_a_finished_connection_is_about_the_next_one() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let mut connection = Connection::new(v6);
            for (half, fin) in
                connection.track.halves.each_mut().into_iter().zip([closing::FIRST, closing::SECOND])
            {
                (half.closing, half.ack) = (fin | closing::FINISHED, half.ack + 1);
            }
            let quoted = if v6 { 48 } else { 28 };
            for (what, kind) in errors(v6) {
                let syn = long(Segment { seq: 77, ..connection.forwarded_request() });
                let error = icmp(routers(v6)[0], syn.from.ip(), kind, &syn.packet()[..quoted]);
                check(programs, &connection, [(what, error, Fate::Passed)])?;
            }
        }
        Ok(())
    })
}

#[test]
fn an_error_that_names_an_mtu_is_about_a_larger_packet() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let quoted = if v6 { 48 } else { 28 };
            let [sent, left] = [connection.request(), connection.forwarded_request()].map(long);
            let length = left.packet().len() as u32;
            let names =
                |mtu: u32| match v6 {
                    true => Kind::V6(Icmpv6Type::PacketTooBig { mtu }),
                    false => Kind::V4(Icmpv4Type::DestinationUnreachable(
                        DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu as u16 },
                    )),
                };
            // An IPv4 router from before RFC 1191 names 0.
            let small = if v6 { [(0, false), (1_279, false)] } else { [(0, true), (68, true)] };
            let rows = [(length - 1, true), (length, false), (length + 1, false), (1_280, true)];
            for (mtu, is_told) in rows.into_iter().chain(small) {
                programs.splice(&connection)?;
                let quote = &left.packet()[..quoted];
                let fate = programs.run(&icmp(routers(v6)[0], left.from.ip(), names(mtu), quote))?;
                let told = icmp(sent.to.ip(), sent.from.ip(), names(mtu), &sent.packet()[..quoted]);
                let expected = if is_told { Fate::Tells(told) } else { Fate::Dropped(Count::IcmpUnrelated) };
                ensure!(fate == expected, "{mtu}: {fate:02x?}");
            }
        }
        Ok(())
    })
}

#[test]
fn an_error_comes_by_the_device_that_the_packet_left_by() -> Result<()> {
    const IFINDEX: u32 = 77;
    with_programs(|programs| {
        programs.ns.ip(&format!(
            "link add front index {IFINDEX} address 02:00:00:00:00:07 type veth peer name other"
        ))?;
        let from_front = Arrival { ifindex: IFINDEX, ..Arrival::PLAIN };
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            programs.splice(&connection)?;
            let left = long(connection.forwarded_request());
            let (_, kind) = errors(v6).swap_remove(1);
            let error = icmp(routers(v6)[0], left.from.ip(), kind, &left.packet());
            let mut addresses = ADDRESSES;
            addresses[..6].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
            let fate = programs.run_from(from_front, &with_link_header(addresses, &error[14..]))?;
            ensure!(fate == Fate::Dropped(Count::WrongDevice), "{fate:02x?}");
            // It is the server's leg.
            let event = Event { id: 1, kind: event::WRONG_DEVICE, from_server: 1, number: IFINDEX, mtu: 0 };
            let events = programs.events();
            ensure!(events == [event], "{events:?}");

            addresses[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
            let fate = programs.run(&with_link_header(addresses, &error[14..]))?;
            ensure!(fate == Fate::Passed, "to another host: {fate:02x?}");
        }
        Ok(())
    })
}

#[test]
fn icmp_that_is_not_about_a_flow_passes_untouched() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let router = routers(v6)[0];
            let left = connection.forwarded_request();
            let too_big = errors(v6).swap_remove(0).1;
            let about = |quote: &[u8]| icmp(router, left.from.ip(), too_big.clone(), quote);
            let mut other = left.clone();
            other.from.set_port(1);
            let whole = left.packet();
            let [mut udp, mut optional] = [whole.clone(), whole.clone()];
            udp[if v6 { 6 } else { 9 }] = 17;
            optional[if v6 { 6 } else { 0 }] = if v6 { 0 } else { 0x46 };
            let echo = IcmpEchoHeader { id: 1, seq: 1 };
            let echo = if v6 {
                Kind::V6(Icmpv6Type::EchoRequest(echo))
            } else {
                Kind::V4(Icmpv4Type::EchoRequest(echo))
            };
            let rows = [
                ("about a socket's connection", about(&other.packet())),
                ("about what arrives", about(&connection.request().packet())),
                ("about UDP", about(&udp)),
                ("about a packet with options or extension headers", about(&optional)),
                ("with less than eight bytes", about(&whole[..if v6 { 47 } else { 27 }])),
                ("an echo request with the same bytes", icmp(router, left.from.ip(), echo, &whole)),
            ];
            check(programs, &connection, rows.map(|(what, packet)| (what, packet, Fate::Passed)))?;
        }

        let connection = Connection::new(false);
        let left: Segment = connection.forwarded_request();
        let mut fragment =
            icmp(routers(false)[0], left.from.ip(), errors(false).swap_remove(0).1, &left.packet());
        fragment[14 + 6] |= 0x20;
        check(programs, &connection, [("a fragment", fragment, Fate::Passed)])
    })
}
