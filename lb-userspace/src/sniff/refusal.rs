//! Refusal: the error message for a PostgreSQL client that is turned away ("Error and Notice Message Fields" in
//! PostgreSQL's manual).

use crate::reason::{CloseReason as C, RejectReason as R, Setback};

/// invalid_authorization_specification: a server's answer if pg_hba.conf demands encryption.
const NOT_AUTHORIZED: &str = "28000";
/// cannot_connect_now: libpq then tries the next of several hosts.
const CANNOT_CONNECT: &str = "57P03";
/// too_many_connections.
const TOO_MANY: &str = "53300";
/// insufficient_resources.
const NO_RESOURCES: &str = "53000";

/// The error for a client without TLS. Its SQLSTATE does not depend on the reason: libpq with `sslmode=allow` tries TLS
/// after this one, but not after 57P03 (cannot_connect_now), and the server may be up by now. `before`: why an attempt with
/// TLS from the same address failed a moment ago. The message has no names of routes or servers, because another client may
/// be behind the same address.
pub fn cleartext_error(before: Option<Setback>) -> Vec<u8> {
    let Some(before) = before else {
        return error_response(
            NOT_AUTHORIZED,
            "this gateway needs TLS with SNI: use sslmode=require",
            None,
            Some(
                "The server name in the TLS handshake selects the database server. sslsni must be 1, its default. \
                 If an attempt with TLS failed before this one, as with sslmode=prefer, its own message says why.",
            ),
        );
    };
    let (_, why) = words(before);
    error_response(
        NOT_AUTHORIZED,
        &format!("{why}, and without TLS this gateway takes no connection"),
        Some("A connection with TLS from this address failed for that reason a moment ago."),
        Some("With sslmode=require there is no second attempt without TLS."),
    )
}

/// The error for a client of a terminated route, to be sent inside TLS.
pub fn encrypted_error(setback: Setback) -> Vec<u8> {
    let (code, why) = words(setback);
    error_response(code, why, None, None)
}

/// The SQLSTATE ("PostgreSQL Error Codes") and the message.
fn words(setback: Setback) -> (&'static str, &'static str) {
    match setback {
        Setback::Rejected(R::UnknownSni) => {
            (NOT_AUTHORIZED, "no database server goes by the name that was asked for")
        }
        Setback::Rejected(R::NoSni) => (
            NOT_AUTHORIZED,
            "the TLS handshake named no server (host must be a name, and sslsni 1, its default)",
        ),
        Setback::Rejected(R::RouteFull) => {
            (TOO_MANY, "there are too many connections to this database server")
        }
        Setback::Rejected(R::RouteClientRate | R::RouteClientFull) => {
            (TOO_MANY, "there are too many connections to this database server from the client's address")
        }
        Setback::Rejected(_) => (NOT_AUTHORIZED, "the TLS handshake was refused"),
        Setback::Closed(C::TlsHandshakeFailed) => (NOT_AUTHORIZED, "the TLS handshake failed"),
        Setback::Closed(C::ConnectFailed) => (CANNOT_CONNECT, "the database server cannot be reached"),
        Setback::Closed(C::ConnectTimeout | C::ClientAddressUnanswered) => {
            (CANNOT_CONNECT, "the database server does not answer")
        }
        Setback::Closed(C::ClientAddressUnusable) => {
            (CANNOT_CONNECT, "the database server cannot be reached from the client's address")
        }
        Setback::Closed(C::NoServer) => (CANNOT_CONNECT, "there is no database server to connect to"),
        Setback::Closed(C::ServersFull) => {
            (TOO_MANY, "there are too many connections to the database's servers")
        }
        Setback::Closed(C::PoolDown) => (CANNOT_CONNECT, "the database server is down"),
        Setback::Closed(C::ServerPreamble) => (CANNOT_CONNECT, "the database server refuses TLS"),
        Setback::Closed(C::ServerTlsFailed) => {
            (CANNOT_CONNECT, "the TLS handshake with the database server failed")
        }
        Setback::Closed(C::Resource) => (NO_RESOURCES, "the gateway is out of resources"),
        Setback::Closed(_) => (CANNOT_CONNECT, "the connection to the database server failed"),
    }
}

fn error_response(code: &str, message: &str, detail: Option<&str>, hint: Option<&str>) -> Vec<u8> {
    let fields = [
        (b'S', Some("FATAL")),
        (b'V', Some("FATAL")),
        (b'C', Some(code)),
        (b'M', Some(message)),
        (b'D', detail),
        (b'H', hint),
    ];
    // The length, which counts itself, comes last.
    let mut response = b"E\0\0\0\0".to_vec();
    for (kind, text) in fields {
        if let Some(text) = text {
            response.push(kind);
            response.extend(text.as_bytes());
            response.push(0);
        }
    }
    response.push(0);
    let length = response.len() as u32 - 1;
    response[1..5].copy_from_slice(&length.to_be_bytes());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kind and the text of each field.
    fn fields(response: &[u8]) -> Vec<(char, String)> {
        assert_eq!(response[0], b'E');
        assert_eq!(u32::from_be_bytes(response[1..5].try_into().unwrap()) as usize, response.len() - 1);
        let fields = response[5..].strip_suffix(b"\0\0").unwrap().split(|&b| b == 0);
        fields.map(|field| (field[0].into(), String::from_utf8(field[1..].to_vec()).unwrap())).collect()
    }

    #[test]
    fn a_client_without_tls_is_told_to_use_it() {
        let fields = fields(&cleartext_error(None));
        assert_eq!(fields.iter().map(|field| field.0).collect::<String>(), "SVCMH");
        assert_eq!(fields[2].1, "28000");
        assert!(fields[3].1.contains("sslmode=require"), "{fields:?}");
    }

    #[test]
    fn the_second_attempt_of_a_client_hears_why_the_first_failed() {
        let fields = fields(&cleartext_error(Some(Setback::Closed(C::ConnectFailed))));
        assert_eq!(fields.iter().map(|field| field.0).collect::<String>(), "SVCMDH");
        assert_eq!(fields[2].1, "28000");
        assert!(
            fields[3].1.starts_with("the database server cannot be reached, and without TLS"),
            "{fields:?}"
        );
    }

    #[test]
    fn whatever_the_reason_there_are_words_of_one_line() {
        let rejected = R::ALL.iter().copied().map(Setback::Rejected);
        for setback in rejected.chain(C::ALL.iter().copied().map(Setback::Closed)) {
            let fields = fields(&encrypted_error(setback));
            assert_eq!(fields.iter().map(|field| field.0).collect::<String>(), "SVCM", "{setback:?}");
            assert!(fields[2].1.len() == 5 && !fields[3].1.contains('\n'), "{fields:?}");
        }
    }
}
