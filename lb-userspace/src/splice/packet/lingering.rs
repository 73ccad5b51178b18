//! What is to be done later: removing the flows of closed connections, ending connections whose reset stands, allowing the
//! next challenge ACK. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use lb_common::packet::{PerLeg, Side, Tuple};
use std::collections::VecDeque;

/// What is to be done within a second, in order of time. Times are those of [`now_ms`](crate::clock::now_ms).
#[derive(Default)]
pub(super) struct Pending {
    /// When a reset will have stood long enough, and the connection's id.
    pub(super) resets: VecDeque<(u64, u64)>,
    /// When an end may be sent the next challenge ACK, the connection's slot, and the end's side.
    pub(super) asked: VecDeque<(u64, u32, Side)>,
}

/// Closed connections whose flows stay a while, in the order in which they go.
#[derive(Default)]
pub(super) struct Lingering(VecDeque<Closed>);

/// A closed connection whose flows are still there.
pub(super) struct Closed {
    /// When it was entered here, or looked at and left here ([`now_ms`](crate::clock::now_ms)).
    since: u64,
    /// When it was closed.
    closed: u64,
    pub(super) id: u64,
    pub(super) slot: u32,
    pub(super) tuples: PerLeg<Tuple>,
}

impl Closed {
    /// Whether its flows stay: an end was heard less than `linger` ago. Never longer than 2 `linger`: an end that
    /// retransmits for ever does not keep them. `heard`: when each end was heard last.
    pub(super) fn lingers(&self, now: u64, linger: u64, heard: PerLeg<u64>) -> bool {
        now.saturating_sub(self.closed) < 2 * linger
            && heard.iter().any(|heard| now.saturating_sub(*heard) < linger)
    }
}

impl Lingering {
    pub(super) fn push(&mut self, now: u64, id: u64, slot: u32, tuples: PerLeg<Tuple>) {
        self.0.push_back(Closed { since: now, closed: now, id, slot, tuples });
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts back one that [lingers](Closed::lingers) on.
    pub(super) fn push_again(&mut self, now: u64, closed: Closed) {
        self.0.push_back(Closed { since: now, ..closed });
    }

    /// Takes out one that has been here for `linger`.
    pub(super) fn pop(&mut self, now: u64, linger: u64) -> Option<Closed> {
        let over = self.0.front().is_some_and(|oldest| now.saturating_sub(oldest.since) >= linger);
        let closed = if over { self.0.pop_front() } else { None };
        // Gives back memory that only a peak has needed.
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2);
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_heard_lingers_and_not_for_ever() {
        let closed = Closed { since: 0, closed: 1000, id: 1, slot: 0, tuples: PerLeg::default() };
        for (now, heard, lingers) in [
            (1099, [0, 1000], true),
            (1100, [1000, 0], false),
            (1100, [1000, 1001], true),
            (1199, [1000, 1198], true),
            (1200, [1000, 1199], false),
        ] {
            assert_eq!(closed.lingers(now, 100, heard.into()), lingers, "{now} {heard:?}");
        }
    }

    #[test]
    fn closed_connections_go_in_order_and_none_too_early() {
        let mut lingering = Lingering::default();
        for id in 1..=100 {
            lingering.push(id * 10, id, id as u32, PerLeg::default());
        }
        let mut gone = |now, linger| {
            std::iter::from_fn(|| lingering.pop(now, linger)).map(|closed| closed.id).collect::<Vec<_>>()
        };
        assert_eq!(gone(1009, 1000), [0; 0]);
        assert_eq!(gone(1020, 1000), [1, 2]);
        // A clock that was read before the connection was closed.
        assert_eq!(gone(0, 1), [0; 0]);
        assert_eq!(gone(1020, 20), (3..=100).collect::<Vec<_>>());
        assert_eq!(gone(u64::MAX, 0), [0; 0]);
    }
}
