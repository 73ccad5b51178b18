//! One request, from its head to the answer's: host, rule, filters, server.

use super::account::Request as Account;
use super::answer::{answer, is_grpc, status};
use super::body::Answered;
use super::exec::stream_watch;
use super::filter::{cors, forwarded, headers, redirect, rewrite};
use super::forward::{Backend, Forward};
use super::head::Head;
use super::link::Link;
use super::sent::Source;
use super::{hop, host};
use crate::config::{Filters, compared};
use crate::reason::HttpAnswer;
use crate::route::http::RequestParts;
use crate::serving::Pool;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

/// The answer is one of the gateway's.
struct Own {
    reason: HttpAnswer,
    /// Absent: the reason says it all.
    response: Option<Response<()>>,
}

impl From<HttpAnswer> for Own {
    fn from(reason: HttpAnswer) -> Self {
        Own { reason, response: None }
    }
}

/// Answers a request. `is_clear`: it says once where its body ends.
pub(super) async fn serve(
    link: Rc<Link>,
    request: Request<Incoming>,
    is_clear: bool,
) -> Result<Response<Answered>, Infallible> {
    let (mut head, body) = request.into_parts();
    let (is_grpc, is_head) = (is_grpc(&head.method, &head.headers), head.method == Method::HEAD);
    let version = head.version;
    let watch = stream_watch().unwrap_or_else(|| link.watch.share());
    let mut account = Account::new(link, watch, &head);
    let prepared =
        if is_clear { prepare(&mut account, &mut head) } else { Err(HttpAnswer::Malformed.into()) };
    let own = match prepared {
        Ok((backend, upgrade)) => {
            let source = (!body.is_end_stream()).then(|| {
                let again = backend.reads_again();
                let source = Source::new(body, version, again, account.watch().clone());
                account.has_body(source.clone());
                source
            });
            let forward = Forward { backend, head: head_of(head, upgrade), source };
            match forward.run(&mut account).await {
                Ok(ready) => return Ok(ready.into_response(account)),
                Err(reason) => reason.into(),
            }
        }
        Err(own) => own,
    };
    let mut response = match own.response {
        Some(response) => response.map(|()| Answered::Own(Bytes::new())),
        None => answer(own.reason, is_grpc),
    };
    // What comes behind a request that is none may be a part of it.
    if version < Version::HTTP_2
        && matches!(status(own.reason), StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED)
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    account.answered(response.status(), Some(own.reason));
    // hyper does not see to that in HTTP/2.
    Ok(if is_head { response.map(|_| Answered::Own(Bytes::new())) } else { response })
}

/// Finds where the request goes, and makes it what the server is to get.
fn prepare(account: &mut Account, head: &mut Parts) -> Result<(Backend, Option<HeaderValue>), Own> {
    if head.method == Method::CONNECT {
        return Err(HttpAnswer::NotImplemented.into());
    }
    let link = account.link().clone();
    hop::check_coding(&head.headers)?;
    if !hop::has_one_length(&head.headers) {
        return Err(HttpAnswer::Malformed.into());
    }
    // Only CONNECT has a target that is a host alone (RFC 9112, section 3.2.3).
    if head.uri.path().is_empty() {
        return Err(HttpAnswer::BadPath.into());
    }
    let uri = head.uri.clone();
    let authority = host::authority_of(head.version, &uri, &head.headers);
    let authority = authority.map_err(|_| HttpAnswer::BadHost)?.map(str::to_owned);
    let host = authority.as_deref().map(host::name_of).transpose().map_err(|_| HttpAnswer::BadHost)?;
    let path = compared(uri.path()).map_err(|_| HttpAnswer::BadPath)?;
    let route = link.route(&link.gateway.snapshot.load(), host.as_deref())?;
    account.has_route(route.clone());
    let rules = route.http().ok_or(HttpAnswer::NoRoute)?;
    let parts = RequestParts {
        host: host.as_deref().unwrap_or_default(),
        method: &head.method,
        path: &path,
        query: uri.query(),
        headers: &head.headers,
    };
    let (rule, of) = rules.lookup(&parts).ok_or(HttpAnswer::NoRule)?;
    account.has_rule(rule.clone());
    let (is_tls, local) = (link.tls.is_some(), link.local.map_or(0, |local| local.port()));
    let own = |filters: &Filters<Arc<Pool>>| {
        if let Some(response) = filters.cors.as_ref().and_then(|cors| cors::preflight(cors, head)) {
            return Err(Own { reason: HttpAnswer::Preflight, response: Some(response) });
        }
        let Some(by) = &filters.redirect else { return Ok(()) };
        let arrival = redirect::Arrival { tls: is_tls, host: parts.host, port: local };
        let response = redirect::redirect(by, arrival, &uri, of, &path).map_err(|_| HttpAnswer::BadPath)?;
        Err(Own { reason: HttpAnswer::Redirected, response: Some(response) })
    };
    own(&rule.rule.filters)?;
    let backend = Backend::choose(rule, &head.headers).ok_or(HttpAnswer::NoBackend)?;
    own(backend.filters())?;
    let trusted = link.connection.listener.is_forwarder(link.connection.client.ip());
    let origin = link.origin(authority.as_deref().unwrap_or_default()).ok_or(HttpAnswer::BadHost)?;
    let upgrade = hop::upgrade(head.version, &head.headers);
    hop::strip_request(&mut head.headers);
    forwarded::forward(&mut head.headers, &origin, trusted);
    for filters in [&rule.rule.filters, backend.filters()] {
        headers::change(&mut head.headers, &filters.request_headers);
        if let Some(by) = &filters.rewrite {
            rewrite::rewrite(head, by, of, &path).map_err(|_| HttpAnswer::BadPath)?;
        }
    }
    Ok((backend, upgrade))
}

/// What a server gets of the head.
fn head_of(head: Parts, upgrade: Option<HeaderValue>) -> Head {
    let Parts { method, uri, version, mut headers, .. } = head;
    if version == Version::HTTP_2 {
        hop::join_cookies(&mut headers);
    }
    let line = headers.remove(HOST);
    let uri = uri.into_parts();
    let authority = uri.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let path = uri.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    Head { method, path, host: authority.or(line), headers, upgrade }
}
