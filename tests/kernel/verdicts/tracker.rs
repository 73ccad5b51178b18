//! The tracker in the kernel: after each packet both halves are, byte by byte, what the same source makes of them on
//! the host.

use anyhow::{Result, ensure};
use lb_common::packet::Flow;
use lb_common::packet::track::{Bounds, Half, RESET_OVERTAKES_TICKS, Reset, Segment, Track, closing};

use crate::connection::{Connection, frame};
use crate::model::wire::Wire;
use crate::programs::{Fate, tick, with_programs};
use crate::properties::model::{ACK, FIN, RST, SYN};

const CONNECTIONS: u64 = 150;
const SEGMENTS: usize = 60;

/// What is known after a segment, and whether it passes; as the rules have it.
fn expected(flow: &Flow, track: &Track, segment: &Segment, tick: u32) -> (Track, bool) {
    let side = flow.side();
    let [own, peer] = [side, side.other()].map(|side| track.halves.of(side));
    let bounds = Bounds::new(flow, &own, &peer, None);
    let has = |flag: u16| segment.flags & flag as u8 != 0;
    let is_finished = bounds.is_finished(&own, &peer);
    let is_over = is_finished || own.has_reset() || peer.has_reset();
    let (new, passes) = if has(RST) {
        match bounds.judge_reset(&own, segment.seq) {
            Reset::Exact | Reset::Again => (own.after_reset(peer.has_reset(), tick), true),
            Reset::InWindow if !is_finished => (Half { asked: 1, ..own }, false),
            Reset::InWindow => (own, false),
            Reset::Elsewhere => (own, false),
        }
    } else if has(SYN) && is_over {
        (Half { closing: own.closing | closing::REUSED, ..own }, false)
    } else if has(SYN) {
        if bounds.repeats_the_beginning(segment) { (own, true) } else { (Half { asked: 1, ..own }, false) }
    } else if is_finished && !bounds.repeats_the_end(segment) {
        (own, false)
    } else {
        let verdict = bounds.judge(segment);
        let mut new = own.after(verdict, segment, peer.has_fin(), bounds.acknowledged, flow, tick);
        let is_told = (own.closing | peer.closing) & closing::FINISHED != 0;
        if new != own && !is_told && Bounds::new(flow, &new, &peer, None).is_finished(&new, &peer) {
            new.closing |= closing::FINISHED;
        }
        (new, true)
    };
    let mut halves = track.halves;
    *halves.each_mut()[side as usize] = new;
    (Track { halves }, passes)
}

#[test]
fn both_halves_are_what_the_pure_tracker_makes_of_them() -> Result<()> {
    with_programs(|programs| {
        let [mut passed, mut stopped, mut finished, mut resets] = [0; 4];
        for seed in 0..CONNECTIONS {
            let mut wire = Wire::new(seed);
            let connection = Connection::new(seed % 2 == 1).like(&wire);
            programs.splice(&connection)?;
            for _ in 0..SEGMENTS {
                let side = wire.random.below(2) as usize;
                let mut segment = wire.forge(side);
                if wire.random.percent(60) {
                    // The next, so that something comes of it.
                    let bounds = wire.bounds(side);
                    (segment.seq, segment.ack) = (bounds.sent, bounds.peer_sent);
                    segment.flags = wire.random.of(&[ACK, ACK, ACK | FIN, RST].map(|flags| flags as u8));
                }
                segment.payload %= 1_000;
                if wire.random.percent(20) {
                    // A while goes by.
                    let half = &mut *wire.track.halves.each_mut()[side];
                    half.heard = half.heard.wrapping_sub(2 * RESET_OVERTAKES_TICKS);
                    half.asked = 0;
                    programs.know(&wire.track)?;
                }

                let earliest = tick();
                let fate = programs.run(&frame(&connection.packet(side, &segment)))?;
                let (known, latest) = (programs.track()?, tick());
                let flow = &connection.flows[side];
                let heard = known.halves.each_ref()[side].heard;
                // By the clock before or after: the difference may be that of a reset which is old enough.
                let wanted = [earliest, latest].map(|tick| {
                    let (mut wanted, passes) = expected(flow, &wire.track, &segment, tick);
                    if wanted.halves.each_ref()[side].heard == tick && (earliest..=latest).contains(&heard) {
                        wanted.halves.each_mut()[side].heard = heard;
                    }
                    (wanted, passes)
                });
                let passes = fate.left().is_some();
                ensure!(
                    wanted.contains(&(known, passes)),
                    "seed {seed}, {side}: {segment:?}, {fate:02x?}:\n{known:x?}, not\n{wanted:x?}"
                );
                if matches!(fate, Fate::TakesOver | Fate::SightedAnew) {
                    break;
                }
                wire.track = known;
                passed += u32::from(passes);
                stopped += u32::from(!passes);
            }
            let closings = wire.track.halves.each_ref().map(|half| half.closing);
            finished += u32::from(closings.iter().any(|closing| closing & closing::FINISHED != 0));
            resets += u32::from(closings.iter().any(|closing| closing & closing::RESET != 0));
        }
        let enough = passed > 2_000 && stopped > 300 && finished > 5 && resets > 20;
        ensure!(enough, "{passed} {stopped} {finished} {resets}");
        Ok(())
    })
}
