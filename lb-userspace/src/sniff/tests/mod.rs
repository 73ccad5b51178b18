//! Tests of the stage as a whole, over real ClientHellos and over made ones.

#![expect(clippy::disallowed_methods, reason = "the captures are files")]

mod mysql;
mod properties;
mod real;
mod reasons;
mod starttls;

use super::*;

/// One capture of `tests/data/client-hellos`, with what its manifest says of it.
struct Sample {
    name: String,
    window: Vec<u8>,
    sni: Option<String>,
    alpn: Vec<String>,
    /// `supported_versions`, GREASE included.
    versions: Vec<u16>,
    records: u64,
}

fn samples() -> Vec<Sample> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/client-hellos");
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&manifest).unwrap();
    let texts = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let samples: Vec<_> = manifest
        .iter()
        .map(|(name, facts)| Sample {
            name: name.clone(),
            window: std::fs::read(folder.join(name)).unwrap(),
            sni: facts["sni"].as_str().map(str::to_owned),
            alpn: texts(&facts["alpn"]),
            versions: texts(&facts["supported_versions"])
                .iter()
                .map(|version| u16::from_str_radix(version, 16).unwrap())
                .collect(),
            records: facts["records"].as_u64().unwrap(),
        })
        .collect();
    assert!(samples.len() >= 14, "the captures are missing");
    samples
}

/// The verdict on a window that arrived at once.
fn sniff(window: &[u8]) -> Output {
    Sniffer::new(Preamble::Tls).handle(Input::Bytes(window))
}

fn facts(window: &[u8]) -> ClientHello {
    match sniff(window) {
        Output::Hello(hello) => *hello,
        other => panic!("{other:?}"),
    }
}

/// Drives a sniffer over `data` cut into segments of `size` bytes, until it decides or the data ends.
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
        assert_eq!(sniffer.handle(Input::Bytes(&data[start..])), output, "the verdict did not latch");
        assert_eq!(sniffer.handle(Input::Timeout), output, "the verdict did not latch");
        assert_eq!(sniffer.handle(Input::Closed), output, "the verdict did not latch");
    }
    output
}

/// The handshake message that a window's records carry, header included.
fn message(window: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    let mut rest = window;
    while let [_, _, _, high, low, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend_from_slice(payload);
        rest = tail;
    }
    message
}

/// A message in records of these sizes, over and over.
fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut window = Vec::new();
    let (mut rest, mut sizes) = (message, sizes.iter().cycle());
    while !rest.is_empty() {
        let (payload, tail) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        window.extend([22, 3, 1]);
        window.extend((payload.len() as u16).to_be_bytes());
        window.extend_from_slice(payload);
        rest = tail;
    }
    window
}

/// `body` as a handshake message of type `kind`, in full records.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32).to_be_bytes().to_vec();
    message[0] = kind;
    message.extend_from_slice(body);
    records(&message, &[1 << 14])
}

/// The body of a TLS 1.2 ClientHello with these cipher suites and this block of extensions.
fn body(ciphers: &[u16], block: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend((2 * ciphers.len() as u16).to_be_bytes());
    body.extend(ciphers.iter().flat_map(|cipher| cipher.to_be_bytes()));
    body.extend([1, 0]);
    body.extend((block.len() as u16).to_be_bytes());
    body.extend_from_slice(block);
    body
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut extension = kind.to_be_bytes().to_vec();
    extension.extend((data.len() as u16).to_be_bytes());
    extension.extend_from_slice(data);
    extension
}

/// A ClientHello, framed, with these extensions.
fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    framed(1, &body(&[0x1301], &extensions.concat()))
}

/// A vector whose length takes two bytes.
fn vector(content: &[u8]) -> Vec<u8> {
    let mut vector = (content.len() as u16).to_be_bytes().to_vec();
    vector.extend_from_slice(content);
    vector
}

fn host_name(name: &[u8]) -> Vec<u8> {
    [vec![0], vector(name)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vector(&host_name(name)))
}

fn alpn(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| [&[name.len() as u8], *name].concat()).collect();
    extension(16, &vector(&list))
}
