//! Resolves the names of servers by DNS and /etc/hosts: at the start, at a reload, when the system's resolver configuration
//! changes, and when a TTL has passed.

use super::lookup::{Found, LookupError, System};
use super::service::MAX_MEMBERS;
use crate::config::Host;
use crate::serving::{Member, Pool, Server, ServerRecord};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout_at};

/// Bounds on the time between two look-ups of a name: with a TTL of 0 the name server must not be flooded, and with a long
/// one a change must not take too long.
const REFRESH: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// The longest pause after failures. The zone's negative TTL is not used.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Look-ups at a time: of ten thousand at once a name server would drop some.
const LOOKUPS: usize = 64;

/// The system's resolver configuration, and how often its files are checked for changes.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
const WATCH: Duration = Duration::from_secs(2);

/// How long a reload waits for the first answers.
const ANSWER: Duration = Duration::from_secs(5);

/// The most unresolved names that the answer to a reload lists; the others are counted.
const NAMED: usize = 20;

/// Resolves names, on the control runtime.
pub struct Resolver {
    /// `None`: the system has no usable resolver configuration.
    system: Option<Arc<System>>,
    /// The state of the files when they were read; empty while there are no names.
    seen: Vec<Option<Look>>,
    /// When they are looked at again.
    rhythm: Interval,
    /// One for each name. They are ended by the next [`Self::look_up`].
    tasks: JoinSet<()>,
    lookups: Arc<Semaphore>,
}

/// Device, inode, length, mtime and ctime of a file: they differ also if a file is replaced by one with the same length and
/// mtime.
type Look = (u64, u64, u64, (i64, i64), (i64, i64));

impl Default for Resolver {
    /// Knows no name yet.
    fn default() -> Self {
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        let mut rhythm = interval(WATCH);
        rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Resolver { system: None, seen: Vec::new(), rhythm, tasks: JoinSet::new(), lookups }
    }
}

impl Resolver {
    /// Resolves every name of these pools anew, whatever its TTL, with the system's present configuration, and keeps the
    /// servers up to date until the next call.
    pub fn look_up(&mut self, pools: &[Arc<Pool>]) -> FirstAnswers {
        // Ends the earlier tasks: they may be waiting for another name server.
        self.tasks = JoinSet::new();
        let (sender, answers) = mpsc::unbounded_channel();
        let subjects = subjects(pools);
        let awaited = subjects.iter().map(Subject::name).collect();
        match subjects.is_empty() {
            true => self.seen.clear(),
            false => self.read_system(),
        }
        for subject in subjects {
            match self.system.clone() {
                Some(system) => {
                    let lookups = self.lookups.clone();
                    self.tasks.spawn(subject.follow(Lookups { system, lookups }, Some(sender.clone())));
                }
                None => drop(sender.send((subject.name(), Err(NO_DNS.into())))),
            }
        }
        FirstAnswers { answers, awaited }
    }

    /// Returns when the system's resolver configuration has changed since it was read; never if there are no names. May be
    /// dropped and called again: the time until the next look goes on.
    pub async fn changed(&mut self) {
        if self.seen.is_empty() {
            return std::future::pending().await;
        }
        loop {
            self.rhythm.tick().await;
            if look() != self.seen {
                return;
            }
        }
    }

    fn read_system(&mut self) {
        self.seen = look();
        match System::read() {
            Ok(system) => self.system = Some(Arc::new(system)),
            Err(error) => {
                tracing::warn!(%error, "{NO_DNS}; servers given by name keep the addresses they have")
            }
        }
    }
}

const NO_DNS: &str = "/etc/resolv.conf names no name server";

fn look() -> Vec<Option<Look>> {
    let look = |path| {
        let file = std::fs::metadata(path).ok()?;
        let times = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
        Some((file.dev(), file.ino(), file.len(), times.0, times.1))
    };
    FILES.map(look).into()
}

/// The results of the first look-up of each name.
pub struct FirstAnswers {
    answers: mpsc::UnboundedReceiver<Answer>,
    awaited: BTreeSet<Box<str>>,
}

/// A name, and whether it was resolved, or why not.
type Answer = (Box<str>, Result<(), String>);

impl FirstAnswers {
    /// Messages about the names that were not resolved, after at most five seconds.
    pub async fn missing(mut self) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + ANSWER;
        let mut missing = Vec::new();
        while let Ok(Some((name, found))) = timeout_at(deadline, self.answers.recv()).await {
            self.awaited.remove(&name);
            missing.extend(found.err().map(|error| format!("cannot resolve {name}: {error}")));
        }
        let silent = self.awaited.iter();
        missing.extend(silent.map(|name| format!("cannot resolve {name}: no answer within {ANSWER:?} yet")));
        let more = missing.len().saturating_sub(NAMED);
        missing.truncate(NAMED);
        missing.extend((more > 0).then(|| format!("cannot resolve {more} other names: see the log")));
        missing
    }
}

/// A name, and the servers or pools that need it.
enum Subject {
    /// A host, with the servers on it and their ports.
    Host { name: Box<str>, servers: Vec<(Arc<ServerRecord>, u16)> },
    /// A service, with the pools that have it and the indices of their entries.
    Service { name: Box<str>, pools: Vec<(Arc<Pool>, usize)> },
}

/// The names of all pools, each once.
fn subjects(pools: &[Arc<Pool>]) -> Vec<Subject> {
    let mut services: HashMap<Box<str>, Vec<(Arc<Pool>, usize)>> = HashMap::new();
    for pool in pools {
        for service in pool.services() {
            services.entry(service.name).or_default().push((pool.clone(), service.entry));
        }
    }
    let services = services.into_iter().map(|(name, pools)| Subject::Service { name, pools });
    hosts(pools.iter().flat_map(|pool| pool.fixed_servers()), "").chain(services).collect()
}

