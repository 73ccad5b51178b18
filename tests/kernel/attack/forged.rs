//! Forged data, acknowledgements, resets, FINs and SYNs, with numbers by chance, near and exact, in every combination up
//! to four packets.

use anyhow::{Context, Result, ensure};
use lb_common::packet::track::{Bounds, Half, RESET_OVERTAKES_TICKS, Segment, Track, Verdict, closing};
use lb_common::packet::translate::tcp::{ACK, FIN, RST, SYN};

use crate::connection::{Connection, frame};
use crate::model::ends::{End, Random};
use crate::model::wire::Wire;
use crate::programs::{Programs, tick, with_programs};

/// Packets of one combination.
const DEEPEST: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Data,
    Acknowledgement,
    Reset,
    Fin,
    Syn,
}

const KINDS: [Kind; 5] = [Kind::Data, Kind::Acknowledgement, Kind::Reset, Kind::Fin, Kind::Syn];

#[derive(Clone, Copy, Debug)]
enum Numbers {
    ByChance,
    /// Within two windows of what is right.
    Near,
    Exact,
}

const NUMBERS: [Numbers; 3] = [Numbers::ByChance, Numbers::Near, Numbers::Exact];

/// A connection under attack, and what its ends would have made of the packets so far.
#[derive(Clone)]
struct Victim {
    track: Track,
    ends: [End; 2],
    /// By the side that they seem to come from: a reset was taken, and a FIN.
    reset_taken: [bool; 2],
    fin_taken: [bool; 2],
    is_gone: bool,
}

struct Attack<'a> {
    programs: &'a mut Programs,
    connection: Connection,
    random: Random,
    tried: u32,
    taken: u32,
    near: u32,
    history: Vec<(usize, Kind, Numbers)>,
}

