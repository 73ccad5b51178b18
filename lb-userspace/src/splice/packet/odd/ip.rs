//! IP packets with IPv4 options or IPv6 extension headers, and their fragments: parsed, and rebuilt without them. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::loss::Loss;
use crate::kernel::frames::Unfinished;
use crate::kernel::raw::checksum;

const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const PROTOCOL_TCP: u8 = libc::IPPROTO_TCP as u8;
/// Next headers (RFC 8200, section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// Types of IPv4 options (RFC 791).
const END: u8 = 0;
const NOP: u8 = 1;
const SOURCE_ROUTES: [u8; 2] = [131, 137];
/// The largest IP packet whose length fits the header's field; for IPv6 without the header itself.
pub(super) const LONGEST: usize = u16::MAX as usize;

/// An IP header without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    V4([u8; IPV4]),
    V6([u8; IPV6]),
}

/// A parsed IP packet: up to the fragment header, if it has one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct IpPacket<'a> {
    pub(super) header: Header,
    /// The protocol number of the payload.
    pub(super) next: u8,
    pub(super) payload: &'a [u8],
    /// `None`: it is not fragmented.
    pub(super) place: Option<Place>,
}

/// The place of a fragment in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: u32,
    /// Bytes of the packet's payload before it.
    pub(super) offset: usize,
    /// It is not the last fragment.
    pub(super) more: bool,
}

/// Two bits of the traffic class (RFC 3168, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ecn(u8);

impl Ecn {
    pub(super) const NOT_CAPABLE: Self = Self(0);
    pub(super) const CONGESTED: Self = Self(3);

    #[cfg(test)]
    pub(super) fn of(bits: u8) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }
}

impl Header {
    /// The source and the destination address, concatenated.
    pub(super) fn addresses(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => &bytes[12..],
            Self::V6(bytes) => &bytes[8..],
        }
    }

    pub(super) fn ecn(&self) -> Ecn {
        Ecn(match self {
            Self::V4(bytes) => bytes[1] & 3,
            Self::V6(bytes) => bytes[1] >> 4 & 3,
        })
    }

    pub(super) fn set_ecn(&mut self, Ecn(bits): Ecn) {
        match self {
            Self::V4(bytes) => bytes[1] = bytes[1] & !3 | bits,
            Self::V6(bytes) => bytes[1] = bytes[1] & !(3 << 4) | bits << 4,
        }
    }

    /// The packet with this TCP segment right after the header.
    fn before(mut self, payload: &[u8]) -> Result<Vec<u8>, Loss> {
        let short = |length: usize| u16::try_from(length).map_err(|_| Loss::Malformed).map(u16::to_be_bytes);
        Ok(match &mut self {
            Self::V4(bytes) => {
                bytes[0] = 0x45;
                bytes[2..4].copy_from_slice(&short(IPV4 + payload.len())?);
                // Keeps "don't fragment", clears "more fragments" and the offset.
                (bytes[6], bytes[7]) = (bytes[6] & 0x40, 0);
                bytes[10..12].fill(0);
                let sum = checksum(&[bytes.as_slice()]);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                [bytes.as_slice(), payload].concat()
            }
            Self::V6(bytes) => {
                bytes[4..6].copy_from_slice(&short(payload.len())?);
                bytes[6] = PROTOCOL_TCP;
                [bytes.as_slice(), payload].concat()
            }
        })
    }
}

impl<'a> IpPacket<'a> {
    /// Parses a packet; bytes after its end (padding) are ignored.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Loss> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::v4(bytes),
            Some(6) => Self::v6(bytes),
            _ => Err(Loss::Malformed),
        }
    }

    fn v4(bytes: &'a [u8]) -> Result<Self, Loss> {
        let header: [u8; IPV4] = *bytes.first_chunk().ok_or(Loss::Malformed)?;
        let (length, total) = (usize::from(header[0] & 15) * 4, short(&header, 2));
        if length < IPV4 || total < length {
            return Err(Loss::Malformed);
        }
        let bytes = bytes.get(..total).ok_or(Loss::Malformed)?;
        let (options, payload) = bytes[IPV4..].split_at(length - IPV4);
        may_be_ignored_v4(options)?;
        let fragment = short(&header, 6);
        let (offset, more) = ((fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
        let id = short(&header, 4) as u32;
        let place = (offset != 0 || more).then_some(Place { id, offset, more });
        Ok(Self { header: Header::V4(header), next: header[9], payload, place })
    }

    fn v6(bytes: &'a [u8]) -> Result<Self, Loss> {
        let (header, rest) = bytes.split_first_chunk::<IPV6>().ok_or(Loss::Malformed)?;
        let rest = rest.get(..short(header, 4)).ok_or(Loss::Malformed)?;
        let mut chain = Chain { next: header[6], rest };
        chain.skip(true)?;
        let mut place = None;
        if chain.next == FRAGMENT {
            let ([next, _, high, low, id @ ..], rest) =
                chain.rest.split_first_chunk::<8>().ok_or(Loss::Malformed)?;
            let (offset, more) = (usize::from(u16::from_be_bytes([*high, *low & !7])), low & 1 != 0);
            // An atomic fragment is a whole packet (RFC 6946).
            if offset != 0 || more {
                place = Some(Place { id: u32::from_be_bytes(*id), offset, more });
            }
            chain = Chain { next: *next, rest };
        }
        Ok(Self { header: Header::V6(*header), next: chain.next, payload: chain.rest, place })
    }
}

/// A chain of IPv6 extension headers.
struct Chain<'a> {
    next: u8,
    rest: &'a [u8],
}

