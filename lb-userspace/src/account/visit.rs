//! A visitor is a client without a route yet. An account is opened when it has a route, and closed exactly once.

use super::access_log::{LogRecord, printable, time_now};
use super::{Books, Connection};
use crate::clock::now_ms;
use crate::reason::{CloseReason, EchResult, FallbackReason, RejectReason, Tier, TlsError};
use crate::serving::{Listener, Pool, Route, Server};
use crate::sniff::{ClientHello, ja4};
use crate::tier::Choice;
use lb_common::packet::{Record, Side};
use rustls::ProtocolVersion;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::task::AbortHandle;

/// A client without a route yet, with what the access log needs of it.
pub struct Visitor {
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// Its address, or what a trusted proxy said it is.
    pub client: SocketAddr,
    /// Where it connected to, if a trusted proxy said so.
    pub local: Option<Box<SocketAddr>>,
    opened_ms: u64,
    /// Kept only if there is an access log, to save memory.
    hello: Option<Box<HelloFacts>>,
    logged: bool,
}

/// The most ALPN protocols that are kept for the access log; clients offer two or three.
const MAX_ALPN: usize = 16;

/// Tags of [`Account::facts`].
mod fact {
    pub(super) const SNI: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const JA4: u8 = 3;
    pub(super) const ALPN: u8 = 4;
    pub(super) const ECH: u8 = 5;
    pub(super) const SNI_OUTER: u8 = 6;
}

struct HelloFacts {
    sni: Option<Box<str>>,
    /// What became of its Encrypted ClientHello.
    ech: Option<EchResult>,
    /// The name in the clear, if `sni` was encrypted.
    sni_outer: Option<Box<str>>,
    alpn: Vec<String>,
    version: String,
    ja4: Option<String>,
    client_certificate: Option<String>,
}

impl Visitor {
    /// A client that has just been accepted.
    pub fn new(books: &Books, listener: Arc<Listener>, client: SocketAddr, opened_ms: u64) -> Self {
        let logged = books.access_log.is_some();
        Visitor { listener, client, local: None, opened_ms, hello: None, logged }
    }

    /// Notes its ClientHello, which is at the front of `window`.
    pub fn sniffed(&mut self, hello: &ClientHello, window: &[u8]) {
        if let Some(odd) = hello.odd_name {
            self.listener.stats.odd_names.add(odd as usize);
        }
        self.hello = self.logged.then(|| {
            Box::new(HelloFacts {
                sni: hello.sni.as_ref().map(|name| name.as_str().into()),
                ech: None,
                sni_outer: None,
                alpn: hello.alpn.iter().take(MAX_ALPN).map(printable).collect(),
                version: hello.version.to_string(),
                ja4: ja4(window).map(|ja4| ja4.to_string()),
                client_certificate: None,
            })
        });
    }

    /// Notes what became of its Encrypted ClientHello. `inner`: what it asks for in there, if that counts.
    pub fn unsealed(&mut self, result: EchResult, inner: Option<&ClientHello>) {
        self.listener.stats.ech.add(result as usize);
        let Some(hello) = &mut self.hello else { return };
        hello.ech = Some(result);
        if let Some(inner) = inner {
            let sni = inner.sni.as_ref().map(|name| name.as_str().into());
            hello.sni_outer = std::mem::replace(&mut hello.sni, sni);
            hello.alpn = inner.alpn.iter().take(MAX_ALPN).map(printable).collect();
            hello.version = inner.version.to_string();
        }
    }

