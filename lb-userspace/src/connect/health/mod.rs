//! Health: whether servers work, asked of each at intervals, on a thread of its own: neither workers nor a reload hold it up,
//! and it holds up neither.
//!
//! `probe` is what is asked and how an answer is judged, a file for each protocol; `check` dials and carries the bytes; here
//! is who is asked when. What is known of a server is kept in its record: [`crate::serving::HealthRecord`].

mod check;
mod greetings;
mod http;
mod mysql;
mod postgres;
mod probe;
mod probes;
mod redis;

use crate::clock::now_ms;
use crate::config::OnDown;
use crate::reason::DownReason;
use crate::serving::{Checked, Pool, Server, ServerRecord, Snapshot, Turn};
use check::Checker;
use greetings::Greetings;
use probe::Failure;
use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

/// Checks and questions for greetings under way at a time, each with a descriptor: enough for 10 000 servers with the defaults,
/// should all be silent.
const AT_ONCE: usize = 4096;

/// Within this time the servers that came with one configuration are first checked.
const SPREAD: Duration = Duration::from_secs(1);

/// How often it is asked whether a service has other servers, and whether a MySQL server is to be heard.
const LOOK: Duration = Duration::from_millis(250);

/// Checks servers until it is dropped.
pub struct Prober {
    /// `None`: it is to end.
    pools: Option<mpsc::UnboundedSender<Followed>>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts without a pool. `kill` is to end all connections to these servers.
    pub fn start(kill: impl Fn(&[Arc<ServerRecord>]) + Send + 'static) -> io::Result<Self> {
        let (pools, follow) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || LocalSet::new().block_on(&runtime, Checks::new(kill).run(follow));
        let thread = thread::Builder::new().name("health".into()).spawn(run)?;
        Ok(Prober { pools: Some(pools), thread: Some(thread) })
    }

    /// Checks the servers of these pools from here on, and no others. Who is checked in the same way already goes on in its
    /// rhythm.
    pub fn follow(&self, snapshot: &Snapshot) {
        let checked = snapshot.pools.iter().filter(|pool| pool.health.is_some()).cloned().collect();
        let followed = Followed { checked, mysql: snapshot.mysql_pools() };
        if let Some(pools) = &self.pools {
            // The thread ends only after this.
            let _ = pools.send(followed);
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.pools = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whose servers are asked.
struct Followed {
    /// Whether they work.
    checked: Vec<Arc<Pool>>,
    /// How they greet.
    mysql: Vec<Arc<Pool>>,
}

/// A check that is worth a look: the server has turned, or is down and has connections.
struct Event {
    record: Arc<ServerRecord>,
    turned: bool,
}

/// Everybody who is checked.
struct Checks<K> {
    kill: K,
    pools: Vec<Arc<Pool>>,
    /// Those to which MySQL's clients go.
    mysql: Vec<Arc<Pool>>,
    greetings: Greetings,
    /// By the name of the pool.
    checkers: HashMap<Arc<str>, Arc<Checker>>,
    /// By the address of the server's record, which the task keeps alive.
    servers: HashMap<*const ServerRecord, Running>,
    tasks: JoinSet<()>,
    events: mpsc::UnboundedSender<Event>,
    happened: mpsc::UnboundedReceiver<Event>,
    permits: Arc<Semaphore>,
    lacked: Rc<Cell<Option<Instant>>>,
    random: RandomState,
}

/// A server that is checked.
struct Running {
    checker: Arc<Checker>,
    pool: Arc<Pool>,
    task: AbortHandle,
}

impl<K: Fn(&[Arc<ServerRecord>])> Checks<K> {
    fn new(kill: K) -> Self {
        let (events, happened) = mpsc::unbounded_channel();
        Checks {
            kill,
            pools: Vec::new(),
            mysql: Vec::new(),
            greetings: Greetings::default(),
            checkers: HashMap::new(),
            servers: HashMap::new(),
            tasks: JoinSet::new(),
            events,
            happened,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            lacked: Rc::default(),
            random: RandomState::new(),
        }
    }

    async fn run(mut self, mut follow: mpsc::UnboundedReceiver<Followed>) {
        let mut seen = Vec::new();
        let mut events = Vec::new();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                pools = follow.recv() => match pools {
                    None => return,
                    Some(Followed { checked, mysql }) => {
                        (self.pools, self.mysql) = (checked, mysql);
                        self.greetings.ask(&self.mysql, &self.permits);
                        self.follow();
                        seen = self.lists();
                    }
                },
                _ = self.happened.recv_many(&mut events, AT_ONCE) => self.react(events.drain(..)),
                // Ends of tasks that were aborted.
                Some(_) = self.tasks.join_next() => {}
                _ = look.tick(), if self.looks() => {
                    self.greetings.ask(&self.mysql, &self.permits);
                    let lists = self.lists();
                    if lists != seen {
                        self.follow();
                        seen = lists;
                    }
                }
            }
        }
    }

    /// Whether there is something to look for: services may have other servers, and servers may have to be heard.
    fn looks(&self) -> bool {
        !self.mysql.is_empty() || self.pools.iter().any(|pool| !pool.services().is_empty())
    }

    /// The servers of each pool, by where they are in memory.
    fn lists(&self) -> Vec<Vec<*const Server>> {
        let list = |pool: &Arc<Pool>| pool.servers().iter().map(Arc::as_ptr).collect();
        self.pools.iter().map(list).collect()
    }

    /// Lets the tasks be those of the pools' servers.
    fn follow(&mut self) {
        let (mut checkers, mut servers) = (HashMap::new(), HashMap::new());
        for pool in self.pools.clone() {
            let Some(checker) = self.checker(&pool) else { continue };
            checkers.insert(pool.name.clone(), checker.clone());
            for server in pool.servers().iter() {
                let record = Arc::as_ptr(&server.state);
                let running = match self.servers.remove(&record) {
                    Some(old) if Arc::ptr_eq(&old.checker, &checker) => Running { pool: pool.clone(), ..old },
                    old => {
                        if let Some(old) = old {
                            old.task.abort();
                        }
                        self.begin(&pool, server, checker.clone())
                    }
                };
                servers.insert(record, running);
            }
        }
        self.checkers = checkers;
        for gone in std::mem::replace(&mut self.servers, servers).into_values() {
            gone.task.abort();
        }
    }

    /// That of the pool: the one it had, if it is checked as before.
    fn checker(&mut self, pool: &Pool) -> Option<Arc<Checker>> {
        let health = pool.health.as_ref()?;
        match self.checkers.entry(pool.name.clone()) {
            Entry::Occupied(known) if known.get().is_of(pool) => Some(known.get().clone()),
            _ => match Checker::new(health.clone(), pool.send_proxy) {
                Ok(checker) => Some(Arc::new(checker)),
                Err(error) => {
                    tracing::error!(pool = %pool.name, "not checked: rustls does not take `ca`: {error:#}");
                    None
                }
            },
        }
    }

    fn begin(&mut self, pool: &Arc<Pool>, server: &Arc<Server>, checker: Arc<Checker>) -> Running {
        server.state.health.begin(&checker.health);
        let rhythm = self.random.hash_one(Arc::as_ptr(&server.state));
        let task = Task {
            pool: pool.name.clone(),
            server: server.clone(),
            checker: checker.clone(),
            events: self.events.clone(),
            permits: self.permits.clone(),
            lacked: self.lacked.clone(),
            rhythm,
        };
        Running { checker, pool: pool.clone(), task: self.tasks.spawn_local(task.run()) }
    }

    fn react(&self, events: impl Iterator<Item = Event>) {
        let mut killed = Vec::new();
        for Event { record, turned } in events {
            // It may have gone meanwhile.
            let Some(running) = self.servers.get(&Arc::as_ptr(&record)) else { continue };
            let pool = &running.pool;
            if turned && !pool.is_available() && !pool.awaits_checks() {
                tracing::error!(pool = %pool.name, "no server is up: connections are refused");
            }
            if pool.on_down == OnDown::Kill && matches!(record.health.checked(), Checked::Down(_)) {
                killed.push(record);
            }
        }
        if !killed.is_empty() {
            (self.kill)(&killed);
        }
    }
}

/// The checks of one server.
struct Task {
    pool: Arc<str>,
    server: Arc<Server>,
    checker: Arc<Checker>,
    events: mpsc::UnboundedSender<Event>,
    permits: Arc<Semaphore>,
    /// When it was last said that the gateway lacks something.
    lacked: Rc<Cell<Option<Instant>>>,
    /// The next of a row of random numbers.
    rhythm: u64,
}

impl Task {
    async fn run(mut self) {
        let health = self.checker.health.clone();
        self.server.state.resolves().await;
        if health.role().is_none() {
            sleep(self.part_of(SPREAD.min(health.interval))).await;
        }
        loop {
            let begin = Instant::now();
            let permit = self.permits.acquire().await;
            // Boxed: between checks a server takes little memory.
            let verdict = Box::pin(self.checker.check(&self.server)).await;
            drop(permit);
            self.report(verdict);
            // Nine tenths of the interval to all of it: servers do not stay in step.
            sleep_until(begin + health.interval - self.part_of(health.interval / 10)).await;
        }
    }

