//! HTTP's side of a health check: one request, and the status of its answer (RFC 9112, section 4).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::probe::{Failure, Probe, Step};
use crate::reason::DownReason;
use bytes::BytesMut;

/// A request whose answer's status is looked at, and nothing of it beyond.
pub(super) struct Http {
    /// `None`: sent.
    request: Option<BytesMut>,
    /// Empty: 200 to 399.
    status: Vec<u16>,
}

/// `HTTP/1.1 200` with what follows: a space, or the line's end where there is no reason phrase.
const HEAD: &[u8] = b"HTTP/1.x nnn ";

impl Http {
    pub(super) fn new(path: &str, host: &str, status: Vec<u16>) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: snisplice\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        Http { request: Some(BytesMut::from(request.as_bytes())), status }
    }
}

impl Probe for Http {
    fn step(&mut self, received: &mut BytesMut) -> Step {
        if let Some(request) = self.request.take() {
            return Step::Write(request);
        }
        let fits = |(byte, pattern): (&u8, &u8)| match pattern {
            b'x' | b'n' => byte.is_ascii_digit(),
            b' ' => matches!(byte, b' ' | b'\r' | b'\n'),
            literal => byte == literal,
        };
        if !received.iter().zip(HEAD).all(fits) {
            let line = received[..].split(|byte| *byte == b'\n').next().unwrap_or_default();
            return Step::done(Err(Failure::said(DownReason::BadAnswer, line)));
        }
        let Some(digits) = received.get(9..12).filter(|_| received.len() >= HEAD.len()) else {
            return Step::Read;
        };
        let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        let expected = match self.status.is_empty() {
            true => (200..400).contains(&status),
            false => self.status.contains(&status),
        };
        Step::done(if expected { Ok(()) } else { Err(Failure::said(DownReason::HttpStatus, digits)) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::holds_for_every_prefix;
    use super::*;
    use DownReason as D;

    fn http(status: &[u16]) -> impl Fn() -> Http {
        let status = status.to_vec();
        move || Http::new("/health?deep=1", "db.example.com:8008", status.clone())
    }

    #[test]
    fn one_request_is_sent_and_its_status_counts() {
        let said = holds_for_every_prefix(http(&[]), b"HTTP/1.1 204 No Content\r\n\r\n", Ok(()));
        let text = String::from_utf8(said).unwrap();
        assert!(text.starts_with("GET /health?deep=1 HTTP/1.1\r\nHost: db.example.com:8008\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn statuses_are_expected_or_not() {
        for (status, answer, expected) in [
            (&[][..], &b"HTTP/1.0 200\r\n\r\n"[..], Ok(())),
            (&[], b"HTTP/1.1 301 Moved\r\n", Ok(())),
            (&[], b"HTTP/1.1 503 Service Unavailable\r\n", Err(D::HttpStatus)),
            (&[], b"HTTP/1.1 199 \r\n", Err(D::HttpStatus)),
            (&[503], b"HTTP/1.1 503 Service Unavailable\r\n", Ok(())),
            (&[503, 401], b"HTTP/1.1 200 OK\r\n", Err(D::HttpStatus)),
            (&[], b"-ERR unknown command 'GET'\r\n", Err(D::BadAnswer)),
            (&[], b"HTTP/2.0 200 OK\r\n", Err(D::BadAnswer)),
            (&[], b"HTTP/1.1 2000 OK\r\n", Err(D::BadAnswer)),
            (&[], b"HTTP/1.1 \x1b00 OK\r\n", Err(D::BadAnswer)),
        ] {
            // What is no status line may be told by its first byte.
            let shown = holds_for_every_prefix(http(status), answer, expected);
            assert!(!shown.is_empty());
        }
    }
}
