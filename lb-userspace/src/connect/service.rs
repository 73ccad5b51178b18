//! The servers that SRV records name (RFC 2782).

use crate::config::Address;
use crate::serving::Member;
use std::collections::HashSet;

/// The most servers that are taken from the records of one service.
pub(super) const MAX_MEMBERS: usize = 256;

/// The largest weight of a pool's server.
const MAX_WEIGHT: u32 = 256;

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SrvRecord {
    /// Targets with the lowest number are used first.
    pub(super) priority: u16,
    /// The share among targets of the same priority.
    pub(super) weight: u16,
    /// A domain name as text; `.`: the service is not offered.
    pub(super) target: String,
    /// Where the target listens.
    pub(super) port: u16,
}

/// The servers of a service, in a stable order, and how many records were left out: those whose target or port is invalid
/// for a server, and those beyond [`MAX_MEMBERS`].
pub(super) fn members(records: impl IntoIterator<Item = SrvRecord>) -> (Vec<Member>, usize) {
    let mut left_out = 0;
    let mut usable: Vec<(u16, Address, u16)> = Vec::new();
    for record in records.into_iter().filter(|record| record.target != ".") {
        match Address::of_host(record.target.trim_end_matches('.'), record.port) {
            Some(address) => usable.push((record.priority, address, record.weight)),
            None => left_out += 1,
        }
    }
    usable.sort_by_cached_key(|(priority, address, weight)| (*priority, address.to_string(), *weight));
    let mut seen = HashSet::new();
    usable.retain(|(_, address, _)| seen.insert(address.clone()));
    left_out += usable.len().saturating_sub(MAX_MEMBERS);
    usable.truncate(MAX_MEMBERS);
    let mut members = Vec::with_capacity(usable.len());
    for (priority, group) in (0..).zip(usable.chunk_by(|a, b| a.0 == b.0)) {
        let weights = weights(&group.iter().map(|(_, _, weight)| *weight).collect::<Vec<_>>());
        let addresses = group.iter().map(|(_, address, _)| address.clone());
        members.extend(addresses.zip(weights).map(|(address, weight)| Member { address, priority, weight }));
    }
    (members, left_out)
}

/// Scales weights from 0 to 65535 to those of a pool, 1 to 256. RFC 2782 gives 0 "a very small chance" beside others; here
/// it is 1.
fn weights(weights: &[u16]) -> Vec<u32> {
    let largest = weights.iter().copied().max().map_or(0, u32::from);
    let scale = weights.contains(&0) || largest > MAX_WEIGHT;
    let weight = |weight: &u16| match scale && largest > 0 {
        true => (u32::from(*weight) * MAX_WEIGHT).div_ceil(largest).max(1),
        false => u32::from(*weight).max(1),
    };
    weights.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(priority: u16, weight: u16, target: &str, port: u16) -> SrvRecord {
        SrvRecord { priority, weight, target: target.into(), port }
    }

    #[test]
    fn members_are_ordered_by_priority_and_name_whatever_the_order_of_the_records() {
        let records = [
            record(20, 5, "c.example.com.", 6379),
            record(10, 3, "B.example.com.", 6380),
            record(10, 1, "a.example.com.", 6379),
        ];
        let shown = |members: &[Member]| -> Vec<_> {
            members.iter().map(|m| (m.address.to_string(), m.priority, m.weight)).collect()
        };
        let expected = [
            ("a.example.com:6379".to_owned(), 0, 1),
            ("b.example.com:6380".to_owned(), 0, 3),
            ("c.example.com:6379".to_owned(), 1, 5),
        ];
        assert_eq!(shown(&members(records.clone()).0), expected);
        assert_eq!(shown(&members(records.into_iter().rev()).0), expected);
    }

    #[test]
    fn a_service_that_is_not_offered_has_no_members() {
        assert_eq!(members([record(0, 0, ".", 0)]), (vec![], 0));
    }

    #[test]
    fn what_cannot_be_a_server_is_left_out() {
        let records = [
            record(0, 1, "a.example.com.", 0),
            record(0, 1, "a b.example.com.", 1),
            record(0, 1, "a\\000.example.com.", 1),
            record(0, 1, "10.0.0.1.", 1),
            record(0, 1, "good.example.com.", 1),
        ];
        let (members, left_out) = members(records);
        assert_eq!((members.len(), left_out), (1, 4));
    }

    #[test]
    fn members_are_bounded_and_those_of_the_lowest_priority_stay() {
        let records = (0..1000).map(|n| record(1000 - n, 1, &format!("n{n}.example.com."), 1));
        let (members, left_out) = members(records);
        assert_eq!((members.len(), left_out), (MAX_MEMBERS, 1000 - MAX_MEMBERS));
        assert_eq!(members[0].address.to_string(), "n999.example.com:1");
    }

    #[test]
    fn weights_keep_their_proportions() {
        assert_eq!(weights(&[0, 0]), [1, 1]);
        assert_eq!(weights(&[10, 30]), [10, 30]);
        assert_eq!(weights(&[0, 1]), [1, 256]);
        assert_eq!(weights(&[65_535, 32_768, 1]), [256, 129, 1]);
    }

    proptest! {
        #[test]
        fn every_weight_is_one_of_a_pool(given in prop::collection::vec(any::<u16>(), 0..20)) {
            for weight in weights(&given) {
                prop_assert!((1..=MAX_WEIGHT).contains(&weight));
            }
        }
    }
}
