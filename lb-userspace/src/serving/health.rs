//! What is known of a server's health. Pure: checks and connections report to it, with the time in milliseconds
//! ([`crate::clock::now_ms`]).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::{Eject, Health, Role};
use crate::reason::DownReason;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An ejection is at most so many times doubled.
const MAX_DOUBLED: u32 = 5;

/// The health of a server; kept as long as its record.
#[derive(Default)]
pub struct HealthRecord {
    judged: Mutex<Judged>,
    /// `judged` in short, for those who choose: one of the constants below, or above them all.
    brief: AtomicU64,
    /// Checks that passed, then those that failed, by reason.
    checks: [AtomicU32; 1 + DownReason::ALL.len()],
    failing: Mutex<Failing>,
    /// There is something in it: most servers answer all, and those who tell so need not wait for each other.
    has_failed: AtomicBool,
    /// When the last ejection ends; 0: there was none.
    ejected_until_ms: AtomicU64,
}

/// What the checks of a server have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    state: Checked,
    /// Since when it is in this state, whatever the reason.
    since_ms: u64,
    /// Checks in a row that speak against the state.
    against: u32,
    /// The next check counts at once: it is the first, or of another kind than those before.
    fresh: bool,
    /// What the server was asked to be.
    role: Option<Role>,
}

/// What the checks of a server have shown, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checked {
    /// Nothing yet.
    #[default]
    Unchecked,
    /// It works.
    Up,
    /// It does not.
    Down(DownReason),
}

/// A server that has gone up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// How it was.
    pub before: Checked,
    /// How it is.
    pub now: Checked,
}

impl Judged {
    /// Takes a verdict in. What a server says of itself counts at once; silence and errors only when they are repeated.
    fn judge(&mut self, verdict: Result<(), DownReason>, health: &Health, now_ms: u64) -> Option<Turn> {
        let before = self.state;
        self.against = match (before, verdict) {
            (Checked::Up, Ok(())) | (Checked::Down(_), Err(_)) => 0,
            _ => self.against.saturating_add(1),
        };
        let fresh = std::mem::take(&mut self.fresh);
        self.state = match (before, verdict) {
            (Checked::Unchecked, Ok(())) => Checked::Up,
            (Checked::Unchecked | Checked::Down(_), Err(reason)) => Checked::Down(reason),
            (Checked::Up, Err(reason)) if fresh || reason.is_statement() || self.against >= health.fall => {
                Checked::Down(reason)
            }
            (Checked::Down(reason), Ok(()))
                if fresh || reason.is_statement() || self.against >= health.rise =>
            {
                Checked::Up
            }
            (before, _) => before,
        };
        let same = match (before, self.state) {
            (Checked::Down(_), Checked::Down(_)) => true,
            (before, now) => before == now,
        };
        if same {
            return None;
        }
        (self.since_ms, self.against) = (now_ms, 0);
        Some(Turn { before, now: self.state })
    }
}

/// Connections to a server that failed.
#[derive(Clone, Copy, Debug, Default)]
struct Failing {
    /// In a row.
    failures: u32,
    /// The last of them.
    last_ms: u64,
    /// Ejections without a success between.
    ejections: u32,
    /// When the last one began.
    ejected_ms: u64,
}

impl Failing {
    /// Takes a failure in; until when the server is to be ejected for it, if `may_eject` says that it may.
    fn failed(&mut self, eject: Eject, may_eject: impl FnOnce() -> bool, now_ms: u64) -> Option<u64> {
        let time_ms = u64::try_from(eject.time.as_millis()).unwrap_or(u64::MAX);
        let longest_ms = time_ms.saturating_mul(1 << MAX_DOUBLED);
        let quiet_ms = now_ms.saturating_sub(self.last_ms);
        if quiet_ms > time_ms && self.ejections == 0 || quiet_ms > longest_ms.saturating_mul(2) {
            (self.failures, self.ejections) = (0, 0);
        }
        (self.failures, self.last_ms) = (self.failures.saturating_add(1), now_ms);
        // After a rest, the first failure is enough.
        if (self.ejections == 0 && self.failures < eject.failures) || !may_eject() {
            return None;
        }
        let until = now_ms.saturating_add(time_ms.saturating_mul(1 << self.ejections.min(MAX_DOUBLED)));
        (self.failures, self.ejections, self.ejected_ms) = (0, self.ejections.saturating_add(1), now_ms);
        Some(until)
    }
}

