//! FINs, resets, and SYNs on what is or is not over.

use anyhow::{Result, ensure};
use lb_common::packet::track::{RESET_OVERTAKES_TICKS, asked, closing};
use lb_common::packet::{Count, Event, Handover, Sighting, closings, event};

use crate::connection::{Connection, FROM_CLIENT, FROM_SERVER, LISTENER_PORT, SOURCE_PORT, frame};
use crate::programs::{Fate, Programs, with_programs};
use crate::properties::model::{ACK, FIN, RST, SYN, Segment};

use closing::{FINISHED, FIRST, RESET, RESET_SECOND, REUSED, SECOND};

const fn told(kind: u32, from_server: u32) -> Event {
    Event { id: 1, kind, from_server, number: 0, mtu: 0 }
}

/// What becomes of a packet that may not pass, or of one that may.
#[derive(Clone, Copy)]
enum Becomes {
    Leaves,
    Counted(Count),
    Dropped(Count),
}

use Becomes::{Counted, Dropped, Leaves};

/// One after the other on the same connection: a segment and what becomes of it, then what is known of the ends of
/// both, and what userspace hears.
type Step = (&'static str, Segment, Becomes, [u8; 2], Option<Event>);

fn follow(programs: &mut Programs, connection: &Connection, steps: &[Step]) -> Result<()> {
    programs.splice(connection)?;
    for (what, segment, becomes, closing, event) in steps {
        let fate = programs.run(&frame(segment))?;
        let is_right = match becomes {
            Leaves => matches!(fate, Fate::Leaves(_)),
            Counted(expected) => matches!(&fate, Fate::Counted(count, _) if count == expected),
            Dropped(expected) => fate == Fate::Dropped(*expected),
        };
        ensure!(is_right, "{what}: {fate:02x?}");
        let halves = programs.track()?.halves;
        ensure!(halves.each_ref().map(|half| half.closing) == *closing, "{what}: {halves:?}");
        let heard = programs.events();
        ensure!(heard == event.as_slice(), "{what}: {heard:?}");
    }
    Ok(())
}

fn fin(segment: &Segment) -> Segment {
    Segment { flags: ACK | FIN, ..segment.clone() }
}

/// A segment of the client's without bytes.
fn empty(connection: &Connection, seq: u32, ack: u32) -> Segment {
    Segment { seq, ack, flags: ACK, payload: vec![], ..connection.request() }
}

fn empty_of_server(connection: &Connection, seq: u32, ack: u32) -> Segment {
    Segment { seq, ack, flags: ACK, payload: vec![], ..connection.response() }
}

fn reset(connection: &Connection, seq: u32) -> Segment {
    Segment { flags: RST, ..empty(connection, seq, 0) }
}

#[test]
fn it_is_finished_when_both_fins_are_acknowledged_and_userspace_hears_of_it_once() -> Result<()> {
    const BOTH: [u8; 2] = [FIRST, SECOND];
    const OVER: [u8; 2] = [FIRST | FINISHED, SECOND];
    const BEHIND: Becomes = Dropped(Count::BehindEnd);
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let [client, server] = [connection.request(), connection.response()];
            let of_client = |seq, ack| empty(&connection, seq, ack);
            let acknowledging = Segment { ack: 501_006, ..fin(&server) };
            follow(
                programs,
                &connection,
                &[
                    ("bytes", client.clone(), Leaves, [0, 0], None),
                    ("a FIN with them once more", fin(&client), Leaves, [FIRST, 0], None),
                    ("once more", fin(&client), Leaves, [FIRST, 0], None),
                    ("bytes the other way", server.clone(), Leaves, [FIRST, 0], None),
                    ("a FIN the other way", fin(&server), Leaves, BOTH, None),
                    ("which acknowledges the first", acknowledging.clone(), Leaves, BOTH, None),
                    ("an acknowledgement of the bytes", of_client(1_006, 2_005), Leaves, BOTH, None),
                    ("of the FIN", of_client(1_006, 2_006), Leaves, OVER, Some(told(event::FINISHED, 0))),
                    ("once more", of_client(1_006, 2_006), Leaves, OVER, None),
                    ("a FIN once more", acknowledging, Leaves, OVER, None),
                    ("the first once more", fin(&client), Leaves, OVER, None),
                    ("a byte behind it", Segment { seq: 1_006, ..client.clone() }, BEHIND, OVER, None),
                    ("an acknowledgement of more", of_client(1_006, 2_007), BEHIND, OVER, None),
                    ("a FIN behind it", fin(&of_client(1_006, 2_006)), BEHIND, OVER, None),
                ],
            )?;
            let last = empty_of_server(&connection, 92_006, 501_006);
            follow(
                programs,
                &connection,
                &[
                    ("the server first", fin(&server), Leaves, [0, FIRST], None),
                    (
                        "then the client",
                        Segment { ack: 2_006, ..fin(&client) },
                        Leaves,
                        [SECOND, FIRST],
                        None,
                    ),
                    ("the end", last, Leaves, [SECOND, FIRST | FINISHED], Some(told(event::FINISHED, 1))),
                ],
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_fin_that_its_receiver_would_not_take_is_not_believed() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false);
        let at = |seq| fin(&empty(&connection, seq, 2_000));
        let knows_too_much = fin(&empty(&connection, 1_000, 2_000 + 601));
        follow(
            programs,
            &connection,
            &[
                ("beyond two windows", at(1_000 + 600 + 1), Counted(Count::TooNew), [0, 0], None),
                ("behind", at(998), Leaves, [0, 0], None),
                ("acknowledging what was not sent", knows_too_much, Counted(Count::TooNew), [0, 0], None),
                ("beyond the window", at(1_000 + 300 + 1), Counted(Count::Near), [0, 0], None),
            ],
        )?;
        ensure!(programs.track()?.halves.client.position as u32 == 1_301, "near moves the position");
        follow(
            programs,
            &connection,
            &[
                ("at the end", at(1_000), Leaves, [FIRST, 0], None),
                ("no bytes behind it", empty(&connection, 1_001, 2_000), Leaves, [FIRST, 0], None),
                ("bytes behind it", connection.request(), Leaves, [0, 0], None),
            ],
        )
    })
}

