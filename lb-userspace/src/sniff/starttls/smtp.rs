//! SMTP: STARTTLS (RFC 3207).

use super::reply::{Next, Reply, reply, verb};

pub(super) const GREETING: &str = "220 snisplice ESMTP\r\n";

/// The answer to a command.
pub(super) fn answer(line: &[u8]) -> Reply {
    let (verb, rest) = verb(line);
    match &verb[..] {
        b"EHLO" => reply(Next::More, "250-snisplice\r\n250-ENHANCEDSTATUSCODES\r\n250 STARTTLS\r\n"),
        b"HELO" => reply(Next::More, "250 snisplice\r\n"),
        b"NOOP" | b"RSET" => reply(Next::More, "250 2.0.0 OK\r\n"),
        b"STARTTLS" if rest.is_empty() => reply(Next::Tls, "220 2.0.0 Ready to start TLS\r\n"),
        b"STARTTLS" => reply(Next::More, "501 5.5.4 STARTTLS has no parameters\r\n"),
        b"QUIT" => reply(Next::Bye, "221 2.0.0 Bye\r\n"),
        _ => reply(Next::More, "530 5.7.0 Must issue a STARTTLS command first\r\n"),
    }
}
