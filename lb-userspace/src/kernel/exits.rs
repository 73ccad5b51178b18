//! The exits that were asked for lately. Pure.
//!
//! An answer is used again for a moment, and only if it is the same for all ports. Changes of routes, rules and devices are notified,
//! and end the moment at once. The moment bounds what is not: sysctls; and that a path has failed (IPv6 tries routers in
//! turn, IPv4 prefers reachable default routes), which connections that live do not notice either.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::net::IpAddr;

/// How long they are used.
const MOMENT_MS: u64 = 200;

/// The most that are remembered; when there are more, all are forgotten.
const MOST: usize = 1024;

/// Where the kernel sends the packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The index of the device that they leave by. For a peer on this host it is the loopback device, or its VRF.
    pub device: u32,
    /// The peer is on this host.
    pub is_local: bool,
}

/// All that a question asks but for the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Between {
    pub(super) local: IpAddr,
    pub(super) peer: IpAddr,
    /// The index of the device of a link-local peer, or of the VRF, else 0.
    pub(super) link: u32,
    pub(super) mark: u32,
}

/// The exits that were asked for since the moment began.
#[derive(Debug, Default)]
pub(super) struct Exits {
    /// When the moment began ([`now_ms`](crate::clock::now_ms)).
    since: u64,
    /// They are kept.
    kept: bool,
    known: HashMap<Between, Exit>,
}

impl Exits {
    /// Whether the moment is over.
    pub(super) fn are_old(&self, now: u64) -> bool {
        now.saturating_sub(self.since) >= MOMENT_MS
    }

    /// Another moment begins: all are forgotten, and new ones are `kept` or not.
    pub(super) fn begin(&mut self, now: u64, kept: bool) {
        (self.since, self.kept) = (now, kept);
        self.known.clear();
    }

    pub(super) fn get(&self, between: &Between) -> Option<Exit> {
        self.known.get(between).copied()
    }

    pub(super) fn insert(&mut self, between: Between, exit: Exit) {
        if self.known.len() >= MOST {
            self.known.clear();
        }
        if self.kept {
            self.known.insert(between, exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(number: u32) -> Between {
        Between { local: [10, 0, 0, 1].into(), peer: IpAddr::V4(number.into()), link: 0, mark: 0 }
    }

    const EXIT: Exit = Exit { device: 7, is_local: false };

    #[test]
    fn an_exit_is_remembered_for_a_moment_and_only_where_it_may_be() {
        let mut exits = Exits::default();
        assert!(exits.are_old(MOMENT_MS));
        for kept in [true, false, true] {
            exits.begin(1000, kept);
            assert_eq!(exits.get(&between(1)), None);
            exits.insert(between(1), EXIT);
            assert_eq!(exits.get(&between(1)).is_some(), kept);
            assert_eq!(exits.get(&Between { mark: 7, ..between(1) }), None);
            assert!(!exits.are_old(999) && !exits.are_old(1000 + MOMENT_MS - 1));
            assert!(exits.are_old(1000 + MOMENT_MS));
        }
    }

    #[test]
    fn very_many_exits_take_no_more_memory() {
        let mut exits = Exits::default();
        exits.begin(0, true);
        (0..3 * MOST as u32).for_each(|number| exits.insert(between(number), EXIT));
        assert!(exits.known.len() <= MOST);
        assert_eq!(exits.get(&between(3 * MOST as u32 - 1)), Some(EXIT));
    }
}
