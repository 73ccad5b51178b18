//! Split mode: what a server without the key gets.

use super::*;
use crate::reason::RejectReason;
use crate::sniff::{ClientHello, Input, Output, Preamble, Sniffer, framed};
use proptest::test_runner::TestCaseError;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ServerConfig, ServerConnection};

const LIMIT: usize = 16 * 1024;
const VERSION: [u8; 2] = [3, 1];

fn server_name(name: &str) -> (u16, Vec<u8>) {
    let mut entry = vec![0];
    wire::put_vector16(&mut entry, name.as_bytes()).unwrap();
    let mut data = Vec::new();
    wire::put_vector16(&mut data, &entry).unwrap();
    (0, data)
}

fn versions(versions: &[u16]) -> (u16, Vec<u8>) {
    let mut data = vec![2 * versions.len() as u8];
    data.extend(versions.iter().flat_map(|version| version.to_be_bytes()));
    (43, data)
}

/// Extensions of an outer ClientHello.
fn outer(share: u8) -> Vec<(u16, Vec<u8>)> {
    vec![server_name(PUBLIC), (51, vec![share; 40]), versions(&[0x0304])]
}

/// Extensions of an inner ClientHello, which leaves out the outer one's key shares.
fn inner(name: &str) -> Vec<(u16, Vec<u8>)> {
    vec![server_name(name), reference(&[51]), versions(&[0x0a0a, 0x0304]), mark()]
}

fn encoded(name: &str) -> Vec<u8> {
    made(&inner(name), b"", &[0; 20])
}

/// The body that the server computes its handshake with.
fn decoded(name: &str, share: u8) -> Vec<u8> {
    let extensions = [server_name(name), (51, vec![share; 40]), versions(&[0x0a0a, 0x0304]), mark()];
    made(&extensions, &[9; 32], b"")
}

fn sniffed(window: &[u8]) -> Result<Box<ClientHello>, RejectReason> {
    match Sniffer::new(Preamble::Tls).handle(Input::Bytes(window)) {
        Output::Hello(hello) => Ok(hello),
        Output::Reject(reason) => Err(reason),
        other => panic!("{other:?}"),
    }
}

fn opened(keys: &Keys, window: &[u8]) -> Result<Option<Opened>, RejectReason> {
    super::super::open(keys, window, &*sniffed(window)?, || Ok::<_, RejectReason>(()))
}

/// What has opened a first ClientHello, which is taken as read.
fn begun(key: &Arc<Key>, liar: &mut Liar) -> Split {
    let mut window = framed(&liar.first(&outer(1), &encoded(SECRET)), VERSION);
    let opened = opened(std::slice::from_ref(key), &window).unwrap().unwrap();
    let mut split = Split::new(opened, LIMIT).unwrap();
    assert_eq!(split.client(&mut window).unwrap(), framed(&decoded(SECRET, 1), VERSION));
    assert_eq!(window, b"");
    split
}

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 3, 3];
    wire::put_vector16(&mut record, payload).unwrap();
    record
}

/// A ServerHello in one record, with something of the next.
fn answer(random: &[u8; 32]) -> Vec<u8> {
    let message = [&[2, 0, 0, 60, 3, 3], &random[..], &[0; 24]].concat();
    [record(22, &message), record(20, &[1])].concat()
}

fn retry() -> Vec<u8> {
    answer(
        b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91\
          \xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c",
    )
}

/// Feeds a window in parts that end at these places, and gives what goes on.
fn fed(split: &mut Split, bytes: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, Vec<u8>), Refused> {
    let (mut window, mut onward, mut from) = (Vec::new(), Vec::new(), 0);
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        window.extend_from_slice(&bytes[from..cut]);
        from = cut;
        onward.extend(split.client(&mut window)?);
    }
    Ok((onward, window))
}

/// A client's whole story with a server that wants another key share: what it says before and after that, and what the
/// server is to get.
fn story(liar: &mut Liar) -> (Vec<u8>, Vec<u8>) {
    let early = record(23, &[7; 30]);
    let changed = record(20, &[1]);
    let second = framed(&liar.second(&outer(2), &encoded(SECRET)), [3, 3]);
    let finished = [record(23, &[8; 50]), record(22, &[8; 9])].concat();
    let said = [&early[..], &changed, &second, &finished].concat();
    let gets = [&early[..], &changed, &framed(&decoded(SECRET, 2), [3, 3]), &finished].concat();
    (said, gets)
}

