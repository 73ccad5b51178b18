//! The account of a request: a line of the access log, and its route's counters, at the end of its answer.

use super::link::Link;
use super::sent::Source;
use super::watch::Watch;
use crate::account::RequestFacts;
use crate::reason::HttpAnswer;
use crate::serving::{HttpRule, Pool, Route, Server};
use http::StatusCode;
use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, uri::Authority};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// An open account. Dropped, it is closed.
pub(super) struct Request {
    link: Rc<Link>,
    watch: Rc<Watch>,
    began: Instant,
    /// Its own, or that of its connection as long as it has none.
    route: Arc<Route>,
    rule: Option<Arc<HttpRule>>,
    server: Option<(Arc<Pool>, Arc<Server>)>,
    /// For the access log, if there is one.
    named: Option<Box<Named>>,
    /// Its body, if it has one.
    source: Option<Rc<Source>>,
    status: Option<StatusCode>,
    /// Why the gateway has answered itself, or the answer was broken off.
    answer: Option<HttpAnswer>,
    bytes_out: u64,
    is_complete: bool,
}

/// What the client has asked for, in its words.
struct Named {
    method: Method,
    host: Option<HeaderValue>,
    authority: Option<Authority>,
    target: Option<PathAndQuery>,
}

impl Request {
    /// `watch`: of the task that carries it.
    pub(super) fn new(link: Rc<Link>, watch: Rc<Watch>, head: &Parts) -> Self {
        link.begin();
        watch.begin(link.connection.route.idle_timeout());
        let named = link.gateway.books.access_log.is_some().then(|| {
            Box::new(Named {
                method: head.method.clone(),
                host: head.headers.get(HOST).cloned(),
                authority: head.uri.authority().cloned(),
                target: head.uri.path_and_query().cloned(),
            })
        });
        let route = link.connection.route.clone();
        Request {
            link,
            watch,
            began: Instant::now(),
            route,
            rule: None,
            server: None,
            named,
            source: None,
            status: None,
            answer: None,
            bytes_out: 0,
            is_complete: false,
        }
    }

    pub(super) fn link(&self) -> &Rc<Link> {
        &self.link
    }

    pub(super) fn watch(&self) -> &Rc<Watch> {
        &self.watch
    }

    pub(super) fn has_route(&mut self, route: Arc<Route>) {
        self.link.routed(&route);
        self.watch.has_route(route.clone());
        self.route = route;
    }

    pub(super) fn has_rule(&mut self, rule: Arc<HttpRule>) {
        self.rule = Some(rule);
    }

    /// It has a body.
    pub(super) fn has_body(&mut self, source: Rc<Source>) {
        self.source = Some(source);
    }

    /// A server was reached, which was chosen in this epoch.
    pub(super) fn reached(&mut self, pool: &Arc<Pool>, server: &Arc<Server>, epoch: u64) {
        self.server = Some((pool.clone(), server.clone()));
        self.watch.has_server(server.clone(), epoch);
    }

    /// The server that was reached last.
    pub(super) fn server(&self) -> Option<&(Arc<Pool>, Arc<Server>)> {
        self.server.as_ref()
    }

    /// The answer is one of the gateway's, or a server's without `reason`.
    pub(super) fn answered(&mut self, status: StatusCode, reason: Option<HttpAnswer>) {
        (self.status, self.answer) = (Some(status), reason);
        self.watch.moves();
    }

    /// So many bytes of the answer's body have gone to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
        self.watch.moves();
    }

    /// Its server has not brought the answer to an end.
    pub(super) fn broken(&mut self) {
        self.answer = Some(HttpAnswer::ServerFailed);
    }

    /// The whole answer has.
    pub(super) fn complete(&mut self) {
        self.is_complete = true;
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.link.end();
        // All of the answer may have been taken over by hyper, and not by the client.
        let cause = self.watch.cause();
        self.answer = self.answer.or(cause);
        match self.link.has_upgraded() {
            // It goes on with its server.
            true => self.watch.is_free(),
            false => self.watch.end(),
        }
        if let (Some(source), Some(_)) = (&self.source, cause) {
            source.break_off();
        }
        let time = self.began.elapsed();
        let counts = self.route.stats.counting().counting_http();
        let class = self.status.map_or(0, |status| usize::from(status.as_u16() / 100));
        counts.by_class[class.min(5)].fetch_add(1, Relaxed);
        if let Some(reason) = self.answer {
            counts.answers.add(reason as usize);
        }
        counts.seconds.observe(time);
        let Some(named) = &self.named else { return };
        let host = named.authority.as_ref().map(Authority::as_str).map(str::as_bytes);
        let host = host.or(named.host.as_ref().map(HeaderValue::as_bytes));
        self.link.gateway.books.log_request(&RequestFacts {
            connection: &self.link.connection,
            method: named.method.as_str(),
            host: host.unwrap_or_default(),
            path: named.target.as_ref().map_or("", PathAndQuery::path),
            status: self.status.map(|status| status.as_u16()),
            route: self.route.name(),
            rule: self.rule.as_ref().map(|of| &*of.rule.name),
            upstream: self.server.as_ref().map(|(pool, server)| (&**pool, &**server)),
            bytes_in: self.source.as_ref().map_or(0, |source| source.received()),
            bytes_out: self.bytes_out,
            duration: time,
            end: match (self.answer, self.is_complete, self.link.connection.ending()) {
                (Some(reason), ..) => reason.name(),
                (None, true, _) => "complete",
                // The connection is ended from outside.
                (None, false, Some(reason)) => reason.name(),
                (None, false, None) => "incomplete",
            },
        });
    }
}
