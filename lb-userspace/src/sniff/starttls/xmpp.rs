//! XMPP: STARTTLS (RFC 6120, sections 4.2 and 5.4).
//!
//! No more is read than where a tag ends and how it begins: nothing of it is kept but the stream's namespace.

use super::reply::{Next, Reply, Starttls, reply};
use crate::reason::RejectReason;

const NAMESPACE: &[u8] = b"urn:ietf:params:xml:ns:xmpp-tls";
const REFUSAL: &str = "<stream:error><policy-violation xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>";

/// The answer to the next tag, and the bytes that it takes; `None` if it is not whole.
pub(super) fn answer(protocol: &mut Starttls, window: &[u8]) -> Result<Option<(Reply, usize)>, RejectReason> {
    let Some((tag, end)) = tag(window)? else { return Ok(None) };
    let answer = if tag.starts_with(b"<?xml") {
        reply(Next::More, "")
    } else if tag.starts_with(b"<stream:stream") {
        let (of, namespace) = match contains(tag, b"jabber:server") {
            true => (Starttls::XmppServer, "jabber:server"),
            false => (Starttls::Xmpp, "jabber:client"),
        };
        *protocol = of;
        reply(
            Next::More,
            format!(
                "<?xml version='1.0'?><stream:stream xmlns='{namespace}' \
                 xmlns:stream='http://etherx.jabber.org/streams' id='starttls' version='1.0'>\
                 <stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
                 </stream:features>"
            ),
        )
    } else if tag.starts_with(b"<starttls") && contains(tag, NAMESPACE) {
        // Empty, in one tag or in two.
        let rest = &window[end..];
        let close = b"</starttls>";
        let end = match tag.ends_with(b"/>") {
            true => end,
            false if rest.starts_with(close) => end + close.len(),
            false if close.starts_with(rest) => return Ok(None),
            false => return Err(RejectReason::StarttlsMalformed),
        };
        return Ok(Some((reply(Next::Tls, "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"), end)));
    } else {
        reply(Next::Bye, REFUSAL)
    };
    Ok(Some((answer, end)))
}

/// The next tag, and where it ends.
fn tag(window: &[u8]) -> Result<Option<(&[u8], usize)>, RejectReason> {
    let start = window.len() - window.trim_ascii_start().len();
    match window.get(start) {
        None => return Ok(None),
        Some(b'<') => {}
        Some(_) => return Err(RejectReason::StarttlsMalformed),
    }
    let end = window.iter().position(|&byte| byte == b'>').map(|end| end + 1);
    Ok(end.map(|end| (&window[start..end], end)))
}

/// Whether `part` is somewhere in `text`.
pub(super) fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