impl Attack<'_> {
    /// Every combination that goes on from here.
    fn go_on(&mut self, victim: &Victim) -> Result<()> {
        let mut random = self.random.clone();
        for kind in KINDS {
            for numbers in NUMBERS {
                // By its place alone, not by what was before it: how far that went may be a question of time.
                self.random = Random::new(random.number());
                let victim = &self.later(victim);
                let side = self.random.below(2) as usize;
                self.history.push((side, kind, numbers));
                let segment = self.segment(victim, side, kind, numbers);
                let next = self.attack(victim, side, &segment)?;
                // What is gone is nobody's any more.
                if self.history.len() < DEEPEST && !next.is_gone {
                    self.go_on(&next)?;
                }
                self.history.pop();
            }
        }
        Ok(())
    }

    /// The same just now, or so long after the last packets that more of an end proves its reset forged. The machine's
    /// speed decides neither.
    fn later(&mut self, victim: &Victim) -> Victim {
        let heard = tick().wrapping_sub(self.random.of(&[0, RESET_OVERTAKES_TICKS]));
        let mut later = victim.clone();
        later.track.halves.each_mut().into_iter().for_each(|half| half.heard = heard);
        later
    }

    fn bounds(&self, victim: &Victim, side: usize) -> Bounds {
        let [own, peer] = [side, 1 - side].map(|side| victim.track.halves.each_ref()[side]);
        Bounds::new(&self.connection.flows[side], own, peer, None)
    }

    fn segment(&mut self, victim: &Victim, side: usize, kind: Kind, numbers: Numbers) -> Segment {
        let bounds = self.bounds(victim, side);
        let random = &mut self.random;
        let mut around = |number: u32, window: u32| {
            let distance = random.below(2 * i64::from(window) + 3) - i64::from(window);
            number.wrapping_add(distance as u32)
        };
        let next = if matches!(kind, Kind::Reset) { bounds.next } else { bounds.sent };
        let (seq, ack) = match numbers {
            Numbers::ByChance => (random.word(), random.word()),
            Numbers::Near => (around(next, bounds.peer_window), around(bounds.peer_sent, bounds.own_window)),
            Numbers::Exact => (next, bounds.peer_sent),
        };
        let (flags, payload) = match kind {
            Kind::Data => (ACK, 1 + random.below(900) as u32),
            Kind::Acknowledgement => (ACK, 0),
            Kind::Reset => (random.of(&[RST, RST | ACK]), 0),
            Kind::Fin => (ACK | FIN, random.of(&[0, 0, 10])),
            Kind::Syn => (random.of(&[SYN, SYN, SYN | ACK]), 0),
        };
        let window = random.of(&[0, 1_000, u16::MAX]);
        let leaving_window = self.connection.flows[side].window(window);
        let mut segment = Segment { seq, ack, payload, window, leaving_window, flags, ..Segment::default() };
        // What lies beyond the window is cut off by who takes the rest; that is no question here.
        let receiver = &victim.ends[1 - side];
        let (from, ..) = receiver.offsets(&self.leaving(side, &segment));
        let room = receiver.state.edge.max(from) - from;
        segment.payload = payload.min(room as u32);
        segment
    }

    fn leaving(&self, side: usize, segment: &Segment) -> Segment {
        let flow = &self.connection.flows[side];
        Segment {
            seq: segment.seq.wrapping_add(flow.seq_delta),
            ack: segment.ack.wrapping_add(flow.ack_delta),
            window: segment.leaving_window,
            ..*segment
        }
    }

    /// One packet more: what has become of the connection by it, which is no more than a receiver would have allowed.
    fn attack(&mut self, victim: &Victim, side: usize, segment: &Segment) -> Result<Victim> {
        self.tried += 1;
        self.connection.track = victim.track;
        self.programs.splice(&self.connection)?;
        let passed = self.programs.lets_through(&frame(&self.connection.packet(side, segment)))?;

        let mut next = Victim { track: self.programs.track()?, ..victim.clone() };
        let flow = &self.connection.flows[side];
        let leaving = self.leaving(side, segment);
        let bounds = self.bounds(victim, side);
        let receiver = &mut next.ends[1 - side];
        let (seq, end, ack) = receiver.offsets(&leaving);
        // Windows are rounded on the way. What was said is what counts: a sender may go as far as it was told, and the
        // oldest acknowledgement is by the window that was meant.
        receiver.state.edge = receiver.state.edge.max(victim.ends[side].limit);
        let oldest = receiver.acknowledged - i64::from(bounds.own_window);
        receiver.state.oldest = receiver.state.oldest.min(oldest);
        let state = receiver.state;
        // A reset is taken by who has not got yet what was taken in its stead. What is dropped nobody gets.
        let is_reset_at_told = segment.flags & RST != 0 && seq == state.told;
        let is_taken = passed && (state.takes(segment.flags, seq, end, ack) || is_reset_at_told);
        if passed {
            receiver.receive(&leaving);
        }
        if is_taken {
            let window = i64::from(segment.window) << flow.own_scale;
            receiver.limit = receiver.limit.max(ack + window);
            // From here on nobody can tell that it was not the end in whose name it came who has sent that, and got this.
            let sender = &mut next.ends[side];
            if segment.flags & RST == 0 {
                // But for what follows a FIN: who has got that takes nothing more (RFC 9293, section 3.10.7.4), so nobody
                // acknowledges more.
                let is_more = segment.payload != 0 || segment.flags & FIN != 0;
                if is_more && !state.fin_taken {
                    sender.state.sent = sender.state.sent.max(end);
                }
                sender.tell(ack);
            }
        }
        self.taken += u32::from(is_taken);
        next.reset_taken[side] |= is_taken && segment.flags & RST != 0;
        next.fin_taken[side] |= is_taken && segment.flags & FIN != 0;
        let there = self.connection.tuples.map(|tuple| self.programs.flows.get(&tuple, 0).is_ok());
        next.is_gone = there != [true; 2];

        let what = format!("{:?}, {segment:?}: {victim:?}", self.history, victim = victim.track);
        let [before, after] = [victim.track, next.track].map(|track| *track.halves.each_ref()[side]);
        let verdict = bounds.judge(segment);
        ensure!(
            next.track.halves.each_ref()[1 - side] == victim.track.halves.each_ref()[1 - side],
            "the other half: {what}"
        );
        if !is_taken {
            let is_near = verdict == Verdict::Near;
            self.near += u32::from(is_near);
            let mut allowed = Half { heard: after.heard, asked: after.asked, ..before };
            if is_near {
                (allowed.position, allowed.gap) = (after.position, after.gap);
            }
            // What an earlier packet has done may be done with, and seen to be: none of these closes.
            allowed.closing |= after.closing & (closing::REUSED | closing::FINISHED);
            ensure!(after == allowed, "refused, and yet it moves {after:?}: {what}");
            // Until real bytes pass, more could be built on it, with numbers that no stranger has.
            *next.track.halves.each_mut()[side] =
                Half { position: before.position, gap: before.gap, ..after };
        }
        for side in [0, 1] {
            let half = &next.track.halves.each_ref()[side];
            ensure!(!half.has_reset() || next.reset_taken[side], "a reset that nobody took: {what}");
            ensure!(!half.has_fin() || next.fin_taken[side], "a FIN that nobody took: {what}");
        }
        let is_over = next.reset_taken != [false; 2] || next.fin_taken == [true; 2];
        ensure!(!next.is_gone || is_over, "flows are gone: {what}");
        let may_stop = is_over || segment.flags & (RST | SYN) != 0;
        ensure!(passed || may_stop, "dropped on a connection that lives: {what}");
        if is_taken && segment.flags & (RST | SYN) == 0 && !next.is_gone {
            self.answer(&mut next, 1 - side)?;
        }
        Ok(next)
    }

    /// An end acknowledges what it has taken.
    fn answer(&mut self, victim: &mut Victim, side: usize) -> Result<()> {
        let mut answer = victim.ends[side].acknowledge();
        answer.leaving_window = self.connection.flows[side].window(answer.window);
        self.programs.know(&victim.track)?;
        self.programs.lets_through(&frame(&self.connection.packet(side, &answer)))?;
        victim.track = self.programs.track()?;
        let leaving = self.leaving(side, &answer);
        victim.ends[1 - side].receive(&leaving);
        Ok(())
    }
}

