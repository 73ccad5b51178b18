//! What real clients send, whole, cut, reframed and with bytes behind it.

use super::*;

/// Computed from the captures with a Python script written from JA4.md (struct and hashlib, nothing of this
/// crate). The middle part of Chromium's is that of the specification's own example.
const JA4: [(&str, &str); 14] = [
    ("chromium-156.bin", "t13d1516h2_8daaf6152771_806a8c22fdea"),
    ("curl-8.23-h2.bin", "t13d3013h2_1d37bd780c83_8537cf56674e"),
    ("curl-cffi-firefox.bin", "t13d1717h2_5b57614c22b0_3cbfd9057e0d"),
    ("gnutls-3.8.bin", "t13d291300_723694b0fccc_93e4b1f3c4eb"),
    ("openssl-3.0-no-sni.bin", "t13i310900_e8f1e7e78f70_1f22a2ca17c4"),
    ("openssl-3.0-split-records-128.bin", "t13d311000_e8f1e7e78f70_1f22a2ca17c4"),
    ("openssl-3.0-tls12-alpn-postgresql.bin", "t12d2808pl_d943125447b4_e7e480e5a997"),
    ("openssl-3.0.bin", "t13d311000_e8f1e7e78f70_1f22a2ca17c4"),
    ("openssl-3.5-mlkem.bin", "t13d301200_1d37bd780c83_ecd0401ec68b"),
    ("openssl-3.6-mlkem.bin", "t13d301200_1d37bd780c83_ecd0401ec68b"),
    ("openssl-4.0.bin", "t13d301200_1d37bd780c83_e65f5f3178d9"),
    ("psql-17-direct.bin", "t13d3013pl_1d37bd780c83_ecd0401ec68b"),
    ("python-ssl.bin", "t13d181100_85036bcba153_d41ae481755e"),
    ("redis-cli-7.bin", "t13d311000_e8f1e7e78f70_1f22a2ca17c4"),
];

#[test]
fn the_facts_are_those_of_the_manifest() {
    for sample in samples() {
        let hello = facts(&sample.window);
        let name = &sample.name;
        assert_eq!(hello.sni.as_ref().map(ServerName::as_str), sample.sni.as_deref(), "{name}");
        assert_eq!(hello.alpn.to_string(), sample.alpn.join(","), "{name}");
        assert_eq!(hello.alpn.is_empty(), sample.alpn.is_empty(), "{name}");
        // 0x?a?a, the GREASE values, are the only ones above 0x0304; none at all means TLS 1.2.
        let version = sample.versions.iter().copied().filter(|&version| version <= 0x0304).max();
        assert_eq!(hello.version, TlsVersion(version.unwrap_or(0x0303)), "{name}");
        assert_eq!(hello.length, sample.window.len(), "{name}");
        assert_eq!(hello.request, None, "{name}");
    }
}

#[test]
fn rustls_reads_the_same_names() {
    for sample in samples() {
        assert_eq!(properties::rustls_sni(&sample.window), Some(sample.sni), "{}", sample.name);
    }
}

#[test]
fn the_fingerprints_are_those_computed_independently() {
    let computed: Vec<_> =
        samples().into_iter().map(|sample| (sample.name, ja4(&sample.window).unwrap().to_string())).collect();
    let expected: Vec<_> = JA4.iter().map(|(name, ja4)| (name.to_string(), ja4.to_string())).collect();
    assert_eq!(computed, expected);
}

#[test]
fn every_prefix_needs_more_until_the_hello_is_whole_and_then_nothing_changes() {
    for sample in samples() {
        let window = [&sample.window[..], b"early data"].concat();
        let expected = Output::Hello(Box::new(facts(&sample.window)));
        let mut sniffer = Sniffer::new(Preamble::Tls);
        for length in 0..=window.len() {
            let prefix = &window[..length];
            let decided = length >= sample.window.len();
            let verdict = if decided { &expected } else { &Output::NeedMore };
            assert_eq!(
                &sniffer.handle(Input::Bytes(prefix)),
                verdict,
                "{} to {length}, continued",
                sample.name
            );
            assert_eq!(&sniff(prefix), verdict, "{} to {length}, at once", sample.name);
            assert_eq!(ja4(prefix).is_some(), decided, "{} to {length}", sample.name);
        }
    }
}

#[test]
fn segments_do_not_matter() {
    for sample in samples() {
        let expected = Output::Hello(Box::new(facts(&sample.window)));
        for size in [1, 2, 5, 9, 100, 1460] {
            assert_eq!(drive(Preamble::Tls, &sample.window, size), expected, "{} by {size}", sample.name);
        }
    }
}

#[test]
fn records_do_not_matter() {
    let mut several = 0;
    for sample in samples() {
        several += u32::from(sample.records > 1);
        let original = facts(&sample.window);
        for size in [1, 7, 128, 16384] {
            let window = records(&message(&sample.window), &[size]);
            let expected = ClientHello { length: window.len(), ..original.clone() };
            assert_eq!(facts(&window), expected, "{} in records of {size}", sample.name);
            assert_eq!(drive(Preamble::Tls, &window, 1), Output::Hello(expected.into()), "{size}");
            assert_eq!(ja4(&window), ja4(&sample.window), "{} in records of {size}", sample.name);
        }
    }
    assert!(several > 0, "no capture has several records");
}

