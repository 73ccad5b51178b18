//! While the sockets still live: what is for them, and what is not.

use anyhow::{Result, ensure};
use lb_common::packet::track::closing;
use lb_common::packet::{Count, Event, FOR_SOCKET_MARK, Handover, event};

use crate::connection::{Connection, FROM_CLIENT, FROM_SERVER, frame, with_link_header};
use crate::programs::{Arrival, Fate, check, check_left, with_programs};
use crate::properties::model::{ACK, FIN, NOP, RST, SYN, Segment};

/// The sockets wait for these to be acknowledged: by the client, by the server.
const AWAITED: [u32; 2] = [2_300, 501_400];

/// More than any window.
const ROOM: [u32; 2] = [1 << 24; 2];

#[test]
fn acknowledgements_of_the_prefix_are_for_the_socket_and_all_else_is_not() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6).in_handover();
            let handover =
                Handover { await_ack: AWAITED.into(), promised: ROOM.into(), ..Handover::default() };
            programs.handovers.insert(1, handover, 0)?;
            for side in [FROM_CLIENT, FROM_SERVER] {
                let segments = [
                    [connection.request(), connection.forwarded_request()],
                    [connection.response(), connection.forwarded_response()],
                ];
                let [came, left] = &segments[side];
                let awaited = AWAITED[side];
                let difference = left.ack.wrapping_sub(came.ack);
                let row = |what, ack: u32, flags, payload: &[u8], fate: fn(Vec<u8>) -> Fate| {
                    let payload = payload.to_vec();
                    let window = if flags & SYN != 0 { came.window } else { left.window };
                    // A SYN-ACK is from before all bytes.
                    let back = u32::from(flags & SYN != 0);
                    let came = Segment {
                        seq: came.seq - back,
                        ack,
                        flags,
                        payload: payload.clone(),
                        ..came.clone()
                    };
                    let (seq, ack) = (left.seq - back, ack.wrapping_add(difference));
                    let left = Segment { seq, ack, flags, payload, window, ..left.clone() };
                    (what, frame(&came), fate(frame(&left)))
                };
                let rows = [
                    row("of a part", awaited - 1, ACK, b"", |_| Fate::Passed),
                    row("of long ago", awaited.wrapping_sub(0x7fff_ffff), ACK, b"", |_| Fate::Passed),
                    row("of all", awaited, ACK, b"", Fate::Leaves),
                    row("of more", awaited + 1, ACK, b"", |left| Fate::Counted(Count::Near, left)),
                    row("of a part, with bytes", awaited - 1, ACK, b"x", Fate::Leaves),
                    row("of a part, with a FIN", awaited - 1, ACK | FIN, b"", Fate::Leaves),
                    row("of a part, with a reset", awaited - 1, ACK | RST, b"", |left| {
                        Fate::Counted(Count::ResetExact, left)
                    }),
                    row("of a part, with a SYN", awaited - 1, ACK | SYN, b"", Fate::Leaves),
                ];
                check(programs, &connection, rows)?;

                // The socket takes none from beyond its window.
                let from = |seq: u32| {
                    let (ack, payload) = (awaited - 1, Vec::new());
                    frame(&Segment { seq, ack, flags: ACK, payload, ..came.clone() })
                };
                let end = ROOM[side];
                let rows = [
                    ("from far ahead", from(end + (1 << 20)), Fate::PassedAs(from(end))),
                    ("from the end", from(end), Fate::Passed),
                    ("from behind", from(came.seq - 1), Fate::Passed),
                ];
                check(programs, &connection, rows)?;
            }
        }
        Ok(())
    })
}