#[test]
fn the_server_gets_what_both_clienthellos_carry_however_they_are_cut() {
    let key = key(1);
    let length = story(&mut Liar::new(&key)).0.len();
    for cut in 0..length {
        let mut liar = Liar::new(&key);
        let mut split = begun(&key, &mut liar);
        let (said, gets) = story(&mut liar);
        split.server(&retry());
        assert!(split.is_retry());
        let (onward, window) = fed(&mut split, &said, &[cut]).unwrap();
        assert!(split.is_done());
        assert_eq!([onward, window].concat(), gets, "cut at {cut}");
    }
}

#[test]
fn of_every_prefix_the_server_gets_what_is_no_part_of_a_clienthello() {
    let key = key(1);
    let length = story(&mut Liar::new(&key)).0.len();
    let end_of_second = length - (5 + 50 + 5 + 9);
    for end in 0..=length {
        let mut liar = Liar::new(&key);
        let mut split = begun(&key, &mut liar);
        let (said, gets) = story(&mut liar);
        split.server(&retry());
        let (onward, window) = fed(&mut split, &said[..end], &[]).unwrap();
        assert_eq!(split.is_done(), end >= end_of_second, "{end}");
        assert!(gets.starts_with(&onward), "{end}");
        if !split.is_done() {
            assert_eq!([&onward[..], &window].concat(), said[..end], "{end}");
            assert!(onward.len() <= 35 + 6, "{end}");
        }
    }
}

#[test]
fn records_of_any_size_may_carry_the_second_clienthello() {
    let key = key(1);
    for size in [1, 3, 100, 300] {
        let mut liar = Liar::new(&key);
        let mut split = begun(&key, &mut liar);
        split.server(&retry());
        let whole = framed(&liar.second(&outer(2), &encoded(SECRET)), [3, 3]);
        let said: Vec<_> = whole[5..].chunks(size).flat_map(|part| record(22, part)).collect();
        let (onward, window) = fed(&mut split, &said, &[]).unwrap();
        assert_eq!((onward, window), (framed(&decoded(SECRET, 2), [3, 3]), Vec::new()), "{size}");
    }
}

#[test]
fn only_a_helloretryrequest_makes_it_wait_for_more() {
    let key = key(1);
    let (other, retry) = (answer(&[5; 32]), retry());
    let hello = 5 + 6 + 32;
    let alert = record(21, &[2, 40]);
    let empty = [record(22, &[]), retry.clone()].concat();
    let tiny: Vec<_> = retry[5..].chunks(1).flat_map(|byte| record(22, byte)).collect();
    // What the server says, how much of it tells, and whether it is one.
    for (bytes, tells, is_retry) in [
        (&other, hello, false),
        (&retry, hello, true),
        (&empty, hello + 5, true),
        (&tiny, 6 * 38, true),
        (&alert, 1, false),
        (&b"HTTP/1.1 400 ".to_vec(), 1, false),
        (&record(22, &[1, 0, 0, 0]), 6, false),
    ] {
        for length in 0..=bytes.len() {
            let mut split = begun(&key, &mut Liar::new(&key));
            split.server(&bytes[..length]);
            assert_eq!(split.is_done(), length >= tells && !is_retry, "{length} of {bytes:?}");
            assert_eq!(split.is_retry(), length >= tells && is_retry, "{length} of {bytes:?}");
            let mut split = begun(&key, &mut Liar::new(&key));
            bytes[..length].chunks(1).for_each(|byte| split.server(byte));
            assert_eq!(
                (split.is_done(), split.is_retry()),
                (length >= tells && !is_retry, length >= tells && is_retry)
            );
        }
    }
    for at in 11..hello {
        let mut split = begun(&key, &mut Liar::new(&key));
        let mut changed = retry.clone();
        changed[at] ^= 1;
        split.server(&changed);
        assert!(split.is_done(), "byte {at}");
    }
}

