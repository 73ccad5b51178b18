//! Where requests of HTTP/1.1 end, for what hyper does not tell: that a head says twice where its body ends, by `Content-Length`
//! and by `Transfer-Encoding` (RFC 9112, section 6.3). It goes by the latter then, as it may, and drops the other.
//!
//! So the bytes are looked at before hyper gets them, and it gets no more than one head at a time. If it does not see the end of
//! a head or of a body where it is seen here, the next request is in doubt.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use memchr::memchr;

/// Follows the bytes of a connection.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    part: Part,
    /// What the head has.
    has_length: bool,
    has_coding: bool,
}

#[derive(Clone, Debug)]
enum Part {
    Head(Lines),
    /// The head is over, and hyper has not said what it makes of it.
    Over,
    /// A body of which so many bytes are to come.
    Body(u64),
    Chunks(Chunks),
    /// hyper has seen something else.
    Lost,
}

impl Default for Framing {
    fn default() -> Self {
        Framing { part: Part::Head(Lines::default()), has_length: false, has_coding: false }
    }
}

impl Framing {
    /// hyper reads on, and these bytes are there. How many of them it gets: at least one, unless there is none.
    pub(super) fn next(&mut self, bytes: &[u8]) -> usize {
        match &mut self.part {
            Part::Lost => bytes.len(),
            Part::Head(lines) => {
                let end = lines.end(bytes, |line| {
                    self.has_length |= line.eq_ignore_ascii_case(b"content-length:");
                    self.has_coding |= line.eq_ignore_ascii_case(b"transfer-encoding:");
                });
                if end.is_some() {
                    self.part = Part::Over;
                }
                end.unwrap_or(bytes.len())
            }
            Part::Over => {
                self.part = Part::Lost;
                bytes.len()
            }
            Part::Body(left) => {
                let passed = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= passed as u64;
                if *left == 0 {
                    *self = Framing::default();
                }
                passed
            }
            Part::Chunks(chunks) => match chunks.end(bytes) {
                Ok(None) => bytes.len(),
                Ok(Some(end)) => {
                    *self = Framing::default();
                    end
                }
                Err(TooLarge) => {
                    self.part = Part::Lost;
                    bytes.len()
                }
            },
        }
    }

    /// The next bytes are those of a head.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.part, Part::Head(_))
    }

    /// hyper has the head, and says how long the body is; `None`: it is one of chunks. Whether nothing is in doubt.
    pub(super) fn has_head(&mut self, body: Option<u64>) -> bool {
        let is_clear = matches!(self.part, Part::Over) && !(self.has_length && self.has_coding);
        match (is_clear, body) {
            (false, _) => self.part = Part::Lost,
            (true, Some(0)) => *self = Framing::default(),
            (true, Some(length)) => self.part = Part::Body(length),
            (true, None) => self.part = Part::Chunks(Chunks::default()),
        }
        is_clear
    }
}

/// Bytes of a line that are kept to tell a name, which may come in pieces.
const KEPT: usize = b"transfer-encoding:".len();

/// The lines of a head.
#[derive(Clone, Debug, Default)]
struct Lines {
    /// The request line has begun: empty lines may come before it (RFC 9112, section 2.2).
    has_begun: bool,
    /// The beginning of the present line.
    line: [u8; KEPT],
    length: usize,
}

impl Lines {
    /// How many of the bytes belong to the head, if they have its end. `see` gets each line's name with its colon.
    fn end(&mut self, bytes: &[u8], mut see: impl FnMut(&[u8])) -> Option<usize> {
        let mut at = 0;
        if !self.has_begun {
            at = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            self.has_begun = at < bytes.len();
        }
        while at < bytes.len() {
            let end = memchr(b'\n', &bytes[at..]);
            let line = &bytes[at..end.map_or(bytes.len(), |end| at + end)];
            let kept = line.len().min(KEPT - self.length);
            self.line[self.length..self.length + kept].copy_from_slice(&line[..kept]);
            self.length += kept;
            at += end? + 1;
            let line = &self.line[..std::mem::take(&mut self.length)];
            match memchr(b':', line) {
                Some(colon) => see(&line[..=colon]),
                None if matches!(line, b"" | b"\r") => return Some(at),
                None => {}
            }
        }
        None
    }
}

/// The size of a chunk that no body has.
#[derive(Debug)]
struct TooLarge;

/// A body of chunks (RFC 9112, section 7.1).
#[derive(Clone, Debug)]
enum Chunks {
    /// So far; `false`: its digits are over.
    Size(u64, bool),
    /// So many bytes of the chunk, with the end of its line.
    Data(u64),
    /// A line behind the last chunk. `true`: it is empty so far.
    Trailer(bool),
}

impl Default for Chunks {
    fn default() -> Self {
        Chunks::Size(0, true)
    }
}

