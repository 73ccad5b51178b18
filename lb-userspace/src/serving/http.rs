//! Rules for requests of HTTP at run time.

use super::Pool;
use crate::config::{Rule, RuleBackend};
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

    /// The backend for a new request, by weight; `None`: there is none that takes any.
    pub fn draw(&self) -> Option<&RuleBackend<Arc<Pool>>> {
        let turn = self.turns.fetch_add(1, Relaxed);
        let mut left = share_of_turn(turn, self.total)?;
        self.rule.backends.iter().find(|backend| {
            let weight = u64::from(backend.weight);
            let is_its = left < weight;
            left = left.saturating_sub(weight);
            is_its
        })
    }
}

/// A number below `total` for each turn, so that those of any row of turns are spread evenly: a Weyl sequence with the golden
/// ratio. `None`: there is no number below it.
fn share_of_turn(turn: u64, total: u64) -> Option<u64> {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let place = u128::from(turn.wrapping_mul(GOLDEN)) * u128::from(total);
    (total > 0).then_some((place >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_has_no_share() {
        assert_eq!(share_of_turn(7, 0), None);
    }

    proptest! {
        #[test]
        fn a_row_of_turns_is_shared_by_weight(start: u64, weight in 0u64..=100) {
            let taken = (0..500).filter(|n| share_of_turn(start.wrapping_add(*n), 100).unwrap() < weight);
            let (taken, due) = (taken.count() as i64, 5 * weight as i64);
            prop_assert!((taken - due).abs() <= 3, "{} instead of {}", taken, due);
        }
    }
}
