//! While the sockets still live: what is for them, and what is not.

use anyhow::{Result, ensure};
use lb_common::packet::{Event, FOR_SOCKET_MARK, Handover, State, event};

use crate::connection::{Connection, FROM_CLIENT, FROM_SERVER, frame};
use crate::programs::{Arrival, Fate, check, with_programs};
use crate::properties::model::{ACK, FIN, NOP, RST, SYN, Segment};

/// The sockets wait for these to be acknowledged: by the client, by the server.
const AWAITED: [u32; 2] = [2_300, 501_400];

/// More than any window.
const ROOM: [u32; 2] = [1 << 24; 2];

#[test]
fn acknowledgements_of_the_prefix_are_for_the_socket_and_all_else_is_not() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6).with(|flow| flow.handover = 1);
            let handover = Handover { await_ack: AWAITED, promised: ROOM, ..Handover::default() };
            programs.handovers.insert(1, handover, 0)?;
            for side in [FROM_CLIENT, FROM_SERVER] {
                let segments = [
                    [connection.request(), connection.forwarded_request()],
                    [connection.response(), connection.forwarded_response()],
                ];
                let [came, left] = &segments[side];
                let awaited = AWAITED[side];
                let difference = left.ack.wrapping_sub(came.ack);
                let row = |what, ack: u32, flags, payload: &[u8], passes| {
                    let payload = payload.to_vec();
                    let window = if flags & SYN != 0 { came.window } else { left.window };
                    let came = Segment { ack, flags, payload: payload.clone(), ..came.clone() };
                    let ack = ack.wrapping_add(difference);
                    let left = Segment { ack, flags, payload, window, ..left.clone() };
                    let fate = if passes { Fate::Passed } else { Fate::Leaves(frame(&left)) };
                    (what, frame(&came), fate)
                };
                let rows = [
                    row("of a part", awaited - 1, ACK, b"", true),
                    row("of long ago", awaited.wrapping_sub(0x7fff_ffff), ACK, b"", true),
                    row("of all", awaited, ACK, b"", false),
                    row("of more", awaited + 1, ACK, b"", false),
                    row("of a part, with bytes", awaited - 1, ACK, b"x", false),
                    row("of a part, with a FIN", awaited - 1, ACK | FIN, b"", false),
                    row("of a part, with a reset", awaited - 1, ACK | RST, b"", false),
                    row("of a part, with a SYN", awaited - 1, ACK | SYN, b"", false),
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
            let waiting = Connection::new(v6).with(|flow| flow.handover = 1);
            let through = waiting.with(|flow| flow.ack += 1_000);
            // 100 bytes behind what they have acknowledged, in units of 2 and 4.
            let (promised, window_scale) = ([1_100, 92_100], [2, 1]);
            let handover = Handover { await_ack: AWAITED, promised, window_scale, ..Handover::default() };
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
                    (what, frame(&further(&came)), Fate::Leaves(frame(&left)))
                };
                let rows = [
                    row("room", [0, 0], ACK, limited[side]),
                    row("hardly any room", [0, 100 - 2], ACK, 1 >> side),
                    row("no room left", [0, 100], ACK, 0),
                    row("it has run away", [0, 2_000], ACK, 0),
                ];
                check(programs, &waiting, rows)?;
                let rows = [row("it has sent more than that", [0, 0], ACK, [75, 37][side])];
                check(programs, &waiting.with(|flow| flow.bytes = 150), rows)?;
                let rows = [
                    row("the socket is through", [0, 0], ACK, left.window),
                    row("a gap: it may not be", [1, 0], ACK, limited[side]),
                ];
                check(programs, &through, rows)?;
                let (_, acknowledgement, _) = row("", [0, 2_000], ACK, 0);
                let fate = programs.run(&acknowledgement)?;
                let (.., expected) = row("and still not", [0, 2_000], ACK, 0);
                ensure!(fate == expected, "{fate:02x?}, not {expected:02x?}");
            }
        }
        Ok(())
    })
}

#[test]
fn what_the_gateway_tells_a_socket_goes_nowhere_else() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6).with(|flow| flow.handover = 1);
            programs.splice(&connection)?;
            programs.handovers.insert(1, Handover { await_ack: AWAITED, ..Handover::default() }, 0)?;
            let ours = Arrival { mark: FOR_SOCKET_MARK, ..Arrival::PLAIN };
            let acknowledgements = [connection.request(), connection.response()]
                .map(|came| frame(&Segment { flags: ACK, payload: vec![], ..came }));
            for packet in &acknowledgements {
                let fate = programs.run_from(ours, packet)?;
                ensure!(fate == Fate::Passed, "{fate:02x?}");
            }
            for tuple in &connection.tuples {
                ensure!(programs.flows.get(tuple, 0)?.packets == 0);
            }
            // The sockets are gone.
            programs.handovers.remove(&1)?;
            for packet in &acknowledgements {
                let fate = programs.run_from(ours, packet)?;
                ensure!(fate == Fate::Swallowed, "{fate:02x?}");
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
        let connection = Connection::new(false).with(|flow| flow.handover = 1);
        let handover =
            Handover { await_ack: [2_000, 501_000], tsecr_floor: [60, 1_100], ..Handover::default() };
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
        let connection = Connection::new(false).with(|flow| flow.handover = 1);
        programs.splice(&connection)?;
        let acknowledgement = |segment| Segment { payload: vec![], ..segment };
        let fate = programs.run(&frame(&acknowledgement(connection.request())))?;
        ensure!(fate == Fate::Leaves(frame(&acknowledgement(connection.forwarded_request()))), "{fate:02x?}");
        ensure!(programs.flows.get(&connection.tuples[FROM_CLIENT], 0)?.handover == 0);
        Ok(())
    })
}

#[test]
fn a_fin_that_the_socket_has_taken_counts() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false).with(|flow| flow.handover = 1);
        programs.splice(&connection)?;
        let fin = [State::FIRST, 0];
        let handover = Handover { await_ack: [2_000, 501_000], fin, ..Handover::default() };
        programs.handovers.insert(1, handover, 0)?;
        let fates = [
            programs.run(&frame(&connection.response()))?,
            programs.run(&frame(&Segment { flags: ACK | FIN, ..connection.response() }))?,
        ];
        ensure!(fates.iter().all(|fate| matches!(fate, Fate::Leaves(_))), "{fates:02x?}");
        for tuple in &connection.tuples {
            let state = programs.flows.get(tuple, 0)?.state;
            ensure!(state == State { fin: [State::FIRST, State::SECOND], reset: [0, 0] }, "{state:?}");
        }
        let closed = Event { id: 1, kind: event::CLOSED, from_server: 0, seq: 0, mtu: 0 };
        ensure!(programs.events() == [closed]);
        Ok(())
    })
}
