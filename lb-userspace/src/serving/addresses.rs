//! The addresses of one server, and the order in which a connection tries them (RFC 8305, "Happy Eyeballs").

use crate::clock::now_ms;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The most addresses that are kept of one name.
const MAX: usize = 64;

/// The most addresses that are tried for one connection. When those have failed, later connections try the others.
const TRIED: usize = 8;

/// The Connection Attempt Delay as RFC 8305, section 8, recommends it, and the least it allows.
const DELAY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(10));

/// How long an address that failed is tried after those that did not, in milliseconds.
const REMEMBERED_MS: u64 = 60_000;

/// Addresses without duplicates. Of each is known when it last worked and when it failed.
#[derive(Default)]
pub struct Addresses(Box<[KnownAddress]>);

struct KnownAddress {
    address: SocketAddr,
    /// When a connection to it last succeeded, in milliseconds; 0: never.
    worked_ms: AtomicU64,
    /// When a connection failed, or got no answer before the next address was tried, in milliseconds; 0: not since it
    /// worked.
    failed_ms: AtomicU64,
}

impl Addresses {
    /// New addresses, of which nothing is known yet. They are sorted, so the name server's rotation has no effect.
    pub fn new(mut addresses: Vec<SocketAddr>) -> Self {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX);
        let known =
            |address| KnownAddress { address, worked_ms: AtomicU64::new(0), failed_ms: AtomicU64::new(0) };
        Addresses(addresses.into_iter().map(known).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both have the same addresses.
    pub fn same(&self, other: &Addresses) -> bool {
        self.0.iter().map(|known| known.address).eq(other.0.iter().map(|known| known.address))
    }

    /// The addresses, without the port.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().map(|known| known.address.ip())
    }

    /// The same at another port; nothing is known of them yet.
    pub fn at_port(&self, port: u16) -> Self {
        Self::new(self.0.iter().map(|known| SocketAddr::new(known.address.ip(), port)).collect())
    }

    /// The address, if there is only one.
    pub fn only(&self) -> Option<SocketAddr> {
        match &*self.0 {
            [known] => Some(known.address),
            _ => None,
        }
    }

    /// The addresses to try, by their index, and the delay after which the next one is tried as well if there is no answer.
    /// All are tried within `timeout`. `ipv4`: the family to begin with, if it matters. `is_possible`: of an address that may be
    /// tried; others take no one's turn.
    pub fn order(
        &self,
        ipv4: Option<bool>,
        timeout: Duration,
        is_possible: impl Fn(SocketAddr) -> bool,
    ) -> (Vec<usize>, Duration) {
        let possible: Vec<_> = (0..self.0.len()).filter(|index| is_possible(self.at(*index))).collect();
        let past: Vec<_> = possible.iter().map(|index| Past::of(&self.0[*index])).collect();
        let order: Vec<_> = order(&past, ipv4, now_ms()).into_iter().map(|index| possible[index]).collect();
        let share = timeout / u32::try_from(order.len().max(1)).unwrap_or(u32::MAX);
        (order, share.clamp(DELAY.1, DELAY.0))
    }

    /// The address at an index of [`Self::order`].
    pub fn at(&self, index: usize) -> SocketAddr {
        self.0[index].address
    }

    /// A connection to this address succeeded.
    pub fn worked(&self, index: usize) {
        self.0[index].worked_ms.store(now_ms(), Relaxed);
        self.0[index].failed_ms.store(0, Relaxed);
    }

    /// A connection to this address failed, or got no answer before the next address was tried.
    pub fn failed(&self, index: usize) {
        self.0[index].failed_ms.store(now_ms(), Relaxed);
    }
}

/// What is known of an address at one moment.
#[derive(Clone, Copy, Debug)]
struct Past {
    ipv4: bool,
    worked_ms: u64,
    failed_ms: u64,
}

impl Past {
    fn of(known: &KnownAddress) -> Self {
        Past {
            ipv4: known.address.is_ipv4(),
            worked_ms: known.worked_ms.load(Relaxed),
            failed_ms: known.failed_ms.load(Relaxed),
        }
    }

    fn has_failed(self, now_ms: u64) -> bool {
        self.failed_ms != 0 && now_ms.saturating_sub(self.failed_ms) < REMEMBERED_MS
    }
}

