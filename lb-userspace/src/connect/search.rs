//! The search for a server of a pool that takes a connection: whom to try next, and the wait for a place if all are full.

use super::dial::{Connected, Dial, Failure, open_server, reason_of};
use super::preamble::{Unwelcome, Welcome};
use crate::reason::CloseReason;
use crate::serving::{Pool, Server, ServerGuard, Unavailable};
use std::net::IpAddr;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// The most servers that are tried for one connection: clients do not wait long enough for more.
const ATTEMPTS: usize = 4;

/// How often a connection that waits for a place with a server looks for one, if no other connection ends meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Between two looks whether the first check of a server is done.
const CHECK_POLL: Duration = Duration::from_millis(5);

/// A search for a server of a pool that takes a connection.
pub struct Search<'a> {
    pool: &'a Pool,
    client: IpAddr,
    tried: Vec<Arc<Server>>,
    left: Vec<Arc<Server>>,
    failure: Option<Failure>,
}

impl<'a> Search<'a> {
    /// `client`: who it is for.
    pub fn new(pool: &'a Pool, client: IpAddr) -> Self {
        Search { pool, client, tried: Vec::new(), left: Vec::new(), failure: None }
    }

    /// `left`: servers that are given only if no other would be in their place.
    pub fn beside(mut self, left: &[Arc<Server>]) -> Self {
        self.left = left.to_vec();
        self
    }

    /// The next server to be tried, and a place with it. If all of them are full, waits for one.
    pub async fn next(&mut self) -> Result<ServerGuard, Failure> {
        let pool = self.pool;
        if self.tried.is_empty() && pool.awaits_checks() {
            // After a start or a reload: it takes a moment.
            let checked = async {
                while pool.awaits_checks() {
                    sleep(CHECK_POLL).await;
                }
            };
            let _ = timeout(pool.connect_timeout, Box::pin(checked)).await;
        }
        if self.tried.len() >= ATTEMPTS {
            return Err(self.refusal(pool));
        }
        // Nobody goes before those in the queue, but who has had a place already.
        let chosen = match self.tried.is_empty() && pool.room().has_queue() {
            true => Err(Unavailable::Full),
            false => pool.choose_beside(self.client, &self.tried, &self.left),
        };
        match chosen {
            Ok(guard) => Ok(guard),
            Err(Unavailable::Nobody) => Err(self.refusal(pool)),
            Err(Unavailable::Full) => {
                wait(pool, self.client, &self.tried).await.map_err(|unavailable| match unavailable {
                    Unavailable::Full => CloseReason::ServersFull.into(),
                    Unavailable::Nobody => self.refusal(pool.in_force().as_deref().unwrap_or(pool)),
                })
            }
        }
    }

    /// Why no server takes it: as the last one says, or `pool`, whose servers were looked at.
    fn refusal(&mut self, pool: &Pool) -> Failure {
        self.failure.take().unwrap_or_else(|| pool.refusal().into())
    }

    /// Opens a connection to a server that [`next`](Self::next) has given, and greets it. `None`: it does not take it, and
    /// is not given again. `begun`: when the first server was dialled for the connection; set if none was yet.
    pub async fn open(
        &mut self,
        guard: ServerGuard,
        dial: &Dial<'_>,
        begun: &mut Option<Instant>,
    ) -> Option<Connected> {
        let (pool, server, now) = (self.pool, guard.server(), Instant::now());
        begun.get_or_insert(now);
        let deadline = now + pool.connect_timeout;
        let speaks = dial.greeting.is_sent_first(pool.tls.is_some(), dial.at_once);
        let opened = open_server(&server.addresses(), pool.connect_timeout, dial.source, speaks).await;
        let failure = match opened {
            Ok((mut socket, port)) => {
                server.state.total.fetch_add(1, Relaxed);
                match dial.greeting.exchange(&mut socket, deadline, server, pool.tls.as_deref()).await {
                    Ok(Welcome { session, thread }) => {
                        return Some(Connected { socket, session, thread, port, guard });
                    }
                    Err(Unwelcome { reason, tls_error, words }) => {
                        if let Some(cause) = tls_error {
                            server.state.tls_errors.add(cause as usize);
                        }
                        Failure { reason, tls_error, words, server: Some(server.clone()) }
                    }
                }
            }
            Err(error) => {
                tracing::debug!(pool = %pool.name, server = %server.address, %error, "cannot connect");
                reason_of(&error, dial.source).into()
            }
        };
        self.failed(server, failure);
        None
    }

    /// The server does not take the connection: counts that, and it is not given again.
    pub fn failed(&mut self, server: &Arc<Server>, failure: Failure) {
        server.state.failures.fetch_add(1, Relaxed);
        if is_servers_fault(failure.reason) {
            self.pool.failed(server);
        }
        self.pass(server, failure);
    }

