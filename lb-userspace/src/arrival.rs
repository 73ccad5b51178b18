//! A client before it has a route: accept, sniff, route.

use crate::accept;
use crate::account::Visitor;
use crate::clock::now_ms;
use crate::close::LegSocket;
use crate::config::{Protocol, Refuse};
use crate::ech;
use crate::mysql;
use crate::reason::{EchResult, OddName, RejectReason, Setback};
use crate::running::RunningGateway;
use crate::serving::{ClientPermit, Ech, Excess, Listener, Permit, Route, Snapshot};
use crate::sniff::{self, Cancel, ClientHello, Input, Output, Preamble, Sniffer, TlsRequest};
use crate::socket::{canonical, read_some, write_all};
use rustls::pki_types::DnsName;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout_at};

/// How long a MySQL client waits, after a start, for servers that were not heard yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks whether they were.
const HEARING: Duration = Duration::from_millis(5);

/// What a client is told that has too many connections to a listener.
pub fn too_many(excess: Excess) -> RejectReason {
    match excess {
        Excess::New => RejectReason::ClientRate,
        Excess::Open => RejectReason::ClientFull,
    }
}

/// What a client is here for.
pub(crate) enum Bound {
    /// A connection to a server.
    Route(Routed),
    /// No more than that a session stops what it does.
    Cancel(Cancel),
}

/// Where a client may go.
pub(crate) struct Routed {
    pub(crate) route: Arc<Route>,
    /// Its place under `max_connections` of the route.
    pub(crate) permit: Permit,
    /// Its place under `client_rate` of the route.
    pub(crate) of_client: Option<ClientPermit>,
}

/// A client before it has a route.
pub(crate) struct Arrival {
    pub(crate) visitor: Visitor,
    pub(crate) client: LegSocket,
    pub(crate) begin: Instant,
    /// Bytes received and not consumed. They go to the server, or into the TLS handshake.
    pub(crate) window: Vec<u8>,
    pub(crate) hello: Option<Box<ClientHello>>,
    /// What `hello` carries encrypted.
    opened: Option<Box<ech::Opened>>,
    /// Its server has no key for what `hello` carries.
    pub(crate) split: Option<Box<ech::Split>>,
    /// Its place under `client_rate` of the listener.
    pub(crate) of_client: Option<ClientPermit>,
    /// Its address is not a trusted proxy's own, whose health checks no limit of clients is for.
    is_client: bool,
    /// How it has asked for TLS, and was promised it.
    request: Option<TlsRequest>,
}

impl Arrival {
    pub(crate) fn new(
        gateway: &RunningGateway,
        client: LegSocket,
        peer: SocketAddr,
        listener: Arc<Listener>,
        of_client: Option<ClientPermit>,
    ) -> Self {
        let visitor = Visitor::new(&gateway.books, listener, peer, now_ms());
        let (begin, window) = (Instant::now(), Vec::new());
        Arrival {
            visitor,
            client,
            begin,
            window,
            hello: None,
            opened: None,
            split: None,
            of_client,
            is_client: true,
            request: None,
        }
    }

    /// accept, sniff, route.
    pub(crate) async fn go(
        &mut self,
        gateway: &RunningGateway,
        snapshot: &Snapshot,
    ) -> Result<Bound, RejectReason> {
        if self.visitor.listener.trusts(self.visitor.client) {
            self.read_proxy_header().await?;
            self.is_client = self.visitor.local.is_some();
            let limit = self.visitor.listener.clients.as_ref().filter(|_| self.is_client);
            self.of_client = gateway.acquire_for(self.visitor.client.ip(), limit).map_err(too_many)?;
        }
        let sniffer = match self.visitor.listener.protocol {
            Protocol::Tcp | Protocol::Http => None,
            Protocol::Tls => Some(Sniffer::limited(Preamble::Tls, self.limit())),
            Protocol::Postgres => Some(Sniffer::limited(Preamble::Postgres, self.limit())),
            Protocol::Starttls(protocol) => {
                Some(Sniffer::limited(Preamble::Starttls(protocol), self.limit()))
            }
            Protocol::Mysql => Some(self.reception(gateway).await?),
        };
        if let Some(sniffer) = sniffer
            && let Some(cancel) = self.sniff(sniffer).await?
        {
            return Ok(Bound::Cancel(cancel));
        }
        self.unseal()?;
        self.route(gateway, snapshot).map(Bound::Route)
    }