#[test]
fn a_flipped_bit_inside_a_whole_message_never_needs_more() {
    // 5 bytes of record header, 4 of message header: the lengths that streaming goes by.
    for sample in samples().into_iter().filter(|sample| sample.records == 1) {
        let mut window = sample.window.clone();
        for at in 9..window.len() {
            for bit in 0..8 {
                window[at] ^= 1 << bit;
                let verdict = sniff(&window);
                assert_ne!(verdict, Output::NeedMore, "{}, byte {at}, bit {bit}", sample.name);
                properties::check_against_the_oracle(&window, &verdict);
                window[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn the_example_of_the_ja4_specification_has_its_fingerprint() {
    let ciphers = [
        0x2a2a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014,
        0x009c, 0x009d, 0x002f, 0x0035,
    ];
    let algorithms: Vec<u8> = [0x0403u16, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601]
        .iter()
        .flat_map(|algorithm| algorithm.to_be_bytes())
        .collect();
    let kinds = [
        0x8a8au16, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012,
        0x002b, 0xff01, 0x000b, 0x000a, 0x0015, 0x3a3a,
    ];
    let block: Vec<u8> = kinds
        .iter()
        .flat_map(|&kind| match kind {
            0x0000 => server_name(b"example.com"),
            0x0010 => alpn(&[b"h2", b"http/1.1"]),
            0x000d => extension(kind, &vector(&algorithms)),
            0x002b => extension(kind, &[6, 0x0a, 0x0a, 3, 4, 3, 3]),
            0x002d | 0x000b => extension(kind, &[1, 0]),
            0xff01 => extension(kind, &[0]),
            0x000a => extension(kind, &[0, 2, 0, 29]),
            _ => extension(kind, &[]),
        })
        .collect();
    let window = framed(1, &body(&ciphers, &block));
    assert_eq!(ja4(&window).unwrap().to_string(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    assert_eq!(facts(&window).version.name(), "TLSv1.3");

    // "If there's > 99, which there should never be, then output 99."
    let block: Vec<u8> = (100..220).flat_map(|kind| extension(kind, b"")).collect();
    let window = framed(1, &body(&[0x1301; 120], &block));
    assert!(ja4(&window).unwrap().as_str().starts_with("t12i999900_"));
}

#[test]
fn a_hello_without_any_extension_is_tls_1_2_without_a_name() {
    let mut body = body(&[0x002f], b"");
    body.truncate(body.len() - 2);
    let window = framed(1, &body);
    let hello = facts(&window);
    assert_eq!((hello.sni, hello.version.name(), hello.alpn.is_empty()), (None, "TLSv1.2", true));
    assert_eq!(ja4(&window).unwrap().as_str().rsplit('_').next(), Some("000000000000"));
}

#[test]
fn names_are_normalised_and_protocols_kept_in_order_and_escaped() {
    let hello = facts(&hello(&[server_name(b"DB_1.Example.COM."), alpn(&[b"\n\xff", b"postgresql"])]));
    assert_eq!(hello.sni.unwrap().as_str(), "db_1.example.com");
    assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), [&b"\n\xff"[..], b"postgresql"]);
    assert!(hello.alpn.offers(b"postgresql") && !hello.alpn.offers(b"postgres"));
    assert_eq!(hello.alpn.to_string(), "\\n\\xff,postgresql");
}

/// As long as a ClientHello gets with one compression method: as many cipher suites and bytes of extensions as there
/// is room for.
fn longest() -> Vec<u8> {
    let name = server_name(b"app1.redis.example");
    let padding = extension(21, &vec![0; usize::from(u16::MAX) - name.len() - 4]);
    let longest = body(&[0x1301; 0x7fff], &[name, padding].concat());
    assert!((MAX_HELLO - 300..=MAX_HELLO).contains(&longest.len()));
    longest
}

#[test]
fn the_longest_hello_in_segments_of_one_byte_takes_linear_work() {
    let window = framed(1, &longest());
    let mut sniffer = Sniffer::new(Preamble::Tls);
    let mut turns = 0;
    for length in 1..window.len() {
        assert_eq!(sniffer.handle(Input::Bytes(&window[..length])), Output::NeedMore);
        let SniffState::Hello { records, .. } = &sniffer.state else { panic!("{:?}", sniffer.state) };
        turns = records.turns;
    }
    // A turn that makes progress and one that finds nothing more, for each segment at most.
    assert!(turns <= 2 * window.len(), "{turns} turns for {} segments", window.len());
    assert_eq!(sniffer.handle(Input::Bytes(&window)), Output::Hello(facts(&window).into()));
    assert!(ja4(&window).is_some());
}

#[test]
fn the_longest_hello_may_not_cost_much_framing() {
    let message = message(&framed(1, &longest()));
    let window = records(&message, &[16]);
    assert_eq!(drive(Preamble::Tls, &window, 1000), Output::Reject(RejectReason::HelloTooLarge));
    // A caller that reads no more than MAX_WINDOW bytes is not left waiting.
    assert_eq!(sniff(&window[..MAX_WINDOW]), Output::Reject(RejectReason::HelloTooLarge));
}
