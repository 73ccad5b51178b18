//! Weighted rotation, laid out when the configuration is read and lock-free afterwards.

/// An endless weighted sequence over indices, laid out in advance.
///
/// Each index `i` has `weights[i]` turns in a round (after division by their greatest common divisor), spread as evenly as
/// possible: its k-th turn is due at `(2k + 1) / (2 * weight)` of the round. With equal weights this is plain round robin
/// in the order given. An index of weight 0 has no turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    turns: Box<[u32]>,
}

impl Schedule {
    /// Lays out a round. Its length is bounded: the configuration allows weights from 0 to 256.
    pub fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().copied().fold(0, gcd).max(1);
        let mut due: Vec<(u64, u64, u32)> = Vec::new();
        for (index, weight) in (0u32..).zip(weights) {
            let weight = u64::from(weight / divisor);
            due.extend((0..weight).map(|k| (2 * k + 1, 2 * weight, index)));
        }
        due.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
        Schedule { turns: due.into_iter().map(|(_, _, index)| index).collect() }
    }

    /// The index that has turn number `ticket`; `None` if every weight is 0.
    pub fn pick(&self, ticket: u64) -> Option<usize> {
        let length = u64::try_from(self.turns.len()).ok().filter(|length| *length > 0)?;
        usize::try_from(ticket % length).ok().map(|turn| self.turns[turn] as usize)
    }

    /// The indices of all turns of a round, from turn `ticket` on: the order in which to try them.
    pub fn order(&self, ticket: u64) -> impl Iterator<Item = usize> + '_ {
        let length = self.turns.len();
        let start = if length == 0 { 0 } else { (ticket % length as u64) as usize };
        let rotated = self.turns[start..].iter().chain(&self.turns[..start]);
        rotated.map(|index| *index as usize)
    }
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
        assert_eq!(Schedule::new(&[]).order(7).count(), 0);
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
        fn order_starts_at_the_pick(weights in prop::collection::vec(1u32..=9, 1..9), ticket: u64) {
            let schedule = Schedule::new(&weights);
            prop_assert_eq!(schedule.order(ticket).next(), schedule.pick(ticket));
        }
    }
}
