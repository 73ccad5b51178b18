//! PostgreSQL: what its clients send before TLS ("Message Flow" and "Message Formats" in its manual).

use crate::reason::RejectReason;

/// The protocol's name in ALPN.
pub(super) const ALPN: &[u8] = b"postgresql";
/// Bytes of an SSLRequest and of a GSSENCRequest: a length and a code.
pub(super) const REQUEST_LENGTH: usize = 8;
/// The server's own bound on a startup packet (MAX_STARTUP_PACKET_LENGTH).
const MAX_STARTUP: u32 = 10_000;

const TLS_HANDSHAKE: u8 = 22;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
/// The upper half of a StartupMessage's code.
const PROTOCOL_MAJOR: u32 = 3;

/// What a client asks for before TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Ssl,
    Gss,
    /// Nothing: this is TLS.
    DirectTls,
}

/// The request in the window; `None`: it is not complete yet. `gss_refused`: a second GSSENCRequest is malformed.
pub(super) fn request(window: &[u8], gss_refused: bool) -> Result<Option<Request>, RejectReason> {
    if window.first() == Some(&TLS_HANDSHAKE) {
        return Ok(Some(Request::DirectTls));
    }
    // Missing bytes are taken for zeros, so this is the least value that the length can have.
    let length = number(window, 0);
    if length > MAX_STARTUP || (window.len() >= 4 && length < REQUEST_LENGTH as u32) {
        return Err(RejectReason::PostgresMalformed);
    }
    if window.len() < REQUEST_LENGTH {
        return Ok(None);
    }
    let request = match number(window, 4) {
        SSL_REQUEST => Request::Ssl,
        GSSENC_REQUEST if !gss_refused => Request::Gss,
        CANCEL_REQUEST => return Err(RejectReason::PostgresCancelCleartext),
        code if code >> 16 == PROTOCOL_MAJOR => return Err(RejectReason::PostgresCleartext),
        _ => return Err(RejectReason::PostgresMalformed),
    };
    if length != REQUEST_LENGTH as u32 {
        return Err(RejectReason::PostgresMalformed);
    }
    if window.len() > REQUEST_LENGTH {
        return Err(RejectReason::PostgresStuffed);
    }
    Ok(Some(request))
}

/// The 32-bit number at `offset`; missing bytes count as zeros.
fn number(window: &[u8], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    for (byte, &sent) in bytes.iter_mut().zip(window.iter().skip(offset)) {
        *byte = sent;
    }
    u32::from_be_bytes(bytes)
}
