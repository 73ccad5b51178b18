//! One test for each reason this stage gives, at the first byte that allows it; and what the client hears.

use super::*;
use crate::reason::OddName;
use RejectReason as R;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

fn postgres(window: &[u8]) -> Output {
    Sniffer::new(Preamble::Postgres).handle(Input::Bytes(window))
}

/// A capture that offers the ALPN `postgresql`.
fn direct() -> Vec<u8> {
    samples().into_iter().find(|sample| sample.name == "psql-17-direct.bin").unwrap().window
}

/// A capture that offers no ALPN.
fn redis() -> Vec<u8> {
    samples().into_iter().find(|sample| sample.name == "redis-cli-7.bin").unwrap().window
}

fn rejected(window: &[u8], reason: RejectReason) {
    assert_eq!(sniff(window), Output::Reject(reason), "{}", window.escape_ascii());
}

#[test]
fn not_tls_is_said_at_the_first_byte_that_is_not() {
    rejected(b"G", R::NotTls);
    // SSLv2 itself, and what only begins like it; an alert; application data.
    rejected(b"\x80\x2e\x01\x00\x02", R::NotTls);
    rejected(b"\x80\x2e\x04", R::NotTls);
    rejected(b"\x15\x03\x01\x00\x02\x01\x00", R::NotTls);
    rejected(b"\x17\x03\x03\x00\x01a", R::NotTls);
    // With a length that an SSLv2 ClientHello cannot have, before and after it is certain that it is none.
    rejected(b"\x80\x01\x15", R::NotTls);
    let starts =
        [&b"\x16"[..], b"\x16\x03", b"\x80", b"\x80\x01", b"\x80\x2e", b"\x80\x2e\x01", b"\x80\x2e\x01\x03"];
    for start in starts {
        assert_eq!(sniff(start), Output::NeedMore);
    }
}

#[test]
fn the_version_of_a_record_is_ignored_and_a_record_may_be_empty() {
    let redis = redis();
    for version in [0x0000u16, 0x0200, 0x0300, 0x0303, 0x03ff, 0xffff] {
        let mut other = redis.clone();
        other[1..3].copy_from_slice(&version.to_be_bytes());
        assert_eq!(facts(&other), facts(&redis), "{version:04x}");
    }
    for size in [10, 1 << 14] {
        let spaced: Vec<u8> = records(&message(&redis), &[size])
            .chunks(size + 5)
            .flat_map(|record| [b"\x16\x03\x01\0\0", record].concat())
            .collect();
        assert_eq!(facts(&spaced), ClientHello { length: spaced.len(), ..facts(&redis) });
        assert_eq!(ja4(&spaced), ja4(&redis));
    }
    // No end of them.
    rejected(&b"\x16\x03\x01\0\0".repeat(MAX_WINDOW / 5 + 1), R::HelloTooLarge);
}

/// A ClientHello in the framing of SSLv2, with these lengths of suites, session id and challenge.
fn sslv2(lengths: [u16; 3]) -> Vec<u8> {
    let mut message = vec![1, 3, 3];
    message.extend(lengths.iter().flat_map(|length| length.to_be_bytes()));
    message.extend(vec![7; lengths.iter().map(|&length| usize::from(length)).sum()]);
    [&(0x8000 | message.len() as u16).to_be_bytes()[..], &message].concat()
}

#[test]
fn the_framing_of_sslv2_has_no_name() {
    let old = sslv2([9, 0, 32]);
    let expected = ClientHello {
        sni: None,
        odd_name: None,
        alpn: Alpn::default(),
        version: TlsVersion(0x0303),
        length: old.len(),
        request: None,
        offers_ech: false,
    };
    for size in [1, 3, 1000] {
        assert_eq!(drive(Preamble::Tls, &old, size), Output::Hello(expected.clone().into()));
    }
    for broken in [sslv2([0, 0, 32]), sslv2([8, 0, 32]), {
        let mut lying = old.clone();
        lying[10] += 1;
        lying
    }] {
        rejected(&broken, R::HelloMalformed);
    }
    rejected(b"\x80\x08\x01\x03\x01", R::HelloMalformed);
    // It is not what PostgreSQL takes for TLS without being asked.
    assert_eq!(postgres(&old), Output::Reject(R::PostgresMalformed));
}

