//! Upstream pools at run time: the servers they have now, their addresses and their counts.

use super::Room;
use super::drains::Drains;
use super::server::{Server, ServerGuard, ServerRecord, Share, Standing};
use crate::clock::now_ms;
use crate::config::{
    self, Address, Balance, Eject, Health, Host, Keepalive, OnDown, Origin, ProxyVersion, Role, SourceAddress,
};
use crate::route::{Candidate, Choice, Rank, Schedule, choose, keep_one, schedules};
use crate::state::ServerState;
use crate::tls::ServerTls;
use arc_swap::{ArcSwap, Guard};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// An upstream pool.
pub struct Pool {
    /// As configured.
    pub name: Arc<str>,
    /// The longest time of one attempt to connect.
    pub connect_timeout: Duration,
    /// The PROXY header its servers expect.
    pub send_proxy: Option<ProxyVersion>,
    /// Whose address its servers see.
    pub source: SourceAddress,
    /// TCP keepalive of the leg to its servers.
    pub keepalive: Keepalive,
    /// How its servers are checked.
    pub health: Option<Arc<Health>>,
    /// What becomes of open connections to a server that its checks find down.
    pub on_down: OnDown,
    pub(super) eject: Option<Eject>,
    /// Its servers are spoken HTTP/2 to.
    pub http2: bool,
    /// Present: its servers are spoken TLS to.
    pub tls: Option<Arc<ServerTls>>,
    /// It has no servers, and gets none.
    is_closed: bool,
    balance: Balance,
    /// How long a server that has come up takes to get its whole share, in milliseconds; 0: no time.
    slow_start_ms: u64,
    /// Who waits for a place with a server. The pools of one name share it over reloads, as long as their servers are spoken to
    /// in the same way.
    room: Arc<Room>,
    /// Of the pools that share `room`, the one that came into force last.
    in_force: Arc<Mutex<Weak<Pool>>>,
    /// Made anew from `slots` whenever those change.
    servers: ArcSwap<Servers>,
    slots: Mutex<Slots>,
    drains: Arc<Drains>,
    /// How many servers were chosen, over all workers.
    choices: AtomicU64,
    random: RandomState,
}

/// The servers of a pool at one time, in the order of the configuration; those of a service by priority and name. A server
/// that two entries have is in the list once, as the first entry has it.
pub struct Servers {
    list: Box<[Arc<Server>]>,
    schedules: Box<[(Rank, Schedule)]>,
}

/// The configuration's entries, from which [`Servers`] is made.
#[derive(Default)]
struct Slots {
    /// One for each entry of the configuration.
    slots: Vec<Slot>,
    /// Servers that were removed while they had connections. If they return, those connections count again.
    gone: Vec<(Address, Weak<ServerRecord>)>,
}

/// An entry of the configuration's `servers`.
struct Slot {
    /// The service whose servers it holds; `None`: it is one server.
    service: Option<Box<str>>,
    backup: bool,
    max_connections: Option<usize>,
    servers: Vec<Arc<Server>>,
}

