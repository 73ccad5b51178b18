//! POP3: STLS (RFC 2595, section 4).

use super::reply::{Next, Reply, reply, verb};

pub(super) const GREETING: &str = "+OK snisplice\r\n";

/// The answer to a command.
pub(super) fn answer(line: &[u8]) -> Reply {
    match &verb(line).0[..] {
        b"CAPA" => reply(Next::More, "+OK\r\nSTLS\r\n.\r\n"),
        b"STLS" => reply(Next::Tls, "+OK Begin TLS negotiation\r\n"),
        b"QUIT" => reply(Next::Bye, "+OK Bye\r\n"),
        _ => reply(Next::More, "-ERR STLS first\r\n"),
    }
}
