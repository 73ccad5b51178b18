//! Heads of HTTP/1.1 that say twice where the body ends. hyper goes by `Transfer-Encoding` then, as it may, and does not tell.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use memchr::memchr_iter;

/// What the lines of a head, as far as it has come, say of the body's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Framing {
    /// The request line has begun: empty lines may come before it (RFC 9112, section 2.2).
    has_begun: bool,
    has_length: bool,
    has_coding: bool,
    /// The head is over.
    is_whole: bool,
}

impl Framing {
    /// With the next bytes. A name that lies in two of these is not seen.
    pub(super) fn and(mut self, bytes: &[u8]) -> Self {
        let is_name = |line: &[u8], name: &[u8]| {
            line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let begin = match self.has_begun {
            true => 0,
            false => bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count(),
        };
        let bytes = &bytes[begin..];
        self.has_begun |= !bytes.is_empty();
        for end in memchr_iter(b'\n', bytes) {
            let line = &bytes[end + 1..];
            match line.first() {
                _ if self.is_whole => return self,
                Some(b'c' | b'C') if is_name(line, b"content-length") => self.has_length = true,
                Some(b't' | b'T') if is_name(line, b"transfer-encoding") => self.has_coding = true,
                Some(b'\r' | b'\n') => self.is_whole = true,
                Some(_) | None => {}
            }
        }
        self
    }

    /// Whether the head says it twice.
    pub(super) fn is_doubtful(self) -> bool {
        self.has_length && self.has_coding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_doubtful(pieces: &[&str]) -> bool {
        pieces.iter().fold(Framing::default(), |framing, piece| framing.and(piece.as_bytes())).is_doubtful()
    }

    #[test]
    fn both_in_one_head_are_in_doubt() {
        assert!(is_doubtful(&["POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"]));
        assert!(is_doubtful(&[
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n",
            "x: y\nCONTENT-LENGTH: 3\n\n"
        ]));
        let empty = "\r\n\nPOST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(is_doubtful(&[empty]));
        assert!(is_doubtful(&["\r\n", "\n", &empty[3..]]));
        assert!(!is_doubtful(&[
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nx: \r\n\r\n\nTransfer-Encoding: chunked"
        ]));
        assert!(!is_doubtful(&["GET /content-length: HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"]));
    }
}
