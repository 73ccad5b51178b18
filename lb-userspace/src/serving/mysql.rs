//! MySQL: what clients of a listener are greeted with, and the numbers of connections.

use super::{Pool, ServerRecord};
use crate::clock::now_ms;
use crate::mysql::Announcement;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long it takes until clients are greeted by what servers have said since, in milliseconds.
const FRESH_MS: u64 = 250;

/// What clients of a listener are greeted with.
pub struct Reception {
    /// In place of the servers' own.
    version: Option<Box<str>>,
    /// In place of the usual one.
    plugin: Option<Box<str>>,
    /// Of the listener's routes.
    pools: Vec<Arc<Pool>>,
    drawn_up: Mutex<DrawnUp>,
    is_ready: AtomicBool,
}

/// An announcement, and when it was made.
#[derive(Default)]
struct DrawnUp {
    announcement: Option<Arc<Announcement>>,
    at_ms: u64,
    /// It was said that the servers are of both families.
    warned: bool,
}

impl Reception {
    /// Of a listener with routes to these pools.
    pub fn new(version: Option<Box<str>>, plugin: Option<Box<str>>, pools: Vec<Arc<Pool>>) -> Self {
        Reception { version, plugin, pools, drawn_up: Mutex::default(), is_ready: AtomicBool::default() }
    }

    /// The pools of its routes.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// What clients are greeted with; `None`: no server was heard yet. `name`: the listener's.
    pub fn announcement(&self, name: &str) -> Option<Arc<Announcement>> {
        // Each of its values is sound by itself.
        let mut drawn_up = self.drawn_up.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = now_ms();
        if drawn_up.announcement.is_some() && now_ms.saturating_sub(drawn_up.at_ms) < FRESH_MS {
            return drawn_up.announcement.clone();
        }
        let greetings: Vec<_> = self
            .pools
            .iter()
            .flat_map(|pool| {
                pool.servers().iter().filter_map(|server| server.state.mysql.greeting()).collect::<Vec<_>>()
            })
            .collect();
        let mut announcement = Announcement::of(greetings.iter().map(|greeting| &**greeting))?;
        if announcement.mixed && !drawn_up.warned {
            drawn_up.warned = true;
            tracing::warn!(
                listener = name,
                "servers of MySQL and of MariaDB are behind one listener: clients are greeted as by the former or the latter, \
                 and some drivers then misjudge the other; give each family a listener of its own"
            );
        }
        if let Some(version) = &self.version {
            announcement.version = version.as_bytes().into();
        }
        if let Some(plugin) = &self.plugin {
            announcement.plugin = plugin.clone();
        }
        (drawn_up.announcement, drawn_up.at_ms) = (Some(Arc::new(announcement)), now_ms);
        drawn_up.announcement.clone()
    }

    /// Whether clients need not wait: a server was heard, and no other is about to be. Once it was, they do not wait for those
    /// that come later.
    pub fn is_ready(&self, name: &str) -> bool {
        if self.is_ready.load(Relaxed) {
            return true;
        }
        let is_tried = |pool: &Arc<Pool>| {
            let servers = pool.servers();
            servers.iter().all(|server| server.state.mysql.is_tried() || server.addresses().is_empty())
        };
        if !self.pools.iter().all(is_tried) {
            return false;
        }
        let is_heard = self.announcement(name).is_some();
        self.is_ready.store(is_heard, Relaxed);
        // Asked in vain, they will not answer while a client waits; those whose names are not known yet were not asked.
        is_heard
            || self.pools.iter().any(|pool| pool.servers().iter().any(|server| server.state.mysql.is_tried()))
    }
}

/// Numbers of the clients' connections: those that a client knows from its greeting, and what the server calls them.
pub struct Threads {
    next: AtomicU64,
    known: Mutex<HashMap<u32, Thread>>,
}

/// A connection at its server.
#[derive(Clone)]
struct Thread {
    at: Numbering,
    number: u32,
}

/// Who gives connections their numbers: each address of a server by itself.
#[derive(Clone)]
pub struct Numbering {
    /// The server.
    pub server: Arc<ServerRecord>,
    /// The one of its addresses that is connected.
    pub address: SocketAddr,
}

impl Numbering {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.server, &other.server) && self.address == other.address
    }
}

/// The least number, far above what servers come to.
const FIRST: u32 = 0x7f00_0000;

/// How many there are: more than connections.
const COUNT: u64 = 0x100_0000;

impl Default for Threads {
    fn default() -> Self {
        // Two gateways begin elsewhere: nobody kills by accident.
        let next = RandomState::new().hash_one(0);
        Threads { next: next.into(), known: Mutex::default() }
    }
}

impl Threads {
    /// A number for a new connection, which none has that can be killed.
    pub fn number(&self) -> u32 {
        let known = self.known();
        loop {
            let number = FIRST | (self.next.fetch_add(1, Relaxed) % COUNT) as u32;
            if !known.contains_key(&number) || known.len() as u64 >= COUNT {
                return number;
            }
        }
    }

    /// From here on, until the guard is dropped, the connection `ours` is known to be `number` there.
    pub fn enter(self: &Arc<Self>, ours: u32, at: &Numbering, number: u32) -> Option<Entered> {
        match self.known().entry(ours) {
            Entry::Occupied(_) => None,
            Entry::Vacant(entry) => {
                entry.insert(Thread { at: at.clone(), number });
                Some(Entered { threads: self.clone(), ours })
            }
        }
    }

    /// What the connection `ours` is called there, if it is there.
    pub fn at(&self, ours: u32, at: &Numbering) -> Option<u32> {
        let known = self.known();
        known.get(&ours).filter(|thread| thread.at.is(at)).map(|thread| thread.number)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u32, Thread>> {
        // Each change is one insertion or removal.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that can be killed while this lives.
pub struct Entered {
    threads: Arc<Threads>,
    ours: u32,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.threads.known().remove(&self.ours);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_known_at_its_own_server_while_it_lives() {
        let threads = Arc::new(Threads::default());
        let server = Arc::new(ServerRecord::default());
        let at = |server: &Arc<ServerRecord>, last| Numbering {
            server: server.clone(),
            address: ([192, 0, 2, last], 3306).into(),
        };
        // Another address of the same server numbers by itself, too.
        let [here, beside] = [1, 2].map(|last| at(&server, last));
        let there = at(&Arc::default(), 1);
        let ours = threads.number();
        assert!((FIRST..=0x7fff_ffff).contains(&ours));
        let entered = threads.enter(ours, &here, 42);
        assert_eq!((threads.at(ours, &here), threads.at(ours, &there)), (Some(42), None));
        assert_eq!(threads.at(ours, &beside), None);
        assert!(threads.enter(ours, &there, 7).is_none(), "the first keeps its number");
        drop(entered);
        assert_eq!(threads.at(ours, &here), None);
    }

    #[test]
    fn a_number_that_is_in_use_is_not_given_again() {
        let threads = Arc::new(Threads::default());
        let at = Numbering { server: Arc::default(), address: ([192, 0, 2, 1], 3306).into() };
        let first = threads.number();
        let _entered = threads.enter(first, &at, 1);
        threads.next.store(u64::from(first - FIRST), Relaxed);
        assert_ne!(threads.number(), first);
        threads.next.store(COUNT - 1, Relaxed);
        let [last, wrapped] = [(); 2].map(|()| threads.number());
        assert!(last > wrapped && wrapped >= FIRST);
    }
}
