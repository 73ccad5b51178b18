//! Alert: the last words to a TLS client that is turned away.

use crate::reason::RejectReason;

/// A record of legacy version 3.3 (RFC 8446, section 5.1) with one fatal alert.
pub(crate) const fn fatal(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

macro_rules! fatal {
    ($description:literal) => {
        Some(const { &fatal($description) })
    };
}

/// The alert record for a reason; `None` if the client has not shown that it speaks TLS, or has closed the connection.
pub fn alert(reason: RejectReason) -> Option<&'static [u8]> {
    use RejectReason as R;
    match reason {
        // unrecognized_name, RFC 6066, section 3.
        R::UnknownSni => fatal!(112),
        // missing_extension: "Servers requiring this extension SHOULD respond to a ClientHello lacking a
        // server_name extension" with it, RFC 8446, section 9.2.
        R::NoSni => fatal!(109),
        // no_application_protocol, RFC 7301, section 3.2.
        R::AlpnMismatch => fatal!(120),
        // decode_error: a field out of its range, or a wrong length, RFC 8446, section 6.2.
        R::HelloMalformed | R::HelloTooLarge => fatal!(50),
        // illegal_parameter: conforms to the syntax, but is incorrect, RFC 8446, section 6.2.
        R::SniInvalid | R::EchMalformed => fatal!(47),
        // internal_error: "unrelated to the peer or the correctness of the protocol", RFC 8446, section 6.2.
        R::EchRate | R::RouteFull | R::RouteClientRate | R::RouteClientFull => fatal!(80),
        R::AddressDenied
        | R::GatewayFull
        | R::ListenerFull
        | R::ClientRate
        | R::ClientFull
        | R::ProxyHeaderMalformed
        | R::ClosedBeforeData
        | R::ClosedBeforeHello
        | R::HelloTimeout
        | R::NotTls
        | R::PostgresCleartext
        | R::PostgresCancelCleartext
        | R::PostgresCancelForwarded
        | R::PostgresMalformed
        | R::PostgresStuffed
        | R::StarttlsCleartext
        | R::StarttlsMalformed
        | R::StarttlsStuffed
        | R::MysqlNoServer
        | R::MysqlCleartext
        | R::MysqlMalformed => None,
    }
}