/// Each row on a connection of its own: the client has sent 100 bytes from 1000 on, the server has acknowledged none of
/// them and takes 300. A is what it has acknowledged, N what it expects, L the end of its window.
#[test]
fn a_reset_passes_if_its_number_is_what_the_receiver_expects() -> Result<()> {
    const EXACT: Becomes = Counted(Count::ResetExact);
    const INEXACT: Becomes = Dropped(Count::ResetInexact);
    const OUTSIDE: Becomes = Dropped(Count::ResetOutside);
    with_programs(|programs| {
        for v6 in [false, true] {
            let mut plain = Connection::new(v6);
            plain.track.halves.client.position += 100;
            let mut hole = plain.clone();
            hole.track.halves.client.gap = 1_050;
            let mut filled = hole.clone();
            filled.track.halves.server.ack = 501_050;
            let mut ended = plain.clone();
            ended.track.halves.client.closing = FIRST;
            let mut taken = ended.clone();
            taken.track.halves.server.ack = 501_101;
            let mut asked = plain.clone();
            asked.track.halves.client.asked = asked::CHALLENGE;
            for (what, connection, seq, becomes) in [
                ("at A", &plain, 1_000, INEXACT),
                ("at N - 1", &plain, 1_099, INEXACT),
                ("at N", &plain, 1_100, EXACT),
                ("at N + 1", &plain, 1_101, INEXACT),
                ("at L", &plain, 1_300, INEXACT),
                ("at L + 1", &plain, 1_301, OUTSIDE),
                ("at A - 1", &plain, 999, OUTSIDE),
                ("half the numbers away", &plain, 1_000 ^ 1 << 31, OUTSIDE),
                ("before a hole", &hole, 1_000, EXACT),
                ("in it", &hole, 1_050, INEXACT),
                ("beyond it", &hole, 1_100, INEXACT),
                ("beyond one that is filled", &filled, 1_100, EXACT),
                ("behind a FIN", &ended, 1_101, EXACT),
                ("at the FIN", &ended, 1_100, EXACT),
                ("before the FIN", &ended, 1_099, INEXACT),
                ("at a FIN that is acknowledged", &taken, 1_100, EXACT),
                ("at A, in answer to a challenge ACK", &asked, 1_000, EXACT),
                ("at N, in answer to one of before", &asked, 1_100, EXACT),
            ] {
                // An acknowledgement plays no part: 0, right, or of what was never sent.
                for (flags, ack) in [(RST, 0), (RST | ACK, 2_000), (RST | ACK, 0x8000_0000)] {
                    programs.splice(connection)?;
                    let segment = Segment { flags, ack, ..reset(connection, seq) };
                    let before = connection.track.halves;
                    let [own, peer] = before.each_ref().map(|half| half.closing);
                    let was_asked = before.client.asked;
                    let (closes, asks, heard) = match becomes {
                        Counted(_) => (RESET, was_asked, Some(told(event::RESET, 0))),
                        Dropped(Count::ResetInexact) => (0, 1, Some(told(event::CHALLENGE, 0))),
                        _ => (0, was_asked, None),
                    };
                    follow(
                        programs,
                        connection,
                        &[(what, segment.clone(), becomes, [own | closes, peer], heard)],
                    )?;
                    let half = programs.track()?.halves.client;
                    ensure!(half.asked == asks, "{what}: {half:?}");
                    ensure!(closes == 0 || half.heard != 0, "{what}: without a time");
                    // It moves nothing else, and userspace hears of it once.
                    let mut known = connection.track;
                    known.halves.client.closing |= closes;
                    (known.halves.client.asked, known.halves.client.heard) = (asks, half.heard);
                    ensure!(programs.track()? == known, "{what}: {half:?}");
                    if seq == 1_000 && asks != was_asked {
                        // Who resets there once more has answered the challenge ACK.
                        continue;
                    }
                    programs.run(&frame(&segment))?;
                    ensure!(programs.events().is_empty(), "{what}: told twice");
                    ensure!(programs.track()? == known, "{what}: once more");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_reset_of_the_server_is_the_same_and_after_data_it_is_the_next() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(true);
        let of_server = |seq| Segment { flags: RST | ACK, ..empty_of_server(&connection, seq, 501_000) };
        let beyond = Segment { seq: 92_010, ..connection.response() };
        follow(
            programs,
            &connection,
            &[
                ("bytes", connection.response(), Leaves, [0, 0], None),
                (
                    "behind them",
                    of_server(92_005),
                    Counted(Count::ResetExact),
                    [0, RESET],
                    Some(told(event::RESET, 1)),
                ),
                ("once more", of_server(92_005), Leaves, [0, RESET], None),
                ("by what is acknowledged", of_server(92_000), Leaves, [0, RESET], None),
                (
                    "elsewhere",
                    of_server(92_001),
                    Dropped(Count::ResetInexact),
                    [0, RESET],
                    Some(told(event::CHALLENGE, 1)),
                ),
                (
                    "the client's as well",
                    reset(&connection, 1_000),
                    Counted(Count::ResetExact),
                    [RESET | RESET_SECOND, RESET],
                    Some(told(event::RESET, 0)),
                ),
            ],
        )?;
        follow(
            programs,
            &connection,
            &[
                ("bytes beyond a hole", beyond, Leaves, [0, 0], None),
                (
                    "behind them",
                    of_server(92_015),
                    Dropped(Count::ResetInexact),
                    [0, 0],
                    Some(told(event::CHALLENGE, 1)),
                ),
                (
                    "before the hole",
                    of_server(92_000),
                    Counted(Count::ResetExact),
                    [0, RESET],
                    Some(told(event::RESET, 1)),
                ),
            ],
        )
    })
}

#[test]
fn who_goes_on_a_while_after_a_reset_has_not_sent_it() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false);
        let [client, server] = [connection.request(), connection.response()];
        let next = Segment { seq: 1_005, ..client.clone() };
        follow(
            programs,
            &connection,
            &[
                ("bytes", client.clone(), Leaves, [0, 0], None),
                (
                    "a reset",
                    reset(&connection, 1_005),
                    Counted(Count::ResetExact),
                    [RESET, 0],
                    Some(told(event::RESET, 0)),
                ),
                ("what was on its way to who sent it", server.clone(), Leaves, [RESET, 0], None),
                ("what it had overtaken", next.clone(), Leaves, [RESET, 0], None),
            ],
        )?;
        let noted = programs.track()?;
        let half = noted.halves.client;
        ensure!(half.position as u32 == 1_010, "bytes are accounted all the same");
        for (what, segment, earlier, stands) in [
            ("early", Segment { seq: 1_010, ..client.clone() }, RESET_OVERTAKES_TICKS / 2, true),
            ("nothing new", client.clone(), RESET_OVERTAKES_TICKS * 2, true),
            ("no bytes", empty(&connection, 1_010, 2_000), RESET_OVERTAKES_TICKS * 2, true),
            ("bytes", Segment { seq: 1_010, ..client.clone() }, RESET_OVERTAKES_TICKS * 2, false),
            ("an acknowledgement", empty(&connection, 1_010, 2_005), RESET_OVERTAKES_TICKS * 2, false),
        ] {
            let mut before = noted;
            before.halves.client.heard = half.heard.wrapping_sub(earlier);
            programs.know(&before)?;
            let fate = programs.run(&frame(&segment))?;
            ensure!(matches!(fate, Fate::Leaves(_)), "{what}: {fate:02x?}");
            let after = programs.track()?.halves.client;
            ensure!((after.closing == RESET) == stands, "{what}: {after:?}");
            let heard = before.halves.client.heard;
            ensure!((after.heard == heard) == stands, "{what}: {after:?}");
        }
        Ok(())
    })
}

