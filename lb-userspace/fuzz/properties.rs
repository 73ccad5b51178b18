// What must hold of every input: shared by the fuzz targets and the replay of their corpus.

use snisplice::mysql::{Greeted, Kills, Login, Offer, read_greeting};
use snisplice::reason::RejectReason;
use snisplice::sniff::{Input, MAX_WINDOW, Output, Preamble, Sniffer, ja4};

/// What a client sends, on either kind of listener.
pub(crate) fn sniff(data: &[u8]) {
    for preamble in [Preamble::Tls, Preamble::Postgres] {
        let at_once = drive(preamble, data, usize::MAX);
        // Stuffing, by its nature, is seen only if it comes along with the request.
        if at_once != Output::Reject(RejectReason::PostgresStuffed) {
            for size in [1, 7, 1000] {
                assert_eq!(drive(preamble, data, size), at_once, "in segments of {size}");
            }
        }
        if preamble == Preamble::Tls {
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