/// A connection on which this is the case, all of it known to both ends and the gateway.
fn victim(name: &str, seed: u64) -> Wire {
    let mut wire = Wire::new(seed);
    let speaks: &[usize] = match name {
        "idle" => &[],
        "one way" => &[0],
        _ => &[0, 1],
    };
    for &side in speaks {
        let end = &mut wire.ends[side];
        end.length = end.nature.most.min(1_000) * 20;
    }
    for _ in 0..200 {
        wire.step();
    }
    wire.deliver_all();
    wire
}

/// An attack on such a connection.
fn begin<'a>(programs: &'a mut Programs, name: &str, seed: u64) -> (Attack<'a>, Victim) {
    let wire = victim(name, seed);
    let connection = Connection::new(seed % 2 == 1).like(&wire);
    let (reset_taken, fin_taken) = ([false; 2], [false; 2]);
    let victim = Victim { track: wire.track, ends: wire.ends, reset_taken, fin_taken, is_gone: false };
    let random = Random::new(seed);
    (Attack { programs, connection, random, tried: 0, taken: 0, near: 0, history: Vec::new() }, victim)
}

fn attack_all(name: &str, seeds: std::ops::Range<u64>) -> Result<()> {
    with_programs(|programs| {
        let (mut tried, mut taken, mut near) = (0, 0, 0);
        for seed in seeds {
            let (mut attack, victim) = begin(programs, name, seed);
            attack.go_on(&victim)?;
            (tried, taken, near) = (tried + attack.tried, taken + attack.taken, near + attack.near);
            attack.programs.events();
        }
        ensure!(tried > 50_000 && taken > tried / 10 && near > tried / 100, "{tried} {taken} {near}");
        Ok(())
    })
}

#[test]
fn an_idle_connection_ends_by_nothing_that_its_ends_refuse() -> Result<()> {
    attack_all("idle", 0..2)
}

#[test]
fn a_connection_that_speaks_one_way_ends_by_nothing_that_its_ends_refuse() -> Result<()> {
    attack_all("one way", 10..12)
}

#[test]
fn a_connection_that_speaks_both_ways_ends_by_nothing_that_its_ends_refuse() -> Result<()> {
    attack_all("two ways", 20..22)
}

/// Whoever has sent the FIN, and whatever else comes or is acknowledged.
#[test]
fn once_a_fin_is_acknowledged_its_end_is_what_is_expected() -> Result<()> {
    // By whom, flags, bytes, how far beyond what is exact its number and its acknowledgement are.
    let fin = |side, ahead| (side, ACK | FIN, 0, ahead, 0);
    let data = |side, ahead| (side, ACK, 5, ahead, 0);
    let acknowledgement = |side, ahead| (side, ACK, 0, 0, ahead);
    with_programs(|programs| {
        for (what, packets) in [
            ("a FIN, data", vec![fin(1, 0), data(1, 0)]),
            ("a FIN, another, acknowledged", vec![fin(1, 0), fin(1, 1), acknowledgement(0, 2)]),
            ("a FIN beyond a hole, acknowledged, data", vec![fin(1, 1), acknowledgement(0, 0), data(1, 0)]),
            ("a FIN beyond a hole, acknowledged by a FIN, data", vec![fin(1, 1), fin(0, 0), data(1, 0)]),
        ] {
            let (mut attack, mut victim) = begin(programs, "idle", 0);
            for (side, flags, payload, seq, ack) in packets {
                let bounds = attack.bounds(&victim, side);
                let seq = bounds.sent.wrapping_add(seq);
                let ack = bounds.peer_sent.wrapping_add(ack);
                let segment = Segment { seq, ack, payload, flags, ..Segment::default() };
                victim = attack.attack(&victim, side, &segment).context(what)?;
            }
            let bounds = attack.bounds(&victim, 1);
            let is_acknowledged = bounds.acknowledged == bounds.sent;
            ensure!(victim.track.halves.server.has_fin() && is_acknowledged, "{what}: {bounds:?}");
            let reset = Segment { seq: bounds.sent, flags: RST, ..Segment::default() };
            victim = attack.attack(&victim, 1, &reset).context(what)?;
            ensure!(victim.track.halves.server.has_reset(), "{what}: {victim:?}", victim = victim.track);
        }
        Ok(())
    })
}
