//! STARTTLS toward a server: what it is told until it promises TLS, as a client of its protocol would. Pure.
//!
//! A server whose TLS the gateway has ended gets none of this, but for its greeting: the client has had that already.

use crate::sniff::{Starttls, ldap};
use std::borrow::Cow;
use std::net::IpAddr;

/// Bytes of one answer at the most.
pub(super) const MAX_ANSWER: usize = 16 * 1024;

const XMPP_FEATURES: &[u8] = b"</stream:features>";
const XMPP_STARTTLS: &[u8] = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

/// A step: what the server is told, and how its answer is judged.
pub(super) struct Step {
    pub(super) say: Cow<'static, [u8]>,
    /// Whether all that the server has said since is the answer that is hoped for; `None`: it is not whole. What follows
    /// an answer was not asked for, and is refused with it: it may be meant to be taken as encrypted.
    pub(super) judge: fn(&[u8]) -> Option<bool>,
}

fn step(say: impl Into<Cow<'static, [u8]>>, judge: fn(&[u8]) -> Option<bool>) -> Step {
    Step { say: say.into(), judge }
}

/// What comes before the client's bytes. `tls`: the server is to be asked for it. `name`: that the client has asked for;
/// `local`: the gateway's address toward the server.
pub(super) fn script(protocol: Starttls, tls: bool, name: Option<&str>, local: IpAddr) -> Vec<Step> {
    let mut script = match protocol {
        Starttls::Smtp => {
            let literal = match local.to_canonical() {
                IpAddr::V4(address) => format!("EHLO [{address}]\r\n"),
                IpAddr::V6(address) => format!("EHLO [IPv6:{address}]\r\n"),
            };
            vec![
                step(&b""[..], |said| smtp(said, b"220")),
                step(literal.into_bytes(), |said| smtp(said, b"250").map(|good| good && offers(said))),
                step(&b"STARTTLS\r\n"[..], |said| smtp(said, b"220")),
            ]
        }
        Starttls::Imap => vec![
            step(&b""[..], |said| line(said).map(|(line, whole)| whole && line.starts_with(b"* OK"))),
            step(&b"1 STARTTLS\r\n"[..], imap),
        ],
        Starttls::Pop3 => vec![step(&b""[..], pop3), step(&b"STLS\r\n"[..], pop3)],
        Starttls::Ldap => vec![step(ldap::start_tls(), |said| match ldap::read(said) {
            Ok(message) => message.map(|(message, length)| length == said.len() && ldap::agrees(&message)),
            Err(_) => Some(false),
        })],
        Starttls::Xmpp | Starttls::XmppServer => {
            let namespace = if protocol == Starttls::Xmpp { "client" } else { "server" };
            // A name of a ClientHello has nothing that would have to be escaped.
            let to = name.map(|name| format!(" to='{name}'")).unwrap_or_default();
            let header = format!(
                "<?xml version='1.0'?><stream:stream xmlns='jabber:{namespace}' \
                 xmlns:stream='http://etherx.jabber.org/streams'{to} version='1.0'>"
            );
            vec![
                step(header.into_bytes(), |said| {
                    let offered = said.windows(9).any(|window| window == b"<starttls");
                    said.ends_with(XMPP_FEATURES)
                        .then_some(offered)
                        .or_else(|| said.ends_with(b"</stream:stream>").then_some(false))
                }),
                step(XMPP_STARTTLS, |said| {
                    said.ends_with(b">").then(|| {
                        said.starts_with(b"<proceed")
                            && said.iter().filter(|&&byte| byte == b'>').count() == 1
                    })
                }),
            ]
        }
    };
    if !tls {
        // Those that speak first have greeted nobody but us.
        script.truncate(script.iter().take_while(|step| step.say.is_empty()).count());
    }
    script
}

/// The first line of what was said, and whether nothing follows it.
fn line(said: &[u8]) -> Option<(&[u8], bool)> {
    let end = said.iter().position(|&byte| byte == b'\n')? + 1;
    Some((&said[..end], end == said.len()))
}

/// A reply of some lines with this code (RFC 5321, section 4.2.1).
fn smtp(mut said: &[u8], code: &[u8]) -> Option<bool> {
    loop {
        let (line, whole) = line(said)?;
        if line.get(3) != Some(&b'-') {
            return Some(whole && line.starts_with(code));
        }
        said = &said[line.len()..];
    }
}

/// Whether one of the lines of an answer to EHLO is STARTTLS.
fn offers(said: &[u8]) -> bool {
    said.split(|&byte| byte == b'\n')
        .any(|line| line.get(4..).is_some_and(|word| word.trim_ascii().eq_ignore_ascii_case(b"STARTTLS")))
}

