// What must hold of every input: shared by the fuzz targets and the replay of their corpus.

use snisplice::reason::RejectReason;
use snisplice::sniff::{Input, MAX_WINDOW, Output, Preamble, Sniffer, Starttls, ja4};

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

/// The body of a ClientHello: framed soundly, it is decided at once.
pub(crate) fn hello(body: &[u8]) {
    let body = &body[..body.len().min(snisplice::sniff::MAX_HELLO)];
    let mut message = (body.len() as u32).to_be_bytes().to_vec();
    message[0] = 1;
    message.extend_from_slice(body);
    let mut window = Vec::new();
    for payload in message.chunks(1 << 14) {
        window.extend([22, 3, 1]);
        window.extend((payload.len() as u16).to_be_bytes());
        window.extend_from_slice(payload);
    }
    assert_ne!(drive(Preamble::Tls, &window, usize::MAX), Output::NeedMore);
    sniff(&window);
}

/// The verdict on `data` in segments of `size` bytes, which must latch.
fn drive(preamble: Preamble, data: &[u8], size: usize) -> Output {
    let mut sniffer = Sniffer::new(preamble);
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
