// Two ends, a wire on either side of the gateway that loses, repeats and reorders, and the tracker between.

use lb_common::packet::track::{Bounds, Half, Reset, Segment, Track, Verdict, asked};
use lb_common::packet::translate::tcp::{ACK, FIN, RST, SYN};
use lb_common::packet::{Flow, flag};

use super::ends::{End, Nature, Random, State, insert};
use crate::properties::flow;

/// Chances in percent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A segment is lost, before the gateway and behind it.
    pub(crate) lost: i64,
    /// A segment is there twice.
    pub(crate) twice: i64,
    /// A segment overtakes others.
    pub(crate) overtakes: i64,
    /// A field falls back to what it was some segments ago: another CPU has stored that late.
    pub(crate) stores_lost: i64,
}

/// What has passed the gateway of one end's segments, whether or not it arrives.
#[derive(Clone, Debug, Default)]
struct Passed {
    ranges: Vec<(i64, i64)>,
    fin: Option<i64>,
    /// Behind the last byte, or the number of the FIN.
    end: i64,
    /// The largest window of those that count.
    window: i64,
    /// Where the windows end that the other end was told.
    told: i64,
}

impl Passed {
    /// What the other end expects if all of it arrives.
    fn next(&self) -> i64 {
        let bytes = self.ranges.first().filter(|range| range.0 == 0).map_or(0, |range| range.1);
        bytes + i64::from(self.fin == Some(bytes))
    }
}

/// A segment before the gateway, and its sender's state when it was sent.
#[derive(Clone)]
struct Sent {
    segment: Segment,
    state: State,
}

/// How often what was judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) verdicts: [u64; 7],
    pub(crate) forged: [u64; 7],
    pub(crate) forged_refused: u64,
    pub(crate) resets: [u64; 4],
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        let pairs = (self.verdicts.iter_mut().zip(&other.verdicts))
            .chain(self.forged.iter_mut().zip(&other.forged))
            .chain(self.resets.iter_mut().zip(&other.resets));
        pairs.for_each(|(sum, number)| *sum += number);
        self.forged_refused += other.forged_refused;
    }
}

pub(crate) struct Wire {
    pub(crate) ends: [End; 2],
    pub(crate) flows: [Flow; 2],
    pub(crate) track: Track,
    pub(crate) tally: Tally,
    pub(crate) faults: Faults,
    pub(crate) random: Random,
    tick: u32,
    before: [Vec<Sent>; 2],
    behind: [Vec<Segment>; 2],
    /// What is known at the gateway of each end: its state when it sent what has come so far.
    seen: [State; 2],
    passed: [Passed; 2],
    older: [Vec<Half>; 2],
    /// The tracker has been misled: by stores that were lost, or by what lies near.
    pub(crate) misled: bool,
}

/// Where arithmetic goes wrong.
const EDGES: [u32; 4] = [0, 1 << 31, u32::MAX - 3, (1 << 31) - 2_000];