/// A service (SRV records) of a pool.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// The index of its entry in the configuration's `servers`.
    pub entry: usize,
    /// As configured.
    pub name: Box<str>,
    /// Whether it has servers now.
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
    /// The name is absolute, but has no trailing dot here.
    pub address: Address,
    /// The rank of its priority: 0 for the lowest number, 1 for the next.
    pub priority: u16,
    /// 1 to 256.
    pub weight: u32,
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
    /// Those of these servers. What was in `previous` keeps its state.
    fn new(
        servers: &[config::Server],
        previous: Option<&Slots>,
        room: &Arc<Room>,
        health: Option<&Arc<Health>>,
    ) -> Self {
        let known = previous.map(Slots::records).unwrap_or_default();
        let record = |address: &Address| known.get(address).cloned().unwrap_or_default();
        let slot = |entry: &config::Server| {
            let config::Server { weight, backup, max_connections, .. } = *entry;
            match &entry.origin {
                Origin::Address(address) => {
                    let share = Share { weight, rank: Rank { backup, priority: 0 }, max_connections };
                    let server = Server::new(address.clone(), share, room, health, record(address));
                    Slot { service: None, backup, max_connections, servers: vec![server] }
                }
                Origin::Service(name) => {
                    let same = |slot: &&Slot| slot.service.as_ref() == Some(name);
                    let had = previous.iter().flat_map(|slots| slots.slots.iter().find(same));
                    let servers = had.flat_map(|slot| &slot.servers).map(|server| {
                        let rank = Rank { backup, ..server.rank };
                        let share = Share { weight: server.weight, rank, max_connections };
                        Server::new(server.address.clone(), share, room, health, server.state.clone())
                    });
                    Slot { service: Some(name.clone()), backup, max_connections, servers: servers.collect() }
                }
            }
        };
        let mut slots = Slots { slots: servers.iter().map(slot).collect(), gone: Vec::new() };
        slots.remember(known);
        slots
    }

    /// The state of each server, with those in `gone`.
    fn records(&self) -> HashMap<Address, Arc<ServerRecord>> {
        let gone =
            self.gone.iter().filter_map(|(address, record)| Some((address.clone(), record.upgrade()?)));
        gone.chain(self.slots.iter().flat_map(Slot::records)).collect()
    }

    /// Whether they would be made the same of these servers.
    fn are_of(&self, servers: &[config::Server]) -> bool {
        let is_of = |(slot, entry): (&Slot, &config::Server)| {
            let config::Server { origin, weight, backup, max_connections } = entry;
            let rank = Rank { backup: *backup, priority: 0 };
            match (origin, slot.servers.as_slice()) {
                (Origin::Address(address), [server]) => {
                    slot.service.is_none()
                        && server.address == *address
                        && server.weight == *weight
                        && server.rank == rank
                        && server.max_connections == *max_connections
                }
                _ => false,
            }
        };
        self.slots.len() == servers.len() && self.slots.iter().zip(servers).all(is_of)
    }

    fn may_have(&self, address: &Address) -> bool {
        let has = |slot: &Slot| slot.servers.iter().any(|server| server.address == *address);
        self.slots.iter().any(|slot| slot.service.is_some() || has(slot))
    }

    /// Keeps the state of servers that are in no slot any more in `gone`, while they have connections.
    fn remember(&mut self, records: HashMap<Address, Arc<ServerRecord>>) {
        let present: HashSet<_> =
            self.slots.iter().flat_map(Slot::records).map(|(address, _)| address).collect();
        let gone = records.into_iter().filter(|(address, _)| !present.contains(address));
        let gone = gone.filter(|(_, record)| record.active.load(Relaxed) > 0);
        self.gone = gone.map(|(address, record)| (address, Arc::downgrade(&record))).collect();
    }
}

impl Pool {
    /// A pool of the configuration. `previous`: the pool of the same name before a reload. Servers that it has too keep
    /// their state, and services keep their servers. An error: rustls does not take the certificate of its `tls`.
    pub fn new(config: &config::Pool, previous: Option<&Pool>) -> Result<Self, anyhow::Error> {
        let known_tls = previous.and_then(|pool| pool.tls.as_ref());
        let tls = config.tls.as_ref().map(|tls| ServerTls::new(tls, config.http2, known_tls)).transpose()?;
        let (room, in_force) = previous
            .filter(|pool| pool.speaks_as(config, tls.as_ref()))
            .map(|pool| (pool.room.clone(), pool.in_force.clone()))
            .unwrap_or_default();
        let health = config.health.as_ref();
        let slots = Slots::new(&config.servers, previous.map(Pool::slots).as_deref(), &room, health);
        let drains = previous.map(|pool| pool.drains.clone()).unwrap_or_default();
        drains.apply(slots.slots.iter().flat_map(Slot::states));
        Ok(Pool {
            name: config.name.clone(),
            connect_timeout: config.connect_timeout,
            send_proxy: config.send_proxy,
            source: config.source,
            keepalive: config.keepalive,
            health: config.health.clone(),
            on_down: config.on_down,
            eject: config.eject,
            http2: config.http2,
            tls,
            is_closed: config.is_closed,
            balance: config.balance,
            slow_start_ms: config.slow_start.as_millis().try_into().unwrap_or(u64::MAX),
            room,
            in_force,
            servers: ArcSwap::new(Servers::new(&slots.slots)),
            slots: Mutex::new(slots),
            drains,
            choices: AtomicU64::new(previous.map_or(0, |pool| pool.choices.load(Relaxed))),
            random: RandomState::new(),
        })
    }

