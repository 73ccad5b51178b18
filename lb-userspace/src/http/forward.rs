//! The way of a request to a server, and of the answer's head back.

use super::account::Request as Account;
use super::answer::status;
use super::body::{Answered, Arriving, Gate, Relayed, Sent, Source};
use super::filter::session::Mark;
use super::filter::{cors, headers};
use super::link::{Link, Upgraded};
use super::upstream::{self, Driver, H1, Key, Lost, Stream, Upstream, Way};
use super::{hop, mirror};
use crate::config::{Filters, Persistence, Retry, RuleBackend, SourceAddress};
use crate::connect::{self, Dial, Endpoints, Failure, Greeting, Search};
use crate::reason::{CloseReason, HttpAnswer};
use crate::serving::{HttpRule, Pool, Server, ServerGuard, is_copied};
use crate::socket::canonical;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue, ORIGIN, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use rustls::pki_types::UnixTime;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// The head of a request, as a server is to get it.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    /// Absent: the client has named none.
    pub(super) host: Option<HeaderValue>,
    /// Without those of a connection, and without `Host`.
    pub(super) headers: HeaderMap,
    /// The protocol that the client wants to go over to.
    pub(super) upgrade: Option<HeaderValue>,
}

impl Head {
    /// The request in HTTP/1.1. The headers go with it.
    pub(super) fn take_http1(&mut self, body: Sent) -> Request<Sent> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.path.clone());
        let mut headers = mem::take(&mut self.headers);
        headers.insert(HOST, self.host.clone().unwrap_or(HeaderValue::from_static("")));
        if let Some(protocol) = &self.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol.clone());
        }
        if request.body().announce(&mut headers) {
            // For GET and HEAD, hyper takes a body without a length for none.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        *request.headers_mut() = headers;
        request
    }

    /// The same in HTTP/2; `None`: the host cannot be said there.
    pub(super) fn take_http2(&mut self, body: Sent, pool: &Pool) -> Option<Request<Sent>> {
        let host = self.host.as_ref().map_or("localhost".as_bytes(), HeaderValue::as_bytes);
        let authority = Authority::try_from(host).ok()?;
        let scheme = if pool.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let uri = Uri::builder().scheme(scheme).authority(authority);
        let uri = uri.path_and_query(self.path.clone()).build().ok()?;
        let mut request = Request::new(body);
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        let mut headers = mem::take(&mut self.headers);
        [HOST, CONNECTION, UPGRADE, EXPECT, TRANSFER_ENCODING]
            .iter()
            .for_each(|name| _ = headers.remove(name));
        request.body().announce(&mut headers);
        *request.headers_mut() = headers;
        Some(request)
    }
}

/// Where a request goes.
pub(super) struct Backend {
    rule: Arc<HttpRule>,
    /// Among the rule's backends.
    index: usize,
    /// The request's turn with the rule.
    turn: u64,
    marked: Option<Marked>,
    /// Its `Origin`.
    origin: Option<HeaderValue>,
}

impl Backend {
    /// By what `headers` say of a session, or by weight; `None`: there is none that takes any.
    pub(super) fn choose(rule: &Arc<HttpRule>, headers: &HeaderMap) -> Option<Self> {
        let turn = rule.turn();
        let marked = rule.rule.persistence.as_ref().map(|by| Marked::new(by, headers));
        let of_mark = marked.as_ref().and_then(|marked| marked.backend(rule));
        let index = of_mark.or_else(|| rule.backend(turn))?;
        Some(Backend { rule: rule.clone(), index, turn, marked, origin: headers.get(ORIGIN).cloned() })
    }

    fn share(&self) -> &RuleBackend<Arc<Pool>> {
        &self.rule.rule.backends[self.index]
    }

    /// Those of this backend, beside the rule's.
    pub(super) fn filters(&self) -> &Filters<Arc<Pool>> {
        &self.share().filters
    }

    fn all_filters(&self) -> [&Filters<Arc<Pool>>; 2] {
        [&self.rule.rule.filters, self.filters()]
    }

    /// The pools that get a copy of the request.
    fn mirrors(&self) -> impl Iterator<Item = &Arc<Pool>> {
        let mirrors = self.all_filters().into_iter().flat_map(|filters| &filters.mirrors);
        let copied = mirrors.filter(|mirror| is_copied(mirror.share, self.turn));
        copied.filter_map(|mirror| mirror.pool.as_ref())
    }

