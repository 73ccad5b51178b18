//! Weighted rotation, laid out when the configuration is read and lock-free afterwards.

use std::hash::{DefaultHasher, Hash, Hasher};

/// An endless weighted sequence over indices, laid out in advance.
///
/// Each index `i` has `weights[i]` turns in a round (after division by their greatest common divisor), spread as evenly as
/// possible: its k-th turn is due at `(2k + 1) / (2 * weight)` of the round. With equal weights this is plain round robin
/// in the order given. An index of weight 0 has no turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    turns: Box<[u32]>,
    /// How many turns of a round each index has.
    weights: Box<[u32]>,
}

impl Schedule {
    /// Lays out a round. Its length is bounded: the configuration allows weights from 0 to 256.
    pub fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().copied().fold(0, gcd).max(1);
        let weights: Box<[u32]> = weights.iter().map(|weight| weight / divisor).collect();
        let mut due: Vec<(u64, u64, u32)> = Vec::new();
        for (index, weight) in (0u32..).zip(&weights) {
            let weight = u64::from(*weight);
            due.extend((0..weight).map(|k| (2 * k + 1, 2 * weight, index)));
        }
        due.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
        Schedule { turns: due.into_iter().map(|(_, _, index)| index).collect(), weights }
    }

    /// The index that has turn number `ticket`; `None` if every weight is 0.
    pub fn pick(&self, ticket: u64) -> Option<usize> {
        let length = u64::try_from(self.turns.len()).ok().filter(|length| *length > 0)?;
        usize::try_from(ticket % length).ok().map(|turn| self.turns[turn] as usize)
    }

    /// The index that has turn number `ticket` if it is eligible; if not, one that is, drawn by weight. `None`: none is.
    ///
    /// The next eligible one of the round would not do: turns that cannot be taken would all go to those that happen to be
    /// laid out behind them, which would get a multiple of their share. `seed` and `ticket` decide what is drawn.
    pub fn pick_among(&self, ticket: u64, seed: u64, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        self.pick(ticket).filter(|index| eligible(*index)).or_else(|| self.draw(hash(seed, ticket), eligible))
    }

    /// The eligible index that has the turn `lot` where only those that are eligible have turns. One pass to count them and
    /// one to find it: it costs the same however few they are.
    fn draw(&self, lot: u64, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let weighted = || self.weights.iter().enumerate().filter(|(index, _)| eligible(*index));
        let total = weighted().map(|(_, weight)| u64::from(*weight)).sum();
        let mut left = lot.checked_rem(total)?;
        let mut has_turn = |weight: u64| {
            let is_its = left < weight;
            left = left.saturating_sub(weight);
            is_its
        };
        weighted().find(|(_, weight)| has_turn(u64::from(**weight))).map(|(index, _)| index)
    }
}

fn hash(seed: u64, ticket: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, ticket).hash(&mut hasher);
    hasher.finish()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_weights_rotate_in_order() {
        let schedule = Schedule::new(&[3, 3, 3]);
        let picks: Vec<_> = (0..6).map(|ticket| schedule.pick(ticket).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_heavy_index_does_not_come_in_one_lump() {
        let schedule = Schedule::new(&[2, 1, 1]);
        let picks: Vec<_> = (0..4).map(|ticket| schedule.pick(ticket).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0]);
    }

    #[test]
    fn nothing_to_pick_when_all_weights_are_zero() {
        assert_eq!(Schedule::new(&[0, 0]).pick(7), None);
        assert_eq!(Schedule::new(&[0, 0]).pick_among(7, 0, |_| true), None);
        assert_eq!(Schedule::new(&[]).pick_among(7, 0, |_| true), None);
    }

    proptest! {
        #[test]
        fn shares_are_exact_over_a_round(weights in prop::collection::vec(0u32..=256, 1..12)) {
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assume!(total > 0);
            let schedule = Schedule::new(&weights);
            let mut seen = vec![0u64; weights.len()];
            for ticket in 0..total {
                seen[schedule.pick(ticket).unwrap()] += 1;
            }
            for (seen, weight) in seen.iter().zip(&weights) {
                prop_assert_eq!(*seen, u64::from(*weight));
            }
        }

        #[test]
        fn an_eligible_index_keeps_its_turn(
            weights in prop::collection::vec(1u32..=9, 1..9),
            ticket: u64,
            seed: u64,
        ) {
            let schedule = Schedule::new(&weights);
            let due = schedule.pick(ticket).unwrap();
            prop_assert_eq!(schedule.pick_among(ticket, seed, |index| index == due), Some(due));
            prop_assert_eq!(schedule.pick_among(ticket, seed, |_| true), Some(due));
            let other = schedule.pick_among(ticket, seed, |index| index != due);
            prop_assert_eq!(other.is_none(), weights.len() == 1);
            prop_assert_ne!(other, Some(due));
        }
    }
}