    /// Whether it would be made the same of this. One whose servers come from services is made anew: who resolves them waits for
    /// that.
    pub fn is_of(&self, config: &config::Pool) -> bool {
        // Taken apart in full: a field that is not compared does not compile.
        let config::Pool {
            name,
            balance,
            servers,
            slow_start,
            connect_timeout,
            send_proxy,
            source,
            keepalive,
            health,
            eject,
            on_down,
            http2,
            tls,
            is_closed,
        } = config;
        let is_same_tls = match (&self.tls, tls) {
            (Some(known), Some(source)) => known.is_of(source),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.name == *name
            && self.balance == *balance
            && u128::from(self.slow_start_ms) == slow_start.as_millis()
            && self.connect_timeout == *connect_timeout
            && self.send_proxy == *send_proxy
            && self.source == *source
            && self.keepalive == *keepalive
            && self.health == *health
            && self.eject == *eject
            && self.on_down == *on_down
            && self.http2 == *http2
            && is_same_tls
            && self.is_closed == *is_closed
            && self.slots().are_of(servers)
    }

    /// A pool that is no longer configured, for adopted connections to its servers.
    pub fn retired(name: &str, keepalive: Keepalive) -> Self {
        Pool {
            name: name.into(),
            connect_timeout: Duration::ZERO,
            send_proxy: None,
            source: SourceAddress::Gateway,
            keepalive,
            health: None,
            on_down: OnDown::Keep,
            eject: None,
            http2: false,
            tls: None,
            is_closed: false,
            balance: Balance::RoundRobin,
            slow_start_ms: 0,
            room: Arc::default(),
            in_force: Arc::default(),
            servers: ArcSwap::new(Servers::new(&[])),
            slots: Mutex::default(),
            drains: Arc::default(),
            choices: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    /// Whether its servers are spoken to as those of this pool are to be.
    fn speaks_as(&self, config: &config::Pool, tls: Option<&Arc<ServerTls>>) -> bool {
        self.send_proxy == config.send_proxy
            && self.source == config.source
            && self.http2 == config.http2
            && self.tls.as_ref().map(Arc::as_ptr) == tls.map(Arc::as_ptr)
    }

    /// Those who wait for a server of a pool whose place it takes look among its own from now on, and do so at once.
    pub fn comes_into_force(self: &Arc<Self>) {
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(self);
        self.room.free();
    }

    /// The pool to look for a server in, for whoever waits for one of this pool: the one in force. They count against what that
    /// allows, and those who come after them wait behind them; else everybody would wait for what only an old list of servers
    /// says. It is right for them: they have no server yet, and speak to it as this pool says, which is the same. `None`: no
    /// other one has come into force, or it is gone.
    pub(crate) fn in_force(&self) -> Option<Arc<Pool>> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
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

    /// Replaces the servers of the service at this entry. Servers that stay keep their state, as do those that return while
    /// they still have connections. `false`: nothing has changed.
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
            let share = Share { weight: member.weight, rank, max_connections: slot.max_connections };
            let state = known.get(&member.address).cloned().unwrap_or_default();
            Server::new(member.address.clone(), share, &self.room, self.health.as_ref(), state)
        };
        slot.servers = members.iter().map(server).collect();
        self.drains.apply(slot.states());
        self.servers.store(Servers::new(slots));
        guard.remember(known);
        true
    }

    /// Replaces all servers. Those that stay keep their state, as do those that return while they still have connections. A pool
    /// that was to speak TLS, and cannot, stays without any.
    pub fn reconfigure(&self, servers: &[config::Server]) {
        let servers = if self.is_closed { &[] } else { servers };
        let mut slots = self.slots();
        *slots = Slots::new(servers, Some(&slots), &self.room, self.health.as_ref());
        self.drains.apply(slots.slots.iter().flat_map(Slot::states));
        self.servers.store(Servers::new(&slots.slots));
    }

    /// Whether the configuration gives it any: a Service of Kubernetes may have no endpoint.
    pub fn may_have_servers(&self) -> bool {
        !self.slots().slots.is_empty()
    }

    /// The server of this name, for an adopted connection. If the pool does not have it, it is entered in `gone`.
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
        Server::new(name, Share { weight: 1, ..Share::default() }, &self.room, None, state)
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

    /// Chooses a server for a new connection of `client`, none of `tried`. The connection counts as active until the guard
    /// is dropped.
    pub(crate) fn choose(&self, client: IpAddr, tried: &[Arc<Server>]) -> Result<ServerGuard, Unavailable> {
        self.choose_beside(client, tried, &[])
    }

    /// The same; one of `left` only if no other would be chosen in its place.
    pub(crate) fn choose_beside(
        &self,
        client: IpAddr,
        tried: &[Arc<Server>],
        left: &[Arc<Server>],
    ) -> Result<ServerGuard, Unavailable> {
        let servers = self.servers();
        // Again where another worker has taken the last place meanwhile.
        loop {
            let mut candidates = self.candidates(&servers, tried);
            pass_over(&mut candidates, |index| is_among(left, &servers[index]));
            let ticket = self.choices.fetch_add(1, Relaxed);
            let random = self.random.hash_one(ticket);
            let choice = choose(self.balance, &candidates, &servers.schedules, ticket, client, random);
            let index = match choice {
                Choice::Server(index) => index,
                Choice::Full => return Err(Unavailable::Full),
                Choice::Nobody => return Err(Unavailable::Nobody),
            };
            if let Some(guard) = ServerGuard::enter(&servers[index]) {
                return Ok(guard);
            }
        }
    }

    /// A place with this server of the pool, if it takes new connections.
    pub(crate) fn enter(&self, wanted: impl Fn(&Server) -> bool) -> Option<ServerGuard> {
        let servers = self.servers();
        let server = servers.iter().find(|server| wanted(server))?;
        ServerGuard::enter(server).filter(|_| server.standing(now_ms()) == Standing::Usable)
    }

    /// Its servers hold the same data, and one of them takes the writes.
    fn follows_master(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.role() == Some(Role::Master))
    }

