//! What is known of one client, and its account: opened when it has a route, closed exactly once.

use super::access_log::{Record, printable, time_now};
use super::{CloseReason, Connection, FallbackReason, RejectReason, Tier};
use crate::clock::now_ms;
use crate::connect::{Pool, ServerGuard};
use crate::gateway::{Gateway, Listener, Route};
use crate::sniff::{ClientHello, ja4};
use crate::splice::Choice;
use rustls::ProtocolVersion;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use tokio::task::AbortHandle;

/// A client, with what the access log will say of it.
pub struct Visitor {
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Its address, or what a trusted proxy said it is.
    pub client: SocketAddr,
    /// Where it connected to, if a trusted proxy said so.
    pub local: Option<SocketAddr>,
    opened_ms: u64,
    /// Kept only when there is an access log: an idle connection should own little.
    hello: Option<Box<HelloFacts>>,
    logged: bool,
}

struct HelloFacts {
    sni: Option<Box<str>>,
    alpn: Vec<String>,
    version: String,
    ja4: Option<String>,
}

impl Visitor {
    /// A client that has just been accepted.
    pub fn new(gateway: &Gateway, listener: Arc<Listener>, client: SocketAddr, opened_ms: u64) -> Self {
        let logged = gateway.access_log.is_some();
        Visitor { listener, client, local: None, opened_ms, hello: None, logged }
    }

    /// Notes what its ClientHello, at the front of `window`, says.
    pub fn sniffed(&mut self, hello: &ClientHello, window: &[u8]) {
        self.hello = self.logged.then(|| {
            Box::new(HelloFacts {
                sni: hello.sni.as_ref().map(|name| name.as_str().into()),
                alpn: hello.alpn.iter().map(printable).collect(),
                version: hello.version.to_string(),
                ja4: ja4(window).map(|ja4| ja4.to_string()),
            })
        });
    }

    /// Notes the TLS version agreed on.
    pub fn negotiated(&mut self, version: Option<ProtocolVersion>) {
        if let Some(hello) = &mut self.hello {
            hello.version = match version {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2".into(),
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3".into(),
                _ => return,
            };
        }
    }

    /// Counts and logs a client that is turned away.
    pub fn reject(&self, gateway: &Gateway, reason: RejectReason) {
        self.listener.stats.rejects.add(reason as usize);
        self.log(gateway, reason.name(), None);
    }

    fn log(&self, gateway: &Gateway, close_reason: &'static str, connection: Option<&Connection>) {
        let Some(log) = &gateway.access_log else { return };
        let hello = self.hello.as_deref();
        let upstream = connection.and_then(|connection| connection.upstream.get());
        let choice = connection.and_then(Connection::choice);
        let traffic = connection.map(|connection| &connection.traffic);
        let record = Record {
            time: time_now(),
            listener: &self.listener.name,
            client: SocketAddr::new(self.client.ip().to_canonical(), self.client.port()),
            sni: hello.and_then(|hello| hello.sni.as_deref()),
            alpn: hello.map(|hello| &hello.alpn[..]).filter(|alpn| !alpn.is_empty()),
            tls_version: hello.map(|hello| &*hello.version),
            route: connection.map(|connection| &*connection.route.name),
            pool: upstream.map(|(pool, _)| &*pool.name),
            server: upstream.map(|(_, server)| server.address.to_string()),
            tier: choice.map(|choice| choice.tier.name()),
            tier_reason: choice.and_then(|choice| choice.reason).map(|reason| reason.name()),
            bytes_in: traffic.map_or(0, |traffic| traffic.bytes_in.load(Relaxed)),
            bytes_out: traffic.map_or(0, |traffic| traffic.bytes_out.load(Relaxed)),
            duration_ms: now_ms() - self.opened_ms,
            close_reason,
            ja4: hello.and_then(|hello| hello.ja4.as_deref()),
        };
        log.write(record.line(log.format));
    }
}

/// The account of a routed connection. Dropped without a reason it was ended from outside.
pub struct Account {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Its client.
    pub visitor: Visitor,
    /// Its entry in the ledger.
    pub connection: Arc<Connection>,
    worker: usize,
    reason: Option<CloseReason>,
}

impl Account {
    /// Opens the account: the connection is in the ledger from here on.
    pub fn open(
        gateway: Arc<Gateway>,
        worker: usize,
        task: Arc<OnceLock<AbortHandle>>,
        visitor: Visitor,
        route: Arc<Route>,
        hello: Option<&ClientHello>,
    ) -> Self {
        let sni = hello.and_then(|hello| hello.sni.as_ref()).map(|name| name.as_str().into());
        let connection = Arc::new(Connection::new(
            gateway.ledger.next_id(),
            visitor.client,
            visitor.listener.clone(),
            sni,
            route,
            visitor.opened_ms,
            task,
        ));
        gateway.ledger.enter(worker, connection.clone());
        Account { gateway, visitor, connection, worker, reason: None }
    }

    /// Notes the server.
    pub fn connected(&self, pool: &Arc<Pool>, guard: &ServerGuard) {
        let _ = self.connection.upstream.set((pool.clone(), guard.server().clone()));
    }

    /// Notes the tier that carries it.
    pub fn spliced(&self, choice: Choice) {
        self.connection.set_choice(choice);
        let index = choice.tier as usize;
        for tiers in [&self.gateway.stats.tiers, &self.connection.route.stats.tiers] {
            tiers[index].total.fetch_add(1, Relaxed);
            tiers[index].active.fetch_add(1, Relaxed);
        }
        if let Some(reason) = choice.reason {
            self.gateway.stats.fallbacks.add(reason as usize);
        }
    }

    /// Notes that the tier gave the connection back to the copy tier. Its total stays where it began.
    pub fn demoted(&self, reason: FallbackReason) {
        let Some(before) = self.connection.choice() else { return };
        self.connection.set_choice(Choice { tier: Tier::Copy, reason: Some(reason) });
        for tiers in [&self.gateway.stats.tiers, &self.connection.route.stats.tiers] {
            tiers[before.tier as usize].active.fetch_sub(1, Relaxed);
            tiers[Tier::Copy as usize].active.fetch_add(1, Relaxed);
        }
        self.gateway.stats.fallbacks.add(reason as usize);
    }

    /// Closes the account.
    pub fn close(mut self, reason: CloseReason) {
        self.reason = Some(reason);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let reason = self.reason.or(self.connection.ending()).unwrap_or(CloseReason::Shutdown);
        if let Some(choice) = self.connection.choice() {
            let index = choice.tier as usize;
            for tiers in [&self.gateway.stats.tiers, &self.connection.route.stats.tiers] {
                tiers[index].active.fetch_sub(1, Relaxed);
            }
        }
        self.gateway.ledger.close(self.worker, &self.connection, reason);
        tracing::debug!(id = self.connection.id, client = %self.visitor.client, %reason, "closed");
        self.visitor.log(&self.gateway, reason.name(), Some(&self.connection));
    }
}
