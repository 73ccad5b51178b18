//! What is dropped.

use anyhow::{Result, ensure};
use lb_common::packet::track::asked;
use lb_common::packet::{Count, Event, Path, event, exit};

use super::packets::leaves;
use crate::connection::{ADDRESSES, Connection, frame, with_link_header};
use crate::programs::{Arrival, Fate, check, with_programs};
use crate::properties::model::{NOP, RST, SYN, Segment};

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