    /// Whether the body of the request may be needed again.
    pub(super) fn reads_again(&self) -> bool {
        self.rule.rule.retry.is_some() || self.mirrors().next().is_some()
    }

    /// Makes a server's answer what the client is to get.
    fn change(&self, answer: &mut HeaderMap) {
        let [of_rule, own] = self.all_filters();
        for filters in [own, of_rule] {
            headers::change(answer, &filters.response_headers);
        }
        if let Some(cors) = own.cors.as_ref().or(of_rule.cors.as_ref()) {
            cors::answer(cors, self.origin.as_ref(), answer);
        }
    }
}

/// A request on its way.
pub(super) struct Forward {
    pub(super) backend: Backend,
    pub(super) head: Head,
    /// Its body, if it has one.
    pub(super) source: Option<Rc<Source>>,
}

/// An answer whose head is there.
struct Reached {
    response: Response<()>,
    /// Absent: there is none to come, for the connection is not one of HTTP any more.
    body: Option<Arriving>,
}

/// What an answer came on.
enum Carrier {
    H1(Box<H1>),
    H2(Stream),
}

impl Forward {
    /// Asks a server. An error: there is no answer, and why.
    pub(super) async fn run(mut self, account: &mut Account) -> Result<Ready, HttpAnswer> {
        let rule = self.backend.rule.clone();
        let pool = self.backend.share().pool.clone().ok_or(HttpAnswer::NoBackend)?;
        let mark = self.backend.marked.as_ref().and_then(|marked| marked.mark);
        for mirror in self.backend.mirrors() {
            mirror::send(account.link(), mirror, &self.head, self.source.as_ref());
        }
        let last = rule.rule.timeouts.request.map(|bound| Instant::now() + bound);
        let mut retries = rule.rule.retry.as_ref().map_or(0, |retry| retry.attempts);
        loop {
            let spare = (retries > 0).then(|| self.head.clone());
            let bound = rule.rule.timeouts.backend;
            let deadline = last.into_iter().chain(bound.map(|bound| Instant::now() + bound)).min();
            let attempt = self.attempt(account, &pool, mark);
            let outcome = match deadline {
                None => attempt.await,
                Some(deadline) => timeout_at(deadline, attempt).await.unwrap_or(Err(match last {
                    Some(last) if last <= deadline => HttpAnswer::RequestTimeout,
                    _ => HttpAnswer::BackendTimeout,
                })),
            };
            if let (Some(spare), Some(retry)) = (spare, &rule.rule.retry)
                && self.source.as_ref().is_none_or(|source| source.is_replayable())
                && is_tried_again(retry, &outcome)
                && last.is_none_or(|last| Instant::now() + retry.backoff < last)
            {
                drop(outcome);
                retries -= 1;
                self.head = spare;
                if !retry.backoff.is_zero() {
                    sleep(retry.backoff).await;
                }
                continue;
            }
            let mut reached = outcome?;
            let answer = reached.response.headers_mut();
            self.backend.change(answer);
            if let (Some(marked), Some(by)) = (&self.backend.marked, &rule.rule.persistence) {
                marked.renew(by, account, answer);
            }
            return Ok(Ready { reached, deadline });
        }
    }

    /// Asks one server of the pool; another one if that cannot be connected.
    /// `mark`: of the server that the client is kept at.
    async fn attempt(
        &mut self,
        account: &mut Account,
        pool: &Arc<Pool>,
        mark: Option<Mark>,
    ) -> Result<Reached, HttpAnswer> {
        let link = account.link().clone();
        let owner = link.owner(pool);
        let mut search = Search::new(pool, link.connection.client.ip());
        let mut kept = mark.and_then(|mark| pool.enter(|server| is_of(mark, pool, server)));
        loop {
            let guard = match kept.take() {
                Some(guard) => guard,
                None => search.next().await.map_err(|failure| answer_of(&failure))?,
            };
            let key = Key::new(pool, guard.server(), owner);
            let opening = match upstream::find(&key).await {
                Way::New(opening) => opening,
                Way::Kept(kept) => {
                    account.reached(pool, guard.server());
                    match self.send(kept, true, pool).await {
                        Ok((response, carrier)) => {
                            return self.reached(response, carrier, &link, pool, guard).await;
                        }
                        Err(Fate::Unharmed) => None,
                        Err(fate) => return Err(self.lost(fate, pool, guard.server())),
                    }
                }
            };
            // Boxed: most requests go on a connection that is there.
            let opened = Box::pin(open(&link, pool, &mut search, guard, key)).await;
            drop(opening);
            let Some((fresh, guard)) = opened? else { continue };
            account.reached(pool, guard.server());
            let (response, carrier) =
                self.send(fresh, false, pool).await.map_err(|fate| self.lost(fate, pool, guard.server()))?;
            return self.reached(response, carrier, &link, pool, guard).await;
        }
    }

