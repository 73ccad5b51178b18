//! Dialogues before TLS: what real clients say, and what nobody should.

use proptest::prelude::*;

use super::*;
use RejectReason as R;
use Starttls::{Imap, Ldap, Pop3, Smtp, Xmpp, XmppServer};

const LDAP_START: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
/// The same as OpenLDAP's library writes it, with the number 2.
const LDAP_LONG: &[u8] = b"\x30\x84\0\0\0\x21\x02\x01\x02\x77\x84\0\0\0\x18\x80\x161.3.6.1.4.1.1466.20037";
const XMPP_HEADER: &[u8] = b"<stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client' to='a.example' version='1.0'>";
const XMPP_START: &[u8] = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
const ALL: [Starttls; 5] = [Smtp, Imap, Pop3, Ldap, Xmpp];

/// What a client says, and what ends the reply to it.
type Exchange = (&'static [u8], &'static [u8]);

/// What clients say until TLS; the protocol they turn out to speak.
fn clients() -> Vec<(Starttls, Vec<Exchange>, Starttls)> {
    let server_header =
        &b"<?xml version='1.0'?>\n <stream:stream xmlns='jabber:server' xmlns:stream='x' from='b' to=\"a\">"
            [..];
    let two_tags = &b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'></starttls>"[..];
    vec![
        (
            Smtp,
            vec![
                (b"ehlo client.example\r\n", b"250 STARTTLS\r\n"),
                (b"MAIL FROM:<a@b.example>\r\n", b"530 5.7.0 Must issue a STARTTLS command first\r\n"),
                (b"StartTLS\r\n", b"220 2.0.0 Ready to start TLS\r\n"),
            ],
            Smtp,
        ),
        (
            Imap,
            vec![
                (b". CAPABILITY\r\n", b"LOGINDISABLED\r\n. OK Done\r\n"),
                (b"a1 login alice secret\r\n", b"a1 NO [PRIVACYREQUIRED] STARTTLS first\r\n"),
                (b"\x7f NOOP\r\n", b"* BAD a command begins with a tag\r\n"),
                (b"a2 starttls\r\n", b"a2 OK Begin TLS negotiation\r\n"),
            ],
            Imap,
        ),
        (
            Pop3,
            vec![
                (b"CAPA\r\n", b"+OK\r\nSTLS\r\n.\r\n"),
                (b"USER alice\n", b"-ERR STLS first\r\n"),
                (b"stls\r\n", b"+OK Begin TLS negotiation\r\n"),
            ],
            Pop3,
        ),
        (
            Ldap,
            vec![
                // A bind and a search, which need what is not there yet.
                (
                    b"\x30\x0c\x02\x01\x07\x60\x07\x02\x01\x03\x04\0\x80\0",
                    b"\x0a\x01\x0d\x04\0\x04\x0eStartTLS first",
                ),
                (b"\x30\x05\x02\x01\x08\x63\0", b"\x0a\x01\x0d\x04\0\x04\x0eStartTLS first"),
                (LDAP_START, b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\0\x04\0\x04\0"),
            ],
            Ldap,
        ),
        (Ldap, vec![(LDAP_LONG, b"\x30\x0c\x02\x01\x02\x78\x07\x0a\x01\0\x04\0\x04\0")], Ldap),
        (
            Xmpp,
            vec![
                (XMPP_HEADER, b"<required/></starttls></stream:features>"),
                (XMPP_START, b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
            ],
            Xmpp,
        ),
        (
            Xmpp,
            vec![
                (&server_header[..21], b""),
                (&server_header[21..], b"</stream:features>"),
                (two_tags, b"'/>"),
            ],
            XmppServer,
        ),
    ]
}

fn sniffer(protocol: Starttls) -> Sniffer {
    let mut sniffer = Sniffer::new(Preamble::Starttls(protocol));
    match sniffer.handle(Input::Bytes(b"")) {
        // A client speaks first.
        Output::NeedMore => assert!([Ldap, Xmpp].contains(&protocol)),
        Output::Answer { reply, consumed: 0 } => assert!(reply.ends_with(b"\r\n")),
        other => panic!("{other:?}"),
    }
    sniffer
}

#[test]
fn a_client_is_answered_until_it_asks_for_tls_and_then_its_hello_is_read() {
    let redis = samples().into_iter().find(|sample| sample.name == "redis-cli-7.bin").unwrap().window;
    for (protocol, turns, speaks) in clients() {
        let mut sniffer = sniffer(protocol);
        for (said, end) in turns {
            for short in 0..said.len() {
                assert_eq!(
                    sniffer.handle(Input::Bytes(&said[..short])),
                    Output::NeedMore,
                    "{}",
                    said.escape_ascii()
                );
            }
            assert_eq!(sniffer.request(), None);
            match sniffer.handle(Input::Bytes(said)) {
                Output::Answer { reply, consumed } => {
                    assert!(reply.ends_with(end), "{}", reply.escape_ascii());
                    assert_eq!(consumed, said.len());
                }
                other => panic!("{}: {other:?}", said.escape_ascii()),
            }
        }
        let request = Some(TlsRequest::Starttls(speaks));
        assert_eq!(sniffer.request(), request);
        for short in 0..redis.len() {
            assert_eq!(sniffer.handle(Input::Bytes(&redis[..short])), Output::NeedMore);
        }
        let expected = ClientHello { request, ..facts(&redis) };
        assert_eq!(sniffer.handle(Input::Bytes(&redis)), Output::Hello(expected.into()));
    }
}

#[test]
fn starttls_stuffed_for_bytes_that_do_not_wait_for_the_answer() {
    for (protocol, turns, _) in clients() {
        let (start, _) = turns.last().unwrap();
        for behind in [&b"NOOP\r\n"[..], b"\x16\x03\x01"] {
            let stuffed = [start, behind].concat();
            let verdict = sniffer(protocol).handle(Input::Bytes(&stuffed));
            assert_eq!(verdict, Output::Reject(R::StarttlsStuffed), "{}", stuffed.escape_ascii());
        }
    }
}

#[test]
fn starttls_cleartext_for_clients_that_leave_or_go_on_without() {
    for (protocol, leaves) in [
        (Smtp, &b"QUIT\r\n"[..]),
        (Imap, b"x LOGOUT\r\n"),
        (Pop3, b"quit\r\n"),
        (Ldap, b"\x30\x05\x02\x01\x03\x42\0"),
        (Xmpp, b"<iq type='get'>"),
    ] {
        let mut sniffer = sniffer(protocol);
        assert!(matches!(sniffer.handle(Input::Bytes(leaves)), Output::Answer { .. }));
        assert_eq!(sniffer.handle(Input::Bytes(b"")), Output::Reject(R::StarttlsCleartext));
    }
    for (protocol, goes_on) in [
        (Smtp, &b"RSET\r\n"[..]),
        (Imap, b"x ID NIL\r\n"),
        (Pop3, b"NOOP\r\n"),
        (Ldap, b"\x30\x05\x02\x01\x03\x50\0"),
    ] {
        let verdict = drive(Preamble::Starttls(protocol), &goes_on.repeat(50), 10);
        assert_eq!(verdict, Output::Reject(R::StarttlsCleartext), "{protocol:?}");
    }
}

#[test]
fn starttls_malformed_for_another_protocol_and_for_lines_without_end() {
    for (protocol, said) in [
        (Ldap, &b"\x16\x03"[..]),
        (Ldap, b"GET / HTTP/1.1\r\n"),
        // Too long; a length in too many bytes; without a number; with a long one; an operation longer than its message.
        (Ldap, b"\x30\x82\x10\x01"),
        (Ldap, b"\x30\x85"),
        (Ldap, b"\x30\x02\x77\0"),
        (Ldap, b"\x30\x09\x02\x05\x01\x01\x01\x01\x01\x50\0"),
        (Ldap, b"\x30\x05\x02\x01\x01\x77\x18"),
        // What is no operation.
        (Ldap, b"\x30\x05\x02\x01\x01\xff\0"),
        (Xmpp, b"\x16\x03"),
        (Xmpp, b"EHLO a\r\n"),
        (Xmpp, b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><x/></starttls>"),
    ] {
        let verdict = sniffer(protocol).handle(Input::Bytes(said));
        assert_eq!(verdict, Output::Reject(R::StarttlsMalformed), "{}", said.escape_ascii());
    }
    for (protocol, byte) in [(Smtp, b"a"), (Imap, b"a"), (Pop3, b"a"), (Xmpp, b"<"), (Xmpp, b" ")] {
        for size in [1, 1000, 5000] {
            let verdict = drive(Preamble::Starttls(protocol), &byte.repeat(5000), size);
            assert_eq!(verdict, Output::Reject(R::StarttlsMalformed), "{protocol:?}");
        }
    }
    // TLS at once, where a line is expected: the client will not get far.
    assert_eq!(sniffer(Smtp).handle(Input::Bytes(b"\x16\x03\x01\x02\0\x01")), Output::NeedMore);
}

#[test]
fn nothing_but_tls_may_follow_the_promise_of_it() {
    for (protocol, turns, _) in clients() {
        let mut sniffer = sniffer(protocol);
        assert!(matches!(sniffer.handle(Input::Bytes(turns.last().unwrap().0)), Output::Answer { .. }));
        assert_eq!(sniffer.handle(Input::Bytes(b"EHLO a\r\n")), Output::Reject(R::NotTls));
    }
}

/// Turns of clients in any order, damaged, and bytes of no meaning.
fn said() -> impl Strategy<Value = Vec<u8>> {
    let turns: Vec<_> =
        clients().into_iter().flat_map(|(_, turns, _)| turns).map(|(said, _)| said.to_vec()).collect();
    let piece = prop_oneof![
        3 => prop::sample::select(turns),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(b"\r\n".to_vec()),
    ];
    (prop::collection::vec(piece, 0..8), any::<prop::sample::Index>(), any::<Option<u8>>()).prop_map(
        |(pieces, at, byte)| {
            let mut said = pieces.concat();
            if let (Some(byte), false) = (byte, said.is_empty()) {
                let at = at.index(said.len());
                said[at] = byte;
            }
            said
        },
    )
}

proptest! {
    #[test]
    fn whatever_clients_say_the_verdict_does_not_depend_on_the_segments(said in said(), segment in 1usize..60) {
        for protocol in ALL {
            // Stuffing, by its nature, is seen only if it comes along with the command.
            let at_once = drive(Preamble::Starttls(protocol), &said, usize::MAX);
            if at_once != Output::Reject(R::StarttlsStuffed) {
                prop_assert_eq!(drive(Preamble::Starttls(protocol), &said, segment), at_once);
            }
        }
    }
}