const NOTHING_SIGHTED: Sighting =
    Sighting { isn: 0, ifindex: 1, tsval: 0, mss: 0, flags: 0, window_scale: 0, ack: 0 };

/// How a connection is over.
fn over(connection: &Connection) -> [(&'static str, Connection); 3] {
    let mut finished = connection.clone();
    for (half, fin) in finished.track.halves.each_mut().into_iter().zip([FIRST, SECOND]) {
        (half.closing, half.ack) = (fin, half.ack + 1);
    }
    let [mut reset, mut reset_by_server] = [connection.clone(), connection.clone()];
    reset.track.halves.client.closing = RESET;
    reset_by_server.track.halves.server.closing = RESET;
    [("finished", finished), ("reset by the client", reset), ("reset by the server", reset_by_server)]
}

/// Up the stack it would be taken for a new connection, or answered with a reset.
#[test]
fn a_late_copy_of_a_connections_own_syn_is_dropped_after_its_end() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            for (what, over) in over(&connection) {
                for segment in [connection.request(), connection.response()] {
                    let syn = Segment { seq: 7_000_000, flags: SYN, payload: vec![], ..segment };
                    programs.splice(&over)?;
                    programs.sightings.insert(
                        syn.tuple(),
                        Sighting { isn: 7_000_000, ..NOTHING_SIGHTED },
                        0,
                    )?;
                    let became = programs.run(&frame(&syn))?;
                    ensure!(became == Fate::Dropped(Count::SynLate), "{what}: {became:02x?}");
                    for tuple in over.tuples {
                        ensure!(programs.flows.get(&tuple, 0).is_ok(), "{what}: a flow is gone");
                    }
                    ensure!(programs.events().is_empty(), "{what}: somebody was told");
                    ensure!(programs.track()? == over.track, "{what}: noted");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_syn_takes_over_what_is_over() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let syn = |segment, flags| Segment { seq: 7_000_000, flags, payload: vec![], ..segment };
            let [client, server] = [connection.request(), connection.response()];
            for (state, over) in over(&connection) {
                for (what, segment, expected, side) in [
                    ("of the client", syn(client.clone(), SYN), Fate::SightedAnew, FROM_CLIENT),
                    ("with a FIN", syn(client.clone(), SYN | FIN), Fate::SightedAnew, FROM_CLIENT),
                    (
                        "of the server, where nobody listens",
                        syn(server.clone(), SYN),
                        Fate::TakesOver,
                        FROM_SERVER,
                    ),
                    (
                        "of the server, in answer",
                        syn(server.clone(), SYN | ACK),
                        Fate::SightedAnew,
                        FROM_SERVER,
                    ),
                ] {
                    let what = format!("{what}, {state}");
                    programs.splice(&over)?;
                    // Its own handshake was sighted.
                    programs.sightings.insert(
                        segment.tuple(),
                        Sighting { isn: 6_000_000, ..NOTHING_SIGHTED },
                        0,
                    )?;
                    let became = programs.run(&frame(&segment))?;
                    ensure!(became == expected, "{what}: {became:02x?}");
                    let there = over.tuples.map(|tuple| programs.flows.get(&tuple, 0).is_ok());
                    ensure!(there == [false, false], "{what}: {there:?}");
                    let mut known = over.track;
                    let [of_client, of_server] = known.halves.each_ref().map(|half| half.closing);
                    let event =
                        Event { number: closings(of_client, of_server), ..told(event::REUSED, side as u32) };
                    let events = programs.events();
                    ensure!(events == [event], "{what}: {events:?}");
                    known.halves.each_mut()[side].closing |= REUSED;
                    ensure!(programs.track()? == known, "{what}: {:?}", programs.track()?);
                    let seen = programs.sightings.get(&segment.tuple(), 0)?.isn == 7_000_000;
                    ensure!(seen == (expected == Fate::SightedAnew), "{what}: sighted: {seen}");
                }
            }
        }
        Ok(())
    })
}