    /// The servers as the choice sees them.
    fn candidates(&self, servers: &Servers, tried: &[Arc<Server>]) -> Vec<Candidate> {
        let now_ms = now_ms();
        let standing = |server: &Arc<Server>| match is_among(tried, server) {
            true => Standing::Unusable,
            false => server.standing(now_ms),
        };
        let standings: Vec<Standing> = servers.iter().map(standing).collect();
        let wanted = if standings.contains(&Standing::Usable) { Standing::Usable } else { Standing::Ejected };
        let candidate = |(server, standing): (&Arc<Server>, &Standing)| Candidate {
            usable: *standing == wanted,
            full: server.is_full(),
            rank: server.rank,
            weight: server.weight,
            warmth: server.state.warmth(self.slow_start_ms, now_ms),
            active: server.state.active.load(Relaxed),
            identity: server.identity,
        };
        let mut candidates: Vec<Candidate> = servers.iter().zip(&standings).map(candidate).collect();
        if self.follows_master() {
            keep_one(&mut candidates, |index| servers[index].state.health.passing_since());
        }
        candidates
    }

    /// Who waits for a place with one of its servers.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Most connections that may wait at a time: as many as all its servers may have.
    pub(crate) fn most_waiting(&self) -> usize {
        let bounds = |servers: &Servers| servers.iter().filter_map(|server| server.max_connections).sum();
        bounds(&self.servers())
    }