#[test]
fn after_a_serverhello_nothing_is_changed() {
    let key = key(1);
    let mut liar = Liar::new(&key);
    let mut split = begun(&key, &mut liar);
    let (said, _) = story(&mut liar);
    split.server(&answer(&[5; 32]));
    let (onward, window) = fed(&mut split, &said, &[]).unwrap();
    assert_eq!((onward, window), (Vec::new(), said));
}

#[test]
fn a_handshake_message_before_the_answer_is_held_until_that_tells_what_it_is() {
    let key = key(1);
    for is_retry in [false, true] {
        let mut liar = Liar::new(&key);
        let mut split = begun(&key, &mut liar);
        let (said, gets) = story(&mut liar);
        let mut window = Vec::new();
        assert!(split.wants_client(&window));
        window.extend_from_slice(&said);
        let mut onward = split.client(&mut window).unwrap();
        assert_eq!(onward, said[..41]);
        assert!(!split.wants_client(&window));
        split.server(&if is_retry { retry() } else { answer(&[5; 32]) });
        onward.extend(split.client(&mut window).unwrap());
        assert!(split.is_done());
        onward.extend(window);
        assert_eq!(onward, if is_retry { gets } else { said });
    }
}

#[test]
fn a_second_clienthello_of_which_a_byte_was_changed_goes_nowhere() {
    let key = key(1);
    let length = Liar::new(&key).first(&outer(2), &encoded(SECRET)).len();
    for at in 0..length {
        let mut liar = Liar::new(&key);
        let mut split = begun(&key, &mut liar);
        split.server(&retry());
        let mut body = liar.second(&outer(2), &encoded(SECRET));
        let Some(byte) = body.get_mut(at) else { continue };
        *byte ^= 0x20;
        let refused = fed(&mut split, &framed(&body, [3, 3]), &[]).unwrap_err();
        assert!(!split.is_done());
        assert_ne!(refused, Refused::NoHello, "byte {at} of {length}");
    }
    // Its framing (a record's version counts for nothing): a record of another kind is not looked into.
    for at in [0, 3, 4, 5, 6, 7, 8] {
        let mut liar = Liar::new(&key);
        let mut split = begun(&key, &mut liar);
        split.server(&retry());
        let mut said = framed(&liar.second(&outer(2), &encoded(SECRET)), [3, 3]);
        said[at] ^= 0x10;
        match fed(&mut split, &said, &[]) {
            Ok((onward, _)) => assert_eq!(onward, if at == 0 { &said[..] } else { b"" }, "byte {at}"),
            Err(refused) => assert_eq!(refused, Refused::NoHello, "byte {at}"),
        }
        assert!(!split.is_done());
    }
}

