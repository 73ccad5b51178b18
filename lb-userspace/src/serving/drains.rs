//! What operators drain of a pool.

use super::ServerRecord;
use crate::config::Address;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is drained of a pool. The pool of the same name after a reload shares it.
#[derive(Default)]
pub(super) struct Drains(Mutex<Drained>);

#[derive(Default)]
struct Drained {
    /// All of its servers, whatever is said of each.
    pool: bool,
    /// Also servers that DNS does not have at present.
    servers: HashSet<Address>,
}

impl Drained {
    fn apply<'s>(&self, servers: impl Iterator<Item = (&'s Address, &'s ServerRecord)>) {
        for (address, record) in servers {
            record.drain(self.pool || self.servers.contains(address));
        }
    }
}

impl Drains {
    /// Tells servers that the pool has from now on.
    pub(super) fn apply<'s>(&self, servers: impl Iterator<Item = (&'s Address, &'s ServerRecord)>) {
        self.lock().apply(servers);
    }

    /// Drains one server, or the pool, or no longer, and tells those that the pool has. `false`: the server stays drained,
    /// for its pool is.
    pub(super) fn set<'s>(
        &self,
        server: Option<&Address>,
        draining: bool,
        servers: impl Iterator<Item = (&'s Address, &'s ServerRecord)>,
    ) -> bool {
        // Locked to the end: a reload builds the next pool on another thread.
        let mut drained = self.lock();
        match server {
            None => drained.pool = draining,
            Some(address) if draining => _ = drained.servers.insert(address.clone()),
            Some(address) => _ = drained.servers.remove(address),
        }
        drained.apply(servers);
        draining || server.is_none() || !drained.pool
    }

    /// Whether the pool is drained, and its servers that are by themselves, sorted.
    pub(super) fn all(&self) -> (bool, Vec<Address>) {
        let drained = self.lock();
        let mut servers: Vec<_> = drained.servers.iter().cloned().collect();
        servers.sort_by_cached_key(Address::to_string);
        (drained.pool, servers)
    }

    /// Forgets servers.
    pub(super) fn forget(&self, is_gone: impl Fn(&Address) -> bool) {
        self.lock().servers.retain(|address| !is_gone(address));
    }

    fn lock(&self) -> MutexGuard<'_, Drained> {
        // Each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