/// Of [`HealthRecord::brief`]: not checked yet.
const UNCHECKED: u64 = 0;
/// Down.
const DOWN: u64 = 1;
/// Up, but the last check failed. Above it: up, all checks passed since this time plus this number.
const DOUBTFUL: u64 = 2;

impl HealthRecord {
    /// Checks of this kind begin, after those of another kind or none. What they asked for counts until the first of them
    /// is done, unless it was another role.
    pub fn begin(&self, health: &Health) {
        let mut judged = self.judged();
        if judged.role != health.role() {
            *judged = Judged { role: health.role(), ..Judged::default() };
            self.brief.store(UNCHECKED, Relaxed);
        }
        judged.fresh = true;
    }

    /// Takes a check's verdict in; what has changed by it.
    pub fn judge(&self, verdict: Result<(), DownReason>, health: &Health, now_ms: u64) -> Option<Turn> {
        let index = verdict.map_or_else(|reason| 1 + reason as usize, |()| 0);
        self.checks[index].fetch_add(1, Relaxed);
        if verdict == Err(DownReason::Resource) {
            return None;
        }
        let mut judged = self.judged();
        let turn = judged.judge(verdict, health, now_ms);
        let brief = match (judged.state, verdict) {
            (Checked::Unchecked, _) => UNCHECKED,
            (Checked::Down(_), _) => DOWN,
            (Checked::Up, Err(_)) => DOUBTFUL,
            (Checked::Up, Ok(())) => match self.brief.load(Relaxed) {
                passing if passing > DOUBTFUL => passing,
                _ => now_ms.saturating_add(DOUBTFUL + 1),
            },
        };
        self.brief.store(brief, Relaxed);
        turn
    }

    /// What the checks have shown.
    pub fn checked(&self) -> Checked {
        match self.brief.load(Relaxed) {
            UNCHECKED => Checked::Unchecked,
            DOWN => self.judged().state,
            _ => Checked::Up,
        }
    }

    /// Smaller for a server that has passed its checks for longer; largest for one that did not pass the last.
    pub fn passing_since(&self) -> u64 {
        match self.brief.load(Relaxed) {
            passing if passing > DOUBTFUL => passing,
            _ => u64::MAX,
        }
    }

    /// When checks last changed the state; 0: never.
    pub fn changed_ms(&self) -> u64 {
        self.judged().since_ms
    }

    /// How many checks there were with each result: `None` for those that passed.
    pub fn checks(&self) -> impl Iterator<Item = (Option<DownReason>, u32)> {
        let results = std::iter::once(None).chain(DownReason::ALL.iter().copied().map(Some));
        results.zip(self.checks.iter().map(|count| count.load(Relaxed)))
    }

    /// A connection to the server failed before its first byte. Until when it is ejected for that, if it is, and
    /// `may_eject` says that it may be.
    pub fn failed(&self, eject: Eject, may_eject: impl FnOnce() -> bool, now_ms: u64) -> Option<u64> {
        if self.is_ejected(now_ms) {
            // One that was on its way before, or had no other server to go to.
            return None;
        }
        let mut failing = self.failing();
        self.has_failed.store(true, Relaxed);
        let until = failing.failed(eject, may_eject, now_ms)?;
        self.ejected_until_ms.store(until, Relaxed);
        Some(until)
    }

    /// The server has answered a connection.
    pub fn worked(&self) {
        if self.has_failed.load(Relaxed) {
            let mut failing = self.failing();
            (failing.failures, failing.ejections) = (0, 0);
            self.has_failed.store(false, Relaxed);
        }
    }

