//! What a sweep remembers of each connection, by the slot of its track, to pass over it while nothing is due: that takes
//! nanoseconds, so that very many silent connections cost next to nothing. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use lb_common::packet::PerLeg;
use lb_common::packet::track::{Half, Track, closing};
use std::ops::Range;

/// The connections, by the slots of their tracks.
#[derive(Debug, Default)]
pub(super) struct Glances(Vec<Glance>);

/// What the last look at a connection has found.
#[derive(Clone, Copy, Debug, Default)]
struct Glance {
    /// 0: the slot has no connection.
    id: u64,
    /// [`Half::position`] of both ends.
    positions: PerLeg<u64>,
    /// Until when ([`now_ms`](crate::clock::now_ms)) nothing is due, unless the track says so.
    quiet_until: u64,
}

impl Glances {
    /// The connection in this slot is to be looked at.
    pub(super) fn enter(&mut self, slot: u32, id: u64) {
        let slot = slot as usize;
        if slot >= self.0.len() {
            self.0.resize(slot + 1, Glance::default());
        }
        self.0[slot] = Glance { id, ..Glance::default() };
    }

    /// The connection is gone.
    pub(super) fn leave(&mut self, slot: u32, id: u64) {
        if let Some(glance) = self.0.get_mut(slot as usize).filter(|glance| glance.id == id) {
            *glance = Glance::default();
        }
        while self.0.pop_if(|last| last.id == 0).is_some() {}
        // Gives back memory that only a peak has needed.
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2);
        }
    }

    /// All connections are to be looked at.
    pub(super) fn forget(&mut self) {
        self.0.iter_mut().for_each(|glance| glance.quiet_until = 0);
    }

    /// No slot from here on has a connection.
    pub(super) fn end(&self) -> usize {
        self.0.len()
    }

    /// Calls `look` with each connection of these slots that is to be looked at, and with its track. It returns until when
    /// nothing is due, if the track stays as it is. `track`: that of a slot.
    pub(super) fn look(
        &mut self,
        slots: Range<usize>,
        now: u64,
        track: impl Fn(u32) -> Track,
        mut look: impl FnMut(u64, &Track) -> u64,
    ) {
        self.of(slots, track, |glance, track| {
            if now >= glance.quiet_until || glance.has_moved(track) || calls(track) {
                glance.quiet_until = look(glance.id, track);
                glance.positions = track.halves.map(|half| half.position);
            }
        });
    }

    /// Calls `look` with each connection of these slots whose ends have sent bytes since it was last looked at.
    pub(super) fn moved(
        &mut self,
        slots: Range<usize>,
        track: impl Fn(u32) -> Track,
        mut look: impl FnMut(u64, &Track),
    ) {
        self.of(slots, track, |glance, track| {
            if glance.has_moved(track) {
                look(glance.id, track);
                glance.positions = track.halves.map(|half| half.position);
            }
        });
    }

    fn of(
        &mut self,
        slots: Range<usize>,
        track: impl Fn(u32) -> Track,
        mut each: impl FnMut(&mut Glance, &Track),
    ) {
        let slots = slots.start..slots.end.min(self.0.len());
        for (slot, glance) in slots.clone().zip(self.0.get_mut(slots).unwrap_or_default()) {
            if glance.id != 0 {
                each(glance, &track(slot as u32));
            }
        }
    }
}

impl Glance {
    fn has_moved(&self, track: &Track) -> bool {
        self.positions != track.halves.map(|half| half.position)
    }
}

