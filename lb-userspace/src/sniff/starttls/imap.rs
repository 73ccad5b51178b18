//! IMAP: STARTTLS (RFC 9051, section 6.2.1).

use super::reply::{Next, Reply, reply, verb};

pub(super) const GREETING: &str = "* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] snisplice\r\n";

/// The answer to a command, with its tag.
pub(super) fn answer(line: &[u8]) -> Reply {
    let end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    let Some(tag) = tag(&line[..end]) else {
        return reply(Next::More, "* BAD a command begins with a tag\r\n");
    };
    match &verb(line[end..].trim_ascii()).0[..] {
        b"CAPABILITY" => {
            let said = format!("* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\n{tag} OK Done\r\n");
            reply(Next::More, said)
        }
        b"NOOP" => reply(Next::More, format!("{tag} OK Done\r\n")),
        b"STARTTLS" => reply(Next::Tls, format!("{tag} OK Begin TLS negotiation\r\n")),
        b"LOGOUT" => reply(Next::Bye, format!("* BYE Bye\r\n{tag} OK Done\r\n")),
        _ => reply(Next::More, format!("{tag} NO [PRIVACYREQUIRED] STARTTLS first\r\n")),
    }
}

/// A tag that may be repeated to the client.
fn tag(word: &[u8]) -> Option<&str> {
    let is_tag = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-:/=".contains(byte);
    let word = Some(word).filter(|word| (1..=64).contains(&word.len()) && word.iter().all(is_tag))?;
    str::from_utf8(word).ok()
}
