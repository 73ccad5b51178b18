//! What a health check says to a server, and what it makes of the answer: bytes in, bytes out, a verdict. Pure, but for the
//! random number that a login by SCRAM takes.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::mysql::ServerGreeting;
use crate::reason::DownReason;
use bytes::BytesMut;

/// Bytes that a server may send without the check coming to its end.
pub(super) const MAX_RECEIVED: usize = 16 * 1024;

/// Bytes of a server's own words that are kept for the log.
const MAX_DETAIL: usize = 120;

/// One check of one server.
pub(super) trait Probe {
    /// What is to be done next. `received`: what has arrived and was not consumed; the probe takes out what it has read. At
    /// first, and after each step but [`Step::Read`], it may be empty.
    fn step(&mut self, received: &mut BytesMut) -> Step;

    /// How a MySQL server has greeted, if it was heard.
    fn greeting(&mut self) -> Option<ServerGreeting> {
        None
    }
}

/// What a check does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Waits for more bytes.
    Read,
    /// Sends this.
    Write(BytesMut),
    /// Goes on inside TLS: nothing was received beyond this point.
    StartTls,
    /// It is over, after this is sent.
    Done {
        /// Whether the server works.
        verdict: Verdict,
        /// The protocol's way to say goodbye.
        farewell: BytesMut,
    },
}

/// Whether a server works.
pub(super) type Verdict = Result<(), Failure>;

/// Why a check failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}{detail}")]
pub(super) struct Failure {
    pub(super) reason: DownReason,
    /// Empty, or a colon and what the server or the system says, as bounded printable ASCII.
    detail: String,
}

impl Failure {
    /// With what the server said.
    pub(super) fn said(reason: DownReason, words: &[u8]) -> Self {
        let words: String = words.escape_ascii().take(MAX_DETAIL).map(char::from).collect();
        Failure { reason, detail: if words.is_empty() { words } else { format!(": {words}") } }
    }
}

impl From<DownReason> for Failure {
    fn from(reason: DownReason) -> Self {
        Failure { reason, detail: String::new() }
    }
}

impl Step {
    /// It is over.
    pub(super) fn done(verdict: Result<(), impl Into<Failure>>) -> Self {
        Step::Done { verdict: verdict.map_err(Into::into), farewell: BytesMut::new() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A conversation: what the probe said between the bytes of the server, and its verdict, if it came to one.
    pub(in super::super) fn converse(
        mut probe: impl Probe,
        server: &[u8],
        cuts: impl Iterator<Item = usize>,
    ) -> (Vec<u8>, Option<Verdict>) {
        let (mut said, mut received) = (Vec::new(), BytesMut::new());
        let mut rest = server;
        let mut cuts = cuts.chain(std::iter::repeat(usize::MAX));
        loop {
            match probe.step(&mut received) {
                Step::Write(bytes) => said.extend_from_slice(&bytes),
                Step::StartTls => said.extend_from_slice(b"<TLS>"),
                Step::Done { verdict, farewell } => {
                    said.extend_from_slice(&farewell);
                    return (said, Some(verdict));
                }
                Step::Read if rest.is_empty() => return (said, None),
                Step::Read => {
                    let cut = cuts.next().unwrap_or(1).clamp(1, rest.len());
                    received.extend_from_slice(&rest[..cut]);
                    rest = &rest[cut..];
                }
            }
        }
    }

    /// The server's whole answer gives this verdict; with any prefix the probe waits, until it gives it too; and however the
    /// answer is cut.
    pub(in super::super) fn holds_for_every_prefix<P: Probe>(
        probe: impl Fn() -> P,
        server: &[u8],
        expected: Result<(), DownReason>,
    ) -> Vec<u8> {
        let reason = |verdict: Option<Verdict>| verdict.map(|v| v.map_err(|failure| failure.reason));
        let (said, verdict) = converse(probe(), server, std::iter::empty());
        assert_eq!(reason(verdict), Some(expected), "{}", server.escape_ascii());
        for length in 0..server.len() {
            let verdict = reason(converse(probe(), &server[..length], std::iter::empty()).1);
            assert!(
                verdict.is_none_or(|v| v == expected),
                "{verdict:?}: {}",
                server[..length].escape_ascii()
            );
            let cut_once = std::iter::once(length);
            assert_eq!(reason(converse(probe(), server, cut_once).1), Some(expected), "cut at {length}");
        }
        let bytewise = converse(probe(), server, std::iter::repeat(1));
        assert_eq!(reason(bytewise.1), Some(expected));
        said
    }

    #[test]
    fn a_servers_words_are_bounded_and_printable() {
        let failure = Failure::said(DownReason::ServerError, &b"\x1b[2J\xff\"".repeat(100));
        let text = failure.to_string();
        assert!(text.starts_with(r"server_error: \x1b[2J\xff") && text.len() < 140 && text.is_ascii());
        assert!(!text.contains('\x1b'));
        assert_eq!(Failure::said(DownReason::Timeout, b"").to_string(), "timeout");
    }
}
