//! Which nodes are there, by whether they renew their Leases. As in leader election, no clock of another machine counts: only that
//! this process sees a Lease change.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

use super::lease::DURATION;

/// How often a node renews its Lease, and asks for those of the others.
pub(super) const TURN: Duration = Duration::from_secs(5);
/// Between two answers that are further apart than this, one and a half turns, there was a time without an API server (or without
/// this process), in which nobody could renew. With less, a node that renews as soon as it can does so before its `DURATION` ends.
const SILENCE: Duration = Duration::from_millis(7500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It was seen to renew, less than `DURATION` ago. Or it is this node.
    Alive,
    /// Its Lease was there when this process began to look, and nothing says yet whether anybody renews it: that of a node which
    /// was removed stays for ever.
    Unknown,
    /// It could have renewed for `DURATION`, and did not.
    Lost,
}

struct Seen {
    renewed: Option<MicroTime>,
    since: Instant,
    presence: Presence,
}

pub(super) struct Liveness {
    /// This node.
    own: String,
    others: HashMap<String, Seen>,
    /// The time of the last answer.
    heard_at: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(own: &str) -> Self {
        Self { own: own.to_owned(), others: HashMap::new(), heard_at: None }
    }

    /// Takes an answer of the API server: when each node has renewed its Lease, by that node's own clock; `None`: it has no Lease,
    /// though there is something else of it.
    pub(super) fn hear(&mut self, now: Instant, renewals: &BTreeMap<String, Option<MicroTime>>) {
        let before = self.heard_at.replace(now);
        let after_silence = before.is_some_and(|before| now.duration_since(before) > SILENCE);
        self.others.retain(|node, _| renewals.contains_key(node));
        for (node, renewed) in renewals.iter().filter(|(node, _)| **node != self.own) {
            let Some(seen) = self.others.get_mut(node) else {
                // A Lease that was not there before was just made.
                let is_new = before.is_some() && renewed.is_some();
                let presence = if is_new { Presence::Alive } else { Presence::Unknown };
                self.others.insert(node.clone(), Seen { renewed: renewed.clone(), since: now, presence });
                continue;
            };
            if seen.renewed != *renewed {
                *seen = Seen { renewed: renewed.clone(), since: now, presence: Presence::Alive };
            } else if after_silence {
                seen.since = now;
            } else if now.duration_since(seen.since) >= DURATION {
                seen.presence = Presence::Lost;
            }
        }
    }

    pub(super) fn of(&self, node: &str) -> Presence {
        if node == self.own {
            return Presence::Alive;
        }
        self.others.get(node).map_or(Presence::Unknown, |seen| seen.presence)
    }

    /// Whether it is known of each node with a Lease if it is there.
    pub(super) fn is_settled(&self) -> bool {
        let is_open = |seen: &Seen| seen.presence == Presence::Unknown && seen.renewed.is_some();
        self.heard_at.is_some() && !self.others.values().any(is_open)
    }
}

#[cfg(test)]
mod tests {
    use super::Presence::{Alive, Lost, Unknown};
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    /// What `us` knows, and how it hears.
    struct Heard {
        liveness: Liveness,
        start: Instant,
    }

    impl Heard {
        fn new() -> Self {
            Self { liveness: Liveness::new("us"), start: Instant::now() }
        }

        /// After so many seconds: nodes, and the number of their renewal; 0: none.
        fn hear(&mut self, at: u64, renewals: &[(&str, i64)]) {
            let time = |number: i64| MicroTime(Timestamp::from_second(number).unwrap());
            let renewals = renewals
                .iter()
                .map(|(node, number)| ((*node).to_owned(), (*number > 0).then(|| time(*number))));
            self.liveness.hear(self.start + Duration::from_secs(at), &renewals.collect());
        }

        fn of<const N: usize>(&self, nodes: [&str; N]) -> [Presence; N] {
            nodes.map(|node| self.liveness.of(node))
        }
    }