#[test]
fn a_second_clienthello_that_contradicts_the_rfc_or_the_first_is_refused() {
    type Say = fn(&mut Liar, &Key) -> Vec<u8>;
    let with = |refused: Refused, say: Say| (refused, say);
    let cases = [
        with(Refused::Missing, |_, _| made(&outer(2), &[9; 32], b"")),
        with(Refused::Missing, |_, _| made(&inner(SECRET), &[9; 32], b"")),
        // Of the first one's encapsulation, of another AEAD, of another number.
        with(Refused::Malformed, |liar, _| liar.first(&outer(2), &encoded(SECRET))),
        with(Refused::Malformed, |liar, _| {
            let mut front = liar.front(b"");
            front[4] = 3;
            liar.seal(&front, &outer(2), &encoded(SECRET))
        }),
        with(Refused::Malformed, |liar, _| {
            let mut front = liar.front(b"");
            front[5] ^= 1;
            liar.seal(&front, &outer(2), &encoded(SECRET))
        }),
        // Of another client, of one that has said more before, and twice.
        with(Refused::Undecryptable, |_, key| Liar::new(key).second(&outer(2), &encoded(SECRET))),
        with(Refused::Undecryptable, |liar, _| {
            liar.second(&outer(2), &encoded(SECRET));
            liar.second(&outer(2), &encoded(SECRET))
        }),
        with(Refused::Malformed, |liar, _| liar.second(&outer(2), &encoded("app2.redis.example.com"))),
        with(Refused::Malformed, |liar, _| liar.second(&outer(2), &made(&[mark()], b"", b""))),
        with(Refused::Malformed, |liar, _| liar.second(&outer(2), &made(&inner(SECRET)[..3], b"", b""))),
        with(Refused::Malformed, |liar, _| liar.second(&outer(2), &made(&inner(SECRET), b"", &[1]))),
        with(Refused::Malformed, |liar, _| {
            let mut older = inner(SECRET);
            older[2] = versions(&[0x0304, 0x0303]);
            liar.second(&outer(2), &made(&older, b"", b""))
        }),
        with(Refused::Malformed, |liar, _| liar.second(&outer(2)[..1], &encoded(SECRET))),
        with(Refused::Malformed, |liar, _| {
            let mut behind = liar.second(&outer(2), &encoded(SECRET));
            behind.push(0);
            behind
        }),
    ];
    let key = key(1);
    for (number, (refused, say)) in cases.into_iter().enumerate() {
        let mut liar = Liar::new(&key);
        let mut split = begun(&key, &mut liar);
        split.server(&retry());
        let body = say(&mut liar, &key);
        assert_eq!(fed(&mut split, &framed(&body, [3, 3]), &[]), Err(refused), "case {number}");
    }
    // No ClientHello, and one that is too long.
    for said in [record(22, &[2, 0, 0, 0]), b"\x16\x03\x03\x40\x00\x01\x00\x50\x00".to_vec()] {
        let mut split = begun(&key, &mut Liar::new(&key));
        split.server(&retry());
        assert_eq!(fed(&mut split, &said, &[]), Err(Refused::NoHello));
    }
}

#[test]
fn each_refusal_has_the_alert_of_the_rfc() {
    let alerts = [Refused::NoHello, Refused::Malformed, Refused::Missing, Refused::Undecryptable];
    assert_eq!(alerts.map(|refused| refused.alert()[6]), [50, 47, 109, 51]);
}

#[test]
fn a_first_one_that_offers_an_older_version_is_for_servers_with_the_key_to_judge() {
    let key = key(1);
    for offered in [vec![versions(&[0x0304, 0x0303])], vec![versions(&[0x0303])], vec![]] {
        let extensions = [vec![server_name(SECRET), mark()], offered].concat();
        let window = framed(&sealing(&key, &outer(1), &made(&extensions, b"", b"")), VERSION);
        let opened = opened(std::slice::from_ref(&key), &window).unwrap().unwrap();
        assert_eq!(Split::new(opened, LIMIT).unwrap_err(), Malformed, "{extensions:?}");
    }
}

#[test]
fn no_key_is_tried_for_a_client_that_may_not() {
    let keys = [key(1)];
    let window = framed(&sealing(&keys[0], &outer(1), &encoded(SECRET)), VERSION);
    let hello = sniffed(&window).unwrap();
    let refused = super::super::open(&keys, &window, &hello, || Err(RejectReason::EchRate));
    assert_eq!(refused.unwrap_err(), RejectReason::EchRate);
    // Nobody is asked for one that no key is for.
    let others = [key(2)];
    assert!(
        super::super::open::<RejectReason>(&others, &window, &hello, || unreachable!()).unwrap().is_none()
    );
}

/// rustls' client, and its server, which knows no ECH: it takes the inner ClientHello for the client's own. Its
/// HelloRetryRequest does not confirm ECH to the client (RFC 9849, section 7.2.1), whose second ClientHello is then for the
/// public server, and must not get to this one.
#[test]
fn a_real_server_without_the_key_takes_what_a_real_client_has_encrypted() {
    let certified = rcgen::generate_simple_self_signed([SECRET.to_owned()]).unwrap();
    let private = PrivateKeyDer::from_pem_slice(certified.signing_key.serialize_pem().as_bytes()).unwrap();
    for is_retry in [false, true] {
        let keys = [key(1)];
        let mut provider = default_provider();
        if is_retry {
            provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1];
        }
        let config = ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], private.clone_key())
            .unwrap();
        let (mut client, mut window) = (client(mode_of(&keys[0]), &[]), Vec::new());
        client.write_tls(&mut window).unwrap();
        let mut split = Split::new(opened(&keys, &window).unwrap().unwrap(), LIMIT).unwrap();
        let mut server = ServerConnection::new(config.into()).unwrap();
        server.read_tls(&mut &split.client(&mut window).unwrap()[..]).unwrap();
        server.process_new_packets().unwrap();
        assert_eq!(server.server_name(), Some(SECRET));
        let mut said = Vec::new();
        server.write_tls(&mut said).unwrap();
        split.server(&said);
        assert_eq!((split.is_retry(), split.is_done()), (is_retry, !is_retry));
        if is_retry {
            client.read_tls(&mut &said[..]).unwrap();
            client.process_new_packets().unwrap();
            client.write_tls(&mut window).unwrap();
            assert_eq!(split.client(&mut window), Err(Refused::Malformed));
        }
    }
}

