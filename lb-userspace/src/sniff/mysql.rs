//! MySQL: what its clients send before TLS, after they were greeted ("Connection Phase" in its manual).

use crate::mysql::capability::{PROTOCOL_41, SSL};
use crate::mysql::{HEADER, REQUEST_LENGTH, SslRequest};
use crate::reason::RejectReason;

/// Bytes of an SSLRequest with its header.
pub(super) const WITH_HEADER: usize = HEADER + REQUEST_LENGTH;

/// Bytes of a login's payload that is sent without TLS, at most.
const MAX_LOGIN: u32 = 0xffff;

/// The request in the window; `None`: it is not complete yet. The client does not wait for an answer, so TLS may follow it at
/// once.
pub(super) fn request(window: &[u8]) -> Result<Option<SslRequest>, RejectReason> {
    let byte = |offset: usize| window.get(offset).copied();
    // Missing bytes are taken for zeros, so this is the least value that the length can have.
    let length = u32::from_le_bytes([0, 1, 2, 3].map(|at| if at < 3 { byte(at).unwrap_or(0) } else { 0 }));
    if length > MAX_LOGIN
        || (window.len() >= 3 && length < REQUEST_LENGTH as u32)
        || byte(3).is_some_and(|sequence| sequence != 1)
    {
        return Err(RejectReason::MysqlMalformed);
    }
    let Some(capabilities) = window.get(HEADER..HEADER + 4) else { return Ok(None) };
    let capabilities = capabilities.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
    match (capabilities & SSL != 0, length == REQUEST_LENGTH as u32) {
        (true, true) => {}
        (false, _) if capabilities & PROTOCOL_41 != 0 => return Err(RejectReason::MysqlCleartext),
        _ => return Err(RejectReason::MysqlMalformed),
    }
    let payload = window.get(HEADER..WITH_HEADER);
    Ok(payload.and_then(|payload| payload.try_into().ok()).map(SslRequest))
}