    /// Sends the request, and waits for the head of the answer.
    async fn send(
        &mut self,
        upstream: Upstream,
        is_kept: bool,
        pool: &Pool,
    ) -> Result<(Response<Incoming>, Carrier), Fate> {
        let is_safe = is_kept && self.source.is_none() && self.head.method.is_idempotent();
        let spare = is_safe.then(|| self.head.headers.clone());
        let body = self.source.as_ref().map_or(Sent::Empty, Source::sent);
        let (Lost { unsent, error }, is_silent) = match upstream {
            Upstream::H1(mut h1) => {
                let mut request = self.head.take_http1(body);
                if expects_100(request.headers()) {
                    let gate = Gate::before(&mut request);
                    request.body_mut().hold(gate);
                }
                match h1.send(request).await {
                    Ok(response) => return Ok((response, Carrier::H1(h1))),
                    Err(lost) => (lost, h1.is_silent()),
                }
            }
            Upstream::H2(mut h2) => {
                let request = self.head.take_http2(body, pool).ok_or(Fate::Unsayable)?;
                let stream = h2.stream();
                match h2.send(request).await {
                    Ok(response) => return Ok((response, Carrier::H2(stream))),
                    Err(lost) => (lost, h2.is_over()),
                }
            }
        };
        tracing::debug!(pool = %pool.name, is_kept, ?error, "no answer");
        match (unsent, spare) {
            (Some(unsent), _) => self.head.headers = unsent.into_parts().0.headers,
            (None, Some(spare)) => self.head.headers = spare,
            (None, None) => {
                let is_stale = is_kept && is_silent && !error.is_some_and(|error| error.is_parse());
                return Err(if is_stale { Fate::Stale } else { Fate::Lost });
            }
        }
        Err(Fate::Unharmed)
    }

    /// Why there is no answer.
    fn lost(&self, fate: Fate, pool: &Pool, server: &Server) -> HttpAnswer {
        if matches!(fate, Fate::Unsayable) {
            return HttpAnswer::BadHost;
        }
        if self.source.as_ref().is_some_and(|source| source.has_failed()) {
            return HttpAnswer::ClientFailed;
        }
        if matches!(fate, Fate::Stale) {
            return HttpAnswer::ServerFailed;
        }
        server.state.failures.fetch_add(1, Relaxed);
        pool.ended(server, CloseReason::ServerReset, false);
        HttpAnswer::ServerFailed
    }

    /// The head of a server's answer has come.
    async fn reached(
        &self,
        response: Response<Incoming>,
        carrier: Carrier,
        link: &Link,
        pool: &Pool,
        guard: ServerGuard,
    ) -> Result<Reached, HttpAnswer> {
        pool.ended(guard.server(), CloseReason::ServerClosed, true);
        let (mut head, incoming) = response.into_parts();
        head.extensions.clear();
        head.version = Version::HTTP_11;
        let upgrade = hop::upgrade(Version::HTTP_11, &head.headers);
        if !hop::has_clear_end(&head.headers) {
            return Err(self.lost(Fate::Lost, pool, guard.server()));
        }
        hop::strip_answer(&mut head.headers);
        if head.status == StatusCode::NO_CONTENT {
            // Clients of HTTP/2 would miss a body (RFC 9110, section 8.6).
            head.headers.remove(CONTENT_LENGTH);
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(protocol), Some(asked), Carrier::H1(h1)) = (upgrade, &self.head.upgrade, carrier)
            else {
                return Err(self.lost(Fate::Lost, pool, guard.server()));
            };
            if !protocol.as_bytes().eq_ignore_ascii_case(asked.as_bytes()) {
                return Err(self.lost(Fate::Lost, pool, guard.server()));
            }
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol);
            let far = h1.into_leg().await;
            link.upgraded.replace(Some(Upgraded { far, _guard: guard }));
            return Ok(Reached { response: Response::from_parts(head, ()), body: None });
        }
        let driver = match carrier {
            Carrier::H1(h1) => {
                let is_under_way = self.source.as_ref().is_some_and(|source| source.is_under_way());
                Driver::new(h1, guard, is_under_way)
            }
            Carrier::H2(stream) => Driver::Shared { _stream: stream, _guard: guard },
        };
        Ok(Reached { response: Response::from_parts(head, ()), body: Some(Arriving { incoming, driver }) })
    }
}

