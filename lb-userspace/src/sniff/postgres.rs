//! PostgreSQL: what its clients send before TLS ("Message Flow" and "Message Formats" in its manual).

use crate::reason::RejectReason;
use std::fmt;

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"postgresql";
/// Bytes of an SSLRequest and of a GSSENCRequest: a length and a code.
pub(super) const REQUEST_LENGTH: usize = 8;
/// The server's own bound on a startup packet (MAX_STARTUP_PACKET_LENGTH).
const MAX_STARTUP: u32 = 10_000;

/// The first byte of each of its requests: of a length of at most [`MAX_STARTUP`].
pub(super) const FIRST: u8 = 0;
const TLS_HANDSHAKE: u8 = 22;
const CANCEL_REQUEST: u32 = 80_877_102;
/// The same, passed on by another gateway. The code is snisplice's own; PostgreSQL has none near it.
const FORWARDED_CANCEL: u32 = 80_878_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
/// The upper half of a StartupMessage's code.
const PROTOCOL_MAJOR: u32 = 3;
/// Bytes of a process id and a secret: of protocol 3.0, and at most of protocol 3.2.
const KEY: std::ops::RangeInclusive<usize> = 8..=260;

/// What a client asks for before TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Ssl,
    Gss,
    /// Nothing: this is TLS.
    DirectTls,
    Cancel(Cancel),
}

/// A CancelRequest: what another session does is to stop.
#[derive(Clone, PartialEq, Eq)]
pub struct Cancel {
    /// The process id and the secret, as that session's BackendKeyData has given them: 8 to 260 bytes.
    pub key: Box<[u8]>,
    /// Another gateway has passed it on.
    pub forwarded: bool,
}

/// Without the key: whoever has it can stop what its session does.
impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("forwarded", &self.forwarded).finish_non_exhaustive()
    }
}

impl Cancel {
    /// The request for a server, or `forwarded` for another gateway.
    pub fn request(&self) -> Vec<u8> {
        let code = if self.forwarded { FORWARDED_CANCEL } else { CANCEL_REQUEST };
        let length = (REQUEST_LENGTH + self.key.len()) as u32;
        [&length.to_be_bytes()[..], &code.to_be_bytes(), &self.key].concat()
    }
}

/// What a client says first once TLS is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is not whole yet.
    Incomplete,
    /// It wants no session.
    Cancel(Cancel),
    /// Anything else, for the server to judge.
    Session,
}

/// What a client says first once TLS is there: `bytes` are all that it has said.
pub fn opening(bytes: &[u8]) -> Opening {
    match request(bytes, true) {
        Ok(None) => Opening::Incomplete,
        Ok(Some(Request::Cancel(cancel))) => Opening::Cancel(cancel),
        Ok(Some(_)) | Err(_) => Opening::Session,
    }
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
        code @ (CANCEL_REQUEST | FORWARDED_CANCEL) => {
            let length = length as usize;
            if !KEY.contains(&(length - REQUEST_LENGTH)) {
                return Err(RejectReason::PostgresMalformed);
            }
            // Nothing is to follow, and nothing is read of what does.
            let key = window.get(REQUEST_LENGTH..length);
            let cancel = |key: &[u8]| Cancel { key: key.into(), forwarded: code == FORWARDED_CANCEL };
            return Ok(key.map(|key| Request::Cancel(cancel(key))));
        }
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
