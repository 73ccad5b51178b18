//! A server of a pool: what it is, what is known of it, and who is connected to it.

use super::health::{Checked, HealthRecord};
use super::{Addresses, Epoch, Heard, PerReason, Room};
use crate::clock::now_ms;
use crate::config::{Address, Health, Host};
use crate::reason::{DownReason, TlsError};
use crate::route::{Rank, WHOLE, warmth};
use crate::state::{Availability, ServerState};
use arc_swap::ArcSwap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// A server of a pool.
pub struct Server {
    /// As configured or from DNS; also its name in `status`.
    pub address: Address,
    /// 1 to 256.
    pub weight: u32,
    /// Servers of a lower rank are chosen first.
    pub rank: Rank,
    /// Most connections at a time.
    pub max_connections: Option<usize>,
    /// Those who wait for one of them to end.
    room: Arc<Room>,
    /// Its state, which is kept across reloads.
    pub state: Arc<ServerRecord>,
    /// How it is checked.
    pub(super) health: Option<Arc<Health>>,
    /// A hash of the address.
    pub(super) identity: u64,
}

/// The state of a server. It is kept across reloads and changes of its service, by the pool's name and the server's address.
pub struct ServerRecord {
    /// Empty until its name is resolved.
    pub(super) addresses: ArcSwap<Addresses>,
    /// When it got its first address; before that, when the record was made.
    pub(super) resolved_ms: AtomicU64,
    resolved: Notify,
    /// Connections to it now, with those that are being opened.
    pub active: AtomicUsize,
    /// Connections that were opened to it.
    pub total: AtomicU64,
    /// Advanced when all its connections are ended.
    pub epoch: Epoch,
    /// Attempts to connect that failed.
    pub failures: AtomicU64,
    /// Why TLS with it failed.
    pub tls_errors: PerReason<{ TlsError::ALL.len() }>,
    /// What checks and connections have shown.
    pub health: HealthRecord,
    /// How it greets, if it is one of MySQL's.
    pub mysql: Heard,
    /// By what clients of HTTP say that they are kept at it; made when the first of them is.
    pub mark: OnceLock<u64>,
    /// Since when it takes no new connection (`snisplice drain`); 0: it is not drained.
    pub(super) drained_ms: AtomicU64,
    /// When that ended; 0: it was never drained.
    pub(super) undrained_ms: AtomicU64,
    /// When it began to take connections again, after it was drained or down; 0: it always has.
    up_since_ms: AtomicU64,
}

impl Default for ServerRecord {
    fn default() -> Self {
        ServerRecord {
            addresses: ArcSwap::default(),
            resolved_ms: now_ms().into(),
            resolved: Notify::new(),
            active: AtomicUsize::default(),
            total: AtomicU64::default(),
            epoch: Epoch::default(),
            failures: AtomicU64::default(),
            tls_errors: PerReason::default(),
            health: HealthRecord::default(),
            mysql: Heard::default(),
            mark: OnceLock::new(),
            drained_ms: AtomicU64::default(),
            undrained_ms: AtomicU64::default(),
            up_since_ms: AtomicU64::default(),
        }
    }
}

impl ServerRecord {
    /// Waits until it has an address; one at a time may.
    pub async fn resolves(&self) {
        while self.addresses.load().is_empty() {
            self.resolved.notified().await;
        }
    }

    /// Stops (`draining`) or resumes new connections.
    pub fn drain(&self, draining: bool) {
        match (draining, self.drained_ms.load(Relaxed)) {
            (true, 0) => self.drained_ms.store(now_ms(), Relaxed),
            (false, 1..) => {
                self.drained_ms.store(0, Relaxed);
                self.undrained_ms.store(now_ms(), Relaxed);
                self.comes_up();
            }
            _ => {}
        }
    }

    /// It takes connections again: few at first, if its pool says so.
    pub fn comes_up(&self) {
        self.up_since_ms.store(now_ms().max(1), Relaxed);
    }

    /// How much of its weight counts ([`warmth`]).
    pub(super) fn warmth(&self, slow_start_ms: u64, now_ms: u64) -> u32 {
        if slow_start_ms == 0 {
            return WHOLE;
        }
        // One that was ejected comes back when its rest is over.
        match self.up_since_ms.load(Relaxed).max(self.health.ejection_changed_ms(now_ms)) {
            0 => WHOLE,
            since => warmth(now_ms.saturating_sub(since), slow_start_ms),
        }
    }

    /// The addresses that its name has, as far as known.
    pub fn known(&self) -> Vec<IpAddr> {
        self.addresses.load().ips().collect()
    }

