// What must hold of every input: shared by the fuzz targets and the replay of their corpus.

use rustls::crypto::aws_lc_rs::hpke;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};
use snisplice::ech::{self, Key, Split};
use snisplice::mysql::{Greeted, Kills, Login, Offer, read_greeting};
use snisplice::reason::RejectReason;
use snisplice::sniff::{ClientHello, Input, MAX_WINDOW, Output, Preamble, Sniffer, Starttls, framed, ja4};
use std::sync::{Arc, LazyLock};

/// What clients may send first.
const PREAMBLES: [Preamble; 7] = [
    Preamble::Tls,
    Preamble::Postgres,
    Preamble::Starttls(Starttls::Smtp),
    Preamble::Starttls(Starttls::Imap),
    Preamble::Starttls(Starttls::Pop3),
    Preamble::Starttls(Starttls::Ldap),
    Preamble::Starttls(Starttls::Xmpp),
];

/// What a client sends, on every kind of listener.
pub(crate) fn sniff(data: &[u8]) {
    const STUFFED: [Output; 2] =
        [Output::Reject(RejectReason::PostgresStuffed), Output::Reject(RejectReason::StarttlsStuffed)];
    for preamble in PREAMBLES {
        let at_once = drive(preamble, data, usize::MAX);
        // Stuffing, by its nature, is seen only if it comes along with the request.
        if !STUFFED.contains(&at_once) {
            for size in [1, 7, 1000] {
                assert_eq!(drive(preamble, data, size), at_once, "in segments of {size}");
            }
        }
        // What a PostgreSQL client asks for is consumed before.
        if preamble == Preamble::Tls && data.first() != Some(&0) {
            match &at_once {
                Output::Hello(hello) => {
                    assert!(hello.length <= data.len().min(MAX_WINDOW));
                    // The framing of SSLv2 has no fingerprint.
                    assert!(ja4(data).is_some() || data[0] & 0x80 != 0);
                    let whole = &data[..hello.length];
                    assert_eq!(drive(preamble, whole, usize::MAX), at_once, "what follows changed it");
                    let short = &whole[..whole.len() - 1];
                    assert_eq!(drive(preamble, short, usize::MAX), Output::NeedMore);
                }
                Output::NeedMore => assert!(data.len() < MAX_WINDOW && ja4(data).is_none()),
                _ => {}
            }
        }
    }
}

/// What a MySQL client sends once it is greeted, and what its peers make of it.
pub(crate) fn mysql(data: &[u8]) {
    let offer = Offer { id: 0x7f00_0001, capabilities: u32::MAX, extended: u32::MAX };
    let sniffer = || Sniffer::mysql(b"greeting".to_vec(), offer, MAX_WINDOW);
    let at_once = drive_on(sniffer(), data, usize::MAX);
    for size in [1, 7, 1000] {
        assert_eq!(drive_on(sniffer(), data, size), at_once, "in segments of {size}");
    }
    if let Some(Greeted::Welcome(greeting, _)) = read_greeting(data) {
        assert!(greeting.version.len() < data.len());
    }
    if let Ok(login) = Login::read(data, offer) {
        assert!(login.packet().len() < data.len() + 64);
    }
    let passed = |size: usize| {
        let mut kills = Kills::new(false);
        let mut passed: Vec<u8> =
            data.chunks(size).flat_map(|piece| kills.pass(piece, |_| Some(7)).into_owned()).collect();
        passed.extend(kills.rest());
        passed
    };
    let whole = passed(data.len().max(1));
    assert!(whole.len() <= data.len() && [1, 7, 1000].iter().all(|size| passed(*size) == whole));
}

/// The body of a ClientHello: framed soundly, it is decided at once.
pub(crate) fn hello(body: &[u8]) {
    let body = &body[..body.len().min(snisplice::sniff::MAX_HELLO)];
    let window = framed(body, [3, 1]);
    assert_ne!(drive(Preamble::Tls, &window, usize::MAX), Output::NeedMore);
    sniff(&window);
}

/// The example of RFC 9934.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEICjd4yGRdsoP9gU7YT7My8DHx1Tjme8GYDXrOMCi8v1V
-----END PRIVATE KEY-----
-----BEGIN ECHCONFIG-----
AD7+DQA65wAgACA8wVN2BtscOl3vQheUzHeIkVmKIiydUhDCliA4iyQRCwAEAAEA
AQALZXhhbXBsZS5jb20AAA==
-----END ECHCONFIG-----
";

