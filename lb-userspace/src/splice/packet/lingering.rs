//! What is to happen later: closed connections whose flows stay a while, resets that must stand, ends that may be asked
//! again. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use lb_common::packet::Tuple;
use std::collections::VecDeque;

/// What is to be done in a moment, the first to be done first.
#[derive(Default)]
pub(super) struct Pending {
    /// Connections whose reset is yet to stand, and when it does.
    pub(super) resets: VecDeque<(u64, u64)>,
    /// Ends (slot, side) that may be asked again, and when.
    pub(super) asked: VecDeque<(u64, u32, usize)>,
}

/// Closed connections whose flows stay a while, the first to go first.
#[derive(Default)]
pub(super) struct Lingering(VecDeque<Closed>);

/// A closed connection whose flows are still there.
pub(super) struct Closed {
    /// [`now_ms`](crate::clock::now_ms) when it was last heard of.
    since: u64,
    /// And when it was closed.
    closed: u64,
    pub(super) id: u64,
    pub(super) slot: u32,
    pub(super) tuples: [Tuple; 2],
}

impl Closed {
    /// Whether its flows stay, where its ends were heard at these times. An end that repeats its last packet for ever does
    /// not keep them for ever.
    pub(super) fn lingers(&self, now: u64, linger: u64, heard: [u64; 2]) -> bool {
        now.saturating_sub(self.closed) < 2 * linger
            && heard.iter().any(|heard| now.saturating_sub(*heard) < linger)
    }
}

impl Lingering {
    pub(super) fn push(&mut self, now: u64, id: u64, slot: u32, tuples: [Tuple; 2]) {
        self.0.push_back(Closed { since: now, closed: now, id, slot, tuples });
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// One that was heard of meanwhile stays on.
    pub(super) fn push_again(&mut self, now: u64, closed: Closed) {
        self.0.push_back(Closed { since: now, ..closed });
    }

    /// One that has lingered for so long.
    pub(super) fn pop(&mut self, now: u64, linger: u64) -> Option<Closed> {
        let over = self.0.front().is_some_and(|oldest| now.saturating_sub(oldest.since) >= linger);
        let closed = if over { self.0.pop_front() } else { None };
        // What a busy minute needed is not kept for ever.
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
        let closed = Closed { since: 0, closed: 1000, id: 1, slot: 0, tuples: [Tuple::default(); 2] };
        for (now, heard, lingers) in [
            (1099, [0, 1000], true),
            (1100, [1000, 0], false),
            (1100, [1000, 1001], true),
            (1199, [1000, 1198], true),
            (1200, [1000, 1199], false),
        ] {
            assert_eq!(closed.lingers(now, 100, heard), lingers, "{now} {heard:?}");
        }
    }

    #[test]
    fn closed_connections_go_in_order_and_none_too_early() {
        let mut lingering = Lingering::default();
        for id in 1..=100 {
            lingering.push(id * 10, id, id as u32, [Tuple::default(); 2]);
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