/// By then its port may be another connection's, of which the programs know nothing before its SYN-ACK.
#[test]
fn a_reset_that_is_not_of_a_finished_connection_is_for_the_next_one() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let [(_, finished), ..] = over(&connection);
            for segment in [connection.request(), connection.response()] {
                // That of a refusal, those in the window, and those of either FIN.
                for (seq, passes_up) in [
                    (0, true),
                    (segment.seq + 2, true),
                    (segment.seq - 1, true),
                    (segment.seq, false),
                    (segment.seq + 1, false),
                ] {
                    programs.splice(&finished)?;
                    let reset =
                        Segment { seq, ack: 77, flags: RST | ACK, payload: vec![], ..segment.clone() };
                    let fate = programs.run(&frame(&reset))?;
                    ensure!((fate == Fate::Passed) == passes_up, "{seq}: {fate:02x?}");
                    ensure!(passes_up || fate.left().is_some(), "{seq}: {fate:02x?}");
                    ensure!(!passes_up || programs.track()? == finished.track, "{seq}: noted");
                    programs.events();
                }
                // In a handover it would reach our own socket, which may have repeated something too late.
                programs.handovers.insert(1, Handover::default(), 0)?;
                programs.splice(&finished.in_handover())?;
                let reset = Segment { seq: 0, ack: 77, flags: RST | ACK, payload: vec![], ..segment.clone() };
                ensure!(programs.run(&frame(&reset))? == Fate::Dropped(Count::ResetOutside), "in a handover");
                programs.handovers.remove(&1)?;
            }
        }
        Ok(())
    })
}

