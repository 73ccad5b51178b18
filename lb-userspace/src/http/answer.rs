//! Answers of the gateway itself: a status, and a line of text that says why. Requests of gRPC get theirs in its own terms.

use super::body::Answered;
use crate::reason::HttpAnswer;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether the request is one of gRPC ("gRPC over HTTP2", Requests).
pub(super) fn is_grpc(method: &Method, headers: &HeaderMap) -> bool {
    const START: &[u8] = b"application/grpc";
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let rest = value.as_bytes().strip_prefix(START);
    *method == Method::POST && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The status of an answer for this reason. Redirects and answers to preflights bring their own.
pub(super) fn status(reason: HttpAnswer) -> StatusCode {
    use HttpAnswer as A;
    match reason {
        A::Malformed | A::BadHost | A::BadPath | A::ClientFailed => StatusCode::BAD_REQUEST,
        A::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        A::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        A::NoRoute | A::NoRule => StatusCode::NOT_FOUND,
        A::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        A::Redirected => StatusCode::FOUND,
        A::Preflight => StatusCode::NO_CONTENT,
        A::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
        A::NoServer | A::PoolDown | A::ServersFull | A::RouteRemoved | A::Resource => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        A::ConnectFailed | A::ServerTlsFailed | A::ServerFailed | A::ServerDown => StatusCode::BAD_GATEWAY,
        A::RequestTimeout | A::BackendTimeout | A::IdleTimeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// gRPC's own code ("Status codes and their use in gRPC").
fn grpc_code(reason: HttpAnswer) -> &'static str {
    use HttpAnswer as A;
    match reason {
        A::Malformed | A::BadHost | A::BadPath | A::HeadTooLarge | A::ClientFailed => "13",
        A::NotImplemented | A::NoRoute | A::NoRule => "12",
        A::RequestTimeout | A::BackendTimeout | A::IdleTimeout => "4",
        A::ServersFull => "8",
        A::Misdirected
        | A::Redirected
        | A::Preflight
        | A::NoBackend
        | A::NoServer
        | A::PoolDown
        | A::ConnectFailed
        | A::ServerTlsFailed
        | A::ServerFailed
        | A::ServerDown
        | A::RouteRemoved
        | A::Resource => "14",
    }
}

/// The answer for this reason.
pub(super) fn answer(reason: HttpAnswer, is_grpc: bool) -> Response<Answered> {
    let status = status(reason);
    let text = status.canonical_reason().unwrap_or_default();
    if is_grpc && reason != HttpAnswer::Misdirected {
        let mut response = Response::new(Answered::Own(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(grpc_code(reason)));
        headers.insert(GRPC_MESSAGE, HeaderValue::from_static(text));
        return response;
    }
    let mut response = Response::new(Answered::Own(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(CONTENT_LENGTH, text.len().into());
    response
}
