//! Properties of the tracker, against two ends that know what they have received and granted.

#[path = "../fuzz/properties.rs"]
#[allow(dead_code, reason = "of the translation's tests and the fuzz targets")]
mod properties;
#[path = "model"]
#[allow(dead_code, reason = "of the attack suite")]
mod model {
    pub(crate) mod ends;
    pub(crate) mod wire;
}

use lb_common::packet::Flow;
use lb_common::packet::track::{Bounds, Half, Reset, Segment, Verdict};
use lb_common::packet::translate::tcp::{ACK, FIN, RST};
use model::ends::{Random, State};
use model::wire::{Faults, Tally, Wire};
use properties::flow;

/// Two ends with something to say to each other, by wires that are good or bad.
fn connection(seed: u64) -> Wire {
    let mut wire = Wire::new(seed);
    let random = &mut wire.random;
    wire.faults = Faults {
        lost: random.of(&[0, 0, 2, 10, 30]),
        twice: random.of(&[0, 2, 10]),
        overtakes: random.of(&[0, 0, 5, 40]),
        stores_lost: 0,
    };
    let windows = [1, 0].map(|other| wire.ends[other].nature.room.max(1));
    for (end, window) in wire.ends.iter_mut().zip(windows) {
        let segments = random.of(&[0, 1, 5, 40]);
        end.length = random.below((end.nature.most * segments).min(window * 20) + 1);
        end.finishes = random.percent(60);
    }
    wire
}

/// Follows this many connections and gives what was judged.
fn follow(seeds: std::ops::Range<u64>, case: impl Fn(&mut Wire)) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let mut wire = connection(seed);
        // Said if the case fails.
        println!("seed {seed}");
        case(&mut wire);
        tally.add(&wire.tally);
    }
    tally
}

#[test]
fn no_segment_of_an_end_is_refused_and_at_rest_all_is_known() {
    let tally = follow(0..4_000, |wire| {
        (0..wire.random.below(400)).for_each(|_| wire.step());
        wire.rest();
        wire.check_rest();
    });
    let [counts, _, keepalive, old, ..] = tally.verdicts;
    assert!(counts > 400_000 && keepalive.min(old) > 5_000, "{tally:?}");
}

#[test]
fn what_a_receiver_refuses_moves_nothing_but_the_position() {
    let tally = follow(10_000..13_000, |wire| {
        for _ in 0..wire.random.below(400) {
            wire.step();
            for _ in 0..4 {
                let side = wire.random.below(2) as usize;
                let segment = wire.forge(side);
                let halves = wire.track;
                if wire.judge_forged(side, &segment) == Some(Verdict::Near) {
                    // Another connection's, below.
                    wire.track = halves;
                }
            }
        }
        wire.rest();
        wire.check_rest();
    });
    assert!(tally.forged_refused > 1_000_000, "{tally:?}");
    assert!(tally.forged.iter().all(|judged| *judged > 1_000), "{tally:?}");
}

#[test]
fn what_is_near_ends_nothing_and_keeps_nothing_from_being_known() {
    let tally = follow(20_000..22_000, |wire| {
        for _ in 0..wire.random.below(400) {
            wire.step();
            for _ in 0..4 {
                if !wire.misled {
                    let side = wire.random.below(2) as usize;
                    let segment = wire.forge(side);
                    wire.misled = wire.judge_forged(side, &segment) == Some(Verdict::Near);
                }
            }
        }
        wire.rest();
        for side in [0, 1] {
            wire.check_rest_but_for_the_end(side);
        }
    });
    let near = tally.forged[Verdict::Near as usize];
    assert!(near > 1_500, "{tally:?}");
}

#[test]
fn the_reset_of_an_end_closes_at_once_or_when_it_is_asked() {
    let tally = follow(40_000..42_000, |wire| {
        (0..wire.random.below(400)).for_each(|_| wire.step());
        let side = wire.random.below(2) as usize;
        let (end, other) = (&wire.ends[side], &wire.ends[1 - side]);
        // It aborts, or has forgotten the connection and answers what the other end says.
        let aborts = wire.number(side, end.state.sent.min(end.limit.max(end.acknowledged)));
        let answers = wire.number(side, other.state.told);
        wire.reset(side, aborts);
        wire.reset(side, answers);
        wire.rest();
        let (end, other) = (&wire.ends[side], &wire.ends[1 - side]);
        let [sent, told] = [end.state.sent, other.state.told].map(|offset| wire.number(side, offset));
        assert_eq!(wire.reset(side, sent), 0, "at rest nobody has to be asked");
        assert_eq!(wire.reset(side, told), 0);
    });
    assert!(tally.resets[Reset::InWindow as usize] > 100, "hardly any was asked: {tally:?}");
}

