// What the packet translation must do, said once more: with plain numbers, etherparse's idea of a packet and checksums
// that are always computed anew. It shares nothing with the translation but the meaning of a flow's fields.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpDscp, IpEcn, IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader, TcpOptions, ip_number,
};
use lb_common::packet::options::SynOptions;
use lb_common::packet::{Address, Flow, NO_WINDOW_SCALE, Tuple, flag, sighted};

/// A TCP segment in an IP packet. Both addresses are of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// Of the IP header, with the two bits of ECN.
    pub(crate) traffic_class: u8,
    pub(crate) seq: u32,
    /// Also where the flag is not set.
    pub(crate) ack: u32,
    pub(crate) flags: u16,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    /// A multiple of four bytes, at most 40.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const FIN: u16 = 0x001;
pub(crate) const SYN: u16 = 0x002;
pub(crate) const RST: u16 = 0x004;
pub(crate) const PSH: u16 = 0x008;
pub(crate) const ACK: u16 = 0x010;
pub(crate) const URG: u16 = 0x020;
pub(crate) const ECE: u16 = 0x040;
pub(crate) const CWR: u16 = 0x080;
/// NS to etherparse, of which it became the successor.
pub(crate) const AE: u16 = 0x100;

impl Segment {
    /// The segment with all checksums right, beginning with the IP header.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let builder = packet_between(self.from.ip(), self.to.ip(), self.traffic_class);
        let has = |flag| self.flags & flag != 0;
        let builder = builder.tcp_header(TcpHeader {
            source_port: self.from.port(),
            destination_port: self.to.port(),
            sequence_number: self.seq,
            acknowledgment_number: self.ack,
            ns: has(AE),
            fin: has(FIN),
            syn: has(SYN),
            rst: has(RST),
            psh: has(PSH),
            ack: has(ACK),
            urg: has(URG),
            ece: has(ECE),
            cwr: has(CWR),
            window_size: self.window,
            checksum: 0,
            urgent_pointer: self.urgent,
            options: TcpOptions::try_from_slice(&self.options).expect("at most 40 bytes"),
        });
        let mut packet = Vec::new();
        builder.write_to_vec(&mut packet, &self.payload).expect("a short packet");
        packet
    }

    /// By what its flow is found.
    pub(crate) fn tuple(&self) -> Tuple {
        tuple(self.from, self.to)
    }

    /// The segment that leaves; `None`: its options contradict themselves, and nothing does.
    pub(crate) fn translated(&self, flow: &Flow, tsecr_floor: Option<u32>) -> Option<Self> {
        let mut new = self.clone();
        (new.from, new.to) = ends(&flow.out);
        new.seq = sum(self.seq, flow.seq_delta);
        if self.flags & ACK != 0 {
            new.ack = sum(self.ack, flow.ack_delta);
        }
        if flow.flags & flag::STRIP_ECN != 0 {
            new.flags &= !(ECE | CWR);
            new.traffic_class &= !3;
        }
        if self.flags & SYN == 0 {
            new.window = window(self.window, flow.own_scale as i8 - flow.promised_scale as i8);
        }
        new.options = options(&self.options, flow, tsecr_floor)?;
        Some(new)
    }
}

/// The beginning of a packet.
pub(crate) fn packet_between(from: IpAddr, to: IpAddr, traffic_class: u8) -> PacketBuilderStep<IpHeaders> {
    const HOPS: u8 = 64;
    PacketBuilder::ip(match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header::new(0, HOPS, ip_number::TCP, from.octets(), to.octets());
            let mut header = header.expect("no payload is short");
            header.dscp = IpDscp::try_new(traffic_class >> 2).expect("six bits");
            header.ecn = IpEcn::try_new(traffic_class & 3).expect("two bits");
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                traffic_class,
                flow_label: 0x12345.try_into().expect("20 bits"),
                hop_limit: HOPS,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
        _ => panic!("{from} and {to} are of two families"),
    })
}

/// What packets between these are addressed by.
pub(crate) fn tuple(from: SocketAddr, to: SocketAddr) -> Tuple {
    Tuple {
        source: address(from.ip()),
        destination: address(to.ip()),
        source_port: u16::from_ne_bytes(from.port().to_be_bytes()),
        destination_port: u16::from_ne_bytes(to.port().to_be_bytes()),
    }
}

fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let mut words = octets.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")));
    [(); 4].map(|()| words.next().expect("four words"))
}

/// The ends that a tuple names.
fn ends(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    let end = |address: Address, port: u16| {
        let octets: Vec<u8> = address.into_iter().flat_map(u32::to_ne_bytes).collect();
        let ip = Ipv6Addr::from(<[u8; 16]>::try_from(octets).expect("four words")).to_canonical();
        SocketAddr::new(ip, u16::from_be_bytes(port.to_ne_bytes()))
    };
    (end(tuple.source, tuple.source_port), end(tuple.destination, tuple.destination_port))
}

const MODULUS: i64 = 1 << 32;

fn sum(number: u32, delta: u32) -> u32 {
    ((i64::from(number) + i64::from(delta)) % MODULUS) as u32
}

/// What the window says, multiplied by a power of two, rounded down: as much of it as the field takes, and not less
/// than 1 where it was open.
fn window(window: u16, shift: i8) -> u16 {
    let exact = f64::from(window) * 2_f64.powi(shift.into());
    (exact.floor() as u16).clamp(u16::from(window != 0), u16::MAX)
}

/// How options leave.
fn options(old: &[u8], flow: &Flow, tsecr_floor: Option<u32>) -> Option<Vec<u8>> {
    let mut new = Vec::new();
    let tail = for_each_option(old, |option| match option {
        [NOP] => new.push(NOP),
        [TIMESTAMPS, 10, stamps @ ..] if flow.flags & flag::TIMESTAMPS != 0 => {
            let (tsval, tsecr) = (number(&stamps[..4]), number(&stamps[4..]));
            let echoes_us = tsecr_floor.is_some_and(|floor| {
                (i64::from(tsecr) - i64::from(floor)).rem_euclid(MODULUS) >= MODULUS / 2
            });
            let tsecr = if tsecr == 0 || echoes_us { 0 } else { sum(tsecr, flow.tsecr_delta) };
            new.extend([TIMESTAMPS, 10]);
            new.extend(sum(tsval, flow.tsval_delta).to_be_bytes());
            new.extend(tsecr.to_be_bytes());
        }
        [SACK, size, edges @ ..] if flow.flags & flag::SACK != 0 => {
            new.extend([SACK, *size]);
            new.extend(edges.chunks(4).flat_map(|edge| sum(number(edge), flow.ack_delta).to_be_bytes()));
        }
        unknown => new.extend(unknown.iter().map(|_| NOP)),
    })?;
    new.extend(tail);
    Some(new)
}

/// What the options of a SYN say.
pub(crate) fn syn_options(options: &[u8]) -> Option<SynOptions> {
    let mut found = SynOptions { mss: 0, window_scale: NO_WINDOW_SCALE, flags: 0, tsval: 0 };
    for_each_option(options, |option| match option {
        [MSS, _, value @ ..] => found.mss = number(value) as u16,
        [WINDOW_SCALE, _, scale] => found.window_scale = *scale,
        [SACK_PERMITTED, _] => found.flags |= sighted::SACK,
        [TIMESTAMPS, _, stamps @ ..] => {
            found.flags |= sighted::TIMESTAMPS;
            found.tsval = number(&stamps[..4]);
        }
        _ => {}
    })?;
    Some(found)
}

const END: u8 = 0;
pub(crate) const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// Shows every option, and gives what stands from the end of the list on; `None`: an option has a length that cannot
/// be. Which is not the same as not having shown any.
fn for_each_option<'a>(mut rest: &'a [u8], mut show: impl FnMut(&'a [u8])) -> Option<&'a [u8]> {
    loop {
        let size = match rest {
            [] | [END, ..] => return Some(rest),
            [NOP, ..] => 1,
            [kind, size, ..] if *size >= 2 => match (kind, size) {
                (&MSS, 4) | (&WINDOW_SCALE, 3) | (&SACK_PERMITTED, 2) | (&TIMESTAMPS, 10) => *size,
                (&SACK, 2 | 10 | 18 | 26 | 34) => *size,
                (&(MSS | WINDOW_SCALE | SACK_PERMITTED | TIMESTAMPS | SACK), _) => return None,
                _ => *size,
            },
            _ => return None,
        };
        let (option, following) = rest.split_at_checked(size.into())?;
        show(option);
        rest = following;
    }
}

/// Most significant byte first.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number * 256 + u32::from(*byte))
}
