//! SYNs and SYN-ACKs: which are noted, and what of them.

use anyhow::{Result, ensure};
use lb_common::packet::{NO_WINDOW_SCALE, Sighting, sighted};

use crate::connection::{Connection, LISTENER_PORT, SOURCE_PORT, frame};
use crate::programs::{Arrival, Fate, with_programs};
use crate::properties::model::{ACK, AE, CWR, ECE, NOP, RST, SYN, Segment};

/// What Linux offers: MSS, SACK, timestamps, window scale.
const OFFER: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 2, 0, 0, 0, 0, NOP, 3, 3, 7];

#[test]
fn a_syn_to_a_port_of_ours_is_noted_and_passes() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let syn = |segment: Segment, flags, options: &[u8]| Segment {
                seq: 0x8765_4321,
                flags,
                options: options.to_vec(),
                payload: vec![],
                ..segment
            };
            let plain = Sighting {
                isn: 0x8765_4321,
                ifindex: 1,
                tsval: 0,
                mss: 0,
                flags: 0,
                window_scale: NO_WINDOW_SCALE,
                ack: 2_000,
            };
            let full = Sighting {
                tsval: 0x0102,
                mss: 1_460,
                flags: sighted::TIMESTAMPS | sighted::SACK,
                window_scale: 7,
                ..plain
            };
            let end_first = [2, 4, 5, 0xb4, 0, 3, 3, 7];
            let to_listener = |flags, options| syn(connection.request(), flags, options);
            let to_source = |flags, options| syn(connection.response(), flags, options);
            for (what, segment, expected) in [
                ("without options", to_listener(SYN, &[]), Some(plain)),
                ("what Linux offers", to_listener(SYN, &OFFER), Some(full)),
                (
                    "what stands before the end",
                    to_listener(SYN, &end_first),
                    Some(Sighting { mss: 1_460, ..plain }),
                ),
                ("classic ECN", to_listener(SYN | ECE | CWR, &OFFER), Some(full)),
                (
                    "accurate ECN",
                    to_listener(SYN | AE | ECE | CWR, &[]),
                    Some(Sighting { flags: sighted::ACCURATE_ECN, ..plain }),
                ),
                (
                    "a server's answer",
                    to_source(SYN | ACK, &OFFER),
                    Some(Sighting { ack: 501_000, flags: full.flags | sighted::ACKNOWLEDGED, ..full }),
                ),
                ("an option of no size", to_listener(SYN, &[2, 0, 5, 0xb4]), None),
                ("an option that is too long", to_listener(SYN, &[NOP, 2, 4, 5]), None),
                ("an MSS of the wrong size", to_listener(SYN, &[2, 3, 5, NOP]), None),
                ("an answer to a listener", to_listener(SYN | ACK, &OFFER), None),
                ("a SYN to a source port", to_source(SYN, &OFFER), None),
                ("no SYN", to_listener(ACK, &[]), None),
                ("a reset", to_listener(RST, &[]), None),
            ] {
                // Not there: the row before was none.
                let _ = programs.sightings.remove(&segment.tuple());
                let fate = programs.run(&frame(&segment))?;
                let expected_fate = if expected.is_some() { Fate::Sighted } else { Fate::Passed };
                ensure!(fate == expected_fate, "{what}: {fate:02x?}");
                let found = programs.sightings.get(&segment.tuple(), 0).ok();
                ensure!(found == expected, "{what}: {found:?}");
            }

            // The next port, of the same word and of the next.
            for port in [LISTENER_PORT + 1, LISTENER_PORT + 64] {
                let mut segment = to_listener(SYN, &OFFER);
                segment.to.set_port(port);
                ensure!(programs.run(&frame(&segment))? == Fate::Passed, "{port}");
                ensure!(programs.sightings.get(&segment.tuple(), 0).is_err(), "{port}");
            }
        }
        Ok(())
    })
}

#[test]
fn the_last_syn_counts_and_so_does_its_device() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        programs.ns.ip("link add front index 77 type veth peer name other")?;
        let syn = Segment { flags: SYN, payload: vec![], ..Connection::new(false).request() };
        ensure!(programs.run(&frame(&syn))? == Fate::Sighted);
        let again = Segment { seq: 4, ..syn };
        let from_front = Arrival { ifindex: 77, ..Arrival::PLAIN };
        ensure!(programs.run_from(from_front, &frame(&again))? == Fate::Sighted);
        let sighting = programs.sightings.get(&again.tuple(), 0)?;
        ensure!((sighting.isn, sighting.ifindex) == (4, 77), "{sighting:?}");
        Ok(())
    })
}

/// Who changes sequence numbers between the device and the gateway's socket is known by it.
#[test]
fn the_first_acknowledgement_behind_a_syn_is_noted() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        for v6 in [false, true] {
            let next = Connection::new(v6).request();
            let syn = Segment { flags: SYN, payload: vec![], ..next.clone() };
            ensure!(programs.run(&frame(&next))? == Fate::Passed);
            ensure!(programs.sightings.get(&next.tuple(), 0).is_err(), "without a SYN");
            ensure!(programs.run(&frame(&syn))? == Fate::Sighted);
            let known = |programs: &crate::programs::Programs| -> Result<Option<u32>> {
                let sighting = programs.sightings.get(&next.tuple(), 0)?;
                Ok((sighting.flags & sighted::ACKNOWLEDGED != 0).then_some(sighting.ack))
            };
            for (what, segment, expected) in [
                ("without an ACK", Segment { flags: 0, ack: 77, ..next.clone() }, None),
                ("the first", next.clone(), Some(2_000)),
                ("another", Segment { ack: 2_100, ..next.clone() }, Some(2_000)),
            ] {
                ensure!(programs.run(&frame(&segment))? == Fate::Passed, "{what}");
                let seen = known(programs)?;
                ensure!(seen == expected, "{what}: {seen:?}");
            }
            ensure!(programs.run(&frame(&syn))? == Fate::Sighted);
            ensure!(known(programs)?.is_none(), "another connection");
        }
        Ok(())
    })
}