#[test]
fn hello_malformed_for_records_that_contradict_themselves() {
    // A record longer than 2^14.
    rejected(b"\x16\x03\x01\x40\x01", R::HelloMalformed);
    assert_eq!(sniff(b"\x16\x03\x01\x40\x00"), Output::NeedMore);
    // Another content type in the middle of the message.
    for stranger in [b"\x15", b"\x14", b"\x17"] {
        rejected(&[&b"\x16\x03\x01\x00\x02\x01\x00"[..], stranger].concat(), R::HelloMalformed);
    }
    // Not a ClientHello.
    rejected(b"\x16\x03\x01\x00\x04\x02", R::HelloMalformed);
    // A record that goes on behind the message, as soon as both lengths are known.
    rejected(b"\x16\x03\x01\x00\x09\x01\x00\x00\x04", R::HelloMalformed);
    rejected(b"\x16\x03\x01\x00\x04\x01\x00\x00\x04\x16\x03\x01\x00\x05", R::HelloMalformed);
    // A message without a body.
    rejected(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", R::HelloMalformed);
}

#[test]
fn hello_malformed_for_a_body_that_contradicts_itself() {
    let whole = body(&[0x1301], &server_name(b"a.example"));
    assert!(matches!(sniff(&framed(1, &whole)), Output::Hello(_)));
    for length in 0..whole.len() {
        // The one prefix that is a ClientHello, of the kind that has no extensions.
        if length != body(&[0x1301], b"").len() - 2 {
            rejected(&framed(1, &whole[..length]), R::HelloMalformed);
        }
    }
    rejected(&framed(1, &[&whole[..], b"\0"].concat()), R::HelloMalformed);
    rejected(&framed(1, &body(&[], &server_name(b"a.example"))), R::HelloMalformed);

    // No compression method: the count and the method are in front of the length of the extensions.
    let mut none = body(&[0x1301], b"");
    let at = none.len() - 4;
    none.splice(at..at + 2, [0]);
    rejected(&framed(1, &none), R::HelloMalformed);

    let name = host_name(b"a.example");
    for block in [
        // What decides over the route, twice.
        [server_name(b"a.example"), server_name(b"a.example")].concat(),
        [server_name(b"a.example"), extension(0, &vector(&[1, 0, 1, b'x']))].concat(),
        [alpn(&[b"h2"]), alpn(&[b"h2"])].concat(),
        // An extension that ends behind the block, or that the block ends in the middle of.
        vec![0, 23, 0, 1],
        [server_name(b"a.example"), vec![0, 23, 0]].concat(),
        // server_name: no list; a list longer or shorter than the extension; a name longer than the list.
        extension(0, b""),
        extension(0, &[&[0, 13][..], &name].concat()),
        extension(0, &[&[0, 11][..], &name].concat()),
        extension(0, &[&[0, 0][..], &name].concat()),
        extension(0, &vector(&[0, 0, 10, b'a', b'.', b'b'])),
        // ALPN: no list, no name, a name without bytes, a name longer than the list, bytes behind the list.
        extension(16, b""),
        extension(16, &vector(b"")),
        alpn(&[b"h2", b""]),
        extension(16, &vector(b"\x03h2")),
        extension(16, &[vector(b"\x02h2"), vec![0]].concat()),
    ] {
        rejected(&framed(1, &body(&[0x1301], &block)), R::HelloMalformed);
    }
}

#[test]
fn what_does_not_decide_over_the_route_is_the_servers_to_judge() {
    for block in [
        // Two GREASE extensions are what Chromium sends; the same one twice, and others.
        [extension(0x2a2a, b""), extension(0x3a3a, b"\0")].concat(),
        [extension(0x2a2a, b""), extension(0x2a2a, b"")].concat(),
        [extension(23, b""), extension(23, b"")].concat(),
        // Contents that the RFCs do not know: of max_fragment_length, encrypt_then_mac, extended_master_secret, NPN.
        extension(1, b""),
        extension(22, b"x"),
        extension(23, b"x"),
        extension(13172, b"x"),
        // supported_versions: empty, odd, a length that lies, a server's.
        extension(43, b""),
        extension(43, &[0]),
        extension(43, &[3, 3, 4, 3]),
        extension(43, &[2, 3, 4, 3, 3]),
        extension(43, &[3, 4]),
        // signature_algorithms: odd; bytes behind the list.
        extension(13, &[0, 3, 4, 3, 8]),
        extension(13, &[0, 2, 4, 3, 8, 4]),
    ] {
        let hello = facts(&hello(&[block.clone(), server_name(b"a.example")]));
        assert_eq!(hello.sni.unwrap().as_str(), "a.example", "{}", block.escape_ascii());
        assert_eq!(hello.version, TlsVersion(0x0303), "{}", block.escape_ascii());
    }
}

#[test]
fn hello_too_large_is_said_as_soon_as_the_length_is_there() {
    rejected(b"\x16\x03\x01\x40\x00\x01\x02\x01\x45", R::HelloTooLarge);
    assert_eq!(sniff(b"\x16\x03\x01\x40\x00\x01\x02\x01\x44"), Output::NeedMore);
}

#[test]
fn sni_invalid_unless_there_is_one_host_name_at_most() {
    for list in [vec![], [host_name(b"a.example"), host_name(b"a.example")].concat()] {
        rejected(&hello(&[extension(0, &vector(&list))]), R::SniInvalid);
    }
}

#[test]
fn what_is_no_host_name_is_odd_and_never_a_name() {
    for (odd, list) in [
        (OddName::IpAddress, host_name(b"192.0.2.1")),
        (OddName::IpAddress, host_name(b"2001:db8::1")),
        (OddName::NotAName, host_name(b"")),
        (OddName::NotAName, host_name(b"app1\0.redis.example")),
        (OddName::NotAName, host_name(b"*.redis.example")),
        (OddName::NotAName, host_name("a.".repeat(128).as_bytes())),
        (OddName::NotAName, vec![1, 0, 1, b'x']),
    ] {
        let hello = facts(&hello(&[extension(0, &vector(&list))]));
        assert_eq!((hello.sni, hello.odd_name), (None, Some(odd)), "{}", list.escape_ascii());
    }
    // The longest name there is, with a trailing dot; and one beside a name of an unknown type.
    for list in
        [host_name("a.".repeat(127).as_bytes()), [host_name(b"a.example"), vec![1, 0, 1, b'x']].concat()]
    {
        let hello = facts(&hello(&[extension(0, &vector(&list))]));
        assert!(hello.sni.is_some() && hello.odd_name.is_none(), "{}", list.escape_ascii());
    }
}

#[test]
fn hello_timeout_whatever_is_there() {
    for data in [&b""[..], b"\x16", &redis()[..100]] {
        let mut sniffer = Sniffer::new(Preamble::Tls);
        assert_eq!(sniffer.handle(Input::Bytes(data)), Output::NeedMore);
        assert_eq!(sniffer.handle(Input::Timeout), Output::Reject(R::HelloTimeout));
        assert_eq!(sniffer.handle(Input::Bytes(&redis())), Output::Reject(R::HelloTimeout));
    }
}

#[test]
fn hello_too_large_for_a_bound_of_its_own_as_soon_as_its_length_is_there() {
    let redis = redis();
    let limited = |limit, window| Sniffer::limited(Preamble::Tls, limit).handle(Input::Bytes(window));
    assert_eq!(limited(redis.len(), &redis), Output::Hello(facts(&redis).into()));
    for end in [9, 100, redis.len()] {
        assert_eq!(limited(redis.len() - 1, &redis[..end]), Output::Reject(R::HelloTooLarge), "{end}");
    }
    // In the framing of SSLv2.
    let old = [0x82, 0x00, 1, 3, 1];
    assert_eq!(limited(512, &old), Output::Reject(R::HelloTooLarge));
    assert_eq!(limited(514, &old), Output::NeedMore);
    // Behind a PostgreSQL client's request.
    let mut sniffer = Sniffer::limited(Preamble::Postgres, redis.len() - 1);
    assert!(matches!(sniffer.handle(Input::Bytes(&SSL_REQUEST)), Output::Answer { .. }));
    assert_eq!(sniffer.handle(Input::Bytes(&redis)), Output::Reject(R::HelloTooLarge));
    // Nobody is let do more than all may.
    let long = [&b"\x16\x03\x01\x40\x00\x01\x02\x02\x00"[..]].concat();
    assert_eq!(limited(usize::MAX, &long), Output::Reject(R::HelloTooLarge));
}

#[test]
fn closed_before_data_only_if_there_was_none() {
    let mut sniffer = Sniffer::new(Preamble::Tls);
    assert_eq!(sniffer.handle(Input::Bytes(b"")), Output::NeedMore);
    assert_eq!(sniffer.handle(Input::Closed), Output::Reject(R::ClosedBeforeData));
}

#[test]
fn closed_before_hello_in_the_preamble_behind_it_and_in_the_hello() {
    let mut sniffer = Sniffer::new(Preamble::Tls);
    assert_eq!(sniffer.handle(Input::Bytes(b"\x16")), Output::NeedMore);
    assert_eq!(sniffer.handle(Input::Closed), Output::Reject(R::ClosedBeforeHello));

    let mut sniffer = Sniffer::new(Preamble::Postgres);
    assert!(matches!(sniffer.handle(Input::Bytes(&SSL_REQUEST)), Output::Answer { .. }));
    assert_eq!(sniffer.handle(Input::Bytes(b"")), Output::NeedMore);
    assert_eq!(sniffer.handle(Input::Closed), Output::Reject(R::ClosedBeforeHello));
}

#[test]
fn a_tls_listener_answers_postgresql_too_and_nothing_else_that_begins_with_zero() {
    let mut sniffer = Sniffer::new(Preamble::Tls);
    assert_eq!(
        sniffer.handle(Input::Bytes(&SSL_REQUEST)),
        Output::Answer { reply: b"S".into(), consumed: 8 }
    );
    let Output::Hello(hello) = sniffer.handle(Input::Bytes(&hello(&[server_name(b"a.example.com")]))) else {
        panic!("no hello");
    };
    assert_eq!(hello.request, Some(TlsRequest::Postgres));
    assert_eq!(drive(Preamble::Tls, &[0, 0, 0, 9, 0, 0, 0, 0], 8), Output::Reject(R::NotTls));
    assert_eq!(drive(Preamble::Tls, &SSL_REQUEST[..5], 1), Output::NeedMore);
}

#[test]
fn a_postgres_client_is_answered_and_its_hello_read() {
    let redis = redis();
    let mut sniffer = Sniffer::new(Preamble::Postgres);
    for length in 0..8 {
        assert_eq!(sniffer.handle(Input::Bytes(&GSSENC_REQUEST[..length])), Output::NeedMore);
    }
    assert_eq!(
        sniffer.handle(Input::Bytes(&GSSENC_REQUEST)),
        Output::Answer { reply: b"N".into(), consumed: 8 }
    );
    assert_eq!(sniffer.handle(Input::Bytes(b"")), Output::NeedMore);
    for length in 0..8 {
        assert_eq!(sniffer.handle(Input::Bytes(&SSL_REQUEST[..length])), Output::NeedMore);
    }
    assert_eq!(
        sniffer.handle(Input::Bytes(&SSL_REQUEST)),
        Output::Answer { reply: b"S".into(), consumed: 8 }
    );
    for length in 0..redis.len() {
        assert_eq!(sniffer.handle(Input::Bytes(&redis[..length])), Output::NeedMore);
    }
    let expected = ClientHello { request: Some(TlsRequest::Postgres), ..facts(&redis) };
    assert_eq!(sniffer.handle(Input::Bytes(&redis)), Output::Hello(expected.into()));
}

#[test]
fn alpn_mismatch_for_direct_tls_that_does_not_offer_postgresql() {
    let accepted = ClientHello { request: None, ..facts(&direct()) };
    assert_eq!(postgres(&direct()), Output::Hello(accepted.clone().into()));
    assert_eq!(postgres(&redis()), Output::Reject(R::AlpnMismatch));
    let h2 = hello(&[server_name(b"a.example"), alpn(&[b"h2"])]);
    assert_eq!(postgres(&h2), Output::Reject(R::AlpnMismatch));

    // The same behind a refused GSSENCRequest.
    let mut sniffer = Sniffer::new(Preamble::Postgres);
    assert_eq!(
        sniffer.handle(Input::Bytes(&GSSENC_REQUEST)),
        Output::Answer { reply: b"N".into(), consumed: 8 }
    );
    assert_eq!(sniffer.handle(Input::Bytes(&direct())), Output::Hello(accepted.into()));
}

#[test]
fn postgres_cleartext_for_a_startup_message() {
    let startup = b"\0\0\0\x14\0\x03\0\0user\0alice\0\0";
    assert_eq!(postgres(&startup[..7]), Output::NeedMore);
    assert_eq!(postgres(&startup[..8]), Output::Reject(R::PostgresCleartext));
    assert_eq!(postgres(startup), Output::Reject(R::PostgresCleartext));
    // Protocol 3.2 of PostgreSQL 18; and behind a refused GSSENCRequest.
    assert_eq!(postgres(b"\0\0\0\x14\0\x03\0\x02"), Output::Reject(R::PostgresCleartext));
    let mut sniffer = Sniffer::new(Preamble::Postgres);
    assert!(matches!(sniffer.handle(Input::Bytes(&GSSENC_REQUEST)), Output::Answer { .. }));
    assert_eq!(sniffer.handle(Input::Bytes(startup)), Output::Reject(R::PostgresCleartext));
}

#[test]
fn a_cancel_request_has_its_key_once_it_is_whole() {
    for (code, forwarded) in [(*b"\x04\xd2\x16\x2e", false), (*b"\x04\xd2\x1a\x16", true)] {
        for length in [8, 36, 260] {
            let key: Box<[u8]> = (0..length).map(|number| number as u8).collect();
            let request = [&(8 + length as u32).to_be_bytes()[..], &code, &key].concat();
            let cancel = Cancel { key, forwarded };
            assert_eq!(cancel.request(), request);
            assert!(!format!("{cancel:?}").contains('['), "{cancel:?}");
            for end in 0..request.len() {
                assert_eq!(postgres(&request[..end]), Output::NeedMore);
                assert_eq!(sniff(&request[..end]), Output::NeedMore);
                assert_eq!(opening(&request[..end]), Opening::Incomplete);
            }
            for window in [request.clone(), [&request[..], b"x"].concat()] {
                assert_eq!(postgres(&window), Output::Cancel(cancel.clone()));
                assert_eq!(sniff(&window), Output::Cancel(cancel.clone()));
                assert_eq!(opening(&window), Opening::Cancel(cancel.clone()));
            }
        }
        for length in [8, 15, 269] {
            let request = [&u32::to_be_bytes(length)[..], &code].concat();
            assert_eq!(postgres(&request), Output::Reject(R::PostgresMalformed));
            assert_eq!(opening(&request), Opening::Session);
        }
    }
    // Behind a refused GSSENCRequest, too.
    let both = [&GSSENC_REQUEST[..], b"\0\0\0\x10\x04\xd2\x16\x2e12345678"].concat();
    assert!(matches!(drive(Preamble::Tls, &both, 8), Output::Cancel(_)));
}

#[test]
fn what_opens_a_session_is_the_servers_to_judge() {
    let startup = b"\0\0\0\x14\0\x03\0\0user\0alice\0\0";
    for end in 0..8 {
        assert_eq!(opening(&startup[..end]), Opening::Incomplete);
    }
    for bytes in [&startup[..8], startup, &SSL_REQUEST, &GSSENC_REQUEST, b"GET / HTTP/1.1", b"\x16"] {
        assert_eq!(opening(bytes), Opening::Session, "{}", bytes.escape_ascii());
    }
}

#[test]
fn on_a_tls_listener_a_postgres_client_is_known_by_what_it_asks() {
    let redis = redis();
    let mut sniffer = Sniffer::new(Preamble::Tls);
    for length in 0..8 {
        assert_eq!(sniffer.handle(Input::Bytes(&SSL_REQUEST[..length])), Output::NeedMore);
    }
    let answer = Output::Answer { reply: b"S".into(), consumed: 8 };
    assert_eq!(
        (sniffer.handle(Input::Bytes(&SSL_REQUEST)), sniffer.request()),
        (answer, Some(TlsRequest::Postgres))
    );
    let expected = ClientHello { request: Some(TlsRequest::Postgres), ..facts(&redis) };
    assert_eq!(sniffer.handle(Input::Bytes(&redis)), Output::Hello(expected.into()));

    let all = [&GSSENC_REQUEST[..], &SSL_REQUEST, &redis].concat();
    assert!(matches!(drive(Preamble::Tls, &all, 8), Output::Hello(hello) if hello.is_postgres()));
    // Without a request: PostgreSQL by its ALPN, or something else.
    assert!(facts(&direct()).is_postgres() && !facts(&redis).is_postgres());

    rejected(b"\0\0\0\x14\0\x03\0\0user", R::PostgresCleartext);
    rejected(&[&SSL_REQUEST[..], b"x"].concat(), R::PostgresStuffed);
    // What only begins like it is no TLS; behind an answer it is no PostgreSQL.
    for window in [&b"\0\0\x27\x11"[..], b"\0\0\0\x07", b"\0\0\0\x08\x04\xd2\x16\x31", b"\0a"] {
        rejected(window, R::NotTls);
    }
    let twice = [GSSENC_REQUEST, GSSENC_REQUEST].concat();
    assert_eq!(drive(Preamble::Tls, &twice, 8), Output::Reject(R::PostgresMalformed));
    // Direct TLS behind a refused GSSENCRequest can only be PostgreSQL's.
    let direct = |hello: &[u8]| drive(Preamble::Tls, &[&GSSENC_REQUEST[..], hello].concat(), 8);
    assert_eq!(direct(&redis), Output::Reject(R::AlpnMismatch));
    assert!(matches!(direct(&self::direct()), Output::Hello(_)));
}

#[test]
fn postgres_malformed_at_the_first_byte_that_is() {
    for window in [
        &b"G"[..],
        // Longer than any startup packet; shorter than the shortest.
        b"\0\0\x27\x11",
        b"\0\0\0\x07",
        // Protocol 2, an unknown request code, an SSLRequest with a body.
        b"\0\0\x01\x28\0\x02\0\0",
        b"\0\0\0\x08\x04\xd2\x16\x31",
        b"\0\0\0\x09\x04\xd2\x16\x2f",
    ] {
        assert_eq!(postgres(window), Output::Reject(R::PostgresMalformed), "{}", window.escape_ascii());
    }
    assert_eq!(postgres(b"\0\0\x27\x10"), Output::NeedMore);
    // Twice.
    assert_eq!(
        drive(Preamble::Postgres, &[GSSENC_REQUEST, GSSENC_REQUEST].concat(), 8),
        Output::Reject(R::PostgresMalformed)
    );
    // Once it was promised, TLS must follow.
    assert_eq!(drive(Preamble::Postgres, &[SSL_REQUEST, SSL_REQUEST].concat(), 8), Output::Reject(R::NotTls));
}

#[test]
fn postgres_stuffed_for_bytes_that_do_not_wait_for_the_answer() {
    for request in [SSL_REQUEST, GSSENC_REQUEST] {
        assert_eq!(postgres(&[&request[..], b"\0"].concat()), Output::Reject(R::PostgresStuffed));
        assert_eq!(postgres(&[&request[..], &direct()].concat()), Output::Reject(R::PostgresStuffed));
    }
}

#[test]
fn an_alert_is_one_fatal_record_and_goes_to_clients_that_speak_tls() {
    let alerts: Vec<_> = R::ALL.iter().filter_map(|&reason| Some((reason, alert(reason)?))).collect();
    for (reason, bytes) in &alerts {
        assert!(matches!(bytes, [21, 3, 3, 0, 2, 2, _]), "{reason}: {bytes:?}");
    }
    assert_eq!(
        alerts.iter().map(|(reason, bytes)| (*reason, bytes[6])).collect::<Vec<_>>(),
        [
            (R::HelloMalformed, 50),
            (R::HelloTooLarge, 50),
            (R::SniInvalid, 47),
            (R::EchMalformed, 47),
            (R::EchRate, 80),
            (R::UnknownSni, 112),
            (R::NoSni, 109),
            (R::AlpnMismatch, 120),
            (R::RouteFull, 80),
            (R::RouteClientRate, 80),
            (R::RouteClientFull, 80),
        ]
    );
}
