//! The ledger of live connections. At its end a connection's bytes are added to its route's here, and nowhere else.

use crate::config::Keepalive;
use crate::reason::{CloseReason, FallbackReason, Tier};
use crate::serving::{Listener, Pool, Route, Server};
use crate::tier::Choice;
use crate::traffic::Traffic;
use lb_common::packet::PerLeg;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::task::AbortHandle;

/// A routed connection, from the choice of its route to its end. Shared by the task that carries it and by readers
/// (`connections`, the metrics).
pub struct Connection {
    /// Unique in this process, and among the connections that it has adopted.
    pub id: u64,
    /// The client, or what a trusted proxy said it is.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// The server name by which it was routed.
    pub sni: Option<Box<str>>,
    /// Its route.
    pub route: Arc<Route>,
    /// Its pool and server, once connected.
    pub upstream: OnceLock<(Arc<Pool>, Arc<Server>)>,
    /// Its byte counters.
    pub traffic: Traffic,
    /// [`crate::clock::now_ms`] at accept.
    pub opened_ms: u64,
    /// A [`Tier`] and a [`FallbackReason`]; `NONE` before the tier is chosen, and if there is no reason.
    tier: AtomicU8,
    reason: AtomicU8,
    /// The [`CloseReason`] with which it is being ended from outside; `NONE`: it is not.
    ending: AtomicU8,
    /// The task, for as long as it carries the connection: the handle keeps the task's memory.
    task: Mutex<Option<AbortHandle>>,
}

const NONE: u8 = u8::MAX;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Never left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// A connection that has just been routed.
    pub fn new(
        id: u64,
        client: SocketAddr,
        listener: Arc<Listener>,
        sni: Option<Box<str>>,
        route: Arc<Route>,
        opened_ms: u64,
        task: Option<AbortHandle>,
    ) -> Self {
        Connection {
            id,
            client,
            listener,
            sni,
            route,
            upstream: OnceLock::new(),
            traffic: Traffic { active_ms: opened_ms.into(), ..Traffic::default() },
            opened_ms,
            tier: NONE.into(),
            reason: NONE.into(),
            ending: NONE.into(),
            task: Mutex::new(task),
        }
    }

    /// The configured TCP keepalive of each leg.
    pub(crate) fn keepalives(&self) -> PerLeg<Keepalive> {
        let server = self.upstream.get().map_or_else(Keepalive::default, |(pool, _)| pool.keepalive);
        PerLeg { client: self.listener.keepalive, server }
    }

    /// The tier that carries it, and why not an earlier one; `None` before it is chosen.
    pub fn choice(&self) -> Option<Choice> {
        let tier = *Tier::ALL.get(usize::from(self.tier.load(Relaxed)))?;
        let reason = FallbackReason::ALL.get(usize::from(self.reason.load(Relaxed))).copied();
        Some(Choice { tier, reason })
    }

    /// Notes the tier.
    pub fn set_choice(&self, choice: Choice) {
        self.reason.store(choice.reason.map_or(NONE, |reason| reason as u8), Relaxed);
        self.tier.store(choice.tier as u8, Relaxed);
    }

    /// Ends it from outside, with this reason; both legs are reset.
    pub fn end(&self, reason: CloseReason) {
        self.set_ending(reason);
        if let Some(task) = lock(&self.task).as_ref() {
            task.abort();
        }
    }

    /// Notes the reason with which it is about to be ended.
    pub fn set_ending(&self, reason: CloseReason) {
        self.ending.store(reason as u8, Relaxed);
    }

    /// Notes that it goes on without its task.
    pub fn leave_task(&self) {
        *lock(&self.task) = None;
    }

    /// The reason with which it is being ended from outside.
    pub fn ending(&self) -> Option<CloseReason> {
        CloseReason::ALL.get(usize::from(self.ending.load(Relaxed))).copied()
    }
}

/// The live connections, in one part per worker, so that workers do not wait for each other.
pub struct Ledger {
    parts: Vec<Mutex<Part>>,
    ids: AtomicU64,
}

/// An iterator over the live connections.
pub type LiveConnections<'a> = Box<dyn Iterator<Item = &'a Arc<Connection>> + 'a>;

/// By the ids of connections. The gateway gives them in turn, so that nobody can choose ids that collide, and a fast hash does.
pub type ById<T> = HashMap<u64, T, foldhash::fast::RandomState>;

/// One worker's connections.
type Part = ById<Arc<Connection>>;

impl Ledger {
    /// For this many workers.
    pub fn new(workers: usize) -> Self {
        Ledger { parts: (0..workers).map(|_| Mutex::default()).collect(), ids: AtomicU64::new(1) }
    }

    /// An id for a new connection.
    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    /// Makes later ids larger than this one, which an earlier process has given.
    pub fn know_id(&self, id: u64) {
        self.ids.fetch_max(id + 1, Relaxed);
    }

    /// Adds a connection.
    pub fn enter(&self, worker: usize, connection: Arc<Connection>) {
        connection.route.stats.counting().total.fetch_add(1, Relaxed);
        self.part(worker).insert(connection.id, connection);
    }

    /// Removes a connection and adds its bytes to its route's. Both under the lock, so that a reader of [`Ledger::read`]
    /// counts them exactly once.
    pub fn close(&self, worker: usize, connection: &Connection, reason: CloseReason) {
        let mut part = self.part(worker);
        part.remove(&connection.id);
        let (stats, traffic) = (connection.route.stats.counting(), &connection.traffic);
        stats.bytes_in.fetch_add(traffic.bytes_in.load(Relaxed), Relaxed);
        stats.bytes_out.fetch_add(traffic.bytes_out.load(Relaxed), Relaxed);
        stats.closes.add(reason as usize);
    }

    /// Calls `read` with all live connections. None can end while it looks at them and their routes' counters.
    pub fn read<R>(&self, read: impl FnOnce(LiveConnections<'_>) -> R) -> R {
        let parts: Vec<MutexGuard<'_, Part>> =
            (0..self.parts.len()).map(|worker| self.part(worker)).collect();
        read(Box::new(parts.iter().flat_map(|part| part.values())))
    }

    /// Live connections that are `wanted`, at most so many. No worker waits for long: each part is locked for a few
    /// connections at a time.
    pub fn find(&self, most: usize, wanted: impl Fn(&Connection) -> bool) -> Vec<Arc<Connection>> {
        /// Connections that are looked at under one lock.
        const AT_ONCE: usize = 1024;
        let mut found = Vec::new();
        for worker in 0..self.parts.len() {
            let ids: Vec<u64> = self.part(worker).keys().copied().collect();
            for ids in ids.chunks(AT_ONCE) {
                let part = self.part(worker);
                let connections = ids.iter().filter_map(|id| part.get(id)).filter(|found| wanted(found));
                found.extend(connections.take(most - found.len()).cloned());
            }
        }
        found
    }

    fn part(&self, worker: usize) -> MutexGuard<'_, Part> {
        lock(&self.parts[worker])
    }
}
