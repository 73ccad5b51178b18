//! Setbacks: why clients failed a moment ago. A PostgreSQL client whose attempt with TLS fails may try again without TLS
//! (`sslmode=prefer`), and its user then reads only the error of the second attempt. So that error tells the reason of the
//! first, which is recognised by the client's address.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::reason::Setback;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// How long a setback is remembered, in milliseconds: the second attempt follows at once, but the path may be slow.
const MEMORY_MS: u64 = 10_000;

/// The most addresses that are remembered. If there are more at a time, some clients get a less exact error.
const MOST: usize = 1024;

/// The last setback of each client address.
#[derive(Debug, Default)]
pub struct Setbacks(Mutex<HashMap<IpAddr, (Setback, u64)>>);

impl Setbacks {
    /// Remembers a setback; `now` in milliseconds.
    pub fn note(&self, client: IpAddr, setback: Setback, now: u64) {
        // The map is never left half-changed.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, noted)| is_fresh(*noted, now));
        }
        if known.len() < MOST || known.contains_key(&client) {
            known.insert(client, (setback, now));
        }
    }

    /// The setback that is remembered of this address.
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