/// Whether a track calls for a look at any time. A FIN of one end alone does not.
fn calls(track: &Track) -> bool {
    let halves = &track.halves;
    halves.iter().any(|half| half.closing & (closing::RESET | closing::REUSED) != 0 || half.asked != 0)
        || halves.iter().all(Half::has_fin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::packet::Side;
    use lb_common::packet::track::asked;
    use std::cell::RefCell;

    /// The ids that are looked at. What is looked at is quiet until 1000.
    fn looked_at(glances: &mut Glances, now: u64, tracks: &[Track]) -> Vec<u64> {
        let mut looked = Vec::new();
        let track = |slot: u32| tracks[slot as usize];
        glances.look(0..tracks.len(), now, track, |id, _| {
            looked.push(id);
            1000
        });
        looked
    }

    #[test]
    fn what_is_quiet_is_looked_at_again_at_its_time_and_not_before() {
        let mut glances = Glances::default();
        (0..3).for_each(|slot| glances.enter(slot, 10 + u64::from(slot)));
        let tracks = [Track::default(); 3];
        assert_eq!(looked_at(&mut glances, 0, &tracks), [10, 11, 12]);
        assert_eq!(looked_at(&mut glances, 999, &tracks), [0; 0]);
        assert_eq!(looked_at(&mut glances, 1000, &tracks), [10, 11, 12]);
        glances.enter(1, 20);
        assert_eq!(looked_at(&mut glances, 0, &tracks), [20], "another connection in the slot");
        glances.forget();
        assert_eq!(looked_at(&mut glances, 0, &tracks), [10, 20, 12]);
    }

    #[test]
    fn a_track_calls_for_a_look_by_itself() {
        let with = |sides: &[Side], change: fn(&mut Half)| {
            let mut track = Track::default();
            sides.iter().for_each(|side| change(track.halves.get_mut(*side)));
            track
        };
        for side in Side::BOTH {
            for (what, track, expected) in [
                ("bytes", with(&[side], |half| half.position = 1 << 32), true),
                ("a reset", with(&[side], |half| half.closing = closing::RESET), true),
                ("a new connection", with(&[side], |half| half.closing = closing::REUSED), true),
                ("a challenge", with(&[side], |half| half.asked = asked::CHALLENGE), true),
                ("another device", with(&[side], |half| half.asked = asked::DEVICE), true),
                ("both FINs", with(&Side::BOTH, |half| half.closing = closing::SECOND), true),
                ("one FIN", with(&[side], |half| half.closing = closing::FIRST), false),
                ("a keepalive", with(&[side], |half| (half.heard, half.ack) = (9, 9)), false),
                ("a handover", with(&[side], |half| half.closing = closing::HANDOVER_STATE), false),
            ] {
                let mut glances = Glances::default();
                glances.enter(0, 7);
                assert_eq!(looked_at(&mut glances, 0, &[Track::default()]), [7]);
                assert_eq!(looked_at(&mut glances, 0, &[track]) == [7], expected, "{what}");
                // Bytes are new once, the rest stands until something is done about it.
                let again = expected && what != "bytes";
                assert_eq!(looked_at(&mut glances, 0, &[track]) == [7], again, "{what}, once more");
            }
        }
    }

    #[test]
    fn bytes_that_are_noted_between_two_sweeps_leave_its_time_to_what_is_quiet() {
        let mut glances = Glances::default();
        glances.enter(0, 7);
        let mut track = Track::default();
        looked_at(&mut glances, 0, &[track]);
        track.halves.server.position = 5;
        let noted = RefCell::new(Vec::new());
        for _ in 0..2 {
            glances.moved(0..1, |_| track, |id, _| noted.borrow_mut().push(id));
        }
        assert_eq!(noted.into_inner(), [7]);
        assert_eq!(looked_at(&mut glances, 999, &[track]), [0; 0]);
        assert_eq!(looked_at(&mut glances, 1000, &[track]), [7]);
    }

    #[test]
    fn who_has_left_is_not_looked_at_and_takes_no_memory_for_ever() {
        let mut glances = Glances::default();
        (0..1000).for_each(|slot| glances.enter(slot, u64::from(slot) + 1));
        // Not the connection that has the slot by now.
        glances.leave(998, 99);
        (0..998).for_each(|slot| glances.leave(slot, u64::from(slot) + 1));
        assert_eq!(
            (glances.end(), looked_at(&mut glances, 0, &[Track::default(); 1001])),
            (1000, vec![999, 1000])
        );
        (998..1000).for_each(|slot| glances.leave(slot, u64::from(slot) + 1));
        assert_eq!((glances.end(), glances.0.capacity()), (0, 0));
    }
}