impl Wire {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut number = || match random.percent(50) {
            true => random.of(&EDGES).wrapping_sub(random.below(70_000) as u32),
            false => random.word(),
        };
        let (firsts, deltas) = ([number(), number()], [number(), number()]);
        let [own, promised] = [(); 2].map(|()| [(); 2].map(|()| random.below(15) as u8));
        let mut flows = [0, 1].map(|side| Flow {
            seq_delta: deltas[side],
            ack_delta: deltas[1 - side].wrapping_neg(),
            own_scale: own[side],
            peer_scale: own[1 - side],
            promised_scale: promised[side],
            ..flow(([0; 4], 1).into(), ([0; 4], 2).into())
        });
        flows[1].flags |= flag::FROM_SERVER;
        let natures = [0, 1].map(|side| {
            let most = random.of(&[1, 100, 1_460, 65_483]);
            Nature {
                first: firsts[side],
                peer_first: firsts[1 - side].wrapping_add(deltas[1 - side]),
                scale: own[side],
                told_scale: promised[1 - side],
                most,
                room: (most * (1 + random.below(20))).max(random.below(3) << own[side]),
            }
        });
        let fields = natures.map(|nature| End::new(nature, 0).window());
        let told = [0, 1].map(|side| i64::from(flows[side].window(fields[side])) << promised[side]);
        let ends = [0, 1].map(|side| End::new(natures[side], told[1 - side]));
        let passed = [0, 1].map(|side| Passed {
            window: i64::from(fields[side]) << own[side],
            told: told[side],
            ..Passed::default()
        });
        let halves = [0, 1].map(|side| {
            let Nature { first, peer_first, .. } = natures[side];
            Half {
                position: 1 << 32 | u64::from(first),
                gap: first,
                ack: peer_first,
                edge: peer_first.wrapping_add(passed[side].window.max(told[side]) as u32),
                most: fields[side],
                ..Half::default()
            }
        });
        flows[0].origin = halves[0].position;
        flows[1].origin = halves[1].position;
        let seen = [ends[0].state, ends[1].state];
        Self {
            ends,
            flows,
            track: Track { halves: halves.into() },
            tally: Tally::default(),
            faults: Faults::default(),
            random,
            tick: 0,
            before: Default::default(),
            behind: Default::default(),
            seen,
            passed,
            older: Default::default(),
            misled: false,
        }
    }

    pub(crate) fn bounds(&self, side: usize) -> Bounds {
        let [own, peer] = [side, 1 - side].map(|side| self.track.halves.each_ref()[side]);
        Bounds::new(&self.flows[side], own, peer, None)
    }

    /// Bytes of this end that are accounted.
    pub(crate) fn bytes(&self, side: usize) -> i64 {
        (self.track.halves.each_ref()[side].position - self.flows[side].origin) as i64
    }

    pub(crate) fn is_finished(&self) -> bool {
        let [client, server] = self.track.halves.each_ref();
        self.bounds(0).is_finished(client, server)
    }

    /// Something happens somewhere.
    pub(crate) fn step(&mut self) {
        let side = self.random.below(2) as usize;
        self.tick = self.tick.wrapping_add(self.random.below(3) as u32);
        match self.random.below(100) {
            0..30 => self.carry_before(side),
            30..60 => self.carry_behind(side),
            60..65 => {
                let bytes = self.random.below(self.ends[side].nature.room + 1);
                self.ends[side].read(bytes);
            }
            _ => {
                let sent = self.says_something(side);
                sent.into_iter().for_each(|segment| self.send(side, segment));
            }
        }
    }

    fn says_something(&mut self, side: usize) -> Option<Segment> {
        let (end, random) = (&mut self.ends[side], &mut self.random);
        match random.below(20) {
            0..10 => end.send(random),
            10..12 => end.send_again(random, end.acknowledged),
            12 => {
                let from = end.acknowledged + random.below(end.state.sent - end.acknowledged);
                end.send_again(random, from)
            }
            13 => Some(end.keep_alive(false)),
            14 if end.acknowledged > 0 => Some(end.keep_alive(true)),
            15 => end.probe_with_a_byte(),
            _ => Some(end.acknowledge()),
        }
    }

    fn send(&mut self, side: usize, segment: Segment) {
        self.before[side].push(Sent { segment, state: self.ends[side].state });
    }

    /// Takes one out of a queue, most often the first.
    fn take<T: Clone>(queue: &mut Vec<T>, faults: Faults, random: &mut Random) -> Option<T> {
        if queue.is_empty() {
            return None;
        }
        let place =
            if random.percent(faults.overtakes) { random.below(queue.len().min(8) as i64) } else { 0 };
        let taken = if random.percent(faults.twice) {
            queue[place as usize].clone()
        } else {
            queue.remove(place as usize)
        };
        (!random.percent(faults.lost)).then_some(taken)
    }

    fn carry_before(&mut self, side: usize) {
        if let Some(sent) = Self::take(&mut self.before[side], self.faults, &mut self.random) {
            self.pass(side, &sent);
        }
    }

    fn carry_behind(&mut self, side: usize) {
        if let Some(segment) = Self::take(&mut self.behind[side], self.faults, &mut self.random) {
            let receiver = &mut self.ends[1 - side];
            let is_news = segment.payload != 0 || segment.flags & FIN != 0;
            if !receiver.receive(&segment) || is_news && self.random.percent(70) {
                let answer = receiver.acknowledge();
                self.send(1 - side, answer);
            }
        }
    }

    /// A segment of an end is at the gateway.
    fn pass(&mut self, side: usize, sent: &Sent) {
        let flow = self.flows[side];
        let leaving_window = flow.window(sent.segment.window);
        let segment = Segment { leaving_window, ..sent.segment };
        let (seq, end, ack) = self.ends[1 - side].offsets(&self.leaving(side, &segment));
        if ack < self.seen[side].told - self.passed[side].window {
            // Older by more than a window than what has passed: nobody takes it, and this wire has lost it.
            return;
        }
        let bounds = self.bounds(side);
        let [own, peer] = [side, 1 - side].map(|side| *self.track.halves.each_ref()[side]);
        assert!(
            !self.is_finished() || bounds.repeats_the_end(&segment),
            "{segment:?} repeats the end: {bounds:?}"
        );
        let verdict = bounds.judge(&segment);
        self.tally.verdicts[verdict as usize] += 1;
        match verdict {
            Verdict::Counts | Verdict::Old | Verdict::Keepalive => {}
            Verdict::Near => assert!(self.misled, "{segment:?} is no more than near: {bounds:?}"),
            Verdict::TooOld | Verdict::TooNew | Verdict::NoAck => {
                panic!("{segment:?} of an end is refused: {verdict:?}, {bounds:?}")
            }
        }
        self.store(side, own.after(verdict, &segment, peer.has_fin(), bounds.acknowledged, &flow, self.tick));

        if matches!(verdict, Verdict::Counts | Verdict::Near) {
            self.see(side, &sent.state);
        }
        let passed = &mut self.passed[side];
        if verdict == Verdict::Counts {
            passed.window = passed.window.max(i64::from(segment.window) << flow.own_scale);
        }
        passed.told = passed.told.max(ack + (i64::from(leaving_window) << flow.promised_scale));
        let bytes = seq + i64::from(segment.payload);
        // The byte of a question may have the number of a FIN.
        if segment.payload != 0 && seq >= 0 && bytes <= self.ends[side].length {
            insert(&mut passed.ranges, seq, bytes);
            passed.end = passed.end.max(bytes);
        }
        if end > bytes {
            passed.fin = Some(bytes);
            passed.end = passed.end.max(bytes);
        }
        let leaving = self.leaving(side, &segment);
        self.behind[side].push(leaving);
        self.check();
    }

    /// What counts tells of its sender's state.
    fn see(&mut self, side: usize, state: &State) {
        let seen = &mut self.seen[side];
        seen.next = seen.next.max(state.next);
        seen.told = seen.told.max(state.told);
        seen.edge = seen.edge.max(state.edge);
        seen.sent = seen.sent.max(state.sent);
        seen.oldest = seen.oldest.max(state.oldest);
        seen.fin_taken |= state.fin_taken;
    }

    /// Stores a half; now and then an older truth comes back.
    fn store(&mut self, side: usize, half: Half) {
        let older = &mut self.older[side];
        older.push(*self.track.halves.each_ref()[side]);
        if older.len() > 3 {
            older.remove(0);
        }
        *self.track.halves.each_mut()[side] = half;
        if self.random.percent(self.faults.stores_lost) {
            let older = older[self.random.below(older.len() as i64) as usize];
            let half = &mut *self.track.halves.each_mut()[side];
            self.misled = true;
            match self.random.below(7) {
                0 => half.position = older.position,
                1 => half.gap = older.gap,
                2 => half.ack = older.ack,
                3 => half.edge = older.edge,
                4 => half.heard = older.heard,
                5 => half.tsval = older.tsval,
                _ => half.most = older.most,
            }
        }
    }

    /// As it leaves.
    fn leaving(&self, side: usize, segment: &Segment) -> Segment {
        let flow = &self.flows[side];
        Segment {
            seq: segment.seq.wrapping_add(flow.seq_delta),
            ack: segment.ack.wrapping_add(flow.ack_delta),
            window: segment.leaving_window,
            ..*segment
        }
    }

    /// What the tracker believes is true of the ends.
    fn check(&self) {
        if self.is_finished() {
            for side in [0, 1] {
                let (end, other) = (&self.ends[side], &self.ends[1 - side]);
                assert!(end.finishes && end.state.sent == end.length + 1, "a FIN that was never sent");
                assert!(other.state.told == end.length + 1, "a FIN that was not acknowledged");
            }
        }
        if self.misled {
            return;
        }
        for side in [0, 1] {
            let (passed, half) = (&self.passed[side], self.track.halves.each_ref()[side]);
            assert_eq!(self.bytes(side), passed.end, "bytes of {side}");
            assert_eq!(half.has_fin(), passed.fin.is_some(), "FIN of {side}, {passed:?}: {half:?}");
            let next = self.bounds(side).next;
            let [arrived, acknowledged] =
                [passed.next(), self.seen[1 - side].told].map(|offset| self.number(side, offset));
            assert!(
                next == arrived || next == acknowledged,
                "{next} of {side} is neither {arrived} nor {acknowledged}"
            );
        }
    }

    /// The number of a byte in the packets of who sends it.
    pub(crate) fn number(&self, side: usize, offset: i64) -> u32 {
        self.ends[side].nature.first.wrapping_add(offset as u32)
    }

    /// A segment that a stranger makes in the name of an end: numbers by chance, or near those that matter.
    pub(crate) fn forge(&mut self, side: usize) -> Segment {
        let bounds = self.bounds(side);
        let half = self.track.halves.each_ref()[side];
        let random = &mut self.random;
        let around = |random: &mut Random, numbers: &[u32], windows: [u32; 2]| match random.below(10) {
            0 => random.word(),
            1 => random.of(&EDGES),
            _ => {
                let (number, window) = (random.of(numbers), random.of(&windows));
                match random.below(6) {
                    0 => number.wrapping_add(window),
                    1 => number.wrapping_sub(window),
                    2 => number.wrapping_add(random.below(i64::from(window) + 2) as u32),
                    _ => number.wrapping_add(random.below(5) as u32).wrapping_sub(2),
                }
            }
        };
        let windows = [bounds.own_window, bounds.peer_window];
        let numbers = [bounds.acknowledged, bounds.next, bounds.sent, bounds.limit, half.gap, half.end()];
        let seq = around(random, &numbers, windows);
        let ack = around(random, &[bounds.acknowledges, bounds.peer_sent], windows);
        let window = random.of(&[0, 1, 500, u16::MAX]);
        Segment {
            seq,
            ack,
            payload: random.of(&[0, 0, 1, 100, 65_000]),
            tsval: random.word(),
            window,
            leaving_window: self.flows[side].window(window),
            flags: random.of(&[ACK, ACK, ACK, ACK | FIN, ACK | FIN, FIN, 0, RST, RST | ACK, SYN, SYN | ACK]),
            timestamps: random.percent(50),
        }
    }

    /// A state in which the receiver may be: as the gateway last heard of it, as it is, and as it will be when all that
    /// has passed has arrived. What it takes in none of them it refuses.
    fn may_be(&self, receiver: usize) -> State {
        let (seen, sender) = (&self.seen[receiver], 1 - receiver);
        let oldest = self.seen[sender].told - self.passed[sender].window;
        let end = &self.ends[receiver];
        State {
            next: end.state.next,
            told: seen.told,
            edge: end.state.edge.max(self.passed[receiver].told),
            oldest: seen.oldest.min(end.state.oldest).min(oldest),
            sent: end.state.sent,
            fin_taken: end.state.fin_taken,
        }
    }

    /// Judges what a stranger has made. If no receiver would take it, it passes, and the half is what it has become.
    pub(crate) fn judge_forged(&mut self, side: usize, segment: &Segment) -> Option<Verdict> {
        let (bounds, flow) = (self.bounds(side), self.flows[side]);
        let [own, peer] = [side, 1 - side].map(|side| *self.track.halves.each_ref()[side]);
        if segment.flags & RST != 0 {
            let reset = bounds.judge_reset(&own, segment.seq);
            self.tally.resets[reset as usize] += 1;
            if reset == Reset::Exact {
                self.check_exact(side, segment.seq);
            }
            return None;
        }
        if segment.flags & SYN != 0 {
            return None;
        }
        let verdict = bounds.judge(segment);
        self.tally.forged[verdict as usize] += 1;
        let (seq, end, ack) = self.ends[1 - side].offsets(&self.leaving(side, segment));
        if self.may_be(1 - side).takes(segment.flags, seq, end, ack) {
            return None;
        }
        self.tally.forged_refused += 1;
        let new = own.after(verdict, segment, peer.has_fin(), bounds.acknowledged, &flow, self.tick);
        let allowed = Half { position: new.position, gap: new.gap, heard: new.heard, ..own };
        assert_eq!(
            new, allowed,
            "{segment:?}, refused, moves more than the position: {verdict:?}, {bounds:?}"
        );
        if verdict != Verdict::Near {
            let allowed = Half { position: own.position, gap: own.gap, ..new };
            assert_eq!(new, allowed, "{segment:?}, refused, moves the position: {verdict:?}, {bounds:?}");
        }
        let room = i64::from(bounds.peer_window) + i64::from(segment.payload);
        let last = i64::from(bounds.limit.wrapping_sub(own.end()) as i32).max(0) + room;
        assert!((new.position - own.position) as i64 <= last, "further than a window beyond the window");
        self.store(side, new);
        Some(verdict)
    }

    /// A reset closes only where the receiver takes it: now, or when all that has passed has arrived, or when it said
    /// last what it expects.
    fn check_exact(&self, side: usize, seq: u32) {
        let known = [self.passed[side].next(), self.ends[1 - side].state.next, self.seen[1 - side].told];
        let fin = known.iter().any(|&next| Some(next - 1) == self.passed[side].fin);
        let taken = known.iter().flat_map(|&next| [next, next - i64::from(fin)]);
        let taken: Vec<u32> = taken.map(|offset| self.number(side, offset)).collect();
        assert!(taken.contains(&seq), "a reset at {seq} closes, of {taken:?}");
    }

    /// An end that is no more resets the connection at this number, and what is asked of it as well. Gives how often it
    /// was asked.
    pub(crate) fn reset(&mut self, side: usize, seq: u32) -> u32 {
        let own = *self.track.halves.each_ref()[side];
        let judge = |wire: &mut Self, own: &Half, seq| {
            let reset = wire.bounds(side).judge_reset(own, seq);
            wire.tally.resets[reset as usize] += 1;
            reset
        };
        match judge(self, &own, seq) {
            Reset::Exact => {
                self.check_exact(side, seq);
                0
            }
            Reset::InWindow => {
                // A challenge acknowledges what the other end has; who has no such connection resets at that number (RFC
                // 9293, section 3.5.2).
                let challenge = self.bounds(side).acknowledged;
                let asked = Half { asked: asked::CHALLENGE, ..own };
                assert_eq!(judge(self, &asked, challenge), Reset::Exact);
                self.check_exact(side, challenge);
                1
            }
            other => panic!("the reset of an end, at {seq}, is {other:?}: {:?}", self.bounds(side)),
        }
    }

    /// The wires lose nothing any more; all that is to be sent arrives, and both ends fall silent.
    pub(crate) fn rest(&mut self) {
        self.faults = Faults::default();
        for _ in 0..10_000 {
            for side in [0, 1] {
                while !self.before[side].is_empty() || !self.behind[side].is_empty() {
                    self.carry_before(side);
                    self.carry_behind(side);
                }
                self.ends[side].read(i64::MAX);
            }
            let through = self.ends.iter().all(End::is_through);
            for side in [0, 1] {
                let end = &mut self.ends[side];
                let again = end.send_again(&mut self.random, end.acknowledged);
                let new = end.send(&mut self.random);
                let acknowledgement = Some(end.acknowledge());
                [again, new, acknowledgement]
                    .into_iter()
                    .flatten()
                    .for_each(|segment| self.send(side, segment));
            }
            if through {
                return self.deliver_all();
            }
        }
        panic!("a transfer stands still: {:?} {:?}", self.ends, self.track);
    }

    /// All that is under way arrives.
    pub(crate) fn deliver_all(&mut self) {
        while (0..2).any(|side| !self.before[side].is_empty() || !self.behind[side].is_empty()) {
            for side in [0, 1] {
                self.carry_before(side);
                self.carry_behind(side);
            }
        }
    }

    /// At rest the tracker knows what the ends know.
    pub(crate) fn check_rest(&self) {
        for side in [0, 1] {
            let (end, other, half) =
                (&self.ends[side], &self.ends[1 - side], self.track.halves.each_ref()[side]);
            let what = format!("{side}: {half:?}, {end:?}, {other:?}");
            assert_eq!(self.bytes(side), end.length, "bytes of {what}");
            assert_eq!(half.has_fin(), end.finishes, "FIN of {what}");
            self.check_rest_but_for_the_end(side);
        }
        assert_eq!(self.is_finished(), self.ends.iter().all(|end| end.finishes));
    }

    /// The same, where a stranger has told that there are more bytes than there are.
    pub(crate) fn check_rest_but_for_the_end(&self, side: usize) {
        let (end, other, half) = (&self.ends[side], &self.ends[1 - side], self.track.halves.each_ref()[side]);
        let what = format!("{side}: {half:?}, {end:?}, {other:?}");
        assert_eq!(self.bounds(side).next, self.number(side, other.state.next), "next of {what}");
        let ack = end.nature.peer_first.wrapping_add(end.state.next as u32);
        assert_eq!(half.ack, ack, "acknowledgement of {what}");
        let edge = end.state.edge.max(self.passed[side].told);
        assert_eq!(half.edge, end.nature.peer_first.wrapping_add(edge as u32), "edge of {what}");
    }
}