    /// A client that an earlier process has accepted, and its SNI, from [`Account::facts`].
    pub fn remembered(
        books: &Books,
        listener: Arc<Listener>,
        client: SocketAddr,
        opened_ms: u64,
        mut facts: &[u8],
    ) -> (Self, Option<Box<str>>) {
        let mut visitor = Self::new(books, listener, client, opened_ms);
        let mut hello = HelloFacts {
            sni: None,
            ech: None,
            sni_outer: None,
            alpn: Vec::new(),
            version: String::new(),
            ja4: None,
            client_certificate: None,
        };
        let mut known = false;
        while let [tag, length, rest @ ..] = facts {
            let Some((text, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
            facts = rest;
            let text = String::from_utf8_lossy(text).into_owned();
            match *tag {
                fact::SNI => hello.sni = Some(text.into()),
                fact::VERSION => (known, hello.version) = (true, text),
                fact::JA4 => hello.ja4 = Some(text),
                fact::ALPN => hello.alpn.push(text),
                fact::ECH => hello.ech = EchResult::ALL.iter().copied().find(|result| result.name() == text),
                fact::SNI_OUTER => hello.sni_outer = Some(text.into()),
                _ => {}
            }
        }
        if !visitor.logged || !known {
            return (visitor, hello.sni);
        }
        let sni = hello.sni.clone();
        visitor.hello = Some(Box::new(hello));
        (visitor, sni)
    }

    /// Counts and logs that it is turned away.
    pub fn reject(&self, books: &Books, reason: RejectReason) {
        self.listener.stats.rejects.add(reason as usize);
        let who = (&*self.listener, self.client, self.opened_ms);
        log(books, who, now_ms(), self.hello.as_deref(), (reason.name(), None), None);
    }
}

/// Writes a line of the access log. `who`: the listener, the client's address, and the time of the accept.
fn log(
    books: &Books,
    who: (&Listener, SocketAddr, u64),
    ended_ms: u64,
    hello: Option<&HelloFacts>,
    (close_reason, tls_error): (&'static str, Option<TlsError>),
    connection: Option<&Connection>,
) {
    let Some(log) = &books.access_log else { return };
    let (listener, client, opened_ms) = who;
    let upstream = connection.and_then(|connection| connection.upstream.get());
    let choice = connection.and_then(Connection::choice);
    let traffic = connection.map(|connection| &connection.traffic);
    let record = LogRecord {
        time: time_now(),
        listener: &listener.name,
        client,
        sni: hello.and_then(|hello| hello.sni.as_deref()),
        sni_outer: hello.and_then(|hello| hello.sni_outer.as_deref()),
        ech: hello.and_then(|hello| hello.ech).map(EchResult::name),
        alpn: hello.map(|hello| &hello.alpn[..]).filter(|alpn| !alpn.is_empty()),
        tls_version: hello.map(|hello| &*hello.version),
        route: connection.map(|connection| connection.route.name()),
        pool: upstream.map(|(pool, _)| &*pool.name),
        server: upstream.map(|(_, server)| server.address.to_string()),
        tier: choice.map(|choice| choice.tier.name()),
        tier_reason: choice.and_then(|choice| choice.reason).map(|reason| reason.name()),
        bytes_in: traffic.map_or(0, |traffic| traffic.bytes_in.load(Relaxed)),
        bytes_out: traffic.map_or(0, |traffic| traffic.bytes_out.load(Relaxed)),
        duration_ms: ended_ms.saturating_sub(opened_ms),
        close_reason,
        tls_error: tls_error.map(TlsError::name),
        client_certificate: hello.and_then(|hello| hello.client_certificate.as_deref()),
        ja4: hello.and_then(|hello| hello.ja4.as_deref()),
    };
    log.write(record.line(log.format));
}

/// The account of a routed connection. If it is dropped without a reason, the connection was ended from outside.
pub struct Account {
    /// The books in which it is entered.
    pub books: Arc<Books>,
    /// Its entry in the ledger.
    pub connection: Arc<Connection>,
    /// The address to which its client connected, if a trusted proxy said so.
    pub local: Option<Box<SocketAddr>>,
    hello: Option<Box<HelloFacts>>,
    worker: usize,
    reason: Option<CloseReason>,
    tls_error: Option<TlsError>,
    /// When it ended; `None`: when its account is closed.
    ended_ms: Option<u64>,
    /// It is left to the next process, which will close it.
    left: bool,
}

impl Account {
    /// Opens the account, and enters the connection in the ledger.
    pub fn open(
        books: Arc<Books>,
        worker: usize,
        task: Option<AbortHandle>,
        visitor: Visitor,
        route: Arc<Route>,
        hello: Option<&ClientHello>,
    ) -> Self {
        let sni = hello.and_then(|hello| hello.sni.as_ref()).map(|name| name.as_str().into());
        let id = books.ledger.next_id();
        Self::enter(books, worker, task, visitor, id, sni, route)
    }

    /// Takes over the account of a connection that an earlier process has opened.
    pub fn adopt(
        books: Arc<Books>,
        visitor: Visitor,
        id: u64,
        sni: Option<Box<str>>,
        route: Arc<Route>,
    ) -> Self {
        books.ledger.know_id(id);
        Self::enter(books, 0, None, visitor, id, sni, route)
    }

    fn enter(
        books: Arc<Books>,
        worker: usize,
        task: Option<AbortHandle>,
        visitor: Visitor,
        id: u64,
        sni: Option<Box<str>>,
        route: Arc<Route>,
    ) -> Self {
        let Visitor { listener, client, local, opened_ms, hello, .. } = visitor;
        let connection = Arc::new(Connection::new(id, client, listener, sni, route, opened_ms, task));
        books.ledger.enter(worker, connection.clone());
        Account {
            books,
            connection,
            local,
            hello,
            worker,
            reason: None,
            tls_error: None,
            ended_ms: None,
            left: false,
        }
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

    /// Notes who the client is by its certificate, if the access log is to tell.
    pub fn identified(&mut self, name: impl FnOnce() -> Option<String>) {
        if let Some(hello) = &mut self.hello {
            hello.client_certificate = name();
        }
    }

    /// Notes why TLS with this end failed, and counts it of the client.
    pub fn tls_failed(&mut self, side: Side, cause: TlsError) {
        if side == Side::Client {
            self.connection.route.stats.counting().tls_errors.add(cause as usize);
        }
        self.tls_error = Some(cause);
    }

    /// What is known of its ClientHello, encoded for the next process, and the bytes used. Each field is a tag, a length,
    /// and that many bytes. Fields that do not fit are left out; the most important ones come first.
    pub fn facts(&self) -> ([u8; Record::FACTS], u16) {
        let (mut packed, mut length) = ([0; Record::FACTS], 0);
        let mut put = |tag: u8, text: &str| {
            let field = [&[tag, text.len() as u8], text.as_bytes()].concat();
            if text.len() <= 255 && length + field.len() <= packed.len() {
                packed[length..length + field.len()].copy_from_slice(&field);
                length += field.len();
            }
        };
        if let Some(sni) = &self.connection.sni {
            put(fact::SNI, sni);
        }
        if let Some(hello) = &self.hello {
            put(fact::VERSION, &hello.version);
            if let Some(result) = hello.ech {
                put(fact::ECH, result.name());
            }
            if let Some(name) = &hello.sni_outer {
                put(fact::SNI_OUTER, name);
            }
            if let Some(ja4) = &hello.ja4 {
                put(fact::JA4, ja4);
            }
            hello.alpn.iter().for_each(|protocol| put(fact::ALPN, protocol));
        }
        (packed, length as u16)
    }

    /// Leaves the account, and the connection, to the next process.
    pub fn leave(mut self) {
        self.left = true;
    }

    /// Notes the server.
    pub fn connected(&self, pool: &Arc<Pool>, server: &Arc<Server>) {
        let _ = self.connection.upstream.set((pool.clone(), server.clone()));
    }

    /// Notes the tier that carries it.
    pub fn spliced(&self, choice: Choice) {
        let reason = choice.reason.map(|reason| reason.name());
        tracing::debug!(id = self.connection.id, tier = choice.tier.name(), reason, "spliced");
        self.connection.set_choice(choice);
        let index = choice.tier as usize;
        for tiers in [&self.books.stats.tiers, &self.connection.route.stats.counting().tiers] {
            tiers[index].total.fetch_add(1, Relaxed);
            tiers[index].active.fetch_add(1, Relaxed);
        }
        if let Some(reason) = choice.reason {
            self.books.stats.fallbacks.add(reason as usize);
        }
    }

    /// Notes that the tier gave the connection back to the copy tier. It stays in the total of the tier in which it began.
    pub fn demoted(&self, reason: FallbackReason) {
        self.books.moved(&self.connection, Choice { tier: Tier::Copy, reason: Some(reason) });
        self.books.stats.fallbacks.add(reason as usize);
    }

    /// Closes the account.
    pub fn close(self, reason: CloseReason) {
        self.close_at(reason, None);
    }

    /// Closes the account. `ended_ms`: when the connection ended, if that was earlier ([`now_ms`]).
    pub fn close_at(mut self, reason: CloseReason, ended_ms: Option<u64>) {
        (self.reason, self.ended_ms) = (Some(reason), ended_ms);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let reason = self.reason.or(self.connection.ending()).unwrap_or(CloseReason::Shutdown);
        if let Some(choice) = self.connection.choice() {
            let index = choice.tier as usize;
            for tiers in [&self.books.stats.tiers, &self.connection.route.stats.counting().tiers] {
                tiers[index].active.fetch_sub(1, Relaxed);
            }
        }
        // One that did not get as far was judged when its server was dialled.
        if let (Some((pool, server)), Some(_)) = (self.connection.upstream.get(), self.connection.choice()) {
            pool.ended(server, reason, self.connection.traffic.bytes_out.load(Relaxed) > 0);
        }
        self.books.ledger.close(self.worker, &self.connection, reason);
        let connection = &*self.connection;
        tracing::debug!(id = connection.id, client = %connection.client, %reason, "closed");
        let who = (&*connection.listener, connection.client, connection.opened_ms);
        let ended_ms = self.ended_ms.unwrap_or_else(now_ms);
        let why = (reason.name(), self.tls_error);
        log(&self.books, who, ended_ms, self.hello.as_deref(), why, Some(connection));
    }
}