/// A socket that still sends has an acknowledgement from before all that flows the other way meanwhile.
#[test]
fn an_end_is_not_allowed_to_run_away_from_a_socket_that_still_sends_to_it() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let waiting = Connection::new(v6).in_handover().with(|flow| {
                (flow.own_scale, flow.peer_scale) = (flow.own_scale + 1, flow.peer_scale + 1);
                flow.promised_scale += 1;
            });
            let through = waiting.known(|half| half.ack += 1_000);
            // 100 bytes behind what they have acknowledged, in units of 2 and 4.
            let handover = Handover {
                await_ack: AWAITED.into(),
                promised: [1_100, 92_100].into(),
                ..Handover::default()
            };
            programs.handovers.insert(1, handover, 0)?;
            let limited = [50, 25];
            for side in [FROM_CLIENT, FROM_SERVER] {
                let (came, left) = match side {
                    FROM_CLIENT => (waiting.request(), waiting.forwarded_request()),
                    _ => (waiting.response(), waiting.forwarded_response()),
                };
                let row = |what, further: [u32; 2], flags, window: u16| {
                    let [seq, ack] = further;
                    let further = |segment: &Segment| {
                        let (seq, ack) = (segment.seq + seq, segment.ack + ack);
                        Segment { seq, ack, flags, ..segment.clone() }
                    };
                    let left = Segment { window, ..further(&left) };
                    (what, frame(&further(&came)), frame(&left))
                };
                let rows = [
                    row("room", [0, 0], ACK, limited[side]),
                    row("hardly any room", [0, 100 - 2], ACK, 1 >> side),
                    row("no room left", [0, 100], ACK, 0),
                    row("it has run away", [0, 2_000], ACK, 0),
                ];
                check_left(programs, &waiting, rows)?;
                let rows = [row("it has sent more than that", [0, 0], ACK, [75, 37][side])];
                check_left(programs, &waiting.known(|half| half.position += 150), rows)?;
                let rows = [
                    row("the socket is through", [0, 0], ACK, left.window),
                    row("a gap: it may not be", [1, 0], ACK, limited[side]),
                ];
                check_left(programs, &through, rows)?;
                let (_, acknowledgement, _) = row("", [0, 2_000], ACK, 0);
                let fate = programs.run(&acknowledgement)?;
                let (.., expected) = row("and still not", [0, 2_000], ACK, 0);
                ensure!(fate.left() == Some(&expected), "{fate:02x?}, not {expected:02x?}");
            }
        }
        Ok(())
    })
}

#[test]
fn what_the_gateway_tells_a_socket_goes_nowhere_else() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6).in_handover();
            programs.splice(&connection)?;
            programs.handovers.insert(1, Handover { await_ack: AWAITED.into(), ..Handover::default() }, 0)?;
            let ours = Arrival { mark: FOR_SOCKET_MARK, ..Arrival::PLAIN };
            let acknowledgements = [connection.request(), connection.response()]
                .map(|came| frame(&Segment { flags: ACK, payload: vec![], ..came }));
            for packet in &acknowledgements {
                let fate = programs.run_from(ours, packet)?;
                ensure!(fate == Fate::Passed, "{fate:02x?}");
            }
            ensure!(programs.track()? == connection.track, "noted for the connection");
            // The sockets are gone.
            programs.handovers.remove(&1)?;
            for packet in &acknowledgements {
                let fate = programs.run_from(ours, packet)?;
                ensure!(fate == Fate::Dropped(Count::SocketGone), "{fate:02x?}");
            }
            for tuple in &connection.tuples {
                programs.flows.remove(tuple)?;
            }
            for packet in &acknowledgements {
                let fate = programs.run_from(ours, packet)?;
                ensure!(fate == Fate::Passed, "{fate:02x?}");
            }
        }
        Ok(())
    })
}