    /// sniff: reads what the ClientHello carries encrypted, if the listener has its key.
    fn unseal(&mut self) -> Result<(), RejectReason> {
        let (Some(Ech { keys, openings, .. }), Some(outer)) = (&self.visitor.listener.ech, &self.hello)
        else {
            return Ok(());
        };
        if outer.offers_ech {
            let may_open = || match self.is_client {
                true => openings.pass(self.visitor.client.ip()).map_err(|_| RejectReason::EchRate),
                false => Ok(()),
            };
            match ech::open(keys, &self.window, outer, may_open)? {
                Some(opened) => self.opened = Some(Box::new(opened)),
                None => self.visitor.unsealed(EchResult::NotOpened, None),
            }
        }
        Ok(())
    }

    fn deadline(&self) -> tokio::time::Instant {
        (self.begin + self.visitor.listener.hello_timeout).into()
    }

    /// accept: the client is who the trusted proxy says it is.
    async fn read_proxy_header(&mut self) -> Result<(), RejectReason> {
        loop {
            if let Some(header) = accept::read_header(&self.window)? {
                self.window.drain(..header.length);
                // The header may have had 64 KiB; that memory is not kept while the connection waits.
                self.window.shrink_to_fit();
                if let Some((client, local)) = header.endpoints {
                    self.visitor.client = canonical(client);
                    self.visitor.local = Some(Box::new(local));
                }
                return Ok(());
            }
            match timeout_at(self.deadline(), read_some(&self.client, &mut self.window)).await {
                Err(_) => return Err(RejectReason::HelloTimeout),
                Ok(Ok(read)) if read > 0 => {}
                Ok(_) if self.window.is_empty() => return Err(RejectReason::ClosedBeforeData),
                Ok(_) => return Err(RejectReason::ProxyHeaderMalformed),
            }
        }
    }

    /// Bytes that a ClientHello may have.
    fn limit(&self) -> usize {
        self.visitor.listener.hello_bytes
    }

    /// sniff: what a MySQL client is greeted with. Waits, after a start, until the servers were heard.
    async fn reception(&self, gateway: &RunningGateway) -> Result<Sniffer, RejectReason> {
        let listener = &self.visitor.listener;
        let reception = listener.mysql.as_ref().ok_or(RejectReason::MysqlNoServer)?;
        let heard = async {
            while !reception.is_ready(&listener.name) {
                sleep(HEARING).await;
            }
        };
        let _ = timeout_at(self.deadline().min((self.begin + PATIENCE).into()), heard).await;
        let announcement = reception.announcement(&listener.name).ok_or(RejectReason::MysqlNoServer)?;
        let mut random = [0; mysql::SALT];
        // Without random bytes there would be no TLS either.
        let secure = rustls::crypto::aws_lc_rs::default_provider().secure_random;
        secure.fill(&mut random).map_err(|_| RejectReason::MysqlNoServer)?;
        let id = gateway.threads.number();
        let greeting = announcement.packet(id, &mysql::salt(random));
        Ok(Sniffer::mysql(greeting, announcement.offer(id), self.limit()))
    }

    /// sniff: what does it want? Of a session that it is to get, `hello` tells.
    async fn sniff(&mut self, mut sniffer: Sniffer) -> Result<Option<Cancel>, RejectReason> {
        let mut closed = None;
        loop {
            match sniffer.handle(closed.take().unwrap_or(Input::Bytes(&self.window))) {
                Output::NeedMore => {}
                Output::Answer { reply, consumed } => {
                    self.request = sniffer.request();
                    self.window.drain(..consumed);
                    if write_all(&self.client, &reply).await.is_err() {
                        closed = Some(Input::Closed);
                    }
                    continue;
                }
                Output::Hello(hello) => {
                    self.visitor.sniffed(&hello, &self.window);
                    let sni = hello.sni.as_ref().map(|name| name.as_str());
                    tracing::debug!(sni, version = %hello.version, bytes = self.window.len(), "sniffed");
                    self.hello = Some(hello);
                    return Ok(None);
                }
                Output::Cancel(cancel) => return Ok(Some(cancel)),
                Output::Reject(reason) => return Err(reason),
            }
            closed = match timeout_at(self.deadline(), read_some(&self.client, &mut self.window)).await {
                Err(_) => Some(Input::Timeout),
                Ok(Ok(read)) if read > 0 => None,
                Ok(_) => Some(Input::Closed),
            };
        }
    }

