//! The ways out, with and without a link header.

use anyhow::{Result, ensure};
use lb_common::packet::{Ethernet, FORWARD_BARE, exit};

use super::packets::{blocks, stamped};
use crate::connection::{
    ADDRESSES, Connection, FROM_SERVER, LISTENER_PORT, SOURCE_PORT, frame, with_link_header,
};
use crate::programs::{Arrival, Fate, check, with_programs};
use crate::properties::model::{NOP, SYN, Segment, tuple};

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
