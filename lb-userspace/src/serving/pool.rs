//! Upstream pools at run time: the configured servers, their addresses and their counts.

use crate::admin::view::ServerState;
use crate::config::{self, Address, Balance, Host, Keepalive, ProxyVersion};
use crate::route::{Candidate, Schedule, choose};
use arc_swap::ArcSwap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// An upstream pool.
pub struct Pool {
    /// As configured.
    pub name: Arc<str>,
    /// Bound on one attempt to connect.
    pub connect_timeout: Duration,
    /// The PROXY header its servers expect.
    pub send_proxy: Option<ProxyVersion>,
    /// Of the leg to its servers.
    pub keepalive: Keepalive,
    /// In the order of the configuration.
    pub servers: Vec<Arc<Server>>,
    balance: Balance,
    schedule: Schedule,
    /// Choices made, over all workers.
    choices: AtomicU64,
    random: RandomState,
}

/// A server of a pool.
pub struct Server {
    /// As configured, also its name in `status`.
    pub address: Address,
    /// 1 to 256.
    pub weight: u32,
    /// Used only when no other server is usable.
    pub backup: bool,
    /// What outlives a reload.
    pub state: Arc<ServerRecord>,
}

/// What is known of a server; kept across reloads under its pool's name and its address.
#[derive(Default)]
pub struct ServerRecord {
    /// Where it is; empty until its name is resolved.
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// Connections it has now, also those still being opened.
    pub active: AtomicUsize,
    /// Connections opened to it.
    pub total: AtomicU64,
    /// Attempts that failed.
    pub failures: AtomicU64,
    /// It takes no new connection (`snisplice drain`).
    pub draining: AtomicBool,
    /// A task keeps the addresses up to date.
    watched: AtomicBool,
}

impl ServerRecord {
    /// Replaces the addresses; an empty answer keeps the ones known.
    pub fn resolved(&self, addresses: Vec<SocketAddr>) {
        if !addresses.is_empty() {
            self.addresses.store(Arc::new(addresses));
        }
    }

    /// True for the first caller only: that one keeps the addresses up to date.
    pub(crate) fn claim_resolution(&self) -> bool {
        !self.watched.swap(true, Relaxed)
    }
}

impl Server {
    /// A server that is not configured any more; connections to it still live.
    pub fn retired(address: SocketAddr) -> Self {
        let address = Address { host: Host::Ip(address.ip()), port: address.port() };
        Server { address, weight: 1, backup: false, state: Arc::default() }
    }

    /// Its addresses, best first.
    pub fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.state.addresses.load_full()
    }

    /// Whether it takes new connections.
    pub fn availability(&self) -> ServerState {
        match self.state.draining.load(Relaxed) {
            true => ServerState::Draining,
            false if self.state.addresses.load().is_empty() => ServerState::Unresolved,
            false => ServerState::Up,
        }
    }

    /// It may take new connections.
    pub fn usable(&self) -> bool {
        self.availability() == ServerState::Up
    }
}

impl Pool {
    /// A pool; servers that `previous` (the pool of the same name before a reload) has too keep their state.
    pub fn new(config: &config::Pool, previous: Option<&Pool>) -> Self {
        let kept = |address: &Address| {
            let server = previous?.servers.iter().find(|server| server.address == *address)?;
            Some(server.state.clone())
        };
        let servers = config.servers.iter().map(|server| {
            let state = kept(&server.address).unwrap_or_default();
            if let Host::Ip(ip) = server.address.host {
                state.resolved(vec![SocketAddr::new(ip, server.address.port)]);
            }
            let (address, weight, backup) = (server.address.clone(), server.weight, server.backup);
            Arc::new(Server { address, weight, backup, state })
        });
        Pool {
            name: config.name.clone(),
            connect_timeout: config.connect_timeout,
            send_proxy: config.send_proxy,
            keepalive: config.keepalive,
            servers: servers.collect(),
            balance: config.balance,
            schedule: Schedule::new(&config.servers.iter().map(|server| server.weight).collect::<Vec<_>>()),
            choices: AtomicU64::new(previous.map_or(0, |pool| pool.choices.load(Relaxed))),
            random: RandomState::new(),
        }
    }

    /// A pool that is not configured any more; connections to its servers still live.
    pub fn retired(name: &str, keepalive: Keepalive) -> Self {
        Pool {
            name: name.into(),
            connect_timeout: Duration::ZERO,
            send_proxy: None,
            keepalive,
            servers: Vec::new(),
            balance: Balance::RoundRobin,
            schedule: Schedule::new(&[]),
            choices: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    /// The server for a new connection of `client`, counted as active until the guard is dropped; none of `tried`.
    pub(crate) fn choose(&self, client: IpAddr, tried: &[Arc<Server>]) -> Option<ServerGuard> {
        let candidates: Vec<Candidate> = self
            .servers
            .iter()
            .map(|server| Candidate {
                usable: server.usable() && !tried.iter().any(|other| Arc::ptr_eq(other, server)),
                backup: server.backup,
                weight: server.weight,
                active: server.state.active.load(Relaxed),
            })
            .collect();
        let ticket = self.choices.fetch_add(1, Relaxed);
        let random = self.random.hash_one(ticket);
        let index = choose(self.balance, &candidates, &self.schedule, ticket, client, random)?;
        Some(ServerGuard::new(self.servers[index].clone()))
    }
}

/// A connection to a server: counts as active while it lives.
pub struct ServerGuard(Arc<Server>);

impl ServerGuard {
    /// Counts one more connection.
    pub fn new(server: Arc<Server>) -> Self {
        server.state.active.fetch_add(1, Relaxed);
        ServerGuard(server)
    }

    /// The server.
    pub fn server(&self) -> &Arc<Server> {
        &self.0
    }
}

impl Drop for ServerGuard {
    fn drop(&mut self) {
        self.0.state.active.fetch_sub(1, Relaxed);
    }
}
