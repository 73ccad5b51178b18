//! SSLv2: the framing that old clients use for a ClientHello of a later version (RFC 5246, appendix E.2).
//!
//! OpenSSL and GnuTLS still accept it. It has no extensions, and so no server name.

use super::hello::{Alpn, ClientHello, TlsRequest, TlsVersion};
use crate::reason::RejectReason;

/// Set in the first byte; the other 15 bits are the length of what follows the first two.
const TWO_BYTE_HEADER: u8 = 0x80;
const HEADER: usize = 2;
/// Bytes after which [`begins`] is certain.
const CERTAIN: usize = 4;
const CLIENT_HELLO: u8 = 1;
/// Message type, version, and three lengths.
const FIXED: usize = 9;
/// Bytes of a cipher suite.
const SUITE: usize = 3;

/// Whether the window may begin with such a ClientHello. It is certain from the fourth byte on, the version.
pub(super) fn begins(window: &[u8]) -> bool {
    window.first().is_some_and(|first| first & TWO_BYTE_HEADER != 0)
        && window.get(2).is_none_or(|&kind| kind == CLIENT_HELLO)
        // SSLv2 itself has 0 here.
        && window.get(3).is_none_or(|&major| major == 3)
}

/// Reads it once it is complete, if it has at most `limit` bytes. `request` is passed through.
pub(super) fn read(
    window: &[u8],
    request: Option<TlsRequest>,
    limit: usize,
) -> Result<Option<ClientHello>, RejectReason> {
    let number = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    // Until it is certain, a length says nothing.
    let Some(header) = window.get(..CERTAIN) else { return Ok(None) };
    let length = number(&[header[0] & !TWO_BYTE_HEADER, header[1]]);
    if length < FIXED {
        return Err(RejectReason::HelloMalformed);
    }
    if HEADER + length > limit {
        return Err(RejectReason::HelloTooLarge);
    }
    let Some(message) = window.get(HEADER..HEADER + length) else { return Ok(None) };
    let [suites, session, challenge] = [3, 5, 7].map(|at| number(&message[at..]));
    if suites == 0 || !suites.is_multiple_of(SUITE) || FIXED + suites + session + challenge != length {
        return Err(RejectReason::HelloMalformed);
    }
    let version = TlsVersion(u16::from_be_bytes([message[1], message[2]]));
    let length = HEADER + length;
    Ok(Some(ClientHello {
        sni: None,
        odd_name: None,
        alpn: Alpn::default(),
        version,
        length,
        request,
        offers_ech: false,
    }))
}
