//! What the gateway itself sends by the loopback device.

use anyhow::{Result, ensure};
use lb_common::packet::inject::{ARRIVAL, INJECTED_MARK, NOBODY, Way};
use lb_common::packet::{Ethernet, exit};

use crate::connection::{ADDRESSES, Connection, with_link_header};
use crate::programs::{Arrival, Fate, with_programs};

const MARKED: Arrival = Arrival { mark: INJECTED_MARK, ..Arrival::PLAIN };

#[test]
fn a_marked_frame_leaves_by_the_way_that_it_bears() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            // To the program it is a packet like any other: also one of a flow's own tuple.
            let connection = Connection::new(v6);
            programs.splice(&connection)?;
            let packet = connection.request().packet();
            let addresses: Ethernet = [0; 12];
            for (kind, to, left) in [
                (exit::NEIGHBOUR, NOBODY, None),
                (exit::PEER, NOBODY, Some(addresses)),
                (exit::LOCAL, NOBODY, Some(addresses)),
                (ARRIVAL, [2, 0, 0, 0, 0, 7], None),
            ] {
                let addresses = Way { ifindex: 1, kind }.addresses(to);
                let came = with_link_header(addresses, &packet);
                let fate = programs.run_from(MARKED, &came)?;
                let expected = Fate::Leaves(with_link_header(left.unwrap_or(addresses), &packet));
                ensure!(fate == expected, "{kind}: {came:02x?} becomes\n{fate:02x?}, not\n{expected:02x?}");
            }
            for tuple in connection.tuples {
                ensure!(programs.flows.get(&tuple, 0)?.packets == 0, "counted for a flow");
            }
        }
        Ok(())
    })
}

#[test]
fn a_mark_is_not_heard_on_another_device_nor_without_a_way() -> Result<()> {
    with_programs(|programs| {
        let ifindex = 77;
        programs.ns.ip(&format!("link add front index {ifindex} type veth peer name other"))?;
        let connection = Connection::new(false);
        programs.splice(&connection)?;
        let packet = connection.request().packet();
        let way = Way { ifindex: 1, kind: exit::LOCAL }.addresses(NOBODY);
        let left = connection.forwarded_request().packet();
        for (what, arrival, addresses) in [
            ("by another device", Arrival { ifindex, ..MARKED }, way),
            ("without a mark", Arrival::PLAIN, way),
            ("without a way", MARKED, ADDRESSES),
            ("by no device", MARKED, Way { ifindex: 0, kind: exit::LOCAL }.addresses(NOBODY)),
            ("by no way there is", MARKED, Way { ifindex: 1, kind: 7 }.addresses(NOBODY)),
        ] {
            // It is a packet of the flow.
            let fate = programs.run_from(arrival, &with_link_header(addresses, &packet))?;
            let expected = Fate::Leaves(with_link_header(addresses, &left));
            ensure!(fate == expected, "{what}: {fate:02x?}");
        }
        Ok(())
    })
}