/// The host names of the servers that have one. `root` is appended to each.
fn hosts(servers: impl Iterator<Item = Arc<Server>>, root: &str) -> impl Iterator<Item = Subject> {
    let mut hosts: HashMap<Box<str>, Vec<(Arc<ServerRecord>, u16)>> = HashMap::new();
    for server in servers {
        if let Host::Name(name) = &server.address.host {
            let name = format!("{name}{root}").into();
            hosts.entry(name).or_default().push((server.state.clone(), server.address.port));
        }
    }
    hosts.into_iter().map(|(name, servers)| Subject::Host { name, servers })
}

/// The system's configuration, with the limit on concurrent look-ups.
#[derive(Clone)]
struct Lookups {
    system: Arc<System>,
    lookups: Arc<Semaphore>,
}

/// A successful look-up.
struct Valid {
    /// What was found is valid until then.
    until: Instant,
    /// What could not be found out.
    failed: Option<LookupError>,
}

impl Subject {
    fn name(&self) -> Box<str> {
        match self {
            Subject::Host { name, .. } | Subject::Service { name, .. } => name.clone(),
        }
    }

    /// Resolves the name again and again, and updates its servers or pools. `first` gets the result of the first look-up.
    async fn follow(self, lookups: Lookups, mut first: Option<mpsc::UnboundedSender<Answer>>) {
        let name = self.name();
        let (mut members, mut left_out) = (JoinSet::new(), 0);
        let mut failures = Failures::NONE;
        loop {
            let found = match &self {
                Subject::Host { name, servers } => lookups.host(name, servers).await,
                Subject::Service { name, pools } => {
                    let found = lookups.service(name).await;
                    found.map(|(found, unusable, valid_until)| {
                        if unusable != std::mem::replace(&mut left_out, unusable) {
                            tracing::warn!(
                                %name, left_out,
                                "SRV records that are no servers, or beyond {MAX_MEMBERS}, are left out"
                            );
                        }
                        // `count`, because `any` would stop at the first change.
                        let changed =
                            pools.iter().filter(|(pool, entry)| pool.replace(*entry, &found)).count();
                        if changed > 0 || members.is_empty() {
                            members = lookups.follow_members(pools, &found, first.as_ref());
                        }
                        Valid { until: valid_until, failed: None }
                    })
                }
            };
            let now = Instant::now();
            let (ttl, error) = match found {
                Ok(Valid { until, failed }) => (until.saturating_duration_since(now), failed),
                Err(error) => (REFRESH.1, Some(error)),
            };
            let mut pause = ttl.clamp(REFRESH.0, REFRESH.1);
            match &error {
                Some(error) => {
                    if failures.another(now) {
                        tracing::warn!(%name, %error, "cannot resolve; the addresses known stay in use");
                    }
                    pause = pause.min(failures.pause);
                }
                None => failures = Failures::NONE,
            }
            if let Some(first) = first.take() {
                // An error: at the start nobody waits for it.
                let _ = first.send((name.clone(), error.map_or(Ok(()), |error| Err(error.to_string()))));
            }
            sleep(pause).await;
        }
    }
}

/// The pace of a name's look-ups while they fail.
struct Failures {
    /// The pause after the last one.
    pause: Duration,
    /// The next one is logged from then on.
    silent_until: Option<Instant>,
}

impl Failures {
    const NONE: Failures = Failures { pause: REFRESH.0, silent_until: None };

    /// Another one. Whether it is to be logged.
    fn another(&mut self, now: Instant) -> bool {
        let due = self.silent_until.is_none_or(|until| until <= now);
        if due {
            self.pause = (self.pause * 2).min(RETRY_MAX);
            self.silent_until = Some(now + self.pause);
        }
        due
    }
}

impl Lookups {
    /// Resolves a host and gives its addresses to the servers on it.
    async fn host(&self, name: &str, servers: &[(Arc<ServerRecord>, u16)]) -> Result<Valid, LookupError> {
        let _permit = self.lookups.acquire().await;
        let mut found = self.system.addresses(name).await?;
        found.keep(servers.iter().flat_map(|(server, _)| server.known()));
        let Found { addresses, valid_until: until, failed } = found;
        tracing::debug!(%name, ?addresses, "resolved");
        for (server, port) in servers {
            server.resolved(addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect());
        }
        Ok(Valid { until, failed })
    }

    /// Resolves a service. Returns its servers, how many of its records were left out, and until when they are valid.
    async fn service(&self, name: &str) -> Result<(Vec<Member>, usize, Instant), LookupError> {
        let _permit = self.lookups.acquire().await;
        let found = self.system.service(name).await?;
        tracing::debug!(%name, members = found.0.len(), "resolved");
        Ok(found)
    }

    /// Resolves the servers of a service. Their names are absolute: no search list applies.
    fn follow_members(
        &self,
        pools: &[(Arc<Pool>, usize)],
        members: &[Member],
        first: Option<&mpsc::UnboundedSender<Answer>>,
    ) -> JoinSet<()> {
        let of_service = |server: &Arc<Server>| members.iter().any(|member| member.address == server.address);
        let servers = pools.iter().flat_map(|(pool, _)| pool.servers().to_vec()).filter(of_service);
        let mut tasks = JoinSet::new();
        for host in hosts(servers, ".") {
            tasks.spawn(Box::pin(host.follow(self.clone(), first.cloned())));
        }
        tasks
    }
}
