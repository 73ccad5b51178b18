//! Upstream pools at run time: the servers they have now, their addresses and their counts.

use super::Addresses;
use super::drains::Drains;
use crate::config::{self, Address, Balance, Host, Keepalive, Origin, ProxyVersion};
use crate::route::{Candidate, Rank, Schedule, choose, schedules};
use crate::state::ServerState;
use arc_swap::{ArcSwap, Guard};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    balance: Balance,
    /// Made from `slots` whenever these change.
    servers: ArcSwap<Servers>,
    slots: Mutex<Slots>,
    drains: Arc<Drains>,
    /// Choices made, over all workers.
    choices: AtomicU64,
    random: RandomState,
}

/// The servers of a pool at one time, in the order of the configuration; those of a service by priority and name. One that
/// two entries have is there once, as the first has it.
pub struct Servers {
    list: Box<[Arc<Server>]>,
    schedules: Box<[(Rank, Schedule)]>,
}

/// What `servers` is made from.
#[derive(Default)]
struct Slots {
    /// One for each entry of the configuration.
    slots: Vec<Slot>,
    /// Those that have gone while they had connections: should they return, these count again.
    gone: Vec<(Address, Weak<ServerRecord>)>,
}

/// An entry of the configuration's `servers`.
struct Slot {
    /// Whose servers it holds; `None`: one server, which stays.
    service: Option<Box<str>>,
    backup: bool,
    servers: Vec<Arc<Server>>,
}

/// A service that servers of a pool come from.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// The number of its entry in the configuration's `servers`.
    pub entry: usize,
    /// As configured.
    pub name: Box<str>,
    /// Whether it has any now.
    pub has_servers: bool,
}

impl Service {
    /// As it is configured.
    pub fn origin(&self) -> Origin {
        Origin::Service(self.name.clone())
    }
}

/// A server of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Without a trailing dot, though the name is absolute.
    pub address: Address,
    /// 0 for those of the lowest priority there is, 1 for the next.
    pub priority: u16,
    /// 1 to 256.
    pub weight: u32,
}

/// A server of a pool.
pub struct Server {
    /// As configured or as DNS has it, also its name in `status`.
    pub address: Address,
    /// 1 to 256.
    pub weight: u32,
    /// Whether others go first.
    pub rank: Rank,
    /// What outlives a reload.
    pub state: Arc<ServerRecord>,
    /// The same for the same address.
    identity: u64,
}

/// What is known of a server; kept across reloads and changes of its service under its pool's name and its address.
#[derive(Default)]
pub struct ServerRecord {
    /// Where it is; empty until its name is resolved.
    addresses: ArcSwap<Addresses>,
    /// Connections it has now, also those still being opened.
    pub active: AtomicUsize,
    /// Connections opened to it.
    pub total: AtomicU64,
    /// Attempts that failed.
    pub failures: AtomicU64,
    /// It takes no new connection (`snisplice drain`).
    draining: AtomicBool,
}

impl ServerRecord {
    /// Stops (`draining`) or resumes new connections.
    pub fn drain(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
    }

    /// Replaces the addresses, and forgets what was known of them if they are others; an empty answer changes nothing.
    pub fn resolved(&self, addresses: Vec<SocketAddr>) {
        let addresses = Addresses::new(addresses);
        if !addresses.is_empty() && !addresses.same(&self.addresses.load()) {
            self.addresses.store(Arc::new(addresses));
        }
    }
}

impl Server {
    fn new(address: Address, weight: u32, rank: Rank, state: Arc<ServerRecord>) -> Arc<Self> {
        if let Host::Ip(ip) = address.host {
            state.resolved(vec![SocketAddr::new(ip, address.port)]);
        }
        // Without a key: a client stays with its server over a restart.
        let identity = BuildHasherDefault::<DefaultHasher>::default().hash_one(&address);
        Arc::new(Server { address, weight, rank, state, identity })
    }