/// A client that is kept at a server.
struct Marked {
    /// What its request carries.
    mark: Option<Mark>,
    /// In seconds since the Unix epoch.
    now: u64,
}

impl Marked {
    fn new(by: &Persistence, headers: &HeaderMap) -> Self {
        let now = UnixTime::now().as_secs();
        Marked { mark: Mark::in_request(by, headers, now), now }
    }

    /// The backend with the server.
    fn backend(&self, rule: &HttpRule) -> Option<usize> {
        let mark = self.mark?;
        let has_it = |pool: &Arc<Pool>| pool.servers().iter().any(|server| is_of(mark, pool, server));
        let takes = |backend: &RuleBackend<Arc<Pool>>| {
            backend.weight > 0 && backend.pool.as_ref().is_some_and(has_it)
        };
        rule.rule.backends.iter().position(takes)
    }

    /// Tells the client the mark of the server that has answered, unless it has it.
    fn renew(&self, by: &Persistence, account: &Account, answer: &mut HeaderMap) {
        let Some((pool, server)) = account.server() else { return };
        let mark = Mark::of(&pool.name, &server.address);
        if self.mark != Some(mark) {
            mark.put(by, answer, self.now, account.link().tls.is_some());
        }
    }
}

fn is_of(mark: Mark, pool: &Pool, server: &Server) -> bool {
    Mark::of(&pool.name, &server.address) == mark
}

/// What has become of a request without an answer.
enum Fate {
    /// It may be sent once more: no server has seen it, or it does no harm to be done twice.
    Unharmed,
    /// The host cannot be said in HTTP/2.
    Unsayable,
    /// The server has closed a kept connection, as it may at any time, and has not begun to answer.
    Stale,
    Lost,
}

/// An answer to be relayed.
pub(super) struct Ready {
    reached: Reached,
    /// When it must have come to its end.
    deadline: Option<Instant>,
}

impl Ready {
    /// The answer to the client.
    pub(super) fn into_response(self, mut account: Account) -> Response<Answered> {
        let Ready { reached: Reached { response, body }, deadline } = self;
        account.answered(response.status(), None);
        if body.as_ref().is_none_or(Arriving::has_ended) {
            account.complete();
        }
        response.map(|()| match body {
            Some(body) => Answered::Relayed(Relayed {
                body,
                request: account,
                deadline: deadline.map(|at| Box::pin(sleep_until(at))),
            }),
            None => Answered::Own(Bytes::new()),
        })
    }
}

/// Opens a connection to the server of `guard`. `None`: it cannot be connected, and another one is to be tried.
pub(super) async fn open(
    link: &Link,
    pool: &Arc<Pool>,
    search: &mut Search<'_>,
    guard: ServerGuard,
    key: Key,
) -> Result<Option<(Upstream, ServerGuard)>, HttpAnswer> {
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
    let dial = Dial { client: client.ip(), source, greeting };
    let begun = Instant::now();
    let Some(connected) = search.open(guard, &dial).await else { return Ok(None) };
    link.gateway.books.histograms.connect.observe(begun.elapsed());
    match upstream::begin(pool, connected, key).await {
        Ok(begun) => Ok(Some(begun)),
        Err(error) => {
            tracing::debug!(pool = %pool.name, %error, "a server does not speak HTTP");
            Err(HttpAnswer::ServerFailed)
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
        _ => HttpAnswer::ConnectFailed,
    }
}

/// Whether the client waits to be asked for the body.
fn expects_100(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn is_tried_again(retry: &Retry, outcome: &Result<Reached, HttpAnswer>) -> bool {
    use HttpAnswer::{ConnectFailed, RequestTimeout, ServerFailed, ServerTlsFailed};
    match outcome {
        Ok(Reached { body: None, .. }) | Err(RequestTimeout) => false,
        Ok(Reached { response, .. }) => retry.statuses.contains(&response.status()),
        Err(ConnectFailed | ServerFailed | ServerTlsFailed) => true,
        Err(reason) => retry.statuses.contains(&status(*reason)),
    }
}