    /// Replaces the addresses, with what is known of them, if they have changed. An empty list changes nothing.
    pub fn resolved(&self, addresses: Vec<SocketAddr>) {
        let addresses = Addresses::new(addresses);
        let known = self.addresses.load();
        if !addresses.is_empty() && !addresses.same(&known) {
            if known.is_empty() {
                self.resolved_ms.store(now_ms(), Relaxed);
            }
            self.addresses.store(Arc::new(addresses));
            self.resolved.notify_one();
        }
    }
}

/// Whether a server takes a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does.
    Usable,
    /// It does where no other one of its pool does.
    Ejected,
    /// It does not.
    Unusable,
}

/// What the configuration, or DNS, says of a server beside its address.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) weight: u32,
    pub(super) rank: Rank,
    pub(super) max_connections: Option<usize>,
}

impl Server {
    pub(super) fn new(
        address: Address,
        share: Share,
        room: &Arc<Room>,
        health: Option<&Arc<Health>>,
        state: Arc<ServerRecord>,
    ) -> Arc<Self> {
        let Share { weight, rank, max_connections } = share;
        if let Host::Ip(ip) = address.host {
            state.resolved(vec![SocketAddr::new(ip, address.port)]);
        }
        // A hash without a random key: with `source_hash` a client keeps its server after a restart.
        let identity = BuildHasherDefault::<DefaultHasher>::default().hash_one(&address);
        let (room, health) = (room.clone(), health.cloned());
        Arc::new(Server { address, weight, rank, max_connections, room, state, health, identity })
    }

    /// Its addresses.
    pub fn addresses(&self) -> Arc<Addresses> {
        self.state.addresses.load_full()
    }

    /// Whether it has as many connections as it may have.
    pub(super) fn is_full(&self) -> bool {
        self.max_connections.is_some_and(|max| self.state.active.load(Relaxed) >= max)
    }
}

impl Server {
    /// Why its checks keep connections from it. One that is not checked yet takes them, unless its role matters.
    fn down(&self) -> Option<DownReason> {
        let health = self.health.as_ref()?;
        match self.state.health.checked() {
            Checked::Up => None,
            Checked::Down(reason) => Some(reason),
            Checked::Unchecked => health.role().map(|_| DownReason::Unchecked),
        }
    }

    /// Whether it takes new connections, and why not.
    pub fn availability(&self) -> Availability {
        let (record, now_ms) = (&self.state, now_ms());
        let [resolved, drained, undrained] =
            [&record.resolved_ms, &record.drained_ms, &record.undrained_ms].map(|time| time.load(Relaxed));
        let up_since = resolved.max(undrained);
        let (state, reason, since_ms) = if drained != 0 {
            (ServerState::Draining, None, drained)
        } else if record.addresses.load().is_empty() {
            (ServerState::Unresolved, None, resolved)
        } else if let Some(reason) = self.down() {
            (ServerState::Down, Some(reason), up_since.max(record.health.changed_ms()))
        } else if record.health.is_ejected(now_ms) {
            (ServerState::Down, Some(DownReason::Ejected), record.health.ejection_changed_ms(now_ms))
        } else {
            let checked = self.health.as_ref().map(|_| record.health.checked());
            let changed = if checked.is_some() { record.health.changed_ms() } else { 0 };
            let reason = (checked == Some(Checked::Unchecked)).then_some(DownReason::Unchecked);
            let since = up_since.max(changed).max(record.health.ejection_changed_ms(now_ms));
            (ServerState::Up, reason, since)
        };
        Availability { state, reason, since_ms }
    }

    pub(super) fn standing(&self, now_ms: u64) -> Standing {
        let record = &self.state;
        if record.drained_ms.load(Relaxed) != 0 || record.addresses.load().is_empty() || self.down().is_some()
        {
            return Standing::Unusable;
        }
        if record.health.is_ejected(now_ms) { Standing::Ejected } else { Standing::Usable }
    }
}

/// A connection to a server: counts as active while it lives.
pub struct ServerGuard(Arc<Server>);

impl ServerGuard {
    /// Counts one more connection, that is there already, whatever the bound.
    pub fn new(server: Arc<Server>) -> Self {
        server.state.active.fetch_add(1, Relaxed);
        ServerGuard(server)
    }

    /// Counts one more connection, unless the server is full.
    pub(super) fn enter(server: &Arc<Server>) -> Option<Self> {
        let before = server.state.active.fetch_add(1, Relaxed);
        // Counted already: dropped, it leaves again.
        let guard = ServerGuard(server.clone());
        server.max_connections.is_none_or(|max| before < max).then_some(guard)
    }

    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.0
    }
}

impl Drop for ServerGuard {
    fn drop(&mut self) {
        self.0.state.active.fetch_sub(1, Relaxed);
        if self.0.max_connections.is_some() {
            self.0.room.free();
        }
    }
}