/// Both ends of a connection with Encrypted ClientHello whose server has no key. Of the input each part has its length, two
/// bytes, before it: extensions of the outer ClientHello, what is encrypted in it, what the server answers, what the client
/// sends after that, and what is encrypted in its second ClientHello.
pub(crate) fn ech(mut data: &[u8]) {
    static KEYS: LazyLock<[Arc<Key>; 1]> = LazyLock::new(|| {
        let mut keys = Key::read(KEY.as_bytes()).expect("the example is sound");
        [Arc::new(keys.remove(0))]
    });
    let mut part = || {
        let [high, low, rest @ ..] = data else { return &b""[..] };
        let (part, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes([*high, *low]))));
        data = rest;
        part
    };
    let [extensions, first, answer, said, second] = std::array::from_fn(|_| part());
    let config = KEYS[0].config();
    let info = [b"tls ech\0", &config.encoded[..]].concat();
    let public = HpkePublicKey(config.public_key.clone());
    let suite = hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
    let (encapsulated, mut sealer) = suite.setup_sealer(&info, &public).expect("the key is sound");
    let mut hello = |encapsulated: &[u8], encoded: &[u8], version| {
        let outer = |payload: &[u8]| {
            let mut ech = vec![0, 0, 1, 0, 1, config.config_id];
            put(&mut ech, encapsulated);
            put(&mut ech, payload);
            let mut block = extensions.to_vec();
            block.extend([0xfe, 0x0d]);
            put(&mut block, &ech);
            let mut body = [&[3, 3][..], &[7; 32], &[4], &[9; 4], &[0, 2, 0x13, 1, 1, 0]].concat();
            put(&mut body, &block);
            body
        };
        let associated = outer(&vec![0; encoded.len() + 16]);
        framed(&outer(&sealer.seal(&associated, encoded).expect("it is short")), version)
    };
    let window = hello(&encapsulated.0, &first[..first.len().min(1 << 14)], [3, 1]);
    let second = hello(b"", &second[..second.len().min(1 << 14)], [3, 3]);
    let Output::Hello(outer) = drive(Preamble::Tls, &window, usize::MAX) else { return };
    let open = || ech::open(&*KEYS, &window, &outer, || Ok::<_, RejectReason>(()));
    // What the server gets first is what has chosen the route.
    let Ok(Some(opened)) = open() else { return };
    let routed = opened.hello.clone();
    let Ok(mut split) = Split::new(opened, MAX_WINDOW) else { return };
    let gets = split.client(&mut window.clone()).expect("nothing can be wrong yet");
    let like_first = |bytes: &[u8]| {
        let Output::Hello(hello) = drive(Preamble::Tls, bytes, usize::MAX) else { panic!("no ClientHello") };
        assert_eq!(ClientHello { length: routed.length, ..*hello }, routed);
    };
    like_first(&gets);
    // However it is cut, the same goes on.
    let said = [said, &second].concat();
    let outcomes = [usize::MAX, 1, 7].map(|size| {
        let opened = open().ok().flatten().expect("as before");
        let mut split = Split::new(opened, MAX_WINDOW).expect("as before");
        split.client(&mut window.clone()).expect("as before");
        answer.chunks(size.min(answer.len().max(1))).for_each(|part| split.server(part));
        let (mut held, mut onward) = (Vec::new(), Vec::new());
        for part in said.chunks(size.min(said.len())) {
            held.extend_from_slice(part);
            match split.client(&mut held) {
                Ok(more) => onward.extend(more),
                Err(refused) => return Err(refused),
            }
        }
        let is_done = split.is_done();
        onward.extend(held);
        Ok((onward, is_done, split.is_retry()))
    });
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
    if let Ok((onward, ..)) = &outcomes[0]
        && *onward != said
    {
        // One ClientHello was replaced. It is somewhere behind records of other kinds.
        let mut rest = &onward[..];
        while let [kind, _, _, high, low, ..] = rest
            && *kind != 22
        {
            rest = &rest[5 + usize::from(u16::from_be_bytes([*high, *low]))..];
        }
        like_first(rest);
    }
}

fn put(into: &mut Vec<u8>, vector: &[u8]) {
    into.extend((vector.len() as u16).to_be_bytes());
    into.extend_from_slice(vector);
}

/// The verdict on `data` in segments of `size` bytes, which must latch.
fn drive(preamble: Preamble, data: &[u8], size: usize) -> Output {
    drive_on(Sniffer::new(preamble), data, size)
}

fn drive_on(mut sniffer: Sniffer, data: &[u8], size: usize) -> Output {
    let (mut start, mut end) = (0, 0);
    let mut output = Output::NeedMore;
    while end < data.len() && output == Output::NeedMore {
        end = data.len().min(end.saturating_add(size));
        output = sniffer.handle(Input::Bytes(&data[start..end]));
        while let Output::Answer { consumed, .. } = output {
            start += consumed;
            output = sniffer.handle(Input::Bytes(&data[start..end]));
        }
    }
    if output != Output::NeedMore {
        assert_eq!(sniffer.handle(Input::Bytes(&data[start..])), output);
        assert_eq!(sniffer.handle(Input::Timeout), output);
        assert_eq!(sniffer.handle(Input::Closed), output);
    }
    output
}