/// The order of attempts. Within each family the address that worked last comes first, and the families alternate (RFC
/// 8305, section 4). The first family is `ipv4`, or that of the address that worked last, or IPv6. Addresses that have
/// failed come last, the one that failed longest ago first.
fn order(past: &[Past], ipv4: Option<bool>, now_ms: u64) -> Vec<usize> {
    let (mut failed, mut good): (Vec<usize>, Vec<usize>) =
        (0..past.len()).partition(|index| past[*index].has_failed(now_ms));
    // The sort is stable: addresses that have never worked stay in their order.
    good.sort_by_key(|index| std::cmp::Reverse(past[*index].worked_ms));
    failed.sort_by_key(|index| past[*index].failed_ms);
    let worked_last = good.first().map(|index| past[*index]).filter(|past| past.worked_ms != 0);
    let ipv4 = ipv4.or(worked_last.map(|past| past.ipv4)).unwrap_or(false);
    let (first, second): (Vec<usize>, Vec<usize>) =
        good.into_iter().partition(|index| past[*index].ipv4 == ipv4);
    let mut order = Vec::with_capacity(past.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let before = order.len();
        order.extend(first.next());
        order.extend(second.next());
        if order.len() == before {
            break;
        }
    }
    order.extend(failed);
    order.truncate(TRIED);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const V4: Past = Past { ipv4: true, worked_ms: 0, failed_ms: 0 };
    const V6: Past = Past { ipv4: false, worked_ms: 0, failed_ms: 0 };
    const NOW: u64 = 1_000_000;

    #[test]
    fn the_families_take_turns_beginning_with_ipv6() {
        assert_eq!(order(&[V4, V4, V4, V6, V6], None, NOW), [3, 0, 4, 1, 2]);
    }

    #[test]
    fn the_family_that_is_asked_for_begins() {
        assert_eq!(order(&[V4, V4, V6, V6], Some(true), NOW), [0, 2, 1, 3]);
        let worked = Past { worked_ms: 5, ..V6 };
        assert_eq!(order(&[V4, V4, V6, worked], Some(true), NOW), [0, 3, 1, 2]);
    }

    #[test]
    fn the_one_that_worked_last_is_first() {
        let worked = |worked_ms| Past { worked_ms, ..V4 };
        assert_eq!(order(&[V4, worked(5), worked(9), V6], None, NOW), [2, 3, 1, 0]);
    }

    #[test]
    fn those_that_failed_come_last_until_that_is_forgotten() {
        let failed = |ago| Past { failed_ms: NOW - ago, worked_ms: 7, ..V4 };
        assert_eq!(order(&[failed(10), failed(20), V4, V6], None, NOW), [3, 2, 1, 0]);
        assert_eq!(order(&[V4, failed(REMEMBERED_MS), failed(1)], None, NOW), [1, 0, 2]);
    }

    #[test]
    fn where_all_have_failed_all_are_tried_again() {
        let failed = |ago| Past { failed_ms: NOW - ago, ..V4 };
        assert_eq!(order(&[failed(1), failed(3), failed(2)], None, NOW), [1, 2, 0]);
    }

    #[test]
    fn every_address_has_its_turn_within_the_timeout() {
        let addresses = |n: u8| Addresses::new((0..n).map(|n| ([10, 0, 0, n], 80).into()).collect());
        let delay = |n, ms| addresses(n).order(None, Duration::from_millis(ms), |_| true).1.as_millis();
        assert_eq!((delay(2, 2000), delay(2, 200), delay(8, 400), delay(8, 1)), (250, 100, 50, 10));
    }

    #[test]
    fn what_a_connection_has_shown_counts_for_the_next() {
        let addresses = Addresses::new(vec![([10, 0, 0, 2], 80).into(), ([10, 0, 0, 1], 80).into()]);
        let order = || addresses.order(None, Duration::from_secs(2), |_| true).0;
        assert_eq!((order(), addresses.at(0)), (vec![0, 1], ([10, 0, 0, 1], 80).into()));
        addresses.failed(0);
        assert_eq!(order(), [1, 0]);
        addresses.worked(0);
        assert_eq!(order(), [0, 1]);
    }

    #[test]
    fn an_address_that_may_not_be_tried_takes_no_ones_turn() {
        let v6 = |n: u16| SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, n], 80));
        let v4 = SocketAddr::from(([10, 0, 0, 1], 80));
        let addresses = Addresses::new((0..TRIED as u16).map(v6).chain([v4]).collect());
        let only = (0..=TRIED).find(|index| addresses.at(*index) == v4).unwrap();
        // It comes after all those that have not failed.
        addresses.failed(only);
        let (order, delay) = addresses.order(None, Duration::from_secs(2), |address| address.is_ipv4());
        assert_eq!((order, delay), (vec![only], DELAY.0));
    }

    #[test]
    fn a_name_with_very_many_addresses_is_bounded() {
        let many = (0..1000_u16).map(|port| ([10, 0, 0, 1], port).into());
        assert_eq!(Addresses::new(many.collect()).0.len(), MAX);
    }

    proptest! {
        #[test]
        fn no_address_is_tried_twice_and_none_is_left_out_for_one_that_failed(
            past in prop::collection::vec(
                (any::<bool>(), 0..3_u64, prop_oneof![Just(0), NOW - 100_000..=NOW]), 0..12),
            ipv4: Option<bool>,
        ) {
            let past: Vec<_> = past
                .into_iter()
                .map(|(ipv4, worked_ms, failed_ms)| Past { ipv4, worked_ms, failed_ms })
                .collect();
            let order = order(&past, ipv4, NOW);
            prop_assert_eq!(order.len(), past.len().min(TRIED));
            prop_assert_eq!(order.iter().collect::<HashSet<_>>().len(), order.len());
            let failed: Vec<_> = order.iter().map(|index| past[*index].has_failed(NOW)).collect();
            prop_assert!(failed.is_sorted());
        }
    }
}
