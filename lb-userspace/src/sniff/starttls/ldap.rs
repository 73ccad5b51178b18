//! LDAP: StartTLS, an extended operation (RFC 4511, sections 4.1.1, 4.12 and 4.14; BER: section 5.1).

use super::reply::{MAX_LENGTH, Next, Reply};
use crate::reason::RejectReason;
use std::borrow::Cow;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const ENUMERATED: u8 = 0x0a;
const OCTETS: u8 = 0x04;
const UNBIND: u8 = 0x42;
const ABANDON: u8 = 0x50;
const EXTENDED: u8 = 0x77;
const EXTENDED_RESPONSE: u8 = 0x78;
/// Of an extended request: its name.
const NAME: u8 = 0x80;
const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";

const SUCCESS: u8 = 0;
const CONFIDENTIALITY_REQUIRED: u8 = 13;

/// A message: its number, the operation's tag, and what is in that.
pub(crate) struct Message<'a> {
    id: &'a [u8],
    operation: u8,
    content: &'a [u8],
}

/// The message at the front of the window and its length; `None` if it is not whole.
pub(crate) fn read(window: &[u8]) -> Result<Option<(Message<'_>, usize)>, RejectReason> {
    let Some((SEQUENCE, content, rest)) = element(window)? else {
        let wrong = window.first().is_some_and(|&tag| tag != SEQUENCE);
        return if wrong { Err(RejectReason::StarttlsMalformed) } else { Ok(None) };
    };
    // What is inside must be there now.
    let inside = |bytes| element(bytes)?.ok_or(RejectReason::StarttlsMalformed);
    let (INTEGER, id @ ([_] | [_, _] | [_, _, _] | [_, _, _, _]), content) = inside(content)? else {
        return Err(RejectReason::StarttlsMalformed);
    };
    let (operation, content, _) = inside(content)?;
    // The class APPLICATION, which all operations have (RFC 4511, appendix B).
    if operation & 0xc0 != 0x40 {
        return Err(RejectReason::StarttlsMalformed);
    }
    Ok(Some((Message { id, operation, content }, window.len() - rest.len())))
}

/// Tag, content, and what follows; `None` if it is not whole.
#[expect(clippy::type_complexity, reason = "three slices")]
fn element(bytes: &[u8]) -> Result<Option<(u8, &[u8], &[u8])>, RejectReason> {
    let [tag, first, rest @ ..] = bytes else { return Ok(None) };
    let (length, rest) = match (first, rest) {
        (0..=0x7f, _) => (usize::from(*first), rest),
        (0x81, [length, rest @ ..]) => (usize::from(*length), rest),
        (0x82, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        // OpenLDAP writes every length in four bytes.
        (0x84, [0, 0, high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        (0x81 | 0x82, _) | (0x84, [] | [0] | [0, 0] | [0, 0, _]) => return Ok(None),
        _ => return Err(RejectReason::StarttlsMalformed),
    };
    if length > MAX_LENGTH {
        return Err(RejectReason::StarttlsMalformed);
    }
    Ok(rest.split_at_checked(length).map(|(content, rest)| (*tag, content, rest)))
}

/// The answer to a request.
pub(super) fn answer(message: &Message<'_>) -> Reply {
    let starts_tls =
        message.operation == EXTENDED && matches!(element(message.content), Ok(Some((NAME, START_TLS, []))));
    let (next, result, words) = match message.operation {
        _ if starts_tls => (Next::Tls, SUCCESS, ""),
        UNBIND => return (Next::Bye, Cow::default()),
        ABANDON => return (Next::More, Cow::default()),
        _ => (Next::More, CONFIDENTIALITY_REQUIRED, "StartTLS first"),
    };
    // A response has the number that follows the request's; of a delete, whose tag has no parts, too.
    let tag = (message.operation | 0x20) + 1;
    let tag = if message.operation == 0x63 { 0x65 } else { tag };
    let result = [&[ENUMERATED, 1, result, OCTETS, 0][..], &wrap(OCTETS, words.as_bytes())].concat();
    let content = [wrap(INTEGER, message.id), wrap(tag, &result)].concat();
    (next, wrap(SEQUENCE, &content).into())
}

/// An element; of short content, as all that is written here has.
fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let content = &content[..content.len().min(0x7f)];
    [&[tag, content.len() as u8][..], content].concat()
}

/// The request for TLS.
pub(crate) fn start_tls() -> Vec<u8> {
    wrap(SEQUENCE, &[wrap(INTEGER, &[1]), wrap(EXTENDED, &wrap(NAME, START_TLS))].concat())
}

/// Whether a server has said yes to [`start_tls`].
pub(crate) fn agrees(message: &Message<'_>) -> bool {
    message.id == [1]
        && message.operation == EXTENDED_RESPONSE
        && matches!(element(message.content), Ok(Some((ENUMERATED, [SUCCESS], _))))
}
