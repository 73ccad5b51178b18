//! Packets that the gateway itself sends on spliced connections, which have no sockets.

use crate::socket::canonical;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::frames::Frames;
use lb_common::packet::FOR_SOCKET_MARK;
use lb_common::packet::icmp::{FRAGMENTATION_NEEDED, PACKET_TOO_BIG, QUOTED};
use lb_common::packet::inject::{NOBODY, Way};
use lb_common::packet::translate::tcp;
use socket2::{Domain, Protocol, Socket, Type};

/// IPPROTO_RAW: the socket sends packets with their IP header, and receives nothing.
const HEADER_INCLUDED: i32 = libc::IPPROTO_RAW;

const HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// Two NOPs, the timestamps option and its length, as RFC 7323, appendix A recommends and nearly every stack does.
const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];

/// Sends packets of connections that have no sockets. Never blocks.
#[derive(Debug)]
pub struct Injector {
    /// Toward the ends. Not by raw sockets: their packets pass netfilter, which no longer knows the connection, and the
    /// routing table, which may choose another way than the connection's.
    outward: Arc<Frames>,
    /// Toward the gateway's own sockets, with [`FOR_SOCKET_MARK`].
    inward: Sockets,
}

/// A segment without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it is for.
    pub kind: Kind,
    /// Its sequence number.
    pub seq: u32,
    /// Its acknowledgement number.
    pub ack: u32,
    /// The window field, scaled as the handshake has agreed. Some stacks take 0 for a closed window, also in a probe.
    pub window: u16,
    /// TSval and TSecr, if the connection has timestamps: a receiver may then drop a segment without them (RFC 7323,
    /// section 3.2).
    pub timestamps: Option<(u32, u32)>,
}

/// What a [`Segment`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ACK: a challenge ACK (RFC 5961) or, with a sequence number one below the one that the peer expects, a keepalive
    /// probe (RFC 9293, section 3.8.4).
    Ack,
    /// A reset. The peer accepts only one with the sequence number that it expects next.
    Reset,
}

#[derive(Debug)]
struct Sockets {
    v4: Socket,
    /// `None`: the kernel has no IPv6.
    v6: Option<Socket>,
}

impl Injector {
    /// Opens the sockets, in the network namespace in which the calling thread is. Needs CAP_NET_RAW and
    /// CAP_NET_ADMIN, which may be dropped afterwards.
    pub fn open() -> io::Result<Self> {
        let (outward, inward) = (Arc::new(Frames::open()?), Sockets::open()?);
        for socket in [Some(&inward.v4), inward.v6.as_ref()].into_iter().flatten() {
            socket.set_mark(FOR_SOCKET_MARK)?;
        }
        Ok(Self { outward, inward })
    }

    /// The socket for frames, for others who send any. One is enough, and to close one takes the kernel a grace period: some ten
    /// milliseconds, in which a gateway that is restarted does not listen.
    pub fn frames(&self) -> Arc<Frames> {
        self.outward.clone()
    }

    /// Sends a segment from `local` to `peer`, by the way of the connection's packets to that end.
    pub fn send(&self, way: Way, local: SocketAddr, peer: SocketAddr, segment: &Segment) -> io::Result<()> {
        self.leave(way, &Ends::new(local, peer)?.segment(segment))
    }

    /// Replays an acknowledgement to the connection's socket on this host: its peer has acknowledged everything before
    /// `ack`. `seq`: the sequence number that the socket expects next. The window field is the largest possible: with 0 the
    /// socket would not even send its FIN.
    pub fn acknowledge(&self, local: SocketAddr, peer: SocketAddr, seq: u32, ack: u32) -> io::Result<()> {
        let segment = Segment { kind: Kind::Ack, seq, ack, window: u16::MAX, timestamps: None };
        self.inward.send(Ends::new(peer, local)?, &segment)
    }

    /// Tells the peer by ICMP, as a router would, that the packet which it sent to `local` with the sequence number `seq`
    /// was too big. `mtu`: the largest IP packet that would have passed, in bytes.
    pub fn packet_too_big(
        &self,
        way: Way,
        local: SocketAddr,
        peer: SocketAddr,
        seq: u32,
        mtu: u32,
    ) -> io::Result<()> {
        self.leave(way, &Ends::new(local, peer)?.packet_too_big(seq, mtu))
    }

    fn leave(&self, way: Way, packet: &[u8]) -> io::Result<()> {
        self.outward.send(way.addresses(NOBODY), packet, None)
    }
}

impl Sockets {
    fn open() -> io::Result<Self> {
        let open = |domain| -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(HEADER_INCLUDED)))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let v6 = match open(Domain::IPV6) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4: open(Domain::IPV4)?, v6 })
    }

    fn send(&self, ends: Ends, segment: &Segment) -> io::Result<()> {
        let socket = match ends.peer {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => {
                self.v6.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?
            }
        };
        // A raw socket would take the port for a protocol number.
        let mut to = ends.peer;
        to.set_port(0);
        // A packet is sent whole or not at all.
        socket.send_to(&ends.segment(segment), &to.into()).map(drop)
    }
}

