//! Mode `pool`: which Gateway has which addresses.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::config::gateway_api::Name;

/// A Gateway that wants addresses.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) gateway: Name,
    /// As RFC 3339 writes it.
    pub(super) created: String,
    /// The addresses that it names.
    pub(super) named: Vec<IpAddr>,
    /// It also takes any, or names none.
    pub(super) any: bool,
    /// Those that its status has.
    pub(super) held: Vec<IpAddr>,
}

impl Wish {
    /// Takes in what another Gateway wants that shares its addresses.
    pub(super) fn add(&mut self, other: &Wish) {
        if other.created < self.created {
            self.created.clone_from(&other.created);
        }
        self.any |= other.any;
        for (all, more) in [(&mut self.named, &other.named), (&mut self.held, &other.held)] {
            for address in more {
                if !all.contains(address) {
                    all.push(*address);
                }
            }
        }
    }
}

/// Gives every Gateway the addresses that it names, if no older one has them, and else those that it has, or the first that are
/// free: one of each family that the ranges have. `resting` were given back a short while ago, and are the last choice.
pub(super) fn assign(
    mut wishes: Vec<Wish>,
    ranges: &[RangeInclusive<IpAddr>],
    resting: &BTreeSet<IpAddr>,
) -> BTreeMap<Name, Vec<IpAddr>> {
    wishes.sort_by(|one, other| (&one.created, &one.gateway).cmp(&(&other.created, &other.gateway)));
    let may_have = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    let mut taken = BTreeSet::new();
    let mut assigned: BTreeMap<Name, Vec<IpAddr>> = BTreeMap::new();
    // Who has an address keeps it: a younger Gateway that names it does not take it away, nor an older one that comes later.
    for wish in &wishes {
        let mut own = assigned.remove(&wish.gateway).unwrap_or_default();
        for address in wish.held.iter().filter(|address| may_have(address)) {
            let wanted = wish.any || wish.named.contains(address);
            let family = own.iter().any(|known: &IpAddr| known.is_ipv4() == address.is_ipv4());
            if wanted && (wish.named.contains(address) || !family) && taken.insert(*address) {
                own.push(*address);
            }
        }
        assigned.insert(wish.gateway.clone(), own);
    }
    for wish in &wishes {
        let Some(own) = assigned.get_mut(&wish.gateway) else { continue };
        for address in wish.named.iter().filter(|address| may_have(address)) {
            if taken.insert(*address) {
                own.push(*address);
            }
        }
    }
    for wish in wishes.iter().filter(|wish| wish.any) {
        let Some(own) = assigned.get_mut(&wish.gateway) else { continue };
        for is_v4 in [true, false] {
            if own.iter().any(|address| address.is_ipv4() == is_v4) {
                continue;
            }
            let free = |resting: &BTreeSet<IpAddr>| {
                let ranges = ranges.iter().filter(|range| range.start().is_ipv4() == is_v4);
                let mut all = ranges.flat_map(addresses);
                all.find(|address| !taken.contains(address) && !resting.contains(address))
            };
            if let Some(address) = free(resting).or_else(|| free(&BTreeSet::new())) {
                taken.insert(address);
                own.push(address);
            }
        }
    }
    assigned.values_mut().for_each(|own| own.sort());
    assigned
}

/// The addresses of a range, in their order.
fn addresses(range: &RangeInclusive<IpAddr>) -> Box<dyn Iterator<Item = IpAddr>> {
    match (*range.start(), *range.end()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Box::new((u32::from(first)..=u32::from(last)).map(|bits| IpAddr::V4(bits.into())))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            Box::new((u128::from(first)..=u128::from(last)).map(|bits| IpAddr::V6(bits.into())))
        }
        _ => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn wish(name: &str, created: &str) -> Wish {
        Wish {
            gateway: Name::new("ns", name),
            created: created.into(),
            named: vec![],
            any: true,
            held: vec![],
        }
    }

    fn ranges() -> Vec<RangeInclusive<IpAddr>> {
        vec![ip("198.51.100.1")..=ip("198.51.100.3"), ip("2001:db8::1")..=ip("2001:db8::ffff")]
    }

    #[test]
    fn each_gateway_gets_one_address_of_each_family_and_the_last_ones_none_when_none_is_left() {
        let wishes = ["a", "b", "c", "d"].map(|name| wish(name, "2026"));
        let assigned = assign(wishes.to_vec(), &ranges(), &BTreeSet::new());
        assert_eq!(assigned[&Name::new("ns", "a")], [ip("198.51.100.1"), ip("2001:db8::1")]);
        assert_eq!(assigned[&Name::new("ns", "c")], [ip("198.51.100.3"), ip("2001:db8::3")]);
        assert_eq!(assigned[&Name::new("ns", "d")], [ip("2001:db8::4")]);
    }

    #[test]
    fn a_gateway_keeps_what_its_status_has_also_beside_an_older_one() {
        let holder = Wish { held: vec![ip("198.51.100.1"), ip("2001:db8::9")], ..wish("young", "2026-02") };
        let assigned = assign(vec![holder, wish("old", "2026-01")], &ranges(), &BTreeSet::new());
        assert_eq!(assigned[&Name::new("ns", "young")], [ip("198.51.100.1"), ip("2001:db8::9")]);
        assert_eq!(assigned[&Name::new("ns", "old")], [ip("198.51.100.2"), ip("2001:db8::1")]);
    }

    #[test]
    fn of_two_that_name_an_address_the_older_one_has_it() {
        let named =
            |name, created| Wish { named: vec![ip("198.51.100.2")], any: false, ..wish(name, created) };
        let wishes = vec![named("young", "2026-02"), named("old", "2026-01")];
        let assigned = assign(wishes, &ranges(), &BTreeSet::new());
        assert_eq!(assigned[&Name::new("ns", "old")], [ip("198.51.100.2")]);
        assert_eq!(assigned[&Name::new("ns", "young")], Vec::<IpAddr>::new());
    }

    #[test]
    fn what_is_outside_the_ranges_is_given_to_nobody() {
        let held = Wish { held: vec![ip("203.0.113.1")], ..wish("moved", "2026") };
        let named = Wish { named: vec![ip("203.0.113.2")], any: false, ..wish("named", "2026") };
        let assigned = assign(vec![held, named], &ranges(), &BTreeSet::new());
        assert_eq!(assigned[&Name::new("ns", "moved")], [ip("198.51.100.1"), ip("2001:db8::1")]);
        assert_eq!(assigned[&Name::new("ns", "named")], Vec::<IpAddr>::new());
    }

    #[test]
    fn an_address_rests_while_there_are_others() {
        let resting = BTreeSet::from([ip("198.51.100.1"), ip("198.51.100.2")]);
        let assigned = assign(vec![wish("a", "1"), wish("b", "2")], &ranges()[..1], &resting);
        assert_eq!(assigned[&Name::new("ns", "a")], [ip("198.51.100.3")]);
        assert_eq!(assigned[&Name::new("ns", "b")], [ip("198.51.100.1")]);
    }
}