/// The answer to our command, behind what was not asked for (RFC 9051, section 7).
fn imap(mut said: &[u8]) -> Option<bool> {
    loop {
        let (line, whole) = line(said)?;
        if !line.starts_with(b"* ") {
            return Some(whole && line.starts_with(b"1 OK"));
        }
        said = &said[line.len()..];
    }
}

fn pop3(said: &[u8]) -> Option<bool> {
    line(said).map(|(line, whole)| whole && line.starts_with(b"+OK"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Starttls::{Imap, Ldap, Pop3, Smtp, Xmpp, XmppServer};
    use proptest::prelude::*;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const AGREED: &[u8] = b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00";
    const FEATURES: &[u8] = b"<?xml version='1.0'?><stream:stream id='1'><stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>";

    /// What servers say that promise TLS.
    fn good() -> Vec<(Starttls, Vec<&'static [u8]>)> {
        let ehlo = b"250-mail.example.com\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 SMTPUTF8\r\n";
        let xmpp: Vec<&[u8]> = vec![FEATURES, b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"];
        vec![
            (Smtp, vec![b"220-mail.example.com\r\n220 ESMTP\r\n", ehlo, b"220 2.0.0 Ready\r\n"]),
            (Imap, vec![b"* OK [CAPABILITY STARTTLS] ready\r\n", b"* 1 EXISTS\r\n1 OK Begin\r\n"]),
            (Pop3, vec![b"+OK ready\r\n", b"+OK Begin\r\n"]),
            (Ldap, vec![AGREED]),
            (Xmpp, xmpp.clone()),
            (XmppServer, xmpp),
        ]
    }

    #[test]
    fn a_server_that_promises_tls_is_believed_once_it_has_said_so_and_nothing_more() {
        for (protocol, answers) in good() {
            let script = script(protocol, true, Some("a.example"), LOCAL);
            assert_eq!(script.len(), answers.len());
            for (step, answer) in script.iter().zip(answers) {
                assert_eq!((step.judge)(answer), Some(true), "{protocol:?} {}", answer.escape_ascii());
                for end in 0..answer.len() {
                    assert_eq!(
                        (step.judge)(&answer[..end]),
                        None,
                        "{protocol:?} {}",
                        answer[..end].escape_ascii()
                    );
                }
                // Injected, to be taken as encrypted.
                let stuffed = [answer, b"* 2 EXISTS\r\n>"].concat();
                assert_ne!((step.judge)(&stuffed), Some(true), "{protocol:?}");
            }
        }
    }

    #[test]
    fn a_server_that_does_not_is_not() {
        for (protocol, number, said) in [
            (Smtp, 0, &b"554 no\r\n"[..]),
            (Smtp, 1, b"250-mail\r\n250 SIZE\r\n"),
            (Smtp, 2, b"454 TLS not available\r\n"),
            (Imap, 0, b"* BYE\r\n"),
            (Imap, 1, b"1 BAD no\r\n"),
            (Pop3, 1, b"-ERR no\r\n"),
            (Ldap, 0, b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x02\x04\x00\x04\x00"),
            (Ldap, 0, b"\x30\x0c\x02\x01\x02\x78\x07\x0a\x01\x00\x04\x00\x04\x00"),
            (Ldap, 0, b"220 smtp\r\n"),
            (Xmpp, 0, b"<stream:stream><stream:features></stream:features>"),
            (Xmpp, 0, b"<stream:error><host-unknown/></stream:error></stream:stream>"),
            (Xmpp, 1, b"<failure/>"),
        ] {
            let script = script(protocol, true, None, LOCAL);
            assert_eq!((script[number].judge)(said), Some(false), "{protocol:?} {}", said.escape_ascii());
        }
    }

    #[test]
    fn a_server_without_tls_is_only_let_greet() {
        let greetings = |protocol| script(protocol, false, None, LOCAL).len();
        assert_eq!([Smtp, Imap, Pop3, Ldap, Xmpp].map(greetings), [1, 1, 1, 0, 0]);
        let v6 = script(Smtp, true, None, "2001:db8::1".parse().unwrap());
        assert_eq!(*v6[1].say, *b"EHLO [IPv6:2001:db8::1]\r\n");
        let named = script(XmppServer, true, Some("a.example"), LOCAL);
        let named = String::from_utf8_lossy(&named[0].say);
        assert!(named.contains("xmlns='jabber:server'") && named.contains(" to='a.example'"), "{named}");
    }

    proptest! {
        #[test]
        fn whatever_a_server_says_is_judged(said in prop::collection::vec(any::<u8>(), 0..200)) {
            for (protocol, _) in good() {
                script(protocol, true, None, LOCAL).iter().for_each(|step| { (step.judge)(&said); });
            }
        }
    }
}
