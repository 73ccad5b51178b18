//! How many connections each client address has, and how fast it opens new ones. Pure.
//!
//! New connections are counted by a token bucket, kept as the one time at which it will be full again. A full bucket says
//! as much as none, so a client is in the table while it has a connection or its bucket fills, and no longer.
//!
//! A stranger with very many addresses can open a connection from each. Clients with open connections stay in the table:
//! `max_connections` of the gateway bounds them. Of the others only so many are remembered; when one too many comes,
//! the one whose bucket is full soonest is forgotten, whoever it is. So nobody is refused for what others did, a
//! client that has used up its share is not forgotten before a whole table of others has used up as much, and what is
//! forgotten is a small part of what all these addresses could have had anyway.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::ClientRate;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Whom a limit is about: an IPv4 address, or the /64 of an IPv6 address, which is what one subscriber has at the least
/// (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// The address.
    V4(Ipv4Addr),
    /// The first 64 bits.
    V6(u64),
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Client::V4(address),
            IpAddr::V6(address) => Client::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// Why a client may not open another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// It has opened too many in the last time.
    New,
    /// It has too many open.
    Open,
}

/// What is known of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    open: usize,
    /// When its bucket is full, in nanoseconds.
    full_at: u64,
}

/// The clients of one limit.
#[derive(Debug, Default)]
pub(super) struct Clients {
    known: BTreeMap<Client, Entry>,
    /// Those without open connections, by when their bucket is full.
    resting: BTreeSet<(u64, Client)>,
    /// How many of these are remembered at the most.
    remembered: usize,
    forgotten: u64,
}

/// Clients that a call removes at the most of those that are to go: as many as it adds, and one, so that they all go and
/// no call takes long.
const REMOVED: usize = 2;

impl Clients {
    /// Sets how many clients without open connections are remembered.
    pub(super) fn remember(&mut self, number: usize) {
        self.remembered = number;
    }

    /// Counts one more connection of the client, unless that is more than it may have; `now` in nanoseconds.
    pub(super) fn open(&mut self, client: Client, rate: &ClientRate, now: u64) -> Result<(), Excess> {
        self.tidy(now);
        let mut known = self.known.get(&client).copied().unwrap_or_default();
        if rate.open.is_some_and(|most| known.open >= most) {
            return Err(Excess::Open);
        }
        let full_at = match rate.new {
            None => known.full_at,
            Some(new) => {
                let per = u64::try_from(new.per.as_nanos()).unwrap_or(u64::MAX);
                let token = (per / u64::from(new.most.get())).max(1);
                let bucket = token.saturating_mul(new.most.get().into());
                let latest = now.saturating_add(bucket);
                if known.full_at > latest {
                    // Under an earlier configuration the bucket was larger.
                    let old = known;
                    known.full_at = latest;
                    self.put(client, old, known);
                }
                let full_at = known.full_at.max(now).saturating_add(token);
                if full_at > latest {
                    return Err(Excess::New);
                }
                full_at
            }
        };
        self.put(client, known, Entry { open: known.open + 1, full_at });
        Ok(())
    }

    /// Counts one more connection of the client that is there already, whatever it may have.
    pub(super) fn join(&mut self, client: Client) {
        let known = self.known.get(&client).copied().unwrap_or_default();
        self.put(client, known, Entry { open: known.open + 1, ..known });
    }

    /// Counts one connection of the client less; `now` in nanoseconds.
    pub(super) fn close(&mut self, client: Client, now: u64) {
        let Some(known) = self.known.get(&client).copied() else { return };
        self.put(client, known, Entry { open: known.open - 1, ..known });
        self.tidy(now);
    }