#[test]
fn stores_that_were_lost_are_made_up_for() {
    let tally = follow(30_000..34_000, |wire| {
        let finishes = [0, 1].map(|side| std::mem::take(&mut wire.ends[side].finishes));
        wire.faults.stores_lost = wire.random.of(&[1, 5, 20]);
        (0..wire.random.below(400)).for_each(|_| wire.step());
        wire.faults.stores_lost = 0;
        wire.rest();
        // The next byte of each tells.
        wire.ends.iter_mut().for_each(|end| end.length += 1);
        wire.rest();
        for (end, finishes) in wire.ends.iter_mut().zip(finishes) {
            end.finishes = finishes;
        }
        wire.rest();
        wire.check_rest();
    });
    let near = tally.verdicts[Verdict::Near as usize];
    assert!(near > 300, "{tally:?}");
}

/// Both ends of a connection at rest, the same numbers on both legs; windows of 65535 by this scale.
struct AtRest {
    halves: [Half; 2],
    receivers: [State; 2],
    scale: u8,
}

impl AtRest {
    const FIRST: [u32; 2] = [0x1234_5678, 0xf00d_cafe];

    fn new(scale: u8) -> Self {
        let window = 0xffff << scale;
        let half = |own: u32, peer: u32| Half {
            position: 1 << 32 | u64::from(own),
            gap: own,
            ack: peer,
            edge: peer.wrapping_add(window),
            heard: 1,
            tsval: 0,
            most: 0xffff,
            closing: 0,
            asked: 0,
        };
        let [client, server] = Self::FIRST;
        let window = i64::from(window);
        let state = State { next: 0, told: 0, edge: window, oldest: -window, sent: 0, fin_taken: false };
        Self { halves: [half(client, server), half(server, client)], receivers: [state; 2], scale }
    }

    /// Whether the receiver would take it, the sender's being this side.
    fn takes(&self, side: usize, segment: &Segment) -> bool {
        let offset = |number: u32, first: u32| i64::from(number.wrapping_sub(first).cast_signed());
        let seq = offset(segment.seq, Self::FIRST[side]);
        let end = seq + i64::from(segment.payload) + i64::from(segment.flags & FIN != 0);
        self.receivers[1 - side].takes(segment.flags, seq, end, offset(segment.ack, Self::FIRST[1 - side]))
    }

    /// This many segments with numbers by chance, from either side. Gives how many would have been taken, and how many
    /// were near.
    fn attack(&mut self, seed: u64, tries: u32) -> (u32, u32) {
        let mut random = Random::new(seed);
        let scale = self.scale;
        let flow = Flow {
            own_scale: scale,
            peer_scale: scale,
            promised_scale: scale,
            ..flow(([0; 4], 1).into(), ([0; 4], 2).into())
        };
        let (mut taken, mut near) = (0, 0);
        for i in 0..tries {
            let side = i as usize % 2;
            let numbers = random.number();
            let payload = [0, 1, 1_000][i as usize % 3];
            let segment = Segment {
                seq: numbers as u32,
                ack: (numbers >> 32) as u32,
                payload,
                window: 0xffff,
                leaving_window: 0xffff,
                flags: [ACK, ACK | FIN, RST, RST | ACK][i as usize / 2 % 4],
                ..Segment::default()
            };
            let [own, peer] = [self.halves[side], self.halves[1 - side]];
            let bounds = Bounds::new(&flow, &own, &peer, None);
            if segment.flags & RST != 0 {
                assert_ne!(bounds.judge_reset(&own, segment.seq), Reset::Exact, "by chance");
                continue;
            }
            let verdict = bounds.judge(&segment);
            if self.takes(side, &segment) {
                taken += 1;
            } else if verdict == Verdict::Near {
                near += 1;
            } else {
                self.halves[side] = own.after(verdict, &segment, false, bounds.acknowledged, &flow, 2);
            }
        }
        (taken, near)
    }
}

/// A stranger knows addresses and ports and no number. That one of so many tries is near has a chance of 1 in 128: this
/// seed has none.
#[test]
fn a_stranger_closes_nothing_and_changes_no_account() {
    let mut connection = AtRest::new(0);
    let before = connection.halves;
    assert_eq!(connection.attack(1, 1 << 24), (0, 0));
    assert_eq!(connection.halves, before);
}

/// Windows of 8 MiB are hit now and then, as they are where a socket guards them; a number that closes is not.
#[test]
fn a_stranger_does_to_large_windows_what_he_does_to_a_sockets() {
    let mut connection = AtRest::new(7);
    let before = connection.halves;
    let (taken, near) = connection.attack(1, 1 << 24);
    assert!((5..100).contains(&taken) && (5..200).contains(&near), "{taken} {near}");
    assert_eq!(connection.halves, before);
}
