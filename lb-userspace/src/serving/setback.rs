//! Why clients got nowhere a moment ago. A PostgreSQL client that fails with TLS may try again without (`sslmode=prefer`),
//! and what it hears then is all that its user reads last; of the first attempt nothing but its address is known.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::reason::Setback;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Milliseconds for which one is remembered: the next attempt follows at once, on a path as slow as it may be.
const MEMORY_MS: u64 = 10_000;

/// Addresses remembered. With more of them at a time the words are less to the point, nothing else.
const MOST: usize = 1024;

/// The last one of each client address.
#[derive(Debug, Default)]
pub struct Setbacks(Mutex<HashMap<IpAddr, (Setback, u64)>>);

impl Setbacks {
    /// Remembers one; `now` in milliseconds.
    pub fn note(&self, client: IpAddr, setback: Setback, now: u64) {
        // Never left half-changed.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, noted)| is_fresh(*noted, now));
        }
        if known.len() < MOST || known.contains_key(&client) {
            known.insert(client, (setback, now));
        }
    }

    /// What is remembered of this address.
    pub fn recent(&self, client: IpAddr, now: u64) -> Option<Setback> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&client).filter(|(_, noted)| is_fresh(*noted, now)).map(|(setback, _)| *setback)
    }
}

fn is_fresh(noted: u64, now: u64) -> bool {
    now.saturating_sub(noted) < MEMORY_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::{CloseReason, RejectReason};
    use std::net::Ipv4Addr;

    const DOWN: Setback = Setback::Closed(CloseReason::ConnectFailed);
    const UNKNOWN: Setback = Setback::Rejected(RejectReason::UnknownSni);

    fn client(number: usize) -> IpAddr {
        Ipv4Addr::from(number as u32).into()
    }

    #[test]
    fn the_last_one_of_an_address_is_remembered_for_a_while() {
        let setbacks = Setbacks::default();
        setbacks.note(client(1), DOWN, 0);
        setbacks.note(client(1), UNKNOWN, 5);
        assert_eq!(setbacks.recent(client(1), 4 + MEMORY_MS), Some(UNKNOWN));
        assert_eq!(setbacks.recent(client(1), 5 + MEMORY_MS), None);
        assert_eq!(setbacks.recent(client(2), 5), None);
    }

    #[test]
    fn a_crowd_fills_a_bounded_memory_and_leaves_it_again() {
        let setbacks = Setbacks::default();
        for number in 0..3 * MOST {
            setbacks.note(client(number), DOWN, 0);
        }
        assert_eq!(setbacks.0.lock().unwrap().len(), MOST);
        setbacks.note(client(0), UNKNOWN, 1);
        assert_eq!(setbacks.recent(client(0), 1), Some(UNKNOWN), "known before, so there is room");
        assert_eq!(setbacks.recent(client(2 * MOST), 1), None);
        setbacks.note(client(2 * MOST), DOWN, MEMORY_MS + 1);
        assert_eq!(setbacks.recent(client(2 * MOST), MEMORY_MS + 1), Some(DOWN));
        assert_eq!(setbacks.0.lock().unwrap().len(), 1);
    }
}
