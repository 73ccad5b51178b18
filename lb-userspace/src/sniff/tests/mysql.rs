//! MySQL's clients: greeted, asked for TLS, and then as any other.

use super::*;
use crate::mysql::capability::{PROTOCOL_41, QUERY_ATTRIBUTES, SSL};
use crate::mysql::{Asked, HEADER, Offer, REQUEST_LENGTH, SslRequest, packet};
use RejectReason as R;
use proptest::prelude::*;

const GREETING: &[u8] = b"\x05\0\0\0hello";
const OFFER: Offer = Offer { id: 0x7f00_0001, capabilities: PROTOCOL_41 | SSL, extended: 0 };

/// A sniffer whose greeting was sent.
fn greeted() -> Sniffer {
    let mut sniffer = Sniffer::mysql(GREETING.to_vec(), OFFER, MAX_WINDOW);
    let greeting = Output::Answer { reply: GREETING.into(), consumed: 0 };
    assert_eq!(sniffer.handle(Input::Bytes(b"")), greeting);
    sniffer
}

fn payload(capabilities: u32) -> [u8; REQUEST_LENGTH] {
    let mut payload = [0; REQUEST_LENGTH];
    payload[..4].copy_from_slice(&capabilities.to_le_bytes());
    payload[8] = 45;
    payload
}

fn request(capabilities: u32) -> Vec<u8> {
    packet(1, &payload(capabilities))
}

/// The verdict on what comes after the greeting, in segments of this size.
fn after(data: &[u8], size: usize) -> Output {
    drive_on(greeted(), data, size)
}

fn redis() -> Vec<u8> {
    samples().into_iter().find(|sample| sample.name == "redis-cli-7.bin").unwrap().window
}

#[test]
fn a_mysql_client_is_greeted_and_its_hello_read_with_its_request_masked() {
    let all = u32::MAX;
    let redis = redis();
    let request = request(all);
    let mut sniffer = greeted();
    for length in 0..request.len() {
        assert_eq!(sniffer.handle(Input::Bytes(&request[..length])), Output::NeedMore, "{length}");
    }
    let done = Output::Answer { reply: Cow::Borrowed(b""), consumed: HEADER + REQUEST_LENGTH };
    assert_eq!(sniffer.handle(Input::Bytes(&request)), done);
    for length in 0..redis.len() {
        assert_eq!(sniffer.handle(Input::Bytes(&redis[..length])), Output::NeedMore);
    }
    let asked = Asked { offer: OFFER, request: SslRequest(payload(all)).masked(OFFER) };
    let expected = ClientHello { request: Some(TlsRequest::Mysql(asked)), ..facts(&redis) };
    assert_eq!(sniffer.handle(Input::Bytes(&redis)), Output::Hello(expected.clone().into()));
    assert_eq!(asked.request.capabilities() & QUERY_ATTRIBUTES, 0, "nobody has offered them");
    // It does not wait for an answer, so both may come at once.
    for size in [1, 36, 37, 1000] {
        assert_eq!(after(&[&request[..], &redis].concat(), size), Output::Hello(expected.clone().into()));
    }
}

#[test]
fn what_is_stuffed_behind_the_request_is_not_tls() {
    for stuffed in [&request(PROTOCOL_41 | SSL)[..], b"\0", b"SELECT 1"] {
        let sent = [&request(PROTOCOL_41 | SSL)[..], stuffed].concat();
        assert_eq!(after(&sent, 1000), Output::Reject(R::NotTls));
        assert_eq!(after(&sent, 1), Output::Reject(R::NotTls));
    }
}

#[test]
fn mysql_cleartext_for_a_login() {
    let login = packet(1, &[&payload(PROTOCOL_41)[..], b"app\0\0"].concat());
    assert_eq!(after(&login[..7], 7), Output::NeedMore);
    assert_eq!(after(&login[..8], 8), Output::Reject(R::MysqlCleartext));
    assert_eq!(after(&login, 3), Output::Reject(R::MysqlCleartext));
}

#[test]
fn mysql_malformed_at_the_first_byte_that_is() {
    let long = packet(1, &[&payload(PROTOCOL_41 | SSL)[..], b"\0"].concat());
    for window in [
        &b"GET"[..],
        // TLS without a request; longer than any login; shorter than a request.
        b"\x16\x03\x01",
        b"\0\0\x01",
        b"\x1f\0\0",
        // Another sequence number.
        b"\x20\0\0\0",
        // A request with a body, and the protocol before 4.1.
        &long[..8],
        b"\x20\0\0\x01\0\0\0\0",
    ] {
        let short = &window[..window.len() - 1];
        assert_eq!(after(short, 1000), Output::NeedMore, "{}", short.escape_ascii());
        assert_eq!(after(window, 1), Output::Reject(R::MysqlMalformed), "{}", window.escape_ascii());
    }
}

#[test]
fn a_client_that_goes_or_waits_at_any_byte_has_its_reason() {
    let request = request(PROTOCOL_41 | SSL);
    let sent = [&request[..], &redis()].concat();
    for length in 0..sent.len() {
        let reason = |input| {
            let mut sniffer = greeted();
            let (mut window, mut output) = (&sent[..length], Output::NeedMore);
            if length > 0 {
                output = sniffer.handle(Input::Bytes(window));
            }
            while let Output::Answer { consumed, .. } = output {
                window = &window[consumed..];
                output = sniffer.handle(Input::Bytes(window));
            }
            assert_eq!(output, Output::NeedMore, "{length}");
            sniffer.handle(input)
        };
        let gone = if length == 0 { R::ClosedBeforeData } else { R::ClosedBeforeHello };
        assert_eq!(reason(Input::Closed), Output::Reject(gone));
        assert_eq!(reason(Input::Timeout), Output::Reject(R::HelloTimeout));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_the_segments_do_not_matter(
        asks: bool,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        segment in 1usize..100,
    ) {
        let sent = if asks { [request(u32::MAX), bytes].concat() } else { bytes };
        prop_assert_eq!(after(&sent, segment), after(&sent, usize::MAX));
    }
}
