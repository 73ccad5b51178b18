//! Rules for requests of HTTP at run time.

use super::Pool;
use crate::config::{Fraction, Rule};
use crate::route::http::HttpRules;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The rules of a route.
pub type Requests = HttpRules<Arc<HttpRule>>;

/// A rule.
pub struct HttpRule {
    /// As configured.
    pub rule: Rule<Arc<Pool>>,
    /// The sum of its backends' weights.
    total: u64,
    /// How many requests it has had, from some number on.
    turns: AtomicU64,
}

/// Rules of a route, each with its pools among `pools`.
pub(super) fn requests(rules: &[Rule<usize>], pools: &[Arc<Pool>]) -> Requests {
    let rules: Vec<_> = rules.iter().map(|rule| HttpRule::new(rule, pools)).collect();
    HttpRules::new(rules.iter().map(|of| (&*of.rule.hosts, &*of.rule.matches, of.clone())))
}

impl HttpRule {
    fn new(rule: &Rule<usize>, pools: &[Arc<Pool>]) -> Arc<Self> {
        let rule = rule.with_pools(|index| pools.get(*index).cloned());
        let total = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        // Not from 0: a rule that is made anew often would favour its first backend.
        let turns = RandomState::new().hash_one(0).into();
        Arc::new(HttpRule { rule, total, turns })
    }

    /// The turn of a new request.
    pub fn turn(&self) -> u64 {
        self.turns.fetch_add(1, Relaxed)
    }

    /// The index of the backend for the request that has this turn, by weight; `None`: there is none that takes any.
    pub fn backend(&self, turn: u64) -> Option<usize> {
        /// Of the golden ratio.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut left = share_of_turn(turn, STEP, self.total)?;
        self.rule.backends.iter().position(|backend| {
            let weight = u64::from(backend.weight);
            let is_its = left < weight;
            left = left.saturating_sub(weight);
            is_its
        })
    }
}

/// Whether the request that has this turn is one of those that are copied.
pub fn is_copied(share: Fraction, turn: u64) -> bool {
    /// Of the square root of 2: which backend the request has says nothing about it.
    const STEP: u64 = 0x6a09_e667_f3bc_c909;
    let part = share_of_turn(turn, STEP, u64::from(share.denominator.get()));
    part.is_some_and(|part| part < u64::from(share.numerator))
}

/// A number below `total` for each turn, so that those of any row of turns are spread evenly: a Weyl sequence. `None`: there is
/// no number below it.
fn share_of_turn(turn: u64, step: u64, total: u64) -> Option<u64> {
    let place = u128::from(turn.wrapping_mul(step)) * u128::from(total);
    (total > 0).then_some((place >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(numerator: u32, denominator: u32) -> Fraction {
        Fraction { numerator, denominator: denominator.try_into().unwrap() }
    }

    #[test]
    fn all_or_nothing_is_copied() {
        assert!((0..1000).all(|turn| is_copied(share(1, 1), turn) && !is_copied(share(0, 1), turn)));
    }

    proptest! {
        #[test]
        fn a_row_of_turns_is_shared_by_weight(start: u64, weight in 0u32..=100) {
            let copied = (0..500).filter(|n| is_copied(share(weight, 100), start.wrapping_add(*n)));
            let (copied, due) = (copied.count() as i64, 5 * i64::from(weight));
            prop_assert!((copied - due).abs() <= 4, "{} instead of {}", copied, due);
        }
    }
}