    /// The server does not take the connection, and is not given again. That is counted by whoever has tried it.
    pub fn pass(&mut self, server: &Arc<Server>, failure: Failure) {
        self.failure = Some(failure);
        self.tried.push(server.clone());
    }

    /// Why the last server does not take the connection.
    pub fn reason(&self) -> Option<CloseReason> {
        self.failure.as_ref().map(|failure| failure.reason)
    }
}

/// Waits, for `connect_timeout` at most, until one of the servers that are full may take the connection. A reload meanwhile
/// counts: see [`Pool::in_force`].
async fn wait(pool: &Pool, client: IpAddr, tried: &[Arc<Server>]) -> Result<ServerGuard, Unavailable> {
    let choose = || pool.in_force().as_deref().unwrap_or(pool).choose(client, tried);
    // The servers of another pool may not be checked yet, or have no addresses.
    let awaits_servers =
        || pool.in_force().is_some_and(|other| !ptr::eq(&*other, pool) && other.awaits_servers());
    let place = match pool.in_force().as_deref().unwrap_or(pool).most_waiting() {
        // No server has a bound any more: those who still wait are about to be let in, and lose nothing by this one.
        0 => None,
        most => Some(pool.room().join(most, tried.is_empty()).ok_or(Unavailable::Full)?),
    };
    let chosen = async {
        let _turn = match &place {
            Some(place) => place.turn().await,
            None => None,
        };
        loop {
            match choose() {
                Ok(guard) => return Ok(guard),
                Err(Unavailable::Nobody) if !awaits_servers() => return Err(Unavailable::Nobody),
                Err(Unavailable::Full | Unavailable::Nobody) => {}
            }
            match &place {
                // A server may also come up, or DNS find another one.
                Some(place) => _ = timeout(LOOK_AGAIN, place.freed()).await,
                None => sleep(LOOK_AGAIN).await,
            }
        }
    };
    // A last look says why.
    timeout(pool.connect_timeout, chosen).await.unwrap_or_else(|_| choose())
}

/// Whether the server is to blame. It is not if it did not answer a client's address: maybe only that client's way back is
/// wrong, and others must not lose the server for it.
fn is_servers_fault(reason: CloseReason) -> bool {
    use CloseReason::{ClientAddressUnanswered, ClientAddressUnusable, Resource};
    !matches!(reason, Resource | ClientAddressUnanswered | ClientAddressUnusable)
}

#[cfg(test)]
mod tests {
    use super::super::dial::poll_once;
    use super::super::{Greeting, connect};
    use super::*;
    use crate::config::{self, Check, Health, Origin, Role};
    use crate::reason::DownReason;
    use std::net::Ipv4Addr;
    use std::pin::pin;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A pool of these servers, each of which may have so many connections.
    fn pool(
        servers: &[&str],
        max_connections: Option<usize>,
        check: Check,
        previous: Option<&Pool>,
    ) -> Arc<Pool> {
        let server = |text: &&str| {
            let origin = match text.strip_prefix("srv:") {
                Some(name) => Origin::Service(name.into()),
                None => Origin::Address(text.parse().unwrap()),
            };
            config::Server { max_connections, ..config::Server::new(origin) }
        };
        let config = config::Pool {
            health: Some(Arc::new(Health::new(check))),
            ..config::Pool::new("pool".into(), servers.iter().map(server).collect())
        };
        Arc::new(Pool::new(&config, previous).unwrap())
    }

    fn goes_down(server: &Server) {
        server.state.health.judge(Err(DownReason::Refused), &Health::new(Check::Tcp), 0);
    }

    /// What comes of a search by now: the server or the reason; `None`: it waits.
    async fn outcome(search: &mut Search<'_>) -> Option<Result<String, CloseReason>> {
        let found = poll_once(pin!(search.next())).await?;
        Some(found.map(|guard| guard.server().address.to_string()).map_err(|failure| failure.reason))
    }

    #[tokio::test]
    async fn nobody_waits_behind_others_where_no_server_has_a_bound() {
        let before = pool(&["10.0.0.1:1"], Some(1), Check::Tcp, None);
        let after = pool(&["10.0.0.1:1"], None, Check::Tcp, Some(&before));
        let _in_front = before.room().join(1, true).unwrap();
        after.comes_into_force();
        // Also one that was accepted before the reload.
        for pool in [&after, &before] {
            assert!(Search::new(pool, CLIENT).next().await.is_ok());
        }
    }