/// As browsers send them: with a key share of X25519MLKEM768, in two segments.
#[test]
fn an_inner_one_with_a_post_quantum_share_is_whole() {
    const X25519MLKEM768: [u8; 2] = [0x11, 0xec];
    let keys = [key(1)];
    let outer = hello(mode_of(&keys[0]), &["h2"]);
    let inner = open(&outer, &keys).unwrap().unwrap();
    let shares = Parts::read(&inner).unwrap().0.extensions.into_iter().find(|extension| extension.kind == 51);
    let shares = shares.unwrap().data;
    assert!(
        shares.len() > 1216 && shares.windows(2).any(|group| group == X25519MLKEM768),
        "{}",
        shares.len()
    );
    let window = framed(&outer, VERSION);
    let mut sniffer = Sniffer::new(Preamble::Tls);
    assert_eq!(sniffer.handle(Input::Bytes(&window[..1400])), Output::NeedMore);
    assert!(matches!(sniffer.handle(Input::Bytes(&window)), Output::Hello(_)));
    let mut split = Split::new(opened(&keys, &window).unwrap().unwrap(), LIMIT).unwrap();
    assert_eq!(split.client(&mut window.clone()).unwrap(), framed(&inner, VERSION));
}

/// Chrome and Firefox send it, whether a server has a key or not.
#[test]
fn the_grease_of_browsers_opens_with_no_key() {
    let captured: [&[u8]; 2] = [
        include_bytes!("../../../../tests/data/client-hellos/chromium-156.bin"),
        include_bytes!("../../../../tests/data/client-hellos/curl-cffi-firefox.bin"),
    ];
    // Of every number, so that each is tried.
    let keys: Vec<_> = (0..=255).map(key).collect();
    for window in captured {
        let hello = sniffed(window).unwrap();
        assert!(hello.offers_ech);
        let mut attempts = 0;
        let mut attempt = || -> Result<(), RejectReason> {
            attempts += 1;
            Ok(())
        };
        assert!(super::super::open(&keys, window, &hello, &mut attempt).unwrap().is_none());
        assert_eq!(attempts, 1);
    }
}

proptest! {
    /// Whatever both ends say, and however it is cut: no panic, no byte is added or lost but for a ClientHello's, and the
    /// verdict does not depend on the cuts.
    #[test]
    fn no_bytes_make_it_panic(
        said in prop::collection::vec(any::<u8>(), 0..300), heard in prop::collection::vec(any::<u8>(), 0..60),
        kinds in prop::collection::vec((20..25_u8, 0..40_usize), 0..6), is_retry: bool, cut: prop::sample::Index,
    ) {
        let key = Arc::new(only(EXAMPLE));
        let records: Vec<_> = kinds.iter().flat_map(|(kind, length)| record(*kind, &vec![9; *length])).collect();
        let said = [records, said].concat();
        let outcome = |cuts: &[usize]| -> Result<_, TestCaseError> {
            let mut split = begun(&key, &mut Liar::new(&key));
            if is_retry {
                split.server(&retry());
            }
            split.server(&heard);
            let outcome = fed(&mut split, &said, cuts);
            if let Ok((onward, window)) = &outcome {
                prop_assert_eq!([&onward[..], window].concat(), said.clone());
            }
            Ok((outcome.map(drop), split.is_done(), split.is_retry()))
        };
        prop_assert_eq!(outcome(&[])?, outcome(&[cut.index(said.len() + 1)])?);
    }
}