    /// The first check of one of its servers, or the first answer of DNS, is still to come: it may soon have a server for a
    /// connection.
    pub(crate) fn awaits_servers(&self) -> bool {
        let is_unresolved = |server: &Arc<Server>| server.availability().state == ServerState::Unresolved;
        self.awaits_checks()
            || self.servers().iter().any(is_unresolved)
            || self.services().iter().any(|service| !service.has_servers)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // A panic leaves nothing half-changed: each change is one assignment, or one to `gone`, which may lack elements.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a pool has no server for a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Each that could take it has as many connections as it may have.
    Full,
    /// None is usable.
    Nobody,
}

/// Whether it is one of these, which may have been replaced by other objects meanwhile.
fn is_among(servers: &[Arc<Server>], server: &Server) -> bool {
    servers.iter().any(|other| Arc::ptr_eq(&other.state, &server.state))
}

/// Takes those that were `left` out of the choice, if it has another one that is as good, and not full.
fn pass_over(candidates: &mut [Candidate], left: impl Fn(usize) -> bool) {
    let best = candidates.iter().filter(|candidate| candidate.usable).map(|candidate| candidate.rank).min();
    let mut others = candidates.iter().enumerate().filter(|(index, _)| !left(*index));
    if others.any(|(_, other)| other.usable && !other.full && Some(other.rank) == best) {
        let passed = candidates.iter_mut().enumerate().filter(|(index, _)| left(*index));
        passed.for_each(|(_, candidate)| candidate.usable = false);
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
            max_connections: None,
        };
        let config = config::Pool {
            name: "pool".into(),
            balance: Balance::RoundRobin,
            slow_start: Duration::ZERO,
            servers: servers.iter().map(server).collect(),
            keepalive: Keepalive::default(),
            connect_timeout: Duration::from_secs(2),
            send_proxy: None,
            source: SourceAddress::Gateway,
            health: None,
            eject: None,
            on_down: OnDown::Keep,
            http2: false,
            tls: None,
            is_closed: false,
        };
        Pool::new(&config, previous).unwrap()
    }

    #[test]
    fn who_has_not_answered_is_passed_over_for_one_that_is_as_good() {
        const GOOD: Candidate = Candidate {
            usable: true,
            full: false,
            rank: Rank { backup: false, priority: 0 },
            weight: 1,
            warmth: crate::route::WHOLE,
            active: 0,
            identity: 0,
        };
        let backup = Candidate { rank: Rank { backup: true, ..GOOD.rank }, ..GOOD };
        for (what, other, is_passed) in [
            ("one like it", GOOD, true),
            ("full", Candidate { full: true, ..GOOD }, false),
            ("ejected, down or tried", Candidate { usable: false, ..GOOD }, false),
            ("a backup", backup, false),
        ] {
            let mut candidates = [GOOD, other];
            pass_over(&mut candidates, |index| index == 0);
            assert_eq!(!candidates[0].usable, is_passed, "{what}");
            assert_eq!(candidates[1].usable, other.usable, "{what}");
        }
        let mut only = [GOOD];
        pass_over(&mut only, |_| true);
        assert!(only[0].usable);
    }

    #[test]
    fn who_waits_looks_in_the_pool_in_force_however_many_reloads_ago_its_own_was() {
        let first = Arc::new(pool(&["10.0.0.1:1"], None));
        let refused = pool(&["10.0.0.2:1"], Some(&first));
        assert!(first.in_force().is_none() && refused.in_force().is_none());
        let mut last = first.clone();
        for server in ["10.0.0.3:1", "10.0.0.4:1"] {
            last = Arc::new(pool(&[server], Some(&last)));
            last.comes_into_force();
        }
        let found = first.in_force().unwrap();
        assert!(Arc::ptr_eq(&found, &last));
        assert_eq!(names(&found), ["10.0.0.4:1"]);
        // A configuration that is not in force any more is not held.
        drop((found, last));
        assert!(first.in_force().is_none());
    }

    fn members(names: &[&str]) -> Vec<Member> {
        let member = |name: &&str| Member { address: name.parse().unwrap(), priority: 0, weight: 1 };
        names.iter().map(member).collect()
    }

    fn names(pool: &Pool) -> Vec<String> {
        pool.servers().iter().map(|server| server.address.to_string()).collect()
    }

    #[test]
    fn a_pool_whose_tls_cannot_be_gets_no_servers() {
        let config = |is_closed| config::Pool { is_closed, ..config::Pool::new("pool".into(), Vec::new()) };
        let servers = [config::Server::new(Origin::Address("10.0.0.11:443".parse().unwrap()))];
        for (is_closed, count) in [(false, 1), (true, 0)] {
            let pool = Pool::new(&config(is_closed), None).unwrap();
            pool.reconfigure(&servers);
            assert_eq!(pool.fixed_servers().len(), count);
            assert!(pool.is_of(&config::Pool { servers: servers[..count].to_vec(), ..config(is_closed) }));
            assert!(!pool.is_of(&config::Pool { servers: servers[..count].to_vec(), ..config(!is_closed) }));
        }
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
