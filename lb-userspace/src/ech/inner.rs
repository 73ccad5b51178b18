//! From an EncodedClientHelloInner to the ClientHello it stands for (RFC 9849, section 5.1).

use super::parts::{Extension, Parts};
use super::wire::{ENCRYPTED_CLIENT_HELLO, Malformed, Reader, put_vector16};

/// The extension that stands for a run of the outer ClientHello's.
const ECH_OUTER_EXTENSIONS: u16 = 0xfd00;

/// The inner ClientHello's body: with the outer one's session id, and with the extensions that were left out of it.
pub(super) fn decode(encoded: &[u8], outer: &Parts<'_>) -> Result<Vec<u8>, Malformed> {
    let (inner, padding) = Parts::read(encoded).ok_or(Malformed)?;
    if padding.iter().any(|byte| *byte != 0) || !inner.session_id.is_empty() {
        return Err(Malformed);
    }
    let mut extensions = Vec::new();
    let (mut is_marked, mut referred) = (false, false);
    for extension in &inner.extensions {
        match extension.kind {
            ECH_OUTER_EXTENSIONS => {
                if std::mem::replace(&mut referred, true) {
                    return Err(Malformed);
                }
                refer(extension.data, outer, &mut extensions).ok_or(Malformed)?;
            }
            ENCRYPTED_CLIENT_HELLO => {
                // Type `inner`, once: what tells the server that the client has used ECH.
                if std::mem::replace(&mut is_marked, true) || extension.data != [1] {
                    return Err(Malformed);
                }
                put(extension, &mut extensions).ok_or(Malformed)?;
            }
            _ => put(extension, &mut extensions).ok_or(Malformed)?,
        }
    }
    if !is_marked {
        return Err(Malformed);
    }
    let mut body = inner.front.to_vec();
    // RFC 8446, section 4.1.2: at most 32 bytes, as was read from a length of one byte.
    body.push(outer.session_id.len() as u8);
    body.extend_from_slice(outer.session_id);
    body.extend_from_slice(inner.middle);
    put_vector16(&mut body, &extensions).ok_or(Malformed)?;
    Ok(body)
}

fn put(extension: &Extension<'_>, into: &mut Vec<u8>) -> Option<()> {
    into.extend(extension.kind.to_be_bytes());
    put_vector16(into, extension.data)
}

/// Puts the outer extensions that `list` names, which must stand there in the same order, though others may stand between
/// them: so each is looked at once, whatever the list says.
fn refer(list: &[u8], outer: &Parts<'_>, into: &mut Vec<u8>) -> Option<()> {
    let mut reader = Reader(list);
    let mut kinds = Reader(reader.vector8().filter(|kinds| !kinds.is_empty())?);
    if !reader.is_empty() {
        return None;
    }
    let mut left = outer.extensions.iter();
    while !kinds.is_empty() {
        let kind = kinds.u16().filter(|kind| *kind != ENCRYPTED_CLIENT_HELLO)?;
        put(left.find(|extension| extension.kind == kind)?, into)?;
    }
    Some(())
}