#[test]
fn an_echo_of_the_socket_is_not_passed_on() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false).in_handover();
        let handover = Handover {
            await_ack: [2_000, 501_000].into(),
            tsecr_floor: [60, 1_100].into(),
            ..Handover::default()
        };
        programs.handovers.insert(1, handover, 0)?;
        let stamps = |tsval: u32, tsecr: u32| [tsval.to_be_bytes(), tsecr.to_be_bytes()].concat();
        for (what, before, after) in [
            ("aligned", [NOP, NOP, 8, 10], [].as_slice()),
            ("at an odd offset", [NOP, 8, 10, 0], [NOP].as_slice()),
        ] {
            let options = |tsval, tsecr| {
                let before = &before[..before.len() - after.len()];
                [before, &stamps(tsval, tsecr), after].concat()
            };
            let came = |options| frame(&Segment { options, ..connection.request() });
            let left = |options| Fate::Leaves(frame(&Segment { options, ..connection.forwarded_request() }));
            let rows = [
                (what, came(options(5, 60)), left(options(1_005, 67))),
                (what, came(options(5, 59)), left(options(1_005, 0))),
                // The clock has gone round.
                (what, came(options(5, 60 + 0x7fff_ffff)), left(options(1_005, 67 + 0x7fff_ffff))),
                (what, came(options(5, 60 + 0x8000_0000)), left(options(1_005, 0))),
            ];
            check(programs, &connection, rows)?;
            let came = |options| frame(&Segment { options, ..connection.response() });
            let left = |options| Fate::Leaves(frame(&Segment { options, ..connection.forwarded_response() }));
            let rows = [
                (what, came(options(67, 1_100)), left(options(60, 100))),
                (what, came(options(67, 1_099)), left(options(60, 0))),
            ];
            check(programs, &connection, rows)?;
        }
        Ok(())
    })
}

#[test]
fn without_a_handover_a_flow_forgets_that_there_was_one() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false).in_handover();
        programs.splice(&connection)?;
        let acknowledgement = |segment| Segment { payload: vec![], ..segment };
        let fate = programs.run(&frame(&acknowledgement(connection.request())))?;
        ensure!(fate == Fate::Leaves(frame(&acknowledgement(connection.forwarded_request()))), "{fate:02x?}");
        ensure!(programs.track()?.halves.client.closing == 0);
        Ok(())
    })
}

#[test]
fn a_fin_that_the_socket_has_taken_counts() -> Result<()> {
    with_programs(|programs| {
        let mut connection = Connection::new(false).in_handover();
        connection.track.halves.client.closing |= closing::FIRST;
        programs.splice(&connection)?;
        let handover = Handover { await_ack: [2_000, 501_000].into(), ..Handover::default() };
        programs.handovers.insert(1, handover, 0)?;
        let fin = Segment { ack: 501_001, flags: ACK | FIN, ..connection.response() };
        let last = Segment { seq: 1_001, ack: 2_006, payload: vec![], ..connection.request() };
        for (segment, told) in [(fin, false), (last, true)] {
            let fate = programs.run(&frame(&segment))?;
            ensure!(matches!(fate, Fate::Leaves(_)), "{fate:02x?}");
            let [client, server] =
                programs.track()?.halves.each_ref().map(|half| half.closing & closing::FIN);
            ensure!([client, server] == [closing::FIRST, closing::SECOND], "{client} {server}");
            let finished = Event { id: 1, kind: event::FINISHED, from_server: 0, number: 0, mtu: 0 };
            let events = programs.events();
            ensure!(events == [finished][..usize::from(told)], "{events:?}");
        }
        Ok(())
    })
}

/// On a wire the mark is anybody's.
#[test]
fn by_another_device_the_gateway_tells_its_sockets_nothing() -> Result<()> {
    with_programs(|programs| {
        programs.ns.ip("link add front index 77 address 02:00:00:00:00:07 type veth peer name other")?;
        let connection = Connection::new(false).with(|flow| flow.from = 77);
        programs.splice(&connection)?;
        let marked = Arrival { mark: FOR_SOCKET_MARK, ifindex: 77, ..Arrival::PLAIN };
        let framed =
            |segment: Segment| with_link_header(*b"\x02\0\0\0\0\x07\x02\0\0\0\0\x02", &segment.packet());
        let fate = programs.run_from(marked, &framed(connection.request()))?;
        ensure!(fate == Fate::Leaves(framed(connection.forwarded_request())), "{fate:02x?}");
        Ok(())
    })
}
