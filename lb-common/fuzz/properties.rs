// What must hold of every input: shared by the property tests, the fuzz targets and the replay of their corpus.

use std::net::{Ipv4Addr, SocketAddr};

use lb_common::packet::Flow;
use lb_common::packet::options::{MAX, Malformed, Scratch};
use lb_common::packet::translate::{Difference, Head};

#[path = "../tests/model/mod.rs"]
#[allow(dead_code, reason = "each user of this file has a use for another part")]
pub(crate) mod model;

use model::{Segment, tuple};

/// A flow in the first 24 bytes, the header of a segment in the next 16, the rest its options.
pub(crate) fn segment(data: &[u8]) {
    let mut rest = data.iter().copied();
    let mut byte = || rest.next().unwrap_or_default();
    let mut word = || u32::from_be_bytes([byte(), byte(), byte(), byte()]);
    let (seq_delta, ack_delta, tsval_delta, tsecr_delta) = (word(), word(), word(), word());
    let [flags, scales, has_floor, _] = word().to_be_bytes();
    let (own_scale, promised_scale) = scales_of(scales);
    let tsecr_floor = (has_floor != 0).then_some(word());
    let (seq, ack) = (word(), word());
    let [header_flags, window] = [word() as u16, word() as u16];
    let flow = Flow {
        seq_delta,
        ack_delta,
        tsval_delta,
        tsecr_delta,
        own_scale,
        promised_scale,
        flags,
        ..flow(SocketAddr::from((Ipv4Addr::LOCALHOST, 3)), SocketAddr::from((Ipv4Addr::LOCALHOST, 4)))
    };
    let mut options: Vec<u8> = rest.take(MAX).collect();
    options.resize(options.len().next_multiple_of(4), 0);
    let segment = Segment {
        from: SocketAddr::from((Ipv4Addr::BROADCAST, 1)),
        to: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2)),
        traffic_class: 0,
        seq,
        ack,
        flags: header_flags & 0x1ff,
        window,
        urgent: 0,
        options,
        payload: Vec::new(),
    };
    leaves_as_the_model_says(&flow, &segment, tsecr_floor);
}

/// The sender's scale and the one that the receiver was promised: each difference from -14 to 14, and of those that are
/// alike, several.
fn scales_of(byte: u8) -> (u8, u8) {
    let (difference, both) = ((byte % 29) as i8 - 14, byte / 29);
    let (own, promised) = (difference.max(0).unsigned_abs(), difference.min(0).unsigned_abs());
    let both = both.min(14 - own.max(promised));
    (own + both, promised + both)
}

/// The options of a SYN.
pub(crate) fn syn(data: &[u8]) {
    let mut options = data[..data.len().min(MAX)].to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    assert_eq!(read_syn(&options).ok(), model::syn_options(&options));
}

/// A flow that changes nothing but addresses and ports.
pub(crate) fn flow(from: SocketAddr, to: SocketAddr) -> Flow {
    Flow {
        id: 1,
        origin: 0,
        out: tuple(from, to),
        seq_delta: 0,
        ack_delta: 0,
        tsval_delta: 0,
        tsecr_delta: 0,
        ifindex: 1,
        from: 1,
        slot: 0,
        own_scale: 0,
        peer_scale: 0,
        promised_scale: 0,
        flags: 0,
        exit: 0,
        padding: [0; 3],
    }
}

/// Byte by byte, checksums included, in the same length; or both refuse it.
pub(crate) fn leaves_as_the_model_says(flow: &Flow, segment: &Segment, tsecr_floor: Option<u32>) {
    let forwarded = forward(flow, &segment.packet(), tsecr_floor).ok();
    let expected = segment.translated(flow, tsecr_floor).map(|segment| segment.packet());
    assert_eq!(forwarded, expected, "{segment:02x?}");
}

/// What comes of a packet by the pure translation, put together as the kernel programs do it. An IPv4 header has no
/// options here, an IPv6 header no extensions.
pub(crate) fn forward(flow: &Flow, packet: &[u8], tsecr_floor: Option<u32>) -> Result<Vec<u8>, Malformed> {
    let mut new = packet.to_vec();
    let (addresses, tcp) = if packet[0] >> 4 == 4 { (12..20, 20) } else { (8..40, 40) };
    let head = Head {
        ports: word(packet, tcp),
        seq: word(packet, tcp + 4),
        ack: word(packet, tcp + 8),
        control: word(packet, tcp + 12),
    };
    let [at, payload] = [tcp + 20, tcp + head.length()];

    let mut scratch = Scratch::EMPTY;
    scratch.old[..payload - at].copy_from_slice(&packet[at..payload]);
    scratch.translate(flow, payload - at, tsecr_floor)?;
    new[at..payload].copy_from_slice(&scratch.new[..payload - at]);
    for (i, word) in flow.translate(&head).words().into_iter().enumerate() {
        put(&mut new, tcp + 4 * i, word);
    }
    let words = |address: [u32; 4]| if tcp == 20 { address[3..].to_vec() } else { address.to_vec() };
    let leaving = [words(flow.out.source), words(flow.out.destination)].concat();
    for (at, word) in addresses.clone().step_by(4).zip(leaving) {
        put(&mut new, at, word);
    }

    let difference = |range: std::ops::Range<usize>| {
        range.step_by(4).fold(Difference::default(), |sum, at| sum.word(word(packet, at), word(&new, at)))
    };
    // As the kernel takes them: one after the other, each as its sum.
    let [of_addresses, of_header] = [difference(addresses), difference(tcp..tcp + 16)];
    let of_options = difference(at..payload);
    for difference in [of_addresses, of_header, of_options] {
        correct(&mut new, tcp + 16, difference);
    }
    if tcp == 20 {
        correct(&mut new, 10, of_addresses);
    }
    Ok(new)
}

/// What the options of a SYN say, as the kernel programs read it.
pub(crate) fn read_syn(options: &[u8]) -> Result<lb_common::packet::options::SynOptions, Malformed> {
    let mut scratch = Scratch::EMPTY;
    scratch.old[..options.len()].copy_from_slice(options);
    scratch.read_syn(options.len())
}

fn word(packet: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(packet[at..at + 4].try_into().expect("four bytes"))
}

fn put(packet: &mut [u8], at: usize, word: u32) {
    packet[at..at + 4].copy_from_slice(&word.to_ne_bytes());
}

fn correct(packet: &mut [u8], at: usize, difference: Difference) {
    let old = u16::from_ne_bytes([packet[at], packet[at + 1]]);
    packet[at..at + 2].copy_from_slice(&difference.apply(old).to_ne_bytes());
}
