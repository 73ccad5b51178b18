//! The search for a server of a pool that takes a connection: whom to try next, and the wait for a place if all are full.

use super::preamble::{Unwelcome, Welcome};
use super::{Connected, Dial, Failure, open_server, reason_of};
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
    failure: Option<Failure>,
}

impl<'a> Search<'a> {
    /// `client`: who it is for.
    pub fn new(pool: &'a Pool, client: IpAddr) -> Self {
        Search { pool, client, tried: Vec::new(), failure: None }
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
        if self.tried.len() < ATTEMPTS {
            // Nobody goes before those who wait.
            let chosen = match pool.room().waiting() {
                0 => pool.choose(self.client, &self.tried),
                _ => Err(Unavailable::Full),
            };
            match chosen {
                Ok(guard) => return Ok(guard),
                Err(Unavailable::Full) => {
                    let waited = wait(pool, self.client, &self.tried).await;
                    return waited.ok_or_else(|| CloseReason::ServersFull.into());
                }
                Err(Unavailable::Nobody) => {}
            }
        }
        Err(self.failure.take().unwrap_or_else(|| pool.refusal().into()))
    }

    /// Opens a connection to a server that [`next`](Self::next) has given, and greets it. `None`: it does not take it, and
    /// is not given again.
    pub async fn open(&mut self, guard: ServerGuard, dial: &Dial<'_>) -> Option<Connected> {
        let (pool, server) = (self.pool, guard.server());
        let deadline = Instant::now() + pool.connect_timeout;
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
async fn wait(pool: &Pool, client: IpAddr, tried: &[Arc<Server>]) -> Option<ServerGuard> {
    let choose = || pool.in_force().as_deref().unwrap_or(pool).choose(client, tried);
    // The servers of another pool may not be checked yet, or have no addresses.
    let is_replaced = || pool.in_force().is_some_and(|other| !ptr::eq(&*other, pool));
    let place = match pool.in_force().as_deref().unwrap_or(pool).most_waiting() {
        // No server has a bound any more: those who still wait are about to be let in, and lose nothing by this one.
        0 => None,
        most => Some(pool.room().join(most)?),
    };
    let chosen = async {
        let _turn = match &place {
            Some(place) => Some(place.turn().await),
            None => None,
        };
        loop {
            match choose() {
                Ok(guard) => return Some(guard),
                Err(Unavailable::Nobody) if !is_replaced() => return None,
                Err(Unavailable::Full | Unavailable::Nobody) => {}
            }
            match &place {
                // A server may also come up, or DNS find another one.
                Some(place) => _ = timeout(LOOK_AGAIN, place.freed()).await,
                None => sleep(LOOK_AGAIN).await,
            }
        }
    };
    timeout(pool.connect_timeout, chosen).await.ok().flatten()
}

/// Whether the server is to blame. It is not if it did not answer a client's address: maybe only that client's way back is
/// wrong, and others must not lose the server for it.
fn is_servers_fault(reason: CloseReason) -> bool {
    use CloseReason::{ClientAddressUnanswered, ClientAddressUnusable, Resource};
    !matches!(reason, Resource | ClientAddressUnanswered | ClientAddressUnusable)
}

#[cfg(test)]
mod tests {
    use super::super::poll_once;
    use super::*;
    use crate::config;
    use std::net::Ipv4Addr;
    use std::pin::pin;

    #[tokio::test]
    async fn nobody_waits_behind_others_where_no_server_has_a_bound() {
        let server = |max_connections| config::Server {
            max_connections,
            ..config::Server::new(config::Origin::Address("10.0.0.1:1".parse().unwrap()))
        };
        let pool = |max_connections, previous| {
            let config = config::Pool::new("pool".into(), vec![server(max_connections)]);
            Arc::new(Pool::new(&config, previous).unwrap())
        };
        let before = pool(Some(1), None);
        let after = pool(None, Some(&before));
        let _in_front = before.room().join(1).unwrap();
        after.comes_into_force();
        // Also one that was accepted before the reload.
        for pool in [&after, &before] {
            assert!(Search::new(pool, Ipv4Addr::LOCALHOST.into()).next().await.is_ok());
        }
    }

    #[tokio::test]
    async fn who_waits_over_a_reload_waits_for_servers_that_have_no_address_yet() {
        fn pool(origin: config::Origin, bound: Option<usize>, previous: Option<&Pool>) -> Arc<Pool> {
            let server = config::Server { max_connections: bound, ..config::Server::new(origin) };
            let config = config::Pool::new("pool".into(), vec![server]);
            Arc::new(Pool::new(&config, previous).unwrap())
        }
        let named = || config::Origin::Address("db.example.com:1".parse().unwrap());
        let client = Ipv4Addr::LOCALHOST.into();
        for bound in [Some(1), None] {
            let before = pool(config::Origin::Address("10.0.0.1:1".parse().unwrap()), Some(1), None);
            let _its_place = before.choose(client, &[]).ok().unwrap();
            let after = pool(named(), bound, Some(&before));
            after.comes_into_force();
            let mut search = Search::new(&before, client);
            assert!(poll_once(pin!(search.next())).await.is_none(), "{bound:?}");
        }
    }
}
