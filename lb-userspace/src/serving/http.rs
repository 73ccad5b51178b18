//! Rules for requests of HTTP at run time.

use super::Pool;
use crate::config::{Fraction, RequestMatch, Rule, Rules};
use crate::route::http::{Given, HttpRules, RequestParts};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The rules of a route.
pub struct Requests {
    table: HttpRules<Arc<HttpRule>>,
    made_of: Vec<Made>,
}

/// Rules, and what they were made of.
#[derive(Clone)]
struct Made {
    source: Arc<[Rule<usize>]>,
    pools: Box<[Option<Arc<Pool>>]>,
    rules: Arc<[Arc<HttpRule>]>,
}

/// A rule.
pub struct HttpRule {
    /// As configured.
    pub rule: Rule<Arc<Pool>>,
    /// The sum of its backends' weights.
    total: u64,
    /// How many requests it has had, from some number on.
    turns: AtomicU64,
}

impl Requests {
    /// Of these, with their pools among `pools`. What `known`, those of the route of the same name before a reload, has of the
    /// same is kept.
    pub(super) fn new(rules: &[Rules], pools: &[Arc<Pool>], known: Option<&Requests>) -> Self {
        let known = known.into_iter().flat_map(|known| &known.made_of);
        let known: HashMap<_, _> = known.map(|made| (Arc::as_ptr(&made.source), made)).collect();
        let made = |rules: &Rules| match known.get(&Arc::as_ptr(&rules.list)) {
            Some(made) if made.is_of(rules, pools) => (*made).clone(),
            _ => Made::new(rules, pools),
        };
        let made_of: Vec<Made> = rules.iter().map(made).collect();
        let all = made_of.iter().flat_map(|made| &*made.rules);
        let table = HttpRules::new(all.map(|of| Given {
            hosts: &of.rule.hosts,
            matches: &of.rule.matches,
            list: of.rule.list.as_deref(),
            what: of.clone(),
        }));
        Self { table, made_of }
    }

    /// Whether they would be made the same of these.
    pub(super) fn are_of(&self, rules: &[Rules], pools: &[Arc<Pool>]) -> bool {
        self.made_of.len() == rules.len()
            && self.made_of.iter().zip(rules).all(|(made, rules)| made.is_of(rules, pools))
    }

    /// The rule of a request, and the match that fits: see [`HttpRules::lookup`].
    pub fn lookup(&self, request: &RequestParts<'_>) -> Option<(&Arc<HttpRule>, &RequestMatch)> {
        self.table.lookup(request)
    }
}

impl Made {
    fn new(rules: &Rules, pools: &[Arc<Pool>]) -> Self {
        let own: Box<[_]> = rules.pools.iter().map(|index| pools.get((*index)?).cloned()).collect();
        let list = rules.list.iter().map(|rule| HttpRule::new(rule, &own)).collect();
        Self { source: rules.list.clone(), pools: own, rules: list }
    }

    fn is_of(&self, rules: &Rules, pools: &[Arc<Pool>]) -> bool {
        let is_same = |(known, index): (&Option<Arc<Pool>>, &Option<usize>)| match (known, index) {
            (Some(known), Some(index)) => pools.get(*index).is_some_and(|pool| Arc::ptr_eq(known, pool)),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        // The same in memory, or else compared.
        self.source == rules.list
            && self.pools.len() == rules.pools.len()
            && self.pools.iter().zip(&rules.pools).all(is_same)
    }
}

impl HttpRule {
    fn new(rule: &Rule<usize>, pools: &[Option<Arc<Pool>>]) -> Arc<Self> {
        let rule = rule.with_pools(|index| pools.get(*index).cloned().flatten());
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