    /// Clients that were forgotten before their bucket was full.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn put(&mut self, client: Client, old: Entry, new: Entry) {
        if old.open == 0 {
            self.resting.remove(&(old.full_at, client));
        }
        if new.open == 0 {
            self.resting.insert((new.full_at, client));
        }
        self.known.insert(client, new);
    }

    /// Removes who is no different from a client that never came, and who is one too many.
    fn tidy(&mut self, now: u64) {
        for _ in 0..REMOVED {
            let Some(&(full_at, client)) = self.resting.first() else { return };
            let is_full = full_at <= now;
            if !is_full && self.resting.len() <= self.remembered {
                return;
            }
            self.resting.pop_first();
            self.known.remove(&client);
            self.forgotten += u64::from(!is_full);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NewConnections;
    use proptest::prelude::*;
    use std::num::NonZeroU32;
    use std::time::Duration;

    const SECOND: u64 = 1_000_000_000;

    fn rate(new: Option<(u32, u64)>, open: Option<usize>) -> ClientRate {
        let new = new.map(|(most, per)| NewConnections {
            most: NonZeroU32::new(most).unwrap(),
            per: Duration::from_nanos(per),
        });
        ClientRate { new, open }
    }

    fn clients(remembered: usize) -> Clients {
        Clients { remembered, ..Clients::default() }
    }

    fn v4(number: u32) -> Client {
        Client::V4(number.into())
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_a_64() {
        let client = |text: &str| Client::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("192.0.2.2"), client("192.0.2.1"));
        assert_eq!(client("2001:db8:0:1::1"), client("2001:db8:0:1:ffff::2"));
        assert_ne!(client("2001:db8:0:1::1"), client("2001:db8:0:2::1"));
        assert_ne!(client("::1"), client("0.0.0.0"));
    }

    #[test]
    fn a_burst_passes_and_then_one_as_often_as_the_rate_says() {
        let (mut clients, rate) = (clients(10), rate(Some((4, SECOND)), None));
        let mut open = |now| clients.open(v4(1), &rate, now);
        for _ in 0..4 {
            assert_eq!(open(SECOND), Ok(()));
        }
        assert_eq!(open(SECOND), Err(Excess::New));
        assert_eq!(open(SECOND + SECOND / 4 - 1), Err(Excess::New));
        assert_eq!(open(SECOND + SECOND / 4), Ok(()));
        assert_eq!(open(SECOND + SECOND / 4), Err(Excess::New));
    }

    #[test]
    fn what_is_open_counts_until_it_is_closed() {
        let (mut clients, rate) = (clients(10), rate(None, Some(2)));
        clients.join(v4(1));
        assert_eq!(clients.open(v4(1), &rate, 0), Ok(()));
        assert_eq!(clients.open(v4(1), &rate, 0), Err(Excess::Open));
        assert_eq!(clients.open(v4(2), &rate, 0), Ok(()));
        clients.close(v4(1), 0);
        assert_eq!(clients.open(v4(1), &rate, 0), Ok(()));
        for client in [1, 1, 2] {
            clients.close(v4(client), 0);
        }
        assert!(clients.known.is_empty(), "{clients:?}");
        assert_eq!(clients.forgotten(), 0);
    }

    #[test]
    fn a_smaller_bucket_holds_nobody_to_the_larger_one() {
        let mut clients = clients(10);
        let of_an_hour = rate(Some((1, 3600 * SECOND)), None);
        assert_eq!(clients.open(v4(1), &of_an_hour, 0), Ok(()));
        assert_eq!(clients.open(v4(1), &of_an_hour, SECOND), Err(Excess::New));
        let of_a_second = rate(Some((1, SECOND)), None);
        assert_eq!(clients.open(v4(1), &of_a_second, SECOND), Err(Excess::New));
        assert_eq!(clients.open(v4(1), &of_a_second, 2 * SECOND), Ok(()));
        clients.close(v4(1), 2 * SECOND);
        clients.close(v4(1), 2 * SECOND);
        assert_eq!(clients.resting.len(), 1, "{clients:?}");
    }

    #[test]
    fn a_crowd_makes_nobody_forgotten_who_has_spent_more() {
        let (mut clients, rate) = (clients(100), rate(Some((2, 3600 * SECOND)), None));
        let mut visit = |client, now| {
            let opened = clients.open(client, &rate, now);
            if opened.is_ok() {
                clients.close(client, now);
            }
            opened
        };
        assert_eq!((visit(v4(0), 0), visit(v4(0), 0), visit(v4(0), 0)), (Ok(()), Ok(()), Err(Excess::New)));
        for stranger in 1..10_000_u64 {
            assert_eq!(visit(Client::V6(stranger), stranger), Ok(()), "{stranger}: nobody pays for others");
        }
        assert_eq!(visit(v4(0), 10_000), Err(Excess::New));
        assert_eq!(clients.resting.len(), 100);
        assert_eq!(clients.known.len(), 100);
        assert_eq!(clients.forgotten(), 9900);
    }

    /// The same for a client alone: a bucket that is filled as time passes.
    #[derive(Clone, Copy, Default)]
    struct Model {
        open: usize,
        spent: u64,
        seen: u64,
    }

    impl Model {
        fn refused(&mut self, rate: &ClientRate, now: u64) -> Option<Excess> {
            self.spent = self.spent.saturating_sub(now - self.seen);
            self.seen = now;
            if rate.open.is_some_and(|most| self.open >= most) {
                return Some(Excess::Open);
            }
            let new = rate.new?;
            let token = new.per.as_nanos() as u64 / u64::from(new.most.get());
            (self.spent + token > token * u64::from(new.most.get())).then_some(Excess::New)
        }

        fn open(&mut self, rate: &ClientRate) {
            self.open += 1;
            self.spent += rate.new.map_or(0, |new| new.per.as_nanos() as u64 / u64::from(new.most.get()));
        }
    }

    proptest! {
        /// With room for all it decides as the model does. Without, it never refuses whom the model would let in, and
        /// never counts another number of open connections.
        #[test]
        fn it_is_a_bucket_for_each_client(
            most in 1..5_u32, token in 1..5_u64, open in prop::option::of(1..4_usize),
            remembered in prop_oneof![Just(usize::MAX), 0..4_usize],
            steps in prop::collection::vec((0..6_u32, 0..3_u8, 0..6_u64), 0..200),
        ) {
            let rate = rate(Some((most, token * u64::from(most))), open);
            let (mut clients, mut model) = (clients(remembered), BTreeMap::<Client, Model>::new());
            let mut now = 0;
            for (client, action, pause) in steps {
                let client = v4(client);
                now += pause;
                let alone = model.entry(client).or_default();
                if action == 2 {
                    if alone.open > 0 {
                        alone.open -= 1;
                        clients.close(client, now);
                    }
                } else {
                    let refused = alone.refused(&rate, now);
                    match clients.open(client, &rate, now) {
                        Ok(()) => {
                            prop_assert!(refused.is_none() || remembered != usize::MAX && refused == Some(Excess::New));
                            // The bucket of whom it has forgotten is full.
                            alone.spent = alone.spent.min(token * u64::from(most - 1));
                            alone.open(&rate);
                        }
                        Err(excess) => prop_assert_eq!(Some(excess), refused),
                    }
                }
                let active = model.values().filter(|alone| alone.open > 0).count();
                prop_assert!(clients.known.len() <= active.saturating_add(remembered).min(6));
                prop_assert_eq!(clients.known.len() - clients.resting.len(), active);
                for (client, alone) in &model {
                    prop_assert_eq!(clients.known.get(client).map_or(0, |known| known.open), alone.open);
                }
            }
        }
    }
}
