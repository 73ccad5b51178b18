//! FINs, resets, and SYNs on what is or is not closed.

use anyhow::{Result, bail, ensure};
use lb_common::packet::{Event, MAX_FIN_AHEAD, Sighting, State, event};

use crate::connection::{Connection, FROM_CLIENT, LISTENER_PORT, SOURCE_PORT, frame};
use crate::programs::{Fate, Programs, with_programs};
use crate::properties::model::{ACK, FIN, RST, SYN, Segment};

const CLOSED: Event = Event { id: 1, kind: event::CLOSED, from_server: 0, seq: 0, mtu: 0 };

/// One after the other on the same connection: a segment, which is always forwarded, and then how far both flows say
/// that the connection has come (FINs, resets), and whether userspace hears that it is closed.
type Step = (&'static str, Segment, [u8; 2], [u8; 2], bool);

fn follow(programs: &mut Programs, connection: &Connection, steps: &[Step]) -> Result<()> {
    programs.splice(connection)?;
    for (what, segment, fin, reset, closes) in steps {
        let fate = programs.run(&frame(segment))?;
        ensure!(matches!(fate, Fate::Leaves(_)), "{what}: {fate:02x?}");
        for tuple in &connection.tuples {
            let state = programs.flows.get(tuple, 0)?.state;
            ensure!(state == State { fin: *fin, reset: *reset }, "{what}: {state:?}");
        }
        let events = programs.events();
        ensure!(events == [CLOSED][..usize::from(*closes)], "{what}: {events:?}");
    }
    Ok(())
}

#[test]
fn both_fins_close_and_userspace_hears_of_it_once() -> Result<()> {
    const ONE: [u8; 2] = [State::FIRST, 0];
    const BOTH: [u8; 2] = [State::FIRST, State::SECOND];
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let fin = |segment: Segment| Segment { flags: ACK | FIN, ..segment };
            let [client, server] = [connection.request(), connection.response()];
            let last = Segment { seq: 1_006, ack: 2_006, flags: ACK, payload: vec![], ..client.clone() };
            follow(
                programs,
                &connection,
                &[
                    ("bytes", client.clone(), [0, 0], [0, 0], false),
                    ("a FIN with them once more", fin(client.clone()), ONE, [0, 0], false),
                    ("once more", fin(client.clone()), ONE, [0, 0], false),
                    ("bytes the other way", server.clone(), ONE, [0, 0], false),
                    ("a FIN the other way", fin(server.clone()), BOTH, [0, 0], true),
                    ("once more", fin(server.clone()), BOTH, [0, 0], false),
                    ("the first once more", fin(client.clone()), BOTH, [0, 0], false),
                    ("the last acknowledgement", last, BOTH, [0, 0], false),
                ],
            )?;
            follow(
                programs,
                &connection,
                &[
                    ("the server first", fin(server), [0, State::FIRST], [0, 0], false),
                    ("then the client", fin(client), [State::SECOND, State::FIRST], [0, 0], true),
                ],
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_fin_far_ahead_is_not_believed() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false);
        let fin = |seq| Segment { seq, flags: ACK | FIN, payload: vec![], ..connection.request() };
        follow(
            programs,
            &connection,
            &[
                ("too far", fin(1_000 + MAX_FIN_AHEAD + 1), [0, 0], [0, 0], false),
                ("behind", fin(999), [0, 0], [0, 0], false),
                ("as far as may be", fin(1_000 + MAX_FIN_AHEAD), [State::FIRST, 0], [0, 0], false),
            ],
        )
    })
}

#[test]
fn a_reset_counts_if_its_number_is_exactly_the_next() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let client = connection.request();
            let reset = |seq| Segment { seq, flags: RST, payload: vec![], ..connection.request() };
            let reset_of_server =
                |seq| Segment { seq, flags: RST | ACK, payload: vec![], ..connection.response() };
            // Five bytes later, of which the server has acknowledged three.
            let partly = Segment { ack: 501_003, payload: vec![], ..connection.response() };
            for (what, seq, exact) in [
                ("the next", 1_005, true),
                ("behind a FIN that was not seen", 1_006, true),
                ("the next to the server, which has not got all", 1_003, true),
                ("too far", 1_007, false),
                ("between", 1_004, false),
                ("long gone", 1_000, false),
                ("somewhere else", 0x8000_03ed, false),
            ] {
                follow(
                    programs,
                    &connection,
                    &[
                        ("bytes", client.clone(), [0, 0], [0, 0], false),
                        ("an acknowledgement", partly.clone(), [0, 0], [0, 0], false),
                        (what, reset(seq), [0, 0], [u8::from(exact), 0], exact),
                        ("once more", reset(seq), [0, 0], [u8::from(exact), 0], false),
                    ],
                )?;
            }
            follow(
                programs,
                &connection,
                &[
                    ("inexact, of the server", reset_of_server(91_999), [0, 0], [0, 0], false),
                    ("exact, of the server", reset_of_server(92_000), [0, 0], [0, 1], true),
                    ("the client's as well", reset(1_000), [0, 0], [1, 1], false),
                ],
            )?;
        }
        Ok(())
    })
}

