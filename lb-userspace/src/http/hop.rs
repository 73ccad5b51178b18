//! What is between two ends of one connection and not passed on (RFC 9110, section 7.6.1).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::reason::HttpAnswer;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, HOST, HeaderName, HeaderValue, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Whether the `Connection` lines have this option.
fn has_option(headers: &HeaderMap, option: &str) -> bool {
    options(headers, CONNECTION).any(|found| found.eq_ignore_ascii_case(option))
}

/// The members of a list, which may have several lines.
fn options(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// The protocol that is asked for in place of HTTP, or that a server goes over to (RFC 9110, section 7.8). Never another
/// version of HTTP, which would carry requests past the rules. Of several the first: the server has no choice, so that what it
/// goes over to is known.
pub(super) fn upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let begins = |protocol: &str, with: &str| {
        protocol.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    let is_http = |protocol: &str| begins(protocol, "h2") || begins(protocol, "http");
    let protocol = options(headers, UPGRADE).find(|protocol| !protocol.is_empty() && !is_http(protocol))?;
    let is_asked = version == Version::HTTP_11 && has_option(headers, "upgrade");
    is_asked.then(|| HeaderValue::from_str(protocol).ok()).flatten()
}

/// Takes out of a request what is not for the server. `TE: trailers` stays, for gRPC.
pub(super) fn strip_request(headers: &mut HeaderMap) {
    let trailers = |line: &HeaderValue| {
        let codings = line.to_str().unwrap_or_default().split(',');
        codings.map(str::trim).any(|coding| coding.eq_ignore_ascii_case("trailers"))
    };
    let takes_trailers = headers.contains_key(TE) && headers.get_all(TE).iter().any(trailers);
    strip(headers);
    headers.remove(HTTP2_SETTINGS);
    headers.remove(PROXY_AUTHORIZATION);
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out of an answer what is not for the client.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    strip(headers);
    headers.remove(PROXY_AUTHENTICATE);
}

/// Takes out of trailers what only a head can say: of the connection, of where the message ends, and of how it is to be read
/// (RFC 9110, section 6.5.1).
pub(super) fn strip_trailers(trailers: &mut HeaderMap) {
    strip(trailers);
    for name in [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TRAILER,
    ] {
        trailers.remove(name);
    }
}

fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        // The usual two name no header, or one that goes anyway.
        let is_usual =
            |option: &str| ["close", "keep-alive"].iter().any(|usual| option.eq_ignore_ascii_case(usual));
        let others = options(headers, CONNECTION).filter(|option| !is_usual(option));
        let mut named: Vec<HeaderName> = others.filter_map(|option| option.parse().ok()).collect();
        // The host chooses the rule: no client takes it away from the server.
        named.retain(|name| *name != HOST);
        headers.remove(CONNECTION);
        named.iter().for_each(|name| _ = headers.remove(name));
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// Refuses a body with a transfer coding that the gateway cannot undo.
pub(super) fn check_coding(headers: &HeaderMap) -> Result<(), HttpAnswer> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(_), None) => Err(HttpAnswer::NotImplemented),
        (Some(_), Some(_)) => Err(HttpAnswer::Malformed),
    }
}

/// Whether the message says at most once how long its body is, by a number. Of HTTP/2 it may say the same twice, which would be
/// in doubt in HTTP/1.1 (RFC 9110, section 8.6); where no body can follow, hyper passes on whatever there is.
pub(super) fn has_one_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let is_number = |length: &[u8]| !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    lengths.next().is_none_or(is_number) && lengths.next().is_none()
}

/// Whether it is clear where the body of an answer ends, also to programs that are not as strict (RFC 9112, section 6.3), and the
/// gateway can undo its coding.
pub(super) fn has_clear_end(headers: &HeaderMap) -> bool {
    let is_coded = headers.contains_key(TRANSFER_ENCODING);
    !(is_coded && headers.contains_key(CONTENT_LENGTH))
        && check_coding(headers).is_ok()
        && has_one_length(headers)
}

/// One line of cookies, as HTTP/1.1 has it (RFC 9113, section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let lines = headers.get_all(COOKIE);
    if lines.iter().nth(1).is_none() {
        return;
    }
    let joined = lines.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    // The parts are values, so the whole is.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_connection_names_goes_with_it() {
        let mut request = headers(&[
            ("connection", "close, X-Secret, Host"),
            ("host", "a.example"),
            ("connection", "TE"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("te", "gzip, trailers"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
        ]);
        strip_request(&mut request);
        assert_eq!(request, headers(&[("host", "a.example"), ("x-other", "2"), ("te", "trailers")]));
        let mut answer = headers(&[("connection", "close"), ("te", "trailers"), ("proxy-authenticate", "x")]);
        strip_answer(&mut answer);
        assert!(answer.is_empty());
    }

    #[test]
    fn an_upgrade_is_asked_for_twice_and_never_to_http2() {
        let asks = |version, lines: &[_]| upgrade(version, &headers(lines)).is_some();
        let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert!(asks(Version::HTTP_11, &websocket));
        assert!(!asks(Version::HTTP_10, &websocket));
        assert!(!asks(Version::HTTP_11, &websocket[1..]));
        assert!(!asks(Version::HTTP_11, &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]));
        let several = |lines: &[&'static str]| {
            let lines = lines.iter().map(|line| ("upgrade", *line));
            let lines: Vec<_> = lines.chain([("connection", "upgrade")]).collect();
            upgrade(Version::HTTP_11, &headers(&lines))
        };
        for lines in [
            &["websocket, h2c"][..],
            &["h2c, websocket"],
            &["H2C", " websocket , x"],
            &["HTTP/2.0,,websocket"],
        ] {
            assert_eq!(several(lines), Some(HeaderValue::from_static("websocket")), "{lines:?}");
        }
        assert_eq!(several(&["h2c, h2", "HTTP/3.0"]), None);
    }

    #[test]
    fn only_chunks_are_undone() {
        assert_eq!(check_coding(&headers(&[("transfer-encoding", "Chunked")])), Ok(()));
        assert_eq!(check_coding(&headers(&[])), Ok(()));
        let gzip = headers(&[("transfer-encoding", "gzip, chunked")]);
        assert_eq!(check_coding(&gzip), Err(HttpAnswer::NotImplemented));
        let twice = headers(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]);
        assert_eq!(check_coding(&twice), Err(HttpAnswer::Malformed));
    }

    #[test]
    fn the_end_of_an_answer_is_clear() {
        for (lines, is_clear) in [
            (&[][..], true),
            (&[("content-length", "5")], true),
            (&[("transfer-encoding", "chunked")], true),
            (&[("content-length", "")], false),
            (&[("content-length", "+5")], false),
            (&[("content-length", "5, 5")], false),
            (&[("content-length", "5"), ("content-length", "5")], false),
            (&[("content-length", "5"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
        ] {
            assert_eq!(has_clear_end(&headers(lines)), is_clear, "{lines:?}");
        }
    }

    #[test]
    fn trailers_say_nothing_that_a_head_should() {
        let mut trailers = headers(&[
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-a"),
            ("x-a", "1"),
            ("set-cookie", "a=b"),
            ("grpc-status", "0"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("grpc-status", "0")]));
    }

    #[test]
    fn cookies_come_in_one_line() {
        let mut request = headers(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        join_cookies(&mut request);
        assert_eq!(request, headers(&[("cookie", "a=1; b=2; c=3")]));
    }
}