    #[test]
    fn nobody_is_lost_by_a_time_in_which_nobody_could_be_heard() {
        let mut heard = Heard::new();
        heard.hear(0, &[("a", 1), ("b", 1), ("c", 1)]);
        heard.hear(5, &[("a", 2), ("b", 2), ("c", 1)]);
        heard.hear(40, &[("a", 2), ("b", 2), ("c", 1)]);
        assert_eq!(heard.of(["a", "b", "c"]), [Alive, Alive, Unknown]);
        heard.hear(45, &[("a", 3), ("b", 2), ("c", 1)]);
        heard.hear(50, &[("a", 4), ("b", 2), ("c", 1)]);
        heard.hear(54, &[("a", 4), ("b", 2), ("c", 1)]);
        assert_eq!(heard.of(["a", "b", "c"]), [Alive, Alive, Unknown]);
        heard.hear(56, &[("a", 5), ("b", 2), ("c", 1)]);
        assert_eq!(heard.of(["a", "b", "c"]), [Alive, Lost, Lost]);
        // Silence brings nobody back; whoever renews is back.
        heard.hear(90, &[("a", 5), ("b", 2), ("c", 2)]);
        assert_eq!(heard.of(["a", "b", "c"]), [Alive, Lost, Alive]);
    }

    #[test]
    fn who_does_not_renew_is_lost_while_the_api_server_answers() {
        let mut heard = Heard::new();
        heard.hear(0, &[("a", 1)]);
        heard.hear(5, &[("a", 2)]);
        for at in [10, 15, 19] {
            heard.hear(at, &[("a", 2)]);
            assert_eq!(heard.of(["a"]), [Alive], "{at}");
        }
        heard.hear(20, &[("a", 2)]);
        assert_eq!(heard.of(["a"]), [Lost]);
    }

    #[test]
    fn a_lease_that_was_there_before_says_nothing_until_it_changes_or_could_have() {
        let mut heard = Heard::new();
        assert!(!heard.liveness.is_settled(), "nothing was heard");
        heard.hear(0, &[("us", 1), ("alive", 1), ("removed", 1)]);
        assert_eq!(heard.of(["us", "alive", "removed"]), [Alive, Unknown, Unknown]);
        assert!(!heard.liveness.is_settled());
        heard.hear(5, &[("us", 1), ("alive", 2), ("removed", 1), ("new", 1)]);
        assert_eq!(heard.of(["alive", "removed", "new"]), [Alive, Unknown, Alive]);
        assert!(!heard.liveness.is_settled());
        heard.hear(10, &[("us", 1), ("alive", 3), ("removed", 1), ("new", 2)]);
        heard.hear(15, &[("us", 1), ("alive", 4), ("removed", 1), ("new", 3)]);
        assert_eq!(heard.of(["us", "alive", "removed", "new"]), [Alive, Alive, Lost, Alive]);
        assert!(heard.liveness.is_settled());
    }

    #[test]
    fn without_others_nothing_is_waited_for() {
        for first in [&[][..], &[("us", 1)]] {
            let mut heard = Heard::new();
            heard.hear(0, first);
            assert!(heard.liveness.is_settled());
            heard.hear(5, &[("us", 2), ("joins", 1)]);
            assert!(heard.liveness.is_settled());
            assert_eq!(heard.of(["joins"]), [Alive]);
        }
    }

    #[test]
    fn who_has_no_lease_has_as_long_to_make_one() {
        let mut heard = Heard::new();
        heard.hear(0, &[("early", 0), ("never", 0), ("us", 0)]);
        assert!(heard.liveness.is_settled(), "no Lease is in doubt");
        heard.hear(5, &[("early", 1), ("never", 0), ("us", 0)]);
        heard.hear(10, &[("early", 1), ("never", 0), ("us", 0), ("late", 0)]);
        assert_eq!(heard.of(["early", "never", "late"]), [Alive, Unknown, Unknown]);
        heard.hear(15, &[("early", 2), ("never", 0), ("us", 0), ("late", 0)]);
        assert_eq!(heard.of(["us", "early", "never", "late"]), [Alive, Alive, Lost, Unknown]);
        heard.hear(20, &[("early", 3), ("us", 0), ("late", 0)]);
        assert_eq!(heard.of(["never"]), [Unknown], "there is nothing of it any more");
    }
}