impl Chunks {
    /// How many of the bytes belong to the body, if they have its end.
    fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, TooLarge> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            at += 1;
            match self {
                Chunks::Size(0, _) if byte == b'\n' => *self = Chunks::Trailer(true),
                Chunks::Size(size, _) if byte == b'\n' => {
                    *self = Chunks::Data(size.checked_add(2).ok_or(TooLarge)?);
                }
                Chunks::Size(size, are_digits) => match char::from(byte).to_digit(16) {
                    Some(digit) if *are_digits => {
                        *size = size.checked_mul(16).ok_or(TooLarge)? + u64::from(digit);
                    }
                    _ => *are_digits = false,
                },
                Chunks::Data(left) => {
                    let more = usize::try_from(*left - 1).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += more;
                    *left -= more as u64 + 1;
                    if *left == 0 {
                        *self = Chunks::default();
                    }
                }
                Chunks::Trailer(true) if byte == b'\n' => return Ok(Some(at)),
                Chunks::Trailer(is_empty) => *is_empty = byte == b'\n' || *is_empty && byte == b'\r',
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    /// How each request's head is judged, if hyper sees what is seen here. The bytes come as they are cut.
    fn judged(bytes: &[u8], cuts: &[usize], bodies: &[Option<u64>]) -> Vec<bool> {
        let (mut framing, mut judged, mut at) = (Framing::default(), Vec::new(), 0);
        while at < bytes.len() {
            let until = cuts.iter().copied().filter(|cut| *cut > at).min().unwrap_or(bytes.len());
            at += framing.next(&bytes[at..until]);
            if matches!(framing.part, Part::Over) {
                judged.push(framing.has_head(bodies[judged.len()]));
            }
        }
        judged
    }

    const BOTH: &str = "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";

    fn alone(head: &str) -> bool {
        judged(head.as_bytes(), &[], &[None])[0]
    }

    #[test]
    fn both_in_one_head_are_in_doubt() {
        assert!(!alone(BOTH));
        assert!(!alone(&BOTH.replace('\r', "")));
        assert!(!alone(&format!("\r\n\n{BOTH}")));
        assert!(!alone("POST / HTTP/1.1\r\ntransfer-ENCODING: chunked\r\nx: y\r\nCONTENT-LENGTH:3\r\n\r\n"));
        assert!(alone("POST / HTTP/1.1\r\nContent-Length: 3\r\nx: \r\n\r\n"));
        assert!(alone("GET /content-length: HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(alone("GET / HTTP/1.1\r\nContent-Lengthy: 3\r\nTransfer-Encoding: chunked\r\n\r\n"));
    }

    #[test]
    fn a_head_that_hyper_sees_elsewhere_is_in_doubt() {
        let mut framing = Framing::default();
        assert_eq!(framing.next(b"GET / HTTP/1.1\r\n"), 16);
        assert!(!framing.has_head(Some(0)));
        let mut framing = Framing::default();
        assert_eq!(framing.next(b"GET / HTTP/1.1\r\n\r\nmore"), 18);
        // It is not held up.
        assert_eq!(framing.next(b"more"), 4);
        assert!(!framing.has_head(Some(0)));
        let mut framing = Framing { part: Part::Chunks(Chunks::default()), ..Framing::default() };
        assert_eq!(framing.next(b"fffffffffffffffff\r\n"), 19);
        assert!(!framing.has_head(None));
    }

    /// A request, and how long hyper says that its body is.
    fn any_request() -> impl Strategy<Value = (String, Option<u64>, bool)> {
        let lines = prop::collection::vec(prop_oneof!["x: y\r\n", "Connection: close\r\n", "z:\r\n"], 0..3);
        let chunk = ("[a-z\r\n]{1,40}", prop_oneof![Just(""), Just(";a=0"), Just(" ;a")]);
        let chunks = prop::collection::vec(chunk, 0..4).prop_map(|chunks| {
            let chunk = |(data, more): &(String, &str)| format!("{:x}{more}\r\n{data}\r\n", data.len());
            chunks.iter().map(chunk).collect::<String>()
        });
        let trailer = prop_oneof![Just(""), Just("content-length: 1\r\n")];
        let body = prop_oneof![
            Just((String::new(), String::new(), Some(0))),
            "[a-z\r\n]{1,40}".prop_map(|body| {
                (format!("content-length: {}\r\n", body.len()), body.clone(), Some(body.len() as u64))
            }),
            (chunks, trailer).prop_map(|(chunks, trailer)| {
                ("transfer-encoding: chunked\r\n".to_owned(), format!("{chunks}0\r\n{trailer}\r\n"), None)
            }),
        ];
        (lines, body, any::<bool>()).prop_map(|(lines, (header, body, length), is_odd)| {
            let both = if is_odd && length.is_none() { "Content-Length: 5\r\n" } else { "" };
            (format!("GET / HTTP/1.1\r\n{both}{}{header}\r\n{body}", lines.concat()), length, both.is_empty())
        })
    }

    proptest! {
        /// However the bytes are cut: each head is judged by its own lines. Behind one in doubt, all are.
        #[test]
        fn heads_are_judged_wherever_they_stand(
            requests in prop::collection::vec(any_request(), 1..6),
            cuts in prop::collection::vec(any::<Index>(), 0..12),
        ) {
            let bytes = requests.iter().map(|(text, ..)| text.as_str()).collect::<String>().into_bytes();
            let cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            let bodies: Vec<_> = requests.iter().map(|(_, body, _)| *body).collect();
            let clear = requests.iter().take_while(|(.., is_clear)| *is_clear).count();
            let mut expected = vec![true; clear];
            expected.extend((clear < requests.len()).then_some(false));
            prop_assert_eq!(judged(&bytes, &cuts, &bodies), expected);
        }
    }
}
