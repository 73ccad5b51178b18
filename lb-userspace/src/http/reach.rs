//! A connection to a server for a request: one that is kept, or one that is opened.

use super::kept::{self, Way};
use super::link::Link;
use super::upstream::{self, BadStart, Key, Upstream};
use crate::config::SourceAddress;
use crate::connect::{self, Dial, Endpoints, Failure, Greeting, Search};
use crate::reason::{CloseReason, HttpAnswer};
use crate::serving::{Pool, Server, ServerGuard};
use crate::socket::canonical;
use std::sync::Arc;
use tokio::time::Instant;

/// A connection that a request may go on.
pub(super) struct Connection {
    pub(super) upstream: Upstream,
    /// The request's place with the server.
    pub(super) guard: ServerGuard,
    /// The server's, when it was chosen.
    pub(super) epoch: u64,
    /// It has carried other requests, or does.
    pub(super) is_kept: bool,
}

/// A search for a server of a pool that takes a request.
pub(super) struct Reach<'a> {
    link: &'a Link,
    pool: &'a Arc<Pool>,
    owner: u64,
    /// The request cannot be sent again.
    once: bool,
    /// A place with the server that is to be tried first.
    first: Option<ServerGuard>,
    search: Search<'a>,
    /// When the first server was dialled.
    begun: Option<Instant>,
}

impl<'a> Reach<'a> {
    /// `first`: a place with the server that is to be tried first. `once`: the request cannot be sent again. `left`: servers that
    /// are tried only if no other would be in their place.
    pub(super) fn new(
        link: &'a Link,
        pool: &'a Arc<Pool>,
        first: Option<ServerGuard>,
        once: bool,
        left: &[Arc<Server>],
    ) -> Self {
        let search = Search::new(pool, link.connection.client.ip()).beside(left);
        Reach { link, pool, owner: link.owner(pool), once, first, search, begun: None }
    }

    /// A connection to a server; to another one if that cannot be connected, or does not begin to speak HTTP/2.
    pub(super) async fn find(&mut self) -> Result<Connection, HttpAnswer> {
        loop {
            let guard = match self.first.take() {
                Some(guard) => guard,
                None => self.search.next().await.map_err(|failure| answer_of(&failure))?,
            };
            let key = Key::new(self.pool, guard.server(), self.owner);
            let opening = match kept::find(&key, self.pool.connect_timeout, self.once).await? {
                Way::Kept(upstream) => {
                    return Ok(Connection { upstream, guard, epoch: key.epoch, is_kept: true });
                }
                Way::New(opening) => opening,
                Way::Elsewhere(reason) => {
                    // Whoever was to open it counts that, if it fails there as well.
                    self.search.pass(guard.server(), reason.into());
                    continue;
                }
            };
            // Boxed: most requests go on a connection that is there.
            if let Some(opened) = Box::pin(self.open(guard, key)).await? {
                return Ok(opened);
            }
            if let (Some(opening), Some(reason)) = (opening, self.search.reason()) {
                opening.refused(reason);
            }
        }
    }

    /// A new connection to this server, for the kept one was of no use; to another one if that cannot be connected.
    pub(super) async fn find_new(&mut self, guard: ServerGuard) -> Result<Connection, HttpAnswer> {
        let key = Key::new(self.pool, guard.server(), self.owner);
        self.begun = None;
        match Box::pin(self.open(guard, key)).await? {
            Some(opened) => Ok(opened),
            None => self.find().await,
        }
    }

    /// Opens a connection to the server of `guard`. `None`: it does not take it, and another one is to be tried; nothing of the
    /// request was sent.
    async fn open(&mut self, guard: ServerGuard, key: Key) -> Result<Option<Connection>, HttpAnswer> {
        let (link, pool) = (self.link, self.pool);
        let client = link.connection.client;
        let source = (pool.source == SourceAddress::Client).then(|| connect::Source {
            ports: link.gateway.ports(),
            client: Some(client),
            mss: None,
            ipv4: client.is_ipv4(),
        });
        let header = match (pool.send_proxy, link.local) {
            (None, _) => Vec::new(),
            (Some(version), Some(local)) => {
                let endpoints = Endpoints { client, local: canonical(local) };
                connect::proxy_header(version, endpoints, link.connection.sni.as_deref(), link.tls.as_ref())
            }
            (Some(_), None) => return Err(HttpAnswer::Resource),
        };
        let greeting = Greeting { header, tls: pool.tls.is_some(), ..Greeting::default() };
        // What a server says unasked is to be there before the request, so that it is not taken for the answer.
        let dial = Dial { client: client.ip(), source, greeting, at_once: false };
        let opened = self.search.open(guard, &dial, &mut self.begun).await;
        let Some(connected) = opened else { return Ok(None) };
        let took = self.begun.map(|begun| begun.elapsed());
        let server = connected.guard.server().clone();
        match upstream::begin(pool, connected, key).await {
            Ok((upstream, guard)) => {
                if let Some(took) = took {
                    link.gateway.books.histograms.connect.observe(took);
                }
                if let Upstream::H2(h2) = &upstream {
                    kept::share(h2.clone());
                }
                Ok(Some(Connection { upstream, guard, epoch: key.epoch, is_kept: false }))
            }
            Err(error) => {
                tracing::debug!(pool = %pool.name, %error, "a server does not speak HTTP");
                let reason = match error {
                    BadStart::NoSettings => CloseReason::ConnectTimeout,
                    BadStart::Failed(_) => CloseReason::ServerReset,
                };
                self.search.failed(&server, reason.into());
                Ok(None)
            }
        }
    }
}

/// Why no server takes the request.
fn answer_of(failure: &Failure) -> HttpAnswer {
    match failure.reason {
        CloseReason::NoServer => HttpAnswer::NoServer,
        CloseReason::PoolDown => HttpAnswer::PoolDown,
        CloseReason::ServersFull => HttpAnswer::ServersFull,
        CloseReason::ServerTlsFailed => HttpAnswer::ServerTlsFailed,
        CloseReason::Resource => HttpAnswer::Resource,
        // Its connection was there: it has begun with something else than HTTP/2, or ended it.
        CloseReason::ServerReset => HttpAnswer::ServerFailed,
        _ => HttpAnswer::ConnectFailed,
    }
}
