//! What the gateway itself sends by the loopback device.

use anyhow::{Result, ensure};
use lb_common::packet::inject::{ARRIVAL, INJECTED_MARK, NOBODY, Way};
use lb_common::packet::{Ethernet, Path, Tuple, exit};

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
                (exit::NEIGHBOUR, NOBODY, Some(addresses)),
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
            ensure!(programs.track()? == connection.track, "noted for a connection");
        }
        Ok(())
    })
}

#[test]
fn a_mark_is_not_heard_on_another_device_nor_without_a_way() -> Result<()> {
    with_programs(|programs| {
        let ifindex = 77;
        let [a, b, c, d, e, f] = NOBODY;
        let address = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        programs
            .ns
            .ip(&format!("link add front index {ifindex} address {address} type veth peer name other"))?;
        let connection = Connection::new(false);
        for Tuple { source: peer, .. } in connection.tuples {
            programs.paths.insert(Path { device: ifindex, expected: 1, peer }, 1, 0)?;
        }
        programs.splice(&connection)?;
        let packet = connection.request().packet();
        // The loopback device's own.
        let here = [0; 6];
        let to = |to, ifindex, kind| Way { ifindex, kind }.addresses(to);
        let left = connection.forwarded_request().packet();
        for (what, arrival, addresses) in [
            ("by another device", Arrival { ifindex, ..MARKED }, to(NOBODY, 1, exit::LOCAL)),
            ("without a mark", Arrival::PLAIN, to(here, 1, exit::LOCAL)),
            ("without a way", MARKED, ADDRESSES),
            ("by no device", MARKED, to(here, 0, exit::LOCAL)),
            ("by no way there is", MARKED, to(here, 1, 7)),
        ] {
            // It is a packet of the flow.
            let fate = programs.run_from(arrival, &with_link_header(addresses, &packet))?;
            let expected = Fate::Leaves(with_link_header(addresses, &left));
            ensure!(fate == expected, "{what}: {fate:02x?}");
        }
        Ok(())
    })
}