/// The two ends of a connection. Both addresses are of one family, and none is an IPv4-mapped IPv6 address.
#[derive(Clone, Copy, Debug)]
struct Ends {
    local: SocketAddr,
    peer: SocketAddr,
}

impl Ends {
    fn new(local: SocketAddr, peer: SocketAddr) -> io::Result<Self> {
        let (local, peer) = (canonical(local), canonical(peer));
        if local.is_ipv4() == peer.is_ipv4() {
            Ok(Self { local, peer })
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{local} cannot reach {peer}")))
        }
    }

    fn segment(self, segment: &Segment) -> Vec<u8> {
        let flags = match segment.kind {
            Kind::Ack => tcp::ACK,
            Kind::Reset => tcp::RST | tcp::ACK,
        };
        let options =
            segment.timestamps.map(|(tsval, tsecr)| [TIMESTAMPS, tsval.to_be_bytes(), tsecr.to_be_bytes()]);
        let options = options.as_ref().map_or(&[][..], |words| words.as_flattened());
        let mut tcp = Vec::with_capacity(20 + options.len());
        tcp.extend(self.local.port().to_be_bytes());
        tcp.extend(self.peer.port().to_be_bytes());
        tcp.extend(segment.seq.to_be_bytes());
        tcp.extend(segment.ack.to_be_bytes());
        // The header's length in words, and the flags.
        tcp.extend([(5 + options.len() as u8 / 4) << 4, flags]);
        tcp.extend(segment.window.to_be_bytes());
        // The checksum, which is filled in below, and no urgent pointer.
        tcp.extend([0; 4]);
        tcp.extend(options);
        let sum = self.with_pseudo_header(libc::IPPROTO_TCP as u8, &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        self.packet(libc::IPPROTO_TCP as u8, &tcp)
    }

    fn packet_too_big(self, seq: u32, mtu: u32) -> Vec<u8> {
        let mut quoted = Vec::with_capacity(QUOTED);
        quoted.extend(self.peer.port().to_be_bytes());
        quoted.extend(self.local.port().to_be_bytes());
        quoted.extend(seq.to_be_bytes());
        let theirs = Self { local: self.peer, peer: self.local };
        // Its length is not known, only that it was more than the MTU.
        let length = usize::try_from(mtu).unwrap_or(usize::MAX).saturating_add(1);
        let original = [theirs.ip_header(libc::IPPROTO_TCP as u8, length), quoted].concat();
        match self.local {
            SocketAddr::V4(_) => {
                let [kind, code] = FRAGMENTATION_NEEDED;
                let mut icmp = vec![kind, code, 0, 0, 0, 0];
                icmp.extend(u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
                icmp.extend(original);
                let sum = checksum(&[&icmp]);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                self.packet(libc::IPPROTO_ICMP as u8, &icmp)
            }
            SocketAddr::V6(_) => {
                let mut icmp = vec![PACKET_TOO_BIG, 0, 0, 0];
                icmp.extend(mtu.to_be_bytes());
                icmp.extend(original);
                let sum = self.with_pseudo_header(libc::IPPROTO_ICMPV6 as u8, &icmp);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                self.packet(libc::IPPROTO_ICMPV6 as u8, &icmp)
            }
        }
    }

    fn packet(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = self.ip_header(protocol, self.ip_header_len() + payload.len());
        [&header, payload].concat()
    }

    fn ip_header_len(self) -> usize {
        if self.local.is_ipv4() { 20 } else { 40 }
    }

    /// An IP header without options. `length`: bytes of the packet with this header; more than 65 535 are written as 65 535.
    fn ip_header(self, protocol: u8, length: usize) -> Vec<u8> {
        let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        let mut header = Vec::with_capacity(self.ip_header_len());
        if self.local.is_ipv4() {
            // Version 4, five words; no service class.
            header.extend([0x45, 0]);
            header.extend(short(length));
            header.extend([0, 0]);
            header.extend(DONT_FRAGMENT.to_be_bytes());
            header.extend([HOP_LIMIT, protocol, 0, 0]);
        } else {
            // Version 6; no traffic class, no flow label.
            header.extend([0x60, 0, 0, 0]);
            header.extend(short(length - self.ip_header_len()));
            header.extend([protocol, HOP_LIMIT]);
        }
        header.extend(octets(self.local.ip()));
        header.extend(octets(self.peer.ip()));
        if self.local.is_ipv4() {
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        header
    }

    /// The checksum of the payload and the pseudo-header.
    fn with_pseudo_header(self, protocol: u8, payload: &[u8]) -> u16 {
        let length = payload.len() as u32;
        // IPv4 and IPv6 differ in the order of the pseudo-header's fields, which does not change the sum.
        let rest = [&length.to_be_bytes()[..], &[0, protocol]].concat();
        checksum(&[&octets(self.local.ip()), &octets(self.peer.ip()), &rest, payload])
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071. Each part but the last is of even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            // No overflow: at most 64 KiB are summed up.
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        Icmpv4Type, Icmpv6Type, LaxPacketHeaders, LaxPayloadSlice, NetHeaders, PacketBuilder, PacketHeaders,
        PayloadSlice, TransportHeader, icmpv4,
    };
    use proptest::prelude::*;

    fn v4() -> impl Strategy<Value = SocketAddr> {
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from)
    }

    fn v6() -> impl Strategy<Value = SocketAddr> {
        any::<([u16; 8], u16)>()
            .prop_map(SocketAddr::from)
            .prop_filter("IPv4 in clothes", |address| !address.ip().to_canonical().is_ipv4())
    }

    /// Two addresses of one family.
    fn ends() -> impl Strategy<Value = Ends> {
        prop_oneof![(v4(), v4()), (v6(), v6())].prop_map(|(local, peer)| Ends::new(local, peer).unwrap())
    }

    fn segment() -> impl Strategy<Value = Segment> {
        let numbers = any::<(bool, u32, u32, u16, Option<(u32, u32)>)>();
        numbers.prop_map(|(ends, seq, ack, window, timestamps)| {
            let kind = if ends { Kind::Reset } else { Kind::Ack };
            Segment { kind, seq, ack, window, timestamps }
        })
    }

    /// The packet as etherparse would write it up to the transport header.
    fn builder(ends: Ends) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        match (ends.local.ip(), ends.peer.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT),
            _ => unreachable!(),
        }
    }