#[test]
fn who_says_something_new_after_a_reset_has_not_sent_it() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false);
        let [client, server] = [connection.request(), connection.response()];
        let reset = Segment { seq: 1_005, flags: RST, payload: vec![], ..client.clone() };
        let empty = Segment { payload: vec![], ..client.clone() };
        let next = Segment { seq: 1_005, ..client.clone() };
        let fin = |segment: &Segment| Segment { flags: ACK | FIN, ..segment.clone() };
        follow(
            programs,
            &connection,
            &[
                ("bytes", client.clone(), [0, 0], [0, 0], false),
                ("a reset", reset, [0, 0], [1, 0], true),
                ("what was on its way to who sent it", server.clone(), [0, 0], [1, 0], false),
                ("what it had overtaken", client, [0, 0], [1, 0], false),
                ("an acknowledgement that it had", empty, [0, 0], [1, 0], false),
                ("more bytes", next.clone(), [0, 0], [0, 0], false),
                ("a FIN", fin(&next), [State::FIRST, 0], [0, 0], false),
                ("another", fin(&server), [State::FIRST, State::SECOND], [0, 0], true),
            ],
        )
    })
}

const NOTHING_SIGHTED: Sighting =
    Sighting { isn: 0, ifindex: 1, tsval: 0, mss: 0, flags: 0, window_scale: 0, ethernet: [0; 12] };

/// Up the stack it would be taken for a new connection, or answered with a reset.
#[test]
fn a_late_copy_of_a_closed_connections_own_syn_is_swallowed() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let closed = connection.with(|flow| flow.state = State { fin: [1, 2], reset: [0, 0] });
            for segment in [connection.request(), connection.response()] {
                let syn = Segment { seq: 7_000_000, flags: SYN, payload: vec![], ..segment };
                programs.splice(&closed)?;
                programs.sightings.insert(syn.tuple(), Sighting { isn: 7_000_000, ..NOTHING_SIGHTED }, 0)?;
                let became = programs.run(&frame(&syn))?;
                ensure!(became == Fate::Swallowed, "{became:02x?}");
                for tuple in closed.tuples {
                    ensure!(programs.flows.get(&tuple, 0).is_ok(), "a flow is gone");
                }
                ensure!(programs.events().is_empty(), "somebody was told");
            }
        }
        Ok(())
    })
}

#[test]
fn a_syn_takes_over_what_is_closed_and_nothing_else() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let syn = |segment| Segment { seq: 7_000_000, flags: SYN, payload: vec![], ..segment };
            let [client, server] = [syn(connection.request()), syn(connection.response())];
            let state = |fin, reset| State { fin, reset };
            for (what, state, segment, fate) in [
                ("of the client, after both FINs", state([1, 2], [0, 0]), &client, Some(Fate::Sighted)),
                ("of the client, after a reset", state([0, 0], [0, 1]), &client, Some(Fate::Sighted)),
                ("of the server, where nobody listens", state([2, 1], [0, 0]), &server, Some(Fate::Passed)),
                ("while it lives", state([0, 0], [0, 0]), &client, None),
                ("while one way is open", state([1, 0], [0, 0]), &client, None),
            ] {
                let closed = connection.with(|flow| flow.state = state);
                programs.splice(&closed)?;
                // Its own handshake was sighted.
                programs.sightings.insert(
                    segment.tuple(),
                    Sighting { isn: 6_000_000, ..NOTHING_SIGHTED },
                    0,
                )?;
                let became = programs.run(&frame(segment))?;
                let there = closed.tuples.map(|tuple| programs.flows.get(&tuple, 0).is_ok());
                let events = programs.events();
                let sighting = programs.sightings.get(&segment.tuple(), 0);
                match fate {
                    Some(fate) => {
                        ensure!(became == fate, "{what}: {became:02x?}");
                        let [Event { id: 1, kind: event::REUSED, seq, .. }] = events[..] else {
                            bail!("{what}: {events:?}");
                        };
                        ensure!(State::unpacked(seq) == state, "{what}: {seq:x}");
                        ensure!(there == [false, false], "{what}: {there:?}");
                        let seen = sighting?.isn == 7_000_000;
                        ensure!(seen == (fate == Fate::Sighted), "{what}: sighted: {seen}");
                    }
                    None => {
                        ensure!(matches!(became, Fate::Leaves(_)), "{what}: {became:02x?}");
                        ensure!(there == [true, true] && events.is_empty(), "{what}: {there:?} {events:?}");
                        ensure!(sighting?.isn == 6_000_000, "{what}: sighted");
                        ensure!(programs.flows.get(&closed.tuples[FROM_CLIENT], 0)?.state == state, "{what}");
                    }
                }
            }
        }
        Ok(())
    })
}