    /// route: where to?
    fn route(&mut self, gateway: &RunningGateway, snapshot: &Snapshot) -> Result<Routed, RejectReason> {
        let route = match self.opened.take() {
            None => self.route_of(snapshot, self.hello.as_deref())?,
            Some(opened) => match self.route_of(snapshot, Some(&opened.hello))? {
                // rustls takes no ECH: to the client the route is that of the public name, whose server says so.
                route if route.terminator().is_some() => {
                    self.visitor.unsealed(EchResult::Terminated, None);
                    self.route_of(snapshot, self.hello.as_deref())?
                }
                route => {
                    self.visitor.unsealed(EchResult::Accepted, Some(&opened.hello));
                    self.hello = Some(Box::new(opened.hello.clone()));
                    self.split = self.split_of(*opened)?;
                    route
                }
            },
        };
        if route.terminator().is_some() && self.hello.as_deref().is_some_and(has_name_that_ends_tls) {
            return Err(RejectReason::SniInvalid);
        }
        let limit = route.clients().filter(|_| self.is_client);
        let of_client =
            gateway.acquire_for(self.visitor.client.ip(), limit).map_err(|excess| match excess {
                Excess::New => RejectReason::RouteClientRate,
                Excess::Open => RejectReason::RouteClientFull,
            })?;
        let permit = gateway.acquire(&route.stats.counting().live, route.max_connections());
        Ok(Routed { route, permit: permit.ok_or(RejectReason::RouteFull)?, of_client })
    }

    /// What the server's ClientHellos are made with, if it has no key.
    fn split_of(&self, opened: ech::Opened) -> Result<Option<Box<ech::Split>>, RejectReason> {
        let listener = &self.visitor.listener;
        if listener.ech.as_ref().is_none_or(|ech| ech.mode == ech::Mode::Shared) {
            return Ok(None);
        }
        Ok(Some(Box::new(ech::Split::new(opened, listener.hello_bytes)?)))
    }

    fn route_of(&self, snapshot: &Snapshot, hello: Option<&ClientHello>) -> Result<Arc<Route>, RejectReason> {
        let sni = hello.and_then(|hello| hello.sni.as_ref()).map(|name| name.as_str());
        let offers = |protocol: &str| hello.is_some_and(|hello| hello.alpn.offers(protocol.as_bytes()));
        let found = snapshot.route(&self.visitor.listener, sni, offers);
        let (route, _) = found.map_err(|reason| match hello.and_then(|hello| hello.odd_name) {
            Some(OddName::NotAName) if reason == RejectReason::NoSni => RejectReason::SniInvalid,
            _ => reason,
        })?;
        Ok(route.clone())
    }

    /// The last word to a client that is turned away, in its own protocol: a TLS alert, or an error of PostgreSQL or MySQL.
    pub(crate) fn last_word(&self, reason: RejectReason) -> Cow<'static, [u8]> {
        if self.visitor.listener.protocol == Protocol::Mysql
            && let Some(error) = mysql::rejected_error(reason)
        {
            return error.into();
        }
        let (setbacks, client) = (&self.visitor.listener.stats.setbacks, self.visitor.client.ip());
        if reason == RejectReason::PostgresCleartext {
            return sniff::cleartext_error(setbacks.recent(client, now_ms())).into();
        }
        let alert = match self.visitor.listener.protocol {
            Protocol::Tcp | Protocol::Http => None,
            Protocol::Tls | Protocol::Postgres | Protocol::Mysql | Protocol::Starttls(_)
                if self.visitor.listener.refuse == Refuse::Close =>
            {
                None
            }
            Protocol::Tls | Protocol::Postgres | Protocol::Mysql | Protocol::Starttls(_) => {
                sniff::alert(reason)
            }
        };
        if alert.is_some() && self.is_postgres() {
            setbacks.note(client, Setback::Rejected(reason), now_ms());
        }
        alert.unwrap_or_default().into()
    }

    /// Whether it has begun as PostgreSQL's clients do, and on no error of ours may try again without TLS.
    fn is_postgres(&self) -> bool {
        self.request == Some(TlsRequest::Postgres)
            || self.hello.as_ref().is_some_and(|hello| hello.is_postgres())
    }
}

/// Whether rustls would refuse its name, which routes without a name of their own may cover: with hyphens at an end of a label, a
/// number as the last label, or what is no name at all.
fn has_name_that_ends_tls(hello: &ClientHello) -> bool {
    match (&hello.sni, hello.odd_name) {
        (Some(name), _) => DnsName::try_from(name.as_str()).is_err(),
        (None, odd) => odd == Some(OddName::NotAName),
    }
}
