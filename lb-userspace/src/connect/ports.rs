//! Source ports toward servers. Spliced connections have no sockets, so the kernel does not know that their ports are taken.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long a port is not used again after its connection: as long as a server's TIME_WAIT, or Linux's FIN-WAIT-2.
pub const QUARANTINE_MS: u64 = 60_000;

/// How long a port is not used again even if no other is free. A server that has the old connection in TIME_WAIT accepts a
/// SYN with a newer timestamp, and the slowest timestamp clock that RFC 7323 allows ticks once a second.
pub const MIN_REST_MS: u64 = 1_000;

/// Hands out source ports, each to one connection at a time per server.
///
/// Ports are handed out in turn, so that each stays unused for as long as possible, until
/// [`look_elsewhere`](Self::look_elsewhere) jumps. Time comes from the caller, in milliseconds of one clock that does not
/// go back.
#[derive(Debug)]
pub struct SourcePorts {
    range: RangeInclusive<u16>,
    servers: Mutex<HashMap<SocketAddr, Ports>>,
    /// Where in the range a server's first port lies. It is random, so that a restarted gateway rarely uses a port that the
    /// process before has just used.
    start: RandomState,
}

impl SourcePorts {
    /// All ports of `range` (not empty) are free.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        assert!(!range.is_empty(), "no ports to hand out");
        Self { range, servers: Mutex::default(), start: RandomState::new() }
    }

    /// The ports that are handed out.
    pub fn range(&self) -> RangeInclusive<u16> {
        self.range.clone()
    }

    /// A port toward `server` that no other connection to it has, until it is given back; `None`: there is none,
    /// or it was given back less than [`MIN_REST_MS`] ago. It is `wanted` if that is in the range and free.
    pub fn take(&self, server: SocketAddr, wanted: Option<u16>, now_ms: u64) -> Option<u16> {
        let mut servers = self.lock();
        // Instead of growing, the map first drops servers of which nothing needs to be known.
        if servers.len() == servers.capacity() && !servers.contains_key(&server) {
            servers.retain(|_, ports| !ports.is_as_new(now_ms));
        }
        let wanted = wanted.and_then(|port| self.index(port));
        let index = servers.entry(server).or_insert_with(|| self.ports(server)).take(wanted, now_ms)?;
        Some(self.range.start() + index)
    }

    /// Takes the next port toward `server` from another place in the range. A port was not answered, so another gateway may
    /// have taken it, and then maybe those after it too.
    pub fn look_elsewhere(&self, server: SocketAddr) {
        if let Some(ports) = self.lock().get_mut(&server) {
            ports.cursor = (self.start.hash_one((server, ports.cursor)) % u64::from(ports.count)) as u32;
        }
    }

    /// The connection that had the port is over. Other ports than those in use are ignored.
    pub fn give_back(&self, server: SocketAddr, port: u16, now_ms: u64) {
        if let (Some(index), Some(ports)) = (self.index(port), self.lock().get_mut(&server)) {
            ports.give_back(index, now_ms);
        }
    }

    /// Marks a port as in use: a connection of an earlier process has it. Ports outside the range are ignored.
    pub fn reserve(&self, server: SocketAddr, port: u16) {
        if let Some(index) = self.index(port) {
            self.lock().entry(server).or_insert_with(|| self.ports(server)).reserve(index);
        }
    }

    /// A port's place in the range.
    fn index(&self, port: u16) -> Option<u16> {
        self.range.contains(&port).then(|| port - self.range.start())
    }

    fn ports(&self, server: SocketAddr) -> Ports {
        let count = u32::from(self.range.end() - self.range.start()) + 1;
        let first = self.start.hash_one(server) % u64::from(count);
        Ports::new(count, first as u32)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Ports>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ports toward one server, by their place in the range. A port is in use, resting or free.
#[derive(Debug)]
struct Ports {
    count: u32,
    in_use: Bits,
    /// In use or resting.
    taken: Bits,
    taken_count: u32,
    /// Oldest first. Exactly these are in `taken` and not in `in_use`.
    resting: VecDeque<Resting>,
    /// The next port to try, below `count`.
    cursor: u32,
}

#[derive(Clone, Copy, Debug)]
struct Resting {
    index: u16,
    /// When the port was given back, rounded up.
    since: Tick,
}

/// Time in units of [`TICK_MS`]. It keeps an entry of the queue at eight bytes, and wraps after 13 years.
type Tick = u32;
const TICK_MS: u64 = 100;

impl Resting {
    fn rests(self, now_ms: u64, less_than_ms: u64) -> bool {
        let now = (now_ms / TICK_MS) as Tick;
        // Before `since`, the difference is negative as a signed number.
        let age = now.wrapping_sub(self.since).cast_signed();
        i64::from(age) * (TICK_MS as i64) < less_than_ms as i64
    }
}

impl Ports {
    fn new(count: u32, first: u32) -> Self {
        Self {
            count,
            in_use: Bits::new(count),
            taken: Bits::new(count),
            taken_count: 0,
            resting: VecDeque::new(),
            cursor: first,
        }
    }

    fn take(&mut self, wanted: Option<u16>, now_ms: u64) -> Option<u16> {
        while self.resting.front().is_some_and(|oldest| !oldest.rests(now_ms, QUARANTINE_MS)) {
            self.wake_oldest();
        }
        if self.taken_count == self.count {
            let oldest = *self.resting.front()?;
            if oldest.rests(now_ms, MIN_REST_MS) {
                return None;
            }
            self.wake_oldest();
            // No other one is free.
            self.cursor = u32::from(oldest.index);
        }
        let wanted = wanted.map(u32::from).filter(|index| !self.taken.get(*index));
        let index = match wanted {
            Some(index) => index,
            None => {
                let index = self.taken.next_zero(self.cursor, self.count)?;
                self.cursor = (index + 1) % self.count;
                index
            }
        };
        self.taken.set(index, true);
        self.taken_count += 1;
        self.in_use.set(index, true);
        Some(index as u16)
    }

    fn give_back(&mut self, index: u16, now_ms: u64) {
        if self.in_use.get(index.into()) {
            self.in_use.set(index.into(), false);
            self.resting.push_back(Resting { index, since: now_ms.div_ceil(TICK_MS) as Tick });
        }
    }

    fn reserve(&mut self, index: u16) {
        if self.taken.get(index.into()) {
            self.resting.retain(|resting| resting.index != index);
        } else {
            self.taken.set(index.into(), true);
            self.taken_count += 1;
        }
        self.in_use.set(index.into(), true);
    }

    fn wake_oldest(&mut self) {
        if let Some(oldest) = self.resting.pop_front() {
            self.taken.set(oldest.index.into(), false);
            self.taken_count -= 1;
        }
        if self.resting.is_empty() {
            self.resting = VecDeque::new();
        }
    }

    /// Whether no port is in use, and none has to rest any longer.
    fn is_as_new(&self, now_ms: u64) -> bool {
        self.taken_count as usize == self.resting.len()
            && self.resting.back().is_none_or(|youngest| !youngest.rests(now_ms, QUARANTINE_MS))
    }
}

/// A bit per port.
#[derive(Debug)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(count: u32) -> Self {
        Self(vec![0; count.div_ceil(u64::BITS) as usize].into())
    }

    fn get(&self, bit: u32) -> bool {
        self.0[(bit / u64::BITS) as usize] & (1 << (bit % u64::BITS)) != 0
    }

    fn set(&mut self, bit: u32, value: bool) {
        let (word, mask) = (&mut self.0[(bit / u64::BITS) as usize], 1 << (bit % u64::BITS));
        if value { *word |= mask } else { *word &= !mask }
    }

    /// The first bit that is 0, from `from` up to `count`, and then from 0.
    fn next_zero(&self, from: u32, count: u32) -> Option<u32> {
        self.zero_in(from, count).or_else(|| self.zero_in(0, from))
    }

    fn zero_in(&self, from: u32, to: u32) -> Option<u32> {
        let mut bit = from;
        while bit < to {
            let word = self.0[(bit / u64::BITS) as usize] >> (bit % u64::BITS);
            let ones = word.trailing_ones();
            // The shift has brought in zeros: a run of ones that ends at one of them goes on in the next word.
            let left = u64::BITS - bit % u64::BITS;
            if ones < left {
                return Some(bit + ones).filter(|bit| *bit < to);
            }
            bit += left;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const A: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 6379);
    const B: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 6379);

    fn take_all(ports: &SourcePorts, server: SocketAddr, now_ms: u64) -> Vec<u16> {
        std::iter::from_fn(|| ports.take(server, None, now_ms)).collect()
    }

    #[test]
    fn every_port_is_handed_out_once_to_each_server() {
        // Neither end is a multiple of a word's bits; the second range is all ports.
        for range in [10_001..=10_331, 0..=u16::MAX, 7..=7] {
            let ports = SourcePorts::new(range.clone());
            for server in [A, B] {
                let taken = take_all(&ports, server, 0);
                assert_eq!(taken.len(), range.len());
                assert_eq!(taken.into_iter().collect::<HashSet<_>>(), range.clone().collect());
            }
        }
    }

    #[test]
    fn a_port_given_back_comes_after_all_that_were_never_used() {
        let ports = SourcePorts::new(100..=199);
        let first = ports.take(A, None, 0).unwrap();
        ports.give_back(A, first, 0);
        let rest: Vec<_> = (0..99).map(|_| ports.take(A, None, 59_000).unwrap()).collect();
        assert!(!rest.contains(&first));
        assert_eq!(ports.take(A, None, 59_000), Some(first));
        assert_eq!(ports.take(A, None, 1 << 40), None);
    }

    #[test]
    fn where_all_free_ones_rest_the_oldest_goes_first_once_it_is_a_second_old() {
        let ports = SourcePorts::new(100..=103);
        let taken = take_all(&ports, A, 0);
        ports.give_back(A, taken[2], 10_000);
        ports.give_back(A, taken[0], 10_500);
        assert_eq!(ports.take(A, None, 10_999), None);
        assert_eq!(ports.take(A, None, 11_000), Some(taken[2]));
        assert_eq!(ports.take(A, None, 11_000), None);
        assert_eq!(ports.take(A, None, 11_500), Some(taken[0]));
    }

    #[test]
    fn a_reserved_port_is_handed_out_only_after_it_was_given_back() {
        let ports = SourcePorts::new(100..=103);
        ports.reserve(A, 101);
        ports.reserve(A, 101);
        ports.reserve(A, 99);
        ports.reserve(A, 40_000);
        let taken = take_all(&ports, A, 0);
        assert_eq!(taken.iter().collect::<HashSet<_>>(), HashSet::from([&100, &102, &103]));
        ports.give_back(A, 101, 0);
        assert_eq!(ports.take(A, None, 1000), Some(101));
        assert_eq!(take_all(&ports, B, 0).len(), 4);
    }

    #[test]
    fn a_resting_port_can_be_reserved_and_then_rests_anew() {
        let ports = SourcePorts::new(100..=100);
        assert_eq!(ports.take(A, None, 0), Some(100));
        ports.give_back(A, 100, 0);
        ports.reserve(A, 100);
        assert_eq!(ports.take(A, None, 500_000), None);
        ports.give_back(A, 100, 500_000);
        assert_eq!(ports.take(A, None, 500_900), None);
        assert_eq!(ports.take(A, None, 501_000), Some(100));
    }

    #[test]
    fn a_port_that_is_wanted_is_had_if_it_is_free() {
        let ports = SourcePorts::new(100..=103);
        assert_eq!(ports.take(A, Some(102), 0), Some(102));
        // In use, and of another server.
        assert_ne!(ports.take(A, Some(102), 0), Some(102));
        assert_eq!(ports.take(B, Some(102), 0), Some(102));
        // Resting.
        ports.give_back(A, 102, 0);
        assert_ne!(ports.take(A, Some(102), 30_000), Some(102));
        // Outside the range.
        for other in [99, 104, 40_000] {
            assert!(ports.take(B, Some(other), 0).is_some_and(|port| port != other), "{other}");
        }
        // No longer resting.
        assert_eq!(ports.take(A, Some(102), 60_000), Some(102));
    }

    #[test]
    fn elsewhere_is_hardly_ever_next_door() {
        let ports = SourcePorts::new(10_000..=29_999);
        ports.look_elsewhere(A);
        let mut next_door = 0;
        for _ in 0..1000 {
            let last = ports.take(A, None, 0).unwrap();
            ports.look_elsewhere(A);
            next_door += i32::from(ports.take(A, None, 0).unwrap().abs_diff(last) < 100);
        }
        // Expected are ten.
        assert!(next_door < 50, "{next_door}");
    }

    #[test]
    fn what_is_not_in_use_cannot_be_given_back() {
        let ports = SourcePorts::new(100..=101);
        ports.give_back(A, 100, 0);
        let taken = take_all(&ports, A, 0);
        assert_eq!(taken.len(), 2);
        ports.give_back(A, taken[0], 0);
        ports.give_back(A, taken[0], 0);
        ports.give_back(A, 40_000, 0);
        ports.give_back(B, taken[1], 0);
        assert_eq!(take_all(&ports, A, 5_000), [taken[0]]);
    }

    #[test]
    fn a_clock_read_before_the_lock_was_had_makes_a_port_no_older() {
        let ports = SourcePorts::new(100..=100);
        ports.take(A, None, 0);
        ports.give_back(A, 100, 5_000);
        assert_eq!(ports.take(A, None, 4_000), None);
        assert_eq!(ports.take(A, None, 6_000), Some(100));
    }

    #[test]
    fn servers_with_nothing_to_remember_are_forgotten() {
        let ports = SourcePorts::new(100..=199);
        let server = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from_bits(n), 80));
        // One connection stays; ten thousand servers are used once each, ten minutes apart.
        let kept = ports.take(A, None, 0).unwrap();
        for n in 0..10_000 {
            let now = u64::from(n) * 600_000;
            let port = ports.take(server(n), None, now).unwrap();
            ports.give_back(server(n), port, now);
        }
        assert!(ports.lock().len() < 100, "{}", ports.lock().len());
        assert!(!take_all(&ports, A, 10_000 * 600_000).contains(&kept));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The port that is wanted, if one is.
        Take(Option<u16>),
        /// The n-th of those in use.
        GiveBack(prop::sample::Index),
        Reserve(u16),
        LookElsewhere,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => prop::option::of(90..=210_u16).prop_map(Step::Take),
            3 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
            1 => (90..=210_u16).prop_map(Step::Reserve),
            1 => Just(Step::LookElsewhere),
            2 => prop_oneof![0..3_000_u64, 0..90_000_u64].prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a model that knows of each port whether it is in use and when it was given back.
        #[test]
        fn the_rules_hold_after_any_history(
            count in 1..=130_u16,
            steps in prop::collection::vec(step(), 0..400),
        ) {
            let range = 100..=100 + (count - 1);
            let ports = SourcePorts::new(range.clone());
            let mut now = 0_u64;
            let mut in_use: Vec<u16> = Vec::new();
            // Absent: never given back.
            let mut given_back: HashMap<u16, u64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Take(wanted) => {
                        let rest = |port: &u16| given_back.get(port).map_or(u64::MAX, |since| now - since);
                        let free: Vec<_> = range.clone().filter(|port| !in_use.contains(port)).collect();
                        let longest = free.iter().map(rest).max();
                        // Ages are known to a tick either way.
                        match ports.take(A, wanted, now) {
                            Some(port) => {
                                let rested = |port: &u16| rest(port) >= QUARANTINE_MS + 2 * TICK_MS;
                                if let Some(wanted) = wanted.filter(|wanted| free.contains(wanted) && rested(wanted)) {
                                    prop_assert_eq!(port, wanted);
                                }
                                prop_assert!(free.contains(&port), "{port} is in use");
                                prop_assert!(rest(&port) >= MIN_REST_MS);
                                if longest.unwrap() >= QUARANTINE_MS + 2 * TICK_MS {
                                    prop_assert!(rest(&port) >= QUARANTINE_MS);
                                } else {
                                    prop_assert!(rest(&port) + 2 * TICK_MS >= longest.unwrap());
                                }
                                in_use.push(port);
                            }
                            None => prop_assert!(longest.is_none_or(|rest| rest < MIN_REST_MS + 2 * TICK_MS)),
                        }
                    }
                    Step::GiveBack(which) => if !in_use.is_empty() {
                        let port = in_use.swap_remove(which.index(in_use.len()));
                        ports.give_back(A, port, now);
                        given_back.insert(port, now);
                    },
                    Step::Reserve(port) => {
                        ports.reserve(A, port);
                        if range.contains(&port) && !in_use.contains(&port) {
                            in_use.push(port);
                        }
                    }
                    Step::LookElsewhere => ports.look_elsewhere(A),
                    Step::Wait(ms) => now += ms,
                }
            }
        }
    }
}