impl Chain<'_> {
    /// Skips extension headers that this host may ignore. `first`: the chain follows the IPv6 header.
    fn skip(&mut self, mut first: bool) -> Result<(), Loss> {
        while let HOP_BY_HOP | ROUTING | DESTINATION = self.next {
            let [next, length] = *self.rest.first_chunk().ok_or(Loss::Malformed)?;
            let size = (usize::from(length) + 1) * 8;
            let header = self.rest.get(..size).ok_or(Loss::Malformed)?;
            match self.next {
                HOP_BY_HOP if !first => return Err(Loss::Malformed),
                // Segments are left: the packet wants to be forwarded by this host.
                ROUTING if header[3] != 0 => return Err(Loss::Unsupported),
                ROUTING => {}
                _ => may_be_ignored_v6(&header[2..])?,
            }
            (self.next, self.rest) = (next, &self.rest[size..]);
            first = false;
        }
        Ok(())
    }
}

/// Whether a host may ignore these options.
fn may_be_ignored_v4(mut options: &[u8]) -> Result<(), Loss> {
    while let Some((kind, rest)) = options.split_first() {
        match *kind {
            END => return Ok(()),
            NOP => options = rest,
            kind if SOURCE_ROUTES.contains(&kind) => return Err(Loss::Unsupported),
            _ => {
                let length = usize::from(*rest.first().ok_or(Loss::Malformed)?);
                options = options.get(length..).filter(|_| length >= 2).ok_or(Loss::Malformed)?;
            }
        }
    }
    Ok(())
}

/// Whether a host may ignore these options: the two highest bits of an unknown option's type say what to do, and 0 is to
/// skip it (RFC 8200, section 4.2).
fn may_be_ignored_v6(mut options: &[u8]) -> Result<(), Loss> {
    const PAD: u8 = 0;
    while let Some((kind, rest)) = options.split_first() {
        options = match *kind {
            PAD => rest,
            kind if kind & 0xc0 != 0 => return Err(Loss::Unsupported),
            _ => {
                let (length, rest) = rest.split_first().ok_or(Loss::Malformed)?;
                rest.get(usize::from(*length)..).ok_or(Loss::Malformed)?
            }
        };
    }
    Ok(())
}

fn short(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// A plain packet: a TCP segment right after an IP header without options.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plain {
    pub(super) packet: Vec<u8>,
    /// What the device that sends it has still to do, if its checksum is not complete or it was merged.
    pub(super) unfinished: Option<Unfinished>,
}

impl Plain {
    /// Makes a whole packet plain. `next`: the protocol number of its payload. `segment`: the payload of each segment that
    /// it was merged from, in bytes; 0: it was not merged.
    pub(super) fn new(header: Header, next: u8, payload: &[u8], segment: u16) -> Result<Self, Loss> {
        let mut chain = Chain { next, rest: payload };
        if matches!(header, Header::V6(_)) {
            chain.skip(false)?;
        }
        let Chain { next: PROTOCOL_TCP, rest: tcp } = chain else { return Err(Loss::Unsupported) };
        let tcp_header = usize::from(tcp.get(12).ok_or(Loss::Malformed)? >> 4) * 4;
        if tcp_header < TCP || tcp.len() < tcp_header {
            return Err(Loss::Malformed);
        }
        let packet = header.before(tcp)?;
        let ip_header = (packet.len() - tcp.len()) as u16;
        let unfinished = Unfinished { ip_header, tcp_header: tcp_header as u16, segment };
        let unfinished = match sum(&header, tcp)? {
            Sum::Whole if segment != 0 => return Err(Loss::Checksum),
            Sum::Whole => None,
            Sum::OfPseudoHeader => Some(unfinished),
        };
        Ok(Self { packet, unfinished })
    }
}

/// What the checksum field of a TCP header holds.
enum Sum {
    /// The checksum of the segment.
    Whole,
    /// That of the pseudo-header (CHECKSUM_PARTIAL): a sender on this host, or a device that merges packets, leaves the
    /// rest to the device that sends the packet.
    OfPseudoHeader,
}

