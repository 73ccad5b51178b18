//! What the protocols with STARTTLS have in common: their names, and replies.

use std::borrow::Cow;

/// The protocol of a listener whose clients ask for TLS in clear text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starttls {
    /// SMTP (RFC 3207), of mail servers and of clients that submit mail.
    Smtp,
    /// IMAP (RFC 9051, section 6.2.1).
    Imap,
    /// POP3 (RFC 2595, section 4).
    Pop3,
    /// LDAP (RFC 4511, section 4.14).
    Ldap,
    /// XMPP (RFC 6120, section 5) of clients.
    Xmpp,
    /// XMPP of servers among themselves.
    XmppServer,
}

/// Bytes of a line, message or tag before TLS at the most.
pub(super) const MAX_LENGTH: usize = 4096;

/// What follows a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sniff) enum Next {
    More,
    Tls,
    Bye,
}

/// The reply to what a client has said, and what follows it.
pub(super) type Reply = (Next, Cow<'static, [u8]>);

/// A line of text as a reply.
pub(super) fn reply(next: Next, text: impl Into<Cow<'static, str>>) -> Reply {
    let text = match text.into() {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
    (next, text)
}

/// The first word of a line in upper case, and the rest.
pub(super) fn verb(line: &[u8]) -> (Vec<u8>, &[u8]) {
    let end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    (line[..end].to_ascii_uppercase(), line[end..].trim_ascii())
}