    /// Its addresses.
    pub fn addresses(&self) -> Arc<Addresses> {
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

impl Servers {
    fn new(slots: &[Slot]) -> Arc<Self> {
        let mut seen = HashSet::new();
        let servers = slots.iter().flat_map(|slot| &slot.servers);
        let list: Box<[_]> = servers.filter(|server| seen.insert(&server.address)).cloned().collect();
        let ranks: Vec<_> = list.iter().map(|server| (server.rank, server.weight)).collect();
        Arc::new(Servers { list, schedules: schedules(&ranks) })
    }
}

impl Deref for Servers {
    type Target = [Arc<Server>];

    fn deref(&self) -> &[Arc<Server>] {
        &self.list
    }
}

impl Slot {
    fn states(&self) -> impl Iterator<Item = (&Address, &ServerRecord)> {
        self.servers.iter().map(|server| (&server.address, &*server.state))
    }

    fn records(&self) -> impl Iterator<Item = (Address, Arc<ServerRecord>)> {
        self.servers.iter().map(|server| (server.address.clone(), server.state.clone()))
    }
}

impl Slots {
    /// What is known of each server, also of those that have gone.
    fn records(&self) -> HashMap<Address, Arc<ServerRecord>> {
        let gone =
            self.gone.iter().filter_map(|(address, record)| Some((address.clone(), record.upgrade()?)));
        gone.chain(self.slots.iter().flat_map(Slot::records)).collect()
    }

    fn may_have(&self, address: &Address) -> bool {
        let has = |slot: &Slot| slot.servers.iter().any(|server| server.address == *address);
        self.slots.iter().any(|slot| slot.service.is_some() || has(slot))
    }

    /// Remembers what is in no slot any more, for as long as it has connections.
    fn remember(&mut self, records: HashMap<Address, Arc<ServerRecord>>) {
        let present: HashSet<_> =
            self.slots.iter().flat_map(Slot::records).map(|(address, _)| address).collect();
        let gone = records.into_iter().filter(|(address, _)| !present.contains(address));
        let gone = gone.filter(|(_, record)| record.active.load(Relaxed) > 0);
        self.gone = gone.map(|(address, record)| (address, Arc::downgrade(&record))).collect();
    }
}

impl Pool {
    /// A pool; servers that `previous` (the pool of the same name before a reload) has too keep their state, and services
    /// the servers they had.
    pub fn new(config: &config::Pool, previous: Option<&Pool>) -> Self {
        let previous_slots = previous.map(Pool::slots);
        let known = previous_slots.as_deref().map(Slots::records).unwrap_or_default();
        let record = |address: &Address| known.get(address).cloned().unwrap_or_default();
        let slot = |entry: &config::Server| match &entry.origin {
            Origin::Address(address) => {
                let rank = Rank { backup: entry.backup, priority: 0 };
                let server = Server::new(address.clone(), entry.weight, rank, record(address));
                Slot { service: None, backup: entry.backup, servers: vec![server] }
            }
            Origin::Service(name) => {
                let same = |slot: &&Slot| slot.service.as_ref() == Some(name);
                let had = previous_slots.iter().flat_map(|slots| slots.slots.iter().find(same));
                let servers = had.flat_map(|slot| &slot.servers).map(|server| {
                    let rank = Rank { backup: entry.backup, ..server.rank };
                    Server::new(server.address.clone(), server.weight, rank, server.state.clone())
                });
                Slot { service: Some(name.clone()), backup: entry.backup, servers: servers.collect() }
            }
        };
        let mut slots = Slots { slots: config.servers.iter().map(slot).collect(), gone: Vec::new() };
        slots.remember(known);
        let drains = previous.map(|pool| pool.drains.clone()).unwrap_or_default();
        drains.apply(slots.slots.iter().flat_map(Slot::states));
        Pool {
            name: config.name.clone(),
            connect_timeout: config.connect_timeout,
            send_proxy: config.send_proxy,
            keepalive: config.keepalive,
            balance: config.balance,
            servers: ArcSwap::new(Servers::new(&slots.slots)),
            slots: Mutex::new(slots),
            drains,
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
            balance: Balance::RoundRobin,
            servers: ArcSwap::new(Servers::new(&[])),
            slots: Mutex::default(),
            drains: Arc::default(),
            choices: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    /// The servers it has now.
    pub fn servers(&self) -> Guard<Arc<Servers>> {
        self.servers.load()
    }

    /// The services that its servers come from.
    pub fn services(&self) -> Vec<Service> {
        let slots = self.slots();
        let service = |(entry, slot): (usize, &Slot)| {
            Some(Service { entry, name: slot.service.clone()?, has_servers: !slot.servers.is_empty() })
        };
        slots.slots.iter().enumerate().filter_map(service).collect()
    }

    /// The servers that are configured by their address.
    pub fn fixed_servers(&self) -> Vec<Arc<Server>> {
        let slots = self.slots();
        let fixed = slots.slots.iter().filter(|slot| slot.service.is_none());
        fixed.flat_map(|slot| &slot.servers).cloned().collect()
    }

    /// Replaces the servers of the service at this entry. Those that stay keep their state, and so do those that return
    /// while they still have connections. `false`: they are the same as before.
    pub fn replace(&self, entry: usize, members: &[Member]) -> bool {
        let mut guard = self.slots();
        let known = guard.records();
        let slots = &mut guard.slots;
        let slot = &mut slots[entry];
        let same = |(server, member): (&Arc<Server>, &Member)| {
            server.address == member.address
                && server.weight == member.weight
                && server.rank.priority == member.priority
        };
        if slot.servers.len() == members.len() && slot.servers.iter().zip(members).all(same) {
            return false;
        }
        let server = |member: &Member| {
            let rank = Rank { backup: slot.backup, priority: member.priority };
            let state = known.get(&member.address).cloned().unwrap_or_default();
            Server::new(member.address.clone(), member.weight, rank, state)
        };
        slot.servers = members.iter().map(server).collect();
        self.drains.apply(slot.states());
        self.servers.store(Servers::new(slots));
        guard.remember(known);
        true
    }

    /// The server of this name, for a connection that was made before this process: one it has, or one that may
    /// return.
    pub fn adopt(&self, name: &str, address: SocketAddr) -> Arc<Server> {
        let retired = || Address { host: Host::Ip(address.ip()), port: address.port() };
        let name = name.parse().unwrap_or_else(|_| retired());
        let mut slots = self.slots();
        let present = slots.slots.iter().flat_map(|slot| &slot.servers).find(|server| server.address == name);
        if let Some(server) = present {
            return server.clone();
        }
        let gone = slots.gone.iter().find(|(address, _)| *address == name);
        let state = gone.and_then(|(_, record)| record.upgrade()).unwrap_or_else(|| {
            let state = Arc::default();
            slots.gone.push((name.clone(), Arc::downgrade(&state)));
            state
        });
        Server::new(name, 1, Rank::default(), state)
    }

    /// Stops (`draining`) or resumes new connections to this server, or to all that the pool has and will have. `false`: the
    /// server stays drained, for its pool is.
    pub fn drain(&self, server: Option<&Address>, draining: bool) -> bool {
        self.drains.set(server, draining, self.slots().slots.iter().flat_map(Slot::states))
    }

    /// Whether the pool is drained, and its servers that are drained by themselves.
    pub fn drained(&self) -> (bool, Vec<Address>) {
        self.drains.all()
    }

    /// Whether it has this server, or DNS may say so.
    pub fn may_have(&self, address: &Address) -> bool {
        self.slots().may_have(address)
    }

    /// Servers that it cannot have any more are drained no longer.
    pub fn forget_drains(&self) {
        let slots = self.slots();
        self.drains.forget(|address| !slots.may_have(address));
    }

    /// The server of this name that it has, or that is drained.
    pub fn find(&self, name: &str) -> Option<Address> {
        let servers = self.servers();
        let present = servers.iter().map(|server| server.address.clone());
        present.chain(self.drained().1).find(|address| address.to_string() == name)
    }

    /// The server for a new connection of `client`, counted as active until the guard is dropped; none of `tried`.
    pub(crate) fn choose(&self, client: IpAddr, tried: &[Arc<Server>]) -> Option<ServerGuard> {
        let servers = self.servers();
        let candidates: Vec<Candidate> = servers
            .iter()
            .map(|server| Candidate {
                // Not the same object: it may have been replaced meanwhile.
                usable: server.usable()
                    && !tried.iter().any(|other| Arc::ptr_eq(&other.state, &server.state)),
                rank: server.rank,
                weight: server.weight,
                active: server.state.active.load(Relaxed),
                identity: server.identity,
            })
            .collect();
        let ticket = self.choices.fetch_add(1, Relaxed);
        let random = self.random.hash_one(ticket);
        let index = choose(self.balance, &candidates, &servers.schedules, ticket, client, random)?;
        Some(ServerGuard::new(servers[index].clone()))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Each change is one assignment, or one of `gone`, which may lack any of its elements.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(servers: &[&str], previous: Option<&Pool>) -> Pool {
        let server = |text: &&str| config::Server {
            origin: match text.strip_prefix("srv:") {
                Some(name) => Origin::Service(name.into()),
                None => Origin::Address(text.parse().unwrap()),
            },
            weight: 1,
            backup: false,
        };
        let config = config::Pool {
            name: "pool".into(),
            balance: Balance::RoundRobin,
            servers: servers.iter().map(server).collect(),
            keepalive: Keepalive::default(),
            connect_timeout: Duration::from_secs(2),
            send_proxy: None,
        };
        Pool::new(&config, previous)
    }

    fn members(names: &[&str]) -> Vec<Member> {
        let member = |name: &&str| Member { address: name.parse().unwrap(), priority: 0, weight: 1 };
        names.iter().map(member).collect()
    }

    fn names(pool: &Pool) -> Vec<String> {
        pool.servers().iter().map(|server| server.address.to_string()).collect()
    }

    #[test]
    fn the_servers_of_a_service_stand_where_it_is_configured() {
        let pool = pool(&["10.0.0.1:1", "srv:_s._tcp.test", "10.0.0.2:2"], None);
        assert_eq!(names(&pool), ["10.0.0.1:1", "10.0.0.2:2"]);
        assert_eq!(pool.services(), [Service { entry: 1, name: "_s._tcp.test".into(), has_servers: false }]);
        let found = members(&["a.test:1", "10.0.0.1:1", "b.test:1"]);
        assert!(pool.replace(1, &found));
        assert_eq!(names(&pool), ["10.0.0.1:1", "a.test:1", "b.test:1", "10.0.0.2:2"]);
        assert!(!pool.replace(1, &found));
        assert!(pool.replace(1, &[]));
        assert_eq!(names(&pool), ["10.0.0.1:1", "10.0.0.2:2"]);
    }

    #[test]
    fn a_server_that_stays_or_returns_with_its_connections_keeps_its_counts() {
        let pool = pool(&["srv:_s._tcp.test"], None);
        pool.replace(0, &members(&["a.test:1", "b.test:1"]));
        let guards = [0, 1].map(|index| ServerGuard::new(pool.servers()[index].clone()));
        pool.replace(0, &members(&["b.test:1"]));
        assert_eq!(pool.servers()[0].state.active.load(Relaxed), 1);
        pool.replace(0, &members(&["a.test:1"]));
        assert_eq!(pool.servers()[0].state.active.load(Relaxed), 1);
        drop(guards);
        pool.replace(0, &members(&["b.test:1"]));
        assert_eq!(pool.servers()[0].state.active.load(Relaxed), 0);
        assert!(pool.slots().gone.is_empty());
    }

    #[test]
    fn a_reload_keeps_the_servers_of_a_service_and_what_has_gone_with_connections() {
        let before = pool(&["10.0.0.1:1", "srv:_s._tcp.test"], None);
        before.replace(1, &members(&["a.test:1"]));
        let guards = [0, 1].map(|index| ServerGuard::new(before.servers()[index].clone()));
        let after = pool(&["srv:_s._tcp.test"], Some(&before));
        assert_eq!(names(&after), ["a.test:1"]);
        assert_eq!(after.servers()[0].state.active.load(Relaxed), 1);
        let back = pool(&["10.0.0.1:1"], Some(&after));
        assert_eq!(back.servers()[0].state.active.load(Relaxed), 1);
        drop(guards);
    }

    #[test]
    fn a_connection_of_an_earlier_process_counts_for_a_server_that_is_not_known_yet() {
        let pool = pool(&["10.0.0.1:1", "srv:_s._tcp.test"], None);
        let at = ([10, 0, 0, 7], 1).into();
        let guards = ["10.0.0.1:1", "a.test:1", "a.test:1", "unknown"]
            .map(|name| ServerGuard::new(pool.adopt(name, at)));
        assert!(Arc::ptr_eq(&guards[1].server().state, &guards[2].server().state));
        assert_eq!(guards[3].server().address.to_string(), "10.0.0.7:1");
        pool.replace(1, &members(&["a.test:1"]));
        let active: Vec<_> = pool.servers().iter().map(|s| s.state.active.load(Relaxed)).collect();
        assert_eq!(active, [1, 2]);
    }
}