fn sum(header: &Header, tcp: &[u8]) -> Result<Sum, Loss> {
    let length = (tcp.len() as u32).to_be_bytes();
    let pseudo = [header.addresses(), &length, &[0, PROTOCOL_TCP]];
    let [addresses, length, protocol] = pseudo;
    if checksum(&[addresses, length, protocol, tcp]) == 0 {
        return Ok(Sum::Whole);
    }
    let stands = u16::from_be_bytes([tcp[16], tcp[17]]);
    if stands == !checksum(&pseudo) { Ok(Sum::OfPseudoHeader) } else { Err(Loss::Checksum) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use etherparse::{
        IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpHeader,
    };
    use proptest::collection::vec;
    use proptest::prelude::*;

    const V4: [[u8; 4]; 2] = [[10, 0, 1, 2], [10, 0, 1, 1]];
    const V6: [[u8; 16]; 2] = [[0xfd; 16], [0xfe; 16]];
    const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

    /// A plain packet whose header has something in each field.
    pub(in super::super) fn plain(v6: bool, payload: &[u8]) -> Vec<u8> {
        let mut tcp = TcpHeader::new(50_000, 443, 7, 1024);
        (tcp.ack, tcp.acknowledgment_number) = (true, 9);
        let mut packet = Vec::new();
        if v6 {
            let header = Ipv6Header {
                traffic_class: 0b1001_1101,
                flow_label: Ipv6FlowLabel::try_new(0x12345).unwrap(),
                hop_limit: 63,
                source: V6[0],
                destination: V6[1],
                ..Ipv6Header::default()
            };
            PacketBuilder::ip(etherparse::IpHeaders::Ipv6(header, Default::default()))
                .tcp_header(tcp)
                .write(&mut packet, payload)
        } else {
            let mut header = Ipv4Header::new(0, 63, IpNumber::TCP, V4[0], V4[1]).unwrap();
            (header.identification, header.dont_fragment) = (77, false);
            header.ecn = 1.try_into().unwrap();
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
                .tcp_header(tcp)
                .write(&mut packet, payload)
        }
        .unwrap();
        packet
    }

    /// A packet with these IPv4 options.
    fn with_options(payload: &[u8], options: &[u8]) -> Vec<u8> {
        let packet = plain(false, payload);
        let (mut header, rest) = Ipv4Header::from_slice(&packet).unwrap();
        header.options = Ipv4Options::try_from(options).unwrap();
        header.total_len += options.len() as u16;
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], rest].concat()
    }

    /// A packet with these IPv6 extension headers: their numbers and contents.
    fn with_headers(payload: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
        let mut packet = plain(true, payload);
        let tcp = packet.split_off(40);
        packet[6] = headers[0].0;
        for (at, (_, content)) in headers.iter().enumerate() {
            let begin = packet.len();
            packet.extend_from_slice(content);
            packet[begin] = headers.get(at + 1).map_or(6, |(kind, _)| *kind);
        }
        packet.extend(tcp);
        let length = (packet.len() as u16 - 40).to_be_bytes();
        packet[4..6].copy_from_slice(&length);
        packet
    }

    fn made_plain(bytes: &[u8], segment: u16) -> Result<Plain, Loss> {
        let packet = IpPacket::parse(bytes)?;
        assert_eq!(packet.place, None);
        Plain::new(packet.header, packet.next, packet.payload, segment)
    }

    #[test]
    fn ipv4_options_are_left_out_and_the_rest_is_as_it_was() {
        let record_route = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for options in [&[1; 4][..], &[0; 40], &record_route, &[148, 4, 0, 0], &[1, 1, 1, 0]] {
            let mut bytes = with_options(b"hello", options);
            // Ethernet pads short frames.
            bytes.extend([0; 7]);
            let expected = Plain { packet: plain(false, b"hello"), unfinished: None };
            assert_eq!(made_plain(&bytes, 0), Ok(expected), "{options:?}");
        }
    }

    #[test]
    fn extension_headers_are_left_out_and_the_rest_is_as_it_was() {
        let alone = [0, 0, 0, 0, 1, 2, 3, 4];
        let unknown = [0, 1, 30, 2, 7, 7, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0];
        let rows: [&[(u8, &[u8])]; 6] = [
            &[(HOP_BY_HOP, &PADDING)],
            &[(DESTINATION, &unknown)],
            &[(ROUTING, &[0, 2, 2, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6])],
            &[(FRAGMENT, &alone)],
            &[(HOP_BY_HOP, &PADDING), (DESTINATION, &PADDING), (ROUTING, &[0; 8]), (FRAGMENT, &alone)],
            &[(FRAGMENT, &alone), (DESTINATION, &PADDING)],
        ];
        for headers in rows {
            let expected = Plain { packet: plain(true, b"hello"), unfinished: None };
            assert_eq!(made_plain(&with_headers(b"hello", headers), 0), Ok(expected), "{headers:?}");
        }
    }

    #[test]
    fn what_asks_for_something_is_not_taken_for_plain() {
        let loss = |bytes: &[u8]| made_plain(bytes, 0).unwrap_err();
        let v6 = |headers: &[(u8, &[u8])]| loss(&with_headers(b"hello", headers));
        for source_route in [131, 137] {
            let options = [source_route, 7, 4, 10, 0, 0, 1, 0];
            assert_eq!(loss(&with_options(b"hello", &options)), Loss::Unsupported);
        }
        assert_eq!(v6(&[(ROUTING, &[0, 0, 0, 1, 0, 0, 0, 0])]), Loss::Unsupported);
        // Options whose packet is to be dropped by a host that does not know them: jumbo payload, home address.
        for kind in [0xc2, 0xc9, 0x40, 0x80] {
            assert_eq!(v6(&[(DESTINATION, &[0, 0, kind, 4, 0, 0, 0, 0])]), Loss::Unsupported);
        }
        // Encrypted (ESP).
        assert_eq!(v6(&[(DESTINATION, &PADDING), (50, &[0; 8])]), Loss::Unsupported);
        assert_eq!(v6(&[(FRAGMENT, &[0; 8]), (FRAGMENT, &[0; 8])]), Loss::Unsupported);
    }

    #[test]
    fn what_contradicts_itself_is_malformed() {
        let loss = |bytes: &[u8]| made_plain(bytes, 0).unwrap_err();
        for options in [[7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
            assert_eq!(loss(&with_options(b"hello", &options)), Loss::Malformed, "{options:?}");
        }
        for headers in [
            &[(DESTINATION, &[0, 0, 1, 5, 0, 0, 0, 0][..])][..],
            &[(DESTINATION, &[0, 0, 0, 0, 0, 0, 0, 1])],
            &[(DESTINATION, &[0, 99, 1, 4, 0, 0, 0, 0])],
            &[(DESTINATION, &PADDING), (HOP_BY_HOP, &PADDING)],
        ] {
            assert_eq!(loss(&with_headers(b"hello", headers)), Loss::Malformed, "{headers:?}");
        }
        for v6 in [false, true] {
            let packet = plain(v6, b"");
            for length in 0..packet.len() {
                assert_eq!(loss(&packet[..length]), Loss::Malformed);
            }
            let mut long = plain(v6, b"");
            let at = if v6 { 52 } else { 32 };
            long[at] = 0x60;
            assert_eq!(loss(&long), Loss::Malformed);
        }
    }

    #[test]
    fn a_checksum_is_whole_or_left_to_the_device_or_wrong() {
        for v6 in [false, true] {
            let ip_header = if v6 { 40 } else { 20 };
            let at = ip_header + 16;
            let whole = plain(v6, &[7; 3000]);
            assert_eq!(made_plain(&whole, 0).unwrap().unfinished, None);
            // A merged packet never has a complete checksum.
            assert_eq!(made_plain(&whole, 1000), Err(Loss::Checksum));
            let header = IpPacket::parse(&whole).unwrap().header;
            let length = (whole.len() as u32 - ip_header as u32).to_be_bytes();
            let pseudo = !checksum(&[header.addresses(), &length, &[0, 6]]);
            let mut unfinished = whole.clone();
            unfinished[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            for segment in [0, 1000] {
                let expected = Unfinished { ip_header: ip_header as u16, tcp_header: 20, segment };
                assert_eq!(made_plain(&unfinished, segment).unwrap().unfinished, Some(expected));
            }
            let mut wrong = whole;
            wrong[at] ^= 1;
            assert_eq!(made_plain(&wrong, 0), Err(Loss::Checksum));
        }
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_is_a_panic(begin in 0..6_usize, bytes in vec(any::<u8>(), 0..200)) {
            // Random bytes seldom begin with a version and a chain of headers.
            let mut bytes = bytes;
            let starts: [&[u8]; 6] =
                [&[], &[0x45], &[0x4f, 0, 0, 80], &[0x60, 0, 0, 0, 0, 60, 60], &[0x60, 0, 0, 0, 0, 90, 0],
                 &[0x60, 0, 0, 0, 0, 70, 44]];
            for (byte, start) in bytes.iter_mut().zip(starts[begin]) {
                *byte = *start;
            }
            if let Ok(packet) = IpPacket::parse(&bytes)
                && let Ok(plain) = Plain::new(packet.header, packet.next, packet.payload, 0)
            {
                let again = IpPacket::parse(&plain.packet).unwrap();
                prop_assert_eq!((again.next, again.place), (6, None));
                prop_assert!(plain.packet.len() <= bytes.len());
            }
        }
    }
}