/// Passed on it would reach a listener of the server under the old connection's name, past ours.
#[test]
fn a_syn_on_a_live_connection_is_dropped_and_its_sender_asked_once() -> Result<()> {
    with_programs(|programs| {
        programs.sight(LISTENER_PORT, SOURCE_PORT)?;
        for v6 in [false, true] {
            let live = Connection::new(v6);
            let mut half_closed = live.clone();
            half_closed.track.halves.client.closing = FIRST;
            let mut unacknowledged = half_closed.clone();
            unacknowledged.track.halves.server.closing = SECOND;
            for (what, connection) in
                [("live", live), ("half closed", half_closed), ("without the last ACK", unacknowledged)]
            {
                for (side, segment) in [connection.request(), connection.response()].into_iter().enumerate() {
                    programs.splice(&connection)?;
                    // An end with an old TCP resets its connection at a SYN in its window, with ACK or without.
                    for flags in [SYN, SYN | FIN, SYN | ACK] {
                        // By chance, at exactly the next number, and in the window.
                        for seq in [7_000_000, segment.seq, segment.seq + 250] {
                            let syn = Segment { seq, flags, payload: vec![], ..segment.clone() };
                            let fate = programs.run(&frame(&syn))?;
                            ensure!(fate == Fate::Dropped(Count::SynOnLive), "{what}: {fate:02x?}");
                            ensure!(programs.sightings.get(&syn.tuple(), 0).is_err(), "{what}: sighted");
                        }
                    }
                    let events = programs.events();
                    ensure!(events == [told(event::CHALLENGE, side as u32)], "{what}: {events:?}");
                    let mut known = connection.track;
                    known.halves.each_mut()[side].asked = 1;
                    ensure!(programs.track()? == known, "{what}: {:?}", programs.track()?);

                    // Userspace has asked, a while ago.
                    programs.know(&connection.track)?;
                    let syn = Segment { flags: SYN, payload: vec![], ..segment.clone() };
                    programs.run(&frame(&syn))?;
                    ensure!(programs.events().len() == 1, "{what}: nobody is asked any more");

                    // Who has missed the last acknowledgement of the handshake says so, and hears it from the other end.
                    programs.know(&connection.track)?;
                    let answer = Segment { seq: segment.seq - 1, flags: SYN | ACK, ..syn };
                    let fate = programs.run(&frame(&answer))?;
                    ensure!(matches!(fate, Fate::Leaves(_)), "{what}: {fate:02x?}");
                    ensure!(programs.track()? == connection.track, "{what}: it counts nothing");
                    ensure!(programs.events().is_empty());
                }
            }
        }
        Ok(())
    })
}

/// Then a SYN is a reset.
#[test]
fn a_syn_with_a_reset_is_a_reset() -> Result<()> {
    with_programs(|programs| {
        let connection = Connection::new(false);
        let both = |seq| Segment { flags: SYN | RST, ..empty(&connection, seq, 0) };
        follow(
            programs,
            &connection,
            &[
                ("outside", both(999), Dropped(Count::ResetOutside), [0, 0], None),
                ("exact", both(1_000), Counted(Count::ResetExact), [RESET, 0], Some(told(event::RESET, 0))),
            ],
        )
    })
}
