//! One request, from its head to the answer's.

use super::account::Request as Account;
use super::answer::{answer, is_grpc};
use super::body::{Answered, Source};
use super::forward::{Forward, Head};
use super::link::Link;
use super::{hop, host};
use crate::reason::HttpAnswer;
use crate::route::http::{RequestParts, compared};
use crate::serving::{HttpRule, Route};
use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

/// Answers a request.
pub(super) async fn serve(
    link: Rc<Link>,
    request: Request<Incoming>,
) -> Result<Response<Answered>, Infallible> {
    let (head, body) = request.into_parts();
    let is_grpc = is_grpc(&head.headers);
    let mut account = Account::new(link, &head);
    let reason = match choose(&mut account, head) {
        Ok((rule, head)) => {
            let source = (!body.is_end_stream()).then(|| {
                let source = Source::new(body, rule.rule.retry.is_some());
                account.has_body(source.clone());
                source
            });
            match (Forward { rule, head, source }).run(&mut account).await {
                Ok(ready) => return Ok(ready.into_response(account)),
                Err(reason) => reason,
            }
        }
        Err(reason) => reason,
    };
    let response = answer(reason, is_grpc);
    account.answered(response.status(), Some(reason));
    Ok(response)
}

/// The rule for the request, and what of it is for a server.
fn choose(account: &mut Account, head: Parts) -> Result<(Arc<HttpRule>, Head), HttpAnswer> {
    if head.method == Method::CONNECT {
        return Err(HttpAnswer::NotImplemented);
    }
    hop::refuse_coding(&head.headers).map_err(|status| match status {
        StatusCode::NOT_IMPLEMENTED => HttpAnswer::NotImplemented,
        _ => HttpAnswer::Malformed,
    })?;
    let (route, rule) = find(account, &head)?;
    account.has_route(route);
    let rule = rule?;
    account.has_rule(rule.clone());
    let Parts { method, uri, version, mut headers, .. } = head;
    let upgrade = hop::upgrade(version, &headers);
    hop::strip_request(&mut headers);
    if version == Version::HTTP_2 {
        hop::join_cookies(&mut headers);
    }
    let line = headers.remove(HOST);
    let uri = uri.into_parts();
    let authority = uri.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let path = uri.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    Ok((rule, Head { method, path, host: authority.or(line), headers, upgrade }))
}

type Found = (Arc<Route>, Result<Arc<HttpRule>, HttpAnswer>);

fn find(account: &Account, head: &Parts) -> Result<Found, HttpAnswer> {
    let authority = host::authority_of(head.version, &head.uri, &head.headers);
    let authority = authority.map_err(|_| HttpAnswer::BadHost)?;
    let host = authority.map(host::name_of).transpose().map_err(|_| HttpAnswer::BadHost)?;
    let path = compared(head.uri.path()).map_err(|_| HttpAnswer::BadPath)?;
    let link = account.link();
    let snapshot = link.gateway.snapshot.load();
    let route = link.route(&snapshot, host.as_deref())?;
    let parts = RequestParts {
        host: host.as_deref().unwrap_or_default(),
        method: &head.method,
        path: &path,
        query: head.uri.query(),
        headers: &head.headers,
    };
    let rules = route.http.as_ref().ok_or(HttpAnswer::NoRoute)?;
    let rule = rules.lookup(&parts).map(|(rule, _)| rule.clone()).ok_or(HttpAnswer::NoRule);
    Ok((route, rule))
}