    #[tokio::test]
    async fn who_waits_over_a_reload_waits_for_servers_that_may_come() {
        let role = || Check::Redis { role: Some(Role::Master), login: None };
        for (server, check) in [
            ("db.example.com:1", Check::Tcp),
            ("srv:_db._tcp.example.com", Check::Tcp),
            ("10.0.0.2:1", role()),
        ] {
            for bound in [Some(1), None] {
                let before = pool(&["10.0.0.1:1"], Some(1), Check::Tcp, None);
                let _its_place = before.choose(CLIENT, &[]).ok().unwrap();
                let after = pool(&[server], bound, check.clone(), Some(&before));
                after.comes_into_force();
                assert_eq!(outcome(&mut Search::new(&before, CLIENT)).await, None, "{server} {bound:?}");
            }
        }
    }

    #[tokio::test]
    async fn who_waits_for_another_server_keeps_nobody_from_the_one_that_it_has_tried() {
        let pool = pool(&["10.0.0.1:1", "10.0.0.2:1"], Some(1), Check::Tcp, None);
        let [tried, full] = [0, 1].map(|index| pool.servers()[index].clone());
        let place = pool.enter(|server| server.address == full.address).unwrap();
        let mut search = Search::new(&pool, CLIENT);
        search.pass(&tried, CloseReason::ConnectFailed.into());
        let mut first = pin!(search.next());
        assert!(poll_once(first.as_mut()).await.is_none());
        let mut search = Search::new(&pool, CLIENT);
        let second = poll_once(pin!(search.next())).await.expect("at once").ok().unwrap();
        assert_eq!(second.server().address, tried.address);
        // Now all are full.
        let mut search = Search::new(&pool, CLIENT);
        let mut third = pin!(search.next());
        assert!(poll_once(third.as_mut()).await.is_none());
        drop(second);
        assert!(poll_once(first.as_mut()).await.is_none());
        assert!(poll_once(third.as_mut()).await.is_some());
        drop(place);
        let found = poll_once(first).await.unwrap().ok().unwrap();
        assert_eq!(found.server().address, full.address);
    }

    #[tokio::test]
    async fn a_connection_begins_with_the_first_dial() {
        // Nobody listens there.
        let closed = std::net::TcpListener::bind((CLIENT, 0)).unwrap().local_addr().unwrap().to_string();
        let pool = pool(&[&closed], Some(1), Check::Tcp, None);
        let place = pool.choose(CLIENT, &[]).ok().unwrap();
        let dial = Dial { client: CLIENT, source: None, greeting: Greeting::default(), at_once: false };
        let mut begun = None;
        assert!(poll_once(pin!(connect(&pool, &dial, &mut begun))).await.is_none());
        assert_eq!(begun, None, "it waits for a place");
        drop(place);
        assert!(connect(&pool, &dial, &mut begun).await.is_err());
        let first = begun;
        assert!(first.is_some(), "failed attempts count");
        // Of another pool of the route.
        assert!(connect(&pool, &dial, &mut begun).await.is_err());
        assert_eq!(begun, first);
    }

    #[tokio::test]
    async fn a_wait_that_is_in_vain_ends_at_once_with_what_it_has_ended_for() {
        let pool_of = |server: &str, previous: Option<&Pool>| pool(&[server], Some(1), Check::Tcp, previous);
        // Its servers go down.
        let pool = pool_of("10.0.0.1:1", None);
        let place = pool.choose(CLIENT, &[]).ok().unwrap();
        let mut search = Search::new(&pool, CLIENT);
        let mut waits = pin!(search.next());
        assert!(poll_once(waits.as_mut()).await.is_none());
        goes_down(place.server());
        pool.room().free();
        assert_eq!(poll_once(waits).await.unwrap().err().unwrap().reason, CloseReason::PoolDown);
        // Those that a reload brings are down.
        let before = pool_of("10.0.0.1:1", None);
        let _its_place = before.choose(CLIENT, &[]).ok().unwrap();
        let after = pool_of("10.0.0.2:1", Some(&before));
        goes_down(&after.servers()[0]);
        after.comes_into_force();
        assert_eq!(outcome(&mut Search::new(&before, CLIENT)).await, Some(Err(CloseReason::PoolDown)));
        // It has tried them all, and others wait.
        let pool = pool_of("10.0.0.1:1", None);
        let _in_front = pool.room().join(1, true).unwrap();
        let mut search = Search::new(&pool, CLIENT);
        search.pass(&pool.servers()[0], CloseReason::ServerTlsFailed.into());
        assert_eq!(outcome(&mut search).await, Some(Err(CloseReason::ServerTlsFailed)));
        // The same while the queue is full of those whom a server may still take.
        assert_eq!(outcome(&mut Search::new(&pool, CLIENT)).await, Some(Err(CloseReason::ServersFull)));
    }
}