    /// A random part.
    fn part_of(&mut self, whole: Duration) -> Duration {
        // Knuth's MMIX; of its numbers the high bits are the random ones.
        self.rhythm =
            self.rhythm.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        whole.mul_f64((self.rhythm >> 32) as f64 / f64::from(u32::MAX))
    }

    fn report(&self, verdict: Result<(), Failure>) {
        let (pool, server, record) = (&self.pool, &self.server.address, &self.server.state);
        if let Err(failure) = &verdict {
            tracing::debug!(%pool, %server, %failure, "the health check failed");
        }
        let reason = verdict.as_ref().copied().map_err(|failure| failure.reason);
        let said_long_ago = || self.lacked.get().is_none_or(|said| said.elapsed() > SPREAD);
        if reason == Err(DownReason::Resource) && said_long_ago() {
            self.lacked.set(Some(Instant::now()));
            tracing::warn!(%pool, %server, "the gateway lacks a descriptor, port or memory for a health check");
        }
        let turn = record.health.judge(reason, &self.checker.health, now_ms());
        match (turn, &verdict) {
            // What most of the servers that follow a master are all the time.
            (Some(Turn { now: Checked::Down(DownReason::WrongRole), .. }), Err(failure)) => {
                tracing::info!(%pool, %server, "down: {failure}");
            }
            (Some(Turn { now: Checked::Down(_), .. }), Err(failure)) => {
                tracing::warn!(%pool, %server, "down: {failure}");
            }
            (Some(Turn { before: Checked::Unchecked, .. }), _) => tracing::debug!(%pool, %server, "up"),
            (Some(_), _) => {
                record.comes_up();
                tracing::info!(%pool, %server, "up");
            }
            (None, _) => {}
        }
        let down = matches!(record.health.checked(), Checked::Down(_));
        if turn.is_some() || (down && record.active.load(Relaxed) > 0) {
            // The receiver ends after all tasks.
            let _ = self.events.send(Event { record: record.clone(), turned: turn.is_some() });
        }
    }
}