    fn addresses(net: &NetHeaders) -> (IpAddr, IpAddr) {
        match net {
            NetHeaders::Ipv4(header, _) => (header.source.into(), header.destination.into()),
            NetHeaders::Ipv6(header, _) => (header.source.into(), header.destination.into()),
            NetHeaders::Arp(_) => unreachable!(),
        }
    }

    proptest! {
        #[test]
        fn a_segment_is_what_another_implementation_writes(ends in ends(), segment in segment()) {
            let Segment { seq, ack, window, .. } = segment;
            let step = builder(ends).tcp(ends.local.port(), ends.peer.port(), seq, window).ack(ack);
            let step = if segment.kind == Kind::Reset { step.rst() } else { step };
            let step = match segment.timestamps {
                None => step,
                Some((tsval, tsecr)) => {
                    use etherparse::TcpOptionElement::{Noop, Timestamp};
                    step.options(&[Noop, Noop, Timestamp(tsval, tsecr)]).unwrap()
                }
            };
            let mut expected = Vec::new();
            step.write(&mut expected, &[]).unwrap();
            prop_assert_eq!(ends.segment(&segment), expected);
        }

        #[test]
        fn packet_too_big_quotes_the_peers_packet(ends in ends(), seq: u32, mtu in 68..=u32::MAX) {
            let packet = ends.packet_too_big(seq, mtu);
            let outer = PacketHeaders::from_ip_slice(&packet).unwrap();
            prop_assert_eq!(addresses(outer.net.as_ref().unwrap()), (ends.local.ip(), ends.peer.ip()));
            let quoted = match outer.payload {
                PayloadSlice::Icmpv4(quoted) | PayloadSlice::Icmpv6(quoted) => quoted,
                other => panic!("{other:?}"),
            };
            // The checksum, computed anew by etherparse.
            let mut expected = Vec::new();
            if ends.local.is_ipv4() {
                let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
                builder(ends).icmpv4(Icmpv4Type::DestinationUnreachable(header)).write(&mut expected, quoted)
            } else {
                let header = Icmpv6Type::PacketTooBig { mtu };
                builder(ends).icmpv6(header).write(&mut expected, quoted)
            }
            .unwrap();
            prop_assert_eq!(&packet, &expected);

            let inner = LaxPacketHeaders::from_ip(quoted).unwrap();
            prop_assert_eq!(addresses(inner.net.as_ref().unwrap()), (ends.peer.ip(), ends.local.ip()));
            if let Some(NetHeaders::Ipv4(header, _)) = &inner.net {
                prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                prop_assert!(header.dont_fragment && u32::from(header.total_len) > mtu.min(65_534));
            }
            // Not a whole TCP header: ports and sequence number.
            prop_assert!(inner.transport.is_none());
            let LaxPayloadSlice::Ip(tcp) = inner.payload else { panic!("{:?}", inner.payload) };
            let (from, to) = (ends.peer.port().to_be_bytes(), ends.local.port().to_be_bytes());
            prop_assert_eq!(tcp.payload, [&from[..], &to[..], &seq.to_be_bytes()[..]].concat());
        }
    }

    #[test]
    fn ipv4_in_ipv6_clothes_is_ipv4() {
        let ends = Ends::new("[::ffff:10.0.0.1]:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap()).unwrap();
        let segment = Segment { kind: Kind::Reset, seq: 1, ack: 2, window: 0, timestamps: None };
        let packet = ends.segment(&segment);
        let headers = PacketHeaders::from_ip_slice(&packet).unwrap();
        assert!(matches!(headers.net, Some(NetHeaders::Ipv4(..))));
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!() };
        assert!(tcp.rst && tcp.ack && tcp.window_size == 0);
    }

    #[test]
    fn ends_of_two_families_are_refused() {
        let error = Ends::new("10.0.0.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
