//! Properties over reframed, damaged and arbitrary bytes.

use proptest::prelude::*;

use super::*;

/// The SNI in a window, by a reader that shares nothing with the sniffer: `None` if it cannot be read.
fn oracle(window: &[u8]) -> Option<Option<Vec<u8>>> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
    let (mut message, mut rest) = (Vec::new(), window);
    while message.len() < 4 || message.len() < 4 + number(&message[1..4]) {
        let length = number(rest.get(3..5)?);
        message.extend_from_slice(rest.get(5..5 + length)?);
        rest = &rest[5 + length..];
    }
    // Version and random, then three vectors.
    let mut at = 4 + 2 + 32;
    for length_bytes in [1, 2, 1] {
        at += length_bytes + number(message.get(at..at + length_bytes)?);
    }
    let mut name = None;
    let mut block = message.get(at + 2..).unwrap_or_default();
    while let [high, low, _, _, ..] = block {
        let length = number(&block[2..4]);
        let data = block.get(4..4 + length)?;
        if (*high, *low) == (0, 0) {
            let length = number(data.get(3..5)?);
            name = Some(data.get(5..5 + length)?.to_ascii_lowercase());
        }
        block = &block[4 + length..];
    }
    Some(name)
}

/// What rustls takes the SNI for; `None` if it does not accept the ClientHello.
pub(super) fn rustls_sni(mut window: &[u8]) -> Option<Option<String>> {
    let mut acceptor = rustls::server::Acceptor::default();
    while !window.is_empty() {
        acceptor.read_tls(&mut window).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_ascii_lowercase));
        }
    }
    None
}

/// Whenever the sniffer accepts a window, it has the name that others see in it.
pub(super) fn check_against_the_oracle(window: &[u8], verdict: &Output) {
    let Output::Hello(hello) = verdict else { return };
    let ours = hello.sni.as_ref().map(|name| name.as_str().to_owned());
    let without_dot = |name: String| name.strip_suffix('.').map(str::to_owned).unwrap_or(name);
    // The framing of SSLv2 names nobody; what is no host name has none either.
    if window[0] & 0x80 != 0 || hello.odd_name.is_some() {
        assert_eq!(ours, None);
    } else {
        let theirs = oracle(window).expect("accepted, but not readable");
        assert_eq!(ours, theirs.map(|name| without_dot(String::from_utf8(name).unwrap())));
    }
    if let Some(theirs) = rustls_sni(window) {
        assert_eq!(ours, theirs.map(without_dot));
    }
}

/// One change to a window.
#[derive(Clone, Debug)]
enum Damage {
    Set(u8),
    Flip(u8),
    Insert(Vec<u8>),
    Remove(usize),
}

fn damage() -> impl Strategy<Value = (prop::sample::Index, Damage)> {
    let damage = prop_oneof![
        any::<u8>().prop_map(Damage::Set),
        (0u8..8).prop_map(Damage::Flip),
        prop::collection::vec(any::<u8>(), 1..20).prop_map(Damage::Insert),
        (1usize..20).prop_map(Damage::Remove),
    ];
    (any::<prop::sample::Index>(), damage)
}

fn sample() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(samples().into_iter().map(|sample| sample.window).collect::<Vec<_>>())
}

/// Bytes that get past the first checks more often than chance would have it.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let start = prop::sample::select(vec![
        &b""[..],
        b"\x16\x03",
        b"\x16\x03\x01\x00\x40",
        b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\0\0\0\x20\x04\xd2\x16\x2e",
        b"\0\0\0\x08\x04\xd2\x16\x30\0\0\0\x08\x04\xd2\x16\x2f\x16\x03\x01",
    ]);
    (start, prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(start, rest)| [start, &rest].concat())
}

proptest! {
    #[test]
    fn any_reframing_gives_the_same_facts_and_leaves_what_follows_alone(
        window in sample(),
        sizes in prop::collection::vec(1usize..400, 1..40),
        segment in 1usize..2000,
        trailing in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let reframed = records(&message(&window), &sizes);
        let expected = ClientHello { length: reframed.len(), ..facts(&window) };
        let longer = [reframed, trailing].concat();
        prop_assert_eq!(drive(Preamble::Tls, &longer, segment), Output::Hello(expected.into()));
        prop_assert_eq!(ja4(&longer), ja4(&window));
    }

    #[test]
    fn a_damaged_hello_is_rejected_or_has_the_name_that_others_see(
        mut window in sample(),
        damages in prop::collection::vec(damage(), 1..4),
        segment in 1usize..2000,
    ) {
        for (at, damage) in damages {
            let at = at.index(window.len());
            match damage {
                Damage::Set(byte) => window[at] = byte,
                Damage::Flip(bit) => window[at] ^= 1 << bit,
                Damage::Insert(bytes) => drop(window.splice(at..at, bytes)),
                Damage::Remove(count) => drop(window.drain(at..window.len().min(at + count))),
            }
            prop_assume!(!window.is_empty());
        }
        let verdict = sniff(&window);
        check_against_the_oracle(&window, &verdict);
        prop_assert_eq!(drive(Preamble::Tls, &window, segment), verdict);
    }

    #[test]
    fn a_damaged_body_in_sound_framing_never_needs_more(
        window in sample(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let mut body = message(&window).split_off(4);
        for (at, damage) in damages {
            let at = at.index(body.len());
            match damage {
                Damage::Set(byte) => body[at] = byte,
                Damage::Flip(bit) => body[at] ^= 1 << bit,
                Damage::Insert(bytes) => drop(body.splice(at..at, bytes)),
                Damage::Remove(count) => drop(body.drain(at..body.len().min(at + count))),
            }
            prop_assume!(!body.is_empty());
        }
        let window = framed(1, &body);
        let verdict = sniff(&window);
        prop_assert_ne!(&verdict, &Output::NeedMore);
        check_against_the_oracle(&window, &verdict);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_the_verdict_does_not_depend_on_the_segments(
        bytes in bytes(),
        segment in 1usize..300,
    ) {
        for preamble in [Preamble::Tls, Preamble::Postgres] {
            // Stuffing, by its nature, is seen only if it comes along with the request.
            let at_once = drive(preamble, &bytes, usize::MAX);
            if at_once != Output::Reject(RejectReason::PostgresStuffed) {
                prop_assert_eq!(drive(preamble, &bytes, segment), at_once);
            }
        }
        let _ = ja4(&bytes);
    }
}