    /// Whether connections have a rest from it.
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now_ms
    }

    /// When it was last ejected, or came back from that; 0: never.
    pub fn ejection_changed_ms(&self, now_ms: u64) -> u64 {
        match self.ejected_until_ms.load(Relaxed) {
            until if until > now_ms => self.failing().ejected_ms,
            until => until,
        }
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        // Plain numbers, of which any mixture is sound.
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failing(&self) -> MutexGuard<'_, Failing> {
        // As above.
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Check;
    use proptest::prelude::*;
    use std::time::Duration;

    const REFUSED: Result<(), DownReason> = Err(DownReason::Refused);
    const WRONG_ROLE: Result<(), DownReason> = Err(DownReason::WrongRole);

    fn health(rise: u32, fall: u32) -> Health {
        Health {
            check: Check::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise,
            fall,
            port: None,
            tls: None,
        }
    }

    fn with_role(role: Role) -> Health {
        Health { check: Check::Redis { role: Some(role), login: None }, ..health(2, 3) }
    }

    /// The state after each verdict.
    fn states(record: &HealthRecord, health: &Health, verdicts: &[Result<(), DownReason>]) -> Vec<Checked> {
        let judge = |verdict: &Result<(), DownReason>| {
            record.judge(*verdict, health, 7);
            record.checked()
        };
        verdicts.iter().map(judge).collect()
    }

    #[test]
    fn the_first_check_counts_at_once_and_then_it_takes_rise_and_fall() {
        const UP: Checked = Checked::Up;
        const DOWN: Checked = Checked::Down(DownReason::Refused);
        let record = HealthRecord::default();
        record.begin(&health(2, 3));
        let verdicts = [REFUSED, Ok(()), REFUSED, Ok(()), Ok(()), REFUSED, REFUSED, Ok(()), REFUSED, REFUSED];
        let expected = [DOWN, DOWN, DOWN, DOWN, UP, UP, UP, UP, UP, UP];
        assert_eq!(states(&record, &health(2, 3), &verdicts), expected);
        assert_eq!(states(&record, &health(2, 3), &[REFUSED]), [DOWN]);
        let up = HealthRecord::default();
        assert_eq!(states(&up, &health(2, 3), &[Ok(()), REFUSED, REFUSED, REFUSED]), [UP, UP, UP, DOWN]);
    }

    #[test]
    fn what_a_server_says_of_itself_counts_at_once() {
        let record = HealthRecord::default();
        let health = with_role(Role::Master);
        let said = Checked::Down(DownReason::WrongRole);
        let verdicts = [Ok(()), WRONG_ROLE, Ok(()), Err(DownReason::Loading)];
        let expected = [Checked::Up, said, Checked::Up, Checked::Down(DownReason::Loading)];
        assert_eq!(states(&record, &health, &verdicts), expected);
        // Down because it is silent, it has to be heard twice, unless it says why it was.
        states(&record, &health, &[REFUSED, Ok(())]);
        assert_eq!(record.checked(), Checked::Down(DownReason::Refused));
        assert_eq!(states(&record, &health, &[WRONG_ROLE, Ok(())]), [said, Checked::Up]);
    }

    #[test]
    fn another_reason_is_no_other_state() {
        let record = HealthRecord::default();
        let turn = record.judge(REFUSED, &health(1, 1), 5);
        let now = Checked::Down(DownReason::Refused);
        assert_eq!(turn, Some(Turn { before: Checked::Unchecked, now }));
        assert_eq!(record.judge(Err(DownReason::Timeout), &health(1, 1), 9), None);
        assert_eq!((record.changed_ms(), record.checked()), (5, Checked::Down(DownReason::Timeout)));
        assert!(record.judge(Ok(()), &health(1, 1), 11).is_some());
        assert_eq!(record.changed_ms(), 11);
    }

    #[test]
    fn a_check_that_the_gateway_could_not_make_says_nothing() {
        let record = HealthRecord::default();
        assert_eq!(states(&record, &health(1, 1), &[Err(DownReason::Resource)]), [Checked::Unchecked]);
        let counted: Vec<_> = record.checks().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [(Some(DownReason::Resource), 1)]);
    }

    #[test]
    fn another_kind_of_check_keeps_the_state_until_its_first_verdict_and_another_role_does_not() {
        let record = HealthRecord::default();
        states(&record, &health(2, 3), &[Ok(())]);
        record.begin(&health(2, 30));
        assert_eq!(record.checked(), Checked::Up);
        assert_eq!(states(&record, &health(2, 30), &[REFUSED]), [Checked::Down(DownReason::Refused)]);
        record.begin(&with_role(Role::Master));
        assert_eq!(record.checked(), Checked::Unchecked);
        states(&record, &with_role(Role::Master), &[Ok(())]);
        record.begin(&with_role(Role::Master));
        assert_eq!(record.checked(), Checked::Up);
        record.begin(&with_role(Role::Replica));
        assert_eq!(record.checked(), Checked::Unchecked);
    }

    #[test]
    fn who_has_passed_for_longer_comes_first_and_who_has_not_passed_last() {
        let [old, new, doubtful] = [(); 3].map(|()| HealthRecord::default());
        let health = health(1, 3);
        old.judge(Ok(()), &health, 10);
        new.judge(Ok(()), &health, 20);
        old.judge(Ok(()), &health, 30);
        doubtful.judge(Ok(()), &health, 5);
        doubtful.judge(REFUSED, &health, 15);
        assert!(old.passing_since() < new.passing_since());
        assert!(new.passing_since() < doubtful.passing_since());
        // What passed at the moment the machine started counts as well.
        let first = HealthRecord::default();
        first.judge(Ok(()), &health, 0);
        assert_eq!((first.checked(), first.passing_since() < old.passing_since()), (Checked::Up, true));
    }

    const EJECT: Eject = Eject { failures: 3, time: Duration::from_secs(10) };

    #[test]
    fn failures_in_a_row_eject_for_a_time_that_grows_until_something_works() {
        let record = HealthRecord::default();
        let fail = |now_ms| record.failed(EJECT, || true, now_ms);
        assert_eq!([fail(1_000), fail(2_000), fail(3_000)], [None, None, Some(13_000)]);
        assert!(record.is_ejected(12_999) && !record.is_ejected(13_000));
        assert_eq!((record.ejection_changed_ms(5_000), record.ejection_changed_ms(14_000)), (3_000, 13_000));
        assert_eq!(fail(4_000), None, "it is ejected already");
        // After the rest, one is enough, and the rest is twice as long.
        assert_eq!(fail(13_000), Some(33_000));
        assert_eq!(fail(33_000), Some(73_000));
        record.worked();
        assert_eq!([fail(80_000), fail(80_000), fail(80_000)], [None, None, Some(90_000)]);
        // Twice the longest rest later nothing is held against it any more.
        assert_eq!([fail(800_000), fail(800_000), fail(800_000)], [None, None, Some(810_000)]);
    }

    #[test]
    fn failures_far_apart_eject_nobody() {
        let record = HealthRecord::default();
        assert!((0..20).all(|n| record.failed(EJECT, || true, n * 10_001).is_none()));
        assert!((0..2).all(|n| record.failed(EJECT, || true, 300_000 + n).is_none()));
        record.worked();
        assert_eq!(record.failed(EJECT, || true, 300_002), None);
    }

    #[test]
    fn the_last_server_is_not_ejected_and_stays_a_candidate_for_it() {
        let record = HealthRecord::default();
        assert!((0..9).all(|now_ms| record.failed(EJECT, || false, now_ms).is_none()));
        assert!(record.failed(EJECT, || true, 9).is_some());
    }

    proptest! {
        #[test]
        fn a_rest_is_bounded_and_time_may_do_what_it_wants(
            steps in prop::collection::vec((any::<u64>(), any::<bool>(), 0..10_u8), 0..100),
            failures in 1..5_u32,
            seconds in 1..100_u64,
        ) {
            let record = HealthRecord::default();
            let eject = Eject { failures, time: Duration::from_secs(seconds) };
            for (now_ms, may, worked) in steps {
                if worked == 0 {
                    record.worked();
                }
                if let Some(until) = record.failed(eject, || may, now_ms) {
                    prop_assert!(may);
                    prop_assert!(until - now_ms <= (seconds * 1000) << MAX_DOUBLED);
                }
            }
        }
    }
}
