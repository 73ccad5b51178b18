//! The way of a request to a server, and of the answer's head back.

use super::account::Request as Account;
use super::answer::status;
use super::body::{Answered, Arriving, Driver, Relayed, Share};
use super::filter::session::Mark;
use super::filter::{cors, headers};
use super::head::Head;
use super::link::{Link, Upgraded};
use super::reach::{Connection, Reach};
use super::sent::{Gate, Sent, Source};
use super::upstream::{H1, Lost, Stream, Upstream};
use super::{hop, mirror};
use crate::config::{Filters, Persistence, Retry, RuleBackend};
use crate::reason::{CloseReason, HttpAnswer};
use crate::serving::{HttpRule, Pool, Server, ServerGuard, is_copied};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderValue, ORIGIN, UPGRADE};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use rustls::pki_types::UnixTime;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{Instant, sleep, timeout_at};

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
        let watch = account.watch().clone();
        let mut mark = self.backend.marked.as_ref().and_then(|marked| marked.mark);
        // The servers that have not given the answer.
        let mut left = Vec::new();
        for mirror in self.backend.mirrors() {
            mirror::send(account.link(), mirror, &self.head, self.source.as_ref());
        }
        let last = rule.rule.timeouts.request.map(|bound| Instant::now() + bound);
        let mut retries = rule.rule.retry.as_ref().map_or(0, |retry| retry.attempts);
        loop {
            let spare = (retries > 0).then(|| self.head.clone());
            let is_sent = Cell::new(false);
            let bound = rule.rule.timeouts.backend;
            let deadlines = [
                last.map(|at| (at, HttpAnswer::RequestTimeout)),
                bound.map(|bound| (Instant::now() + bound, HttpAnswer::BackendTimeout)),
            ];
            let deadline = deadlines.into_iter().flatten().min_by_key(|(at, _)| *at);
            let mark = mark.take();
            let attempt = async {
                tokio::select! {
                    biased;
                    cause = watch.ended() => Err(cause),
                    outcome = self.attempt(account, &pool, mark, &left, &is_sent) => outcome,
                }
            };
            let outcome = match deadline {
                None => attempt.await,
                Some((deadline, late)) => timeout_at(deadline, attempt).await.unwrap_or(Err(late)),
            };
            if let (Some(spare), Some(retry)) = (spare, &rule.rule.retry)
                && self.source.as_ref().is_none_or(|source| source.is_replayable())
                && is_tried_again(retry, &outcome, is_sent.get().then_some(&spare.method))
                && last.is_none_or(|last| Instant::now() + retry.backoff < last)
            {
                drop(outcome);
                watch.has_left_server();
                left.extend(account.server().map(|(_, server)| server.clone()));
                retries -= 1;
                self.head = spare;
                if !retry.backoff.is_zero() {
                    tokio::select! {
                        biased;
                        cause = watch.ended() => return Err(cause),
                        () = sleep(retry.backoff) => {}
                    }
                }
                continue;
            }
            let mut reached = outcome.inspect_err(|_| watch.has_left_server())?;
            let answer = reached.response.headers_mut();
            self.backend.change(answer);
            if let (Some(marked), Some(by)) = (&self.backend.marked, &rule.rule.persistence) {
                marked.renew(by, account, answer);
            }
            return Ok(Ready { reached, deadline });
        }
    }

    /// Asks one server of the pool; another one if that cannot be connected. `mark`: of the server that the client is kept at;
    /// `left`: those that are asked only if no other would be in their place. `is_sent` becomes whether a server may have the request.
    async fn attempt(
        &mut self,
        account: &mut Account,
        pool: &Arc<Pool>,
        mark: Option<Mark>,
        left: &[Arc<Server>],
        is_sent: &Cell<bool>,
    ) -> Result<Reached, HttpAnswer> {
        let link = account.link().clone();
        let first = mark.and_then(|mark| pool.enter(|server| is_of(mark, pool, server)));
        let once = !self.may_repeat();
        let mut reach = Reach::new(&link, pool, first, once, left);
        let mut connection = reach.find().await?;
        loop {
            let Connection { upstream, guard, epoch, is_kept } = connection;
            account.reached(pool, guard.server(), epoch);
            // Its connections may have been ended while this one was opened.
            if let Some(cause) = account.watch().take_cause() {
                return Err(cause);
            }
            is_sent.set(true);
            let sent = self.send(upstream, is_kept, pool).await;
            is_sent.set(!matches!(sent, Err(Fate::Unharmed | Fate::Refused)));
            match sent {
                Ok((response, carrier)) => return self.reached(response, carrier, &link, pool, guard).await,
                Err(Fate::Unharmed) if is_kept => {
                    account.watch().has_left_server();
                    connection = reach.find_new(guard).await?;
                }
                Err(fate) => return Err(self.lost(fate, pool, guard.server())),
            }
        }
    }

    /// Whether it does no harm to be done twice.
    fn may_repeat(&self) -> bool {
        self.source.is_none() && self.head.method.is_idempotent()
    }

    /// Sends the request, and waits for the head of the answer.
    async fn send(
        &mut self,
        upstream: Upstream,
        is_kept: bool,
        pool: &Pool,
    ) -> Result<(Response<Incoming>, Carrier), Fate> {
        let spare = (is_kept && self.may_repeat()).then(|| self.head.headers.clone());
        let body = self.source.as_ref().map_or(Sent::Empty, Source::sent);
        let (lost, is_silent) = match upstream {
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
        let is_refused = lost.is_refused();
        let Lost { unsent, error } = lost;
        tracing::debug!(pool = %pool.name, is_kept, ?error, "no answer");
        match (unsent, spare) {
            (Some(unsent), _) => self.head.headers = unsent.into_parts().0.headers,
            (None, Some(spare)) => self.head.headers = spare,
            (None, None) if is_refused => return Err(Fate::Refused),
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
            let (far, port) = h1.into_leg().await;
            link.upgraded.replace(Some(Upgraded { far, _guard: guard, _port: port }));
            return Ok(Reached { response: Response::from_parts(head, ()), body: None });
        }
        let driver = match carrier {
            Carrier::H1(h1) => {
                let is_under_way = self.source.as_ref().is_some_and(|source| source.is_under_way());
                Driver::new(h1, guard, is_under_way)
            }
            Carrier::H2(stream) => {
                let upload = self.source.as_ref().and_then(Source::upload);
                Driver::Shared(Share { stream, guard, upload })
            }
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
        let mark = mark_of(pool, server);
        if self.mark != Some(mark) {
            mark.put(by, answer, self.now, account.link().tls.is_some());
        }
    }
}

fn is_of(mark: Mark, pool: &Pool, server: &Server) -> bool {
    mark_of(pool, server) == mark
}

fn mark_of(pool: &Pool, server: &Server) -> Mark {
    Mark(*server.state.mark.get_or_init(|| Mark::of(&pool.name, &server.address).0))
}

/// What has become of a request without an answer.
enum Fate {
    /// It may be sent once more: no server has seen it, or it does no harm to be done twice.
    Unharmed,
    /// The server has not begun with it, and takes no request now.
    Refused,
    /// The host cannot be said in HTTP/2.
    Unsayable,
    /// The server has closed a kept connection, as it may at any time, and has not begun to answer.
    Stale,
    Lost,
}

/// An answer to be relayed.
pub(super) struct Ready {
    reached: Reached,
    /// When it must have come to its end, or what is said otherwise.
    deadline: Option<(Instant, HttpAnswer)>,
}

impl Ready {
    /// The answer to the client.
    pub(super) fn into_response(self, mut account: Account) -> Response<Answered> {
        let Ready { reached: Reached { response, body }, deadline } = self;
        account.answered(response.status(), None);
        if body.as_ref().is_none_or(Arriving::has_ended) {
            account.complete();
        }
        if let Some((at, late)) = deadline {
            account.watch().has_deadline(at, late);
        }
        response.map(|()| match body {
            Some(body) => Answered::Relayed(Relayed { body, request: account }),
            None => Answered::Own(Bytes::new()),
        })
    }
}

/// Whether the client waits to be asked for the body.
fn expects_100(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// `sent`: the method of a request that a server may have.
fn is_tried_again(retry: &Retry, outcome: &Result<Reached, HttpAnswer>, sent: Option<&Method>) -> bool {
    use HttpAnswer::{
        ConnectFailed, RequestTimeout, RouteRemoved, ServerDown, ServerFailed, ServerTlsFailed,
    };
    match outcome {
        Ok(Reached { body: None, .. }) | Err(RequestTimeout | RouteRemoved) => false,
        Ok(Reached { response, .. }) => retry.statuses.contains(&response.status()),
        Err(ConnectFailed | ServerTlsFailed) => true,
        // Done twice, it may do harm.
        Err(ServerDown | ServerFailed) => retry.lost || sent.is_none_or(Method::is_idempotent),
        Err(reason) => retry.statuses.contains(&status(*reason)),
    }
}
