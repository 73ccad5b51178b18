//! ERR packets: what a client is told that gets no server, and what a server says that takes no connection.

use super::packet::{Reader, packet};
use crate::reason::{CloseReason as C, RejectReason as R};

/// SQLSTATE of a connection that was not established.
const NOT_CONNECTED: &[u8; 5] = b"08004";
/// The SQLSTATE of errors that have none of their own.
const GENERAL: &[u8; 5] = b"HY000";

/// ER_CON_COUNT_ERROR.
const TOO_MANY: u16 = 1040;
/// ER_NOT_SUPPORTED_AUTH_MODE.
const OLD_CLIENT: u16 = 1251;
/// CR_CONN_HOST_ERROR: a client's own number, as clients print it that cannot reach a server.
const UNREACHABLE: u16 = 2003;
/// ER_SECURE_TRANSPORT_REQUIRED.
const NEEDS_TLS: u16 = 3159;

/// The sequence number of a greeting, and of what comes in its place.
const GREETING: u8 = 0;

/// The sequence number of the answer to a login without TLS.
const LOGIN: u8 = 2;

/// An error that a server has sent in place of its greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// Its number.
    pub code: u16,
    /// Its text: the server's own words.
    pub message: Box<[u8]>,
}

impl ServerError {
    /// Reads the payload of an ERR packet. One that comes in place of a greeting has no SQLSTATE.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let mut rest = Reader(payload);
        let _marker = rest.byte()?;
        let code = u16::from_le_bytes(rest.array()?);
        let message = match rest.0 {
            [b'#', _, _, _, _, _, message @ ..] => message,
            message => message,
        };
        Some(Self { code, message: message.into() })
    }

    /// The packet by which a client hears of it.
    pub fn packet(&self, sequence: u8) -> Vec<u8> {
        let state = if self.code == TOO_MANY { NOT_CONNECTED } else { GENERAL };
        error(sequence, self.code, state, &self.message)
    }
}

/// To a client that logs in without TLS.
const CLEARTEXT: &[u8] =
    b"this gateway needs TLS with SNI: the server name in the TLS handshake selects the database \
    server (mysql: --ssl-mode=REQUIRED --tls-sni-servername=NAME)";

/// To a client that is turned away before it was greeted, or without TLS.
pub fn rejected_error(reason: R) -> Option<Vec<u8>> {
    match reason {
        R::MysqlCleartext => Some(error(LOGIN, NEEDS_TLS, GENERAL, CLEARTEXT)),
        R::ClientRate | R::ClientFull => {
            Some(error(GREETING, TOO_MANY, NOT_CONNECTED, b"too many connections from this address"))
        }
        R::MysqlNoServer => Some(error(
            GREETING,
            UNREACHABLE,
            GENERAL,
            b"none of the database servers behind this gateway has answered yet",
        )),
        _ => None,
    }
}

/// To a client of a terminated route that gets no server. `sequence`: one more than that of its login.
pub fn closed_error(sequence: u8, reason: C) -> Vec<u8> {
    let (code, state, message): (_, _, &[u8]) = match reason {
        C::ServersFull => (TOO_MANY, NOT_CONNECTED, b"too many connections to the database's servers"),
        C::ConnectFailed => (UNREACHABLE, GENERAL, b"the database server cannot be reached"),
        C::ConnectTimeout | C::ClientAddressUnanswered => {
            (UNREACHABLE, GENERAL, b"the database server does not answer")
        }
        C::ClientAddressUnusable => {
            (UNREACHABLE, GENERAL, b"the database server cannot be reached from the client's address")
        }
        C::NoServer => (UNREACHABLE, GENERAL, b"there is no database server to connect to"),
        C::PoolDown => (UNREACHABLE, GENERAL, b"the database server is down"),
        C::ServerPreamble => {
            (UNREACHABLE, GENERAL, b"the database server refuses TLS, or what the client has asked for")
        }
        C::ServerTlsFailed => (UNREACHABLE, GENERAL, b"the TLS handshake with the database server failed"),
        C::Resource => (UNREACHABLE, GENERAL, b"the gateway is out of resources"),
        _ => (UNREACHABLE, GENERAL, b"the connection to the database server failed"),
    };
    error(sequence, code, state, message)
}

/// To a client that knows no authentication plugins.
pub fn old_client_error(sequence: u8) -> Vec<u8> {
    error(sequence, OLD_CLIENT, NOT_CONNECTED, b"the client is too old for this gateway")
}

/// In place of a greeting it has no SQLSTATE: the two sides have not agreed on that yet (CLIENT_PROTOCOL_41), and clients would
/// take it for a part of the message.
fn error(sequence: u8, code: u16, state: &[u8; 5], message: &[u8]) -> Vec<u8> {
    let state = if sequence == GREETING { &[][..] } else { &[b"#", &state[..]].concat() };
    packet(sequence, &[&[0xff], &code.to_le_bytes()[..], state, message].concat())
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_GREETING, first};
    use super::*;

    fn read(packet: &[u8]) -> (u8, ServerError) {
        let (sequence, payload) = first(packet, MAX_GREETING).unwrap().unwrap();
        (sequence, ServerError::read(payload).unwrap())
    }

    #[test]
    fn whatever_the_reason_there_are_words_of_one_line() {
        for &reason in C::ALL {
            let (sequence, error) = read(&closed_error(3, reason));
            assert_eq!(sequence, 3);
            assert!([TOO_MANY, UNREACHABLE].contains(&error.code), "{reason}");
            assert!(error.message.is_ascii() && !error.message.contains(&b'\n'), "{reason}");
        }
        let told = R::ALL.iter().filter_map(|reason| rejected_error(*reason));
        let told: Vec<_> =
            told.map(|packet| read(&packet)).map(|(sequence, error)| (sequence, error.code)).collect();
        assert_eq!(told, [(0, TOO_MANY), (0, TOO_MANY), (0, UNREACHABLE), (LOGIN, NEEDS_TLS)]);
        assert_eq!(&rejected_error(R::ClientFull).unwrap()[..10], b"\x29\0\0\0\xff\x10\x04too");
        assert_eq!(&rejected_error(R::MysqlCleartext).unwrap()[3..13], b"\x02\xff\x57\x0c#HY000");
    }

    #[test]
    fn a_servers_error_is_passed_on_with_a_state() {
        let error = ServerError::read(b"\xff\x69\x04Host '10.0.0.1' is blocked").unwrap();
        assert_eq!((error.code, &error.message[..]), (1129, &b"Host '10.0.0.1' is blocked"[..]));
        assert_eq!(read(&error.packet(3)), (3, error.clone()));
        assert_eq!(&error.packet(3)[7..13], b"#HY000");
        for length in 0..3 {
            assert_eq!(ServerError::read(&b"\xff\x69\x04"[..length]), None);
        }
        assert!(ServerError::read(b"\xff\x69\x04#").is_some());
    }
}
