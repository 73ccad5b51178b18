//! A question about a route and its answer, in rtnetlink's bytes. Two are asked for each new connection, and to make and read them
//! by structures for every attribute that there is takes nearly as long as the kernel's answer. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;

use libc::{
    RTA_DST, RTA_ENCAP, RTA_ENCAP_TYPE, RTA_MARK, RTA_MULTIPATH, RTA_OIF, RTA_SRC, RTA_TABLE,
    RTM_F_FIB_MATCH, RTM_F_LOOKUP_TABLE,
};
use netlink_packet_route::route::RouteType;

use super::netlink::{HEADER, pieces};

/// linux/rtnetlink.h.
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
/// linux/netlink.h: the bits of an attribute's type without its flags.
const TYPE: u16 = 0x3fff;
/// linux/rtnetlink.h `struct rtmsg`: its size, and where its fields are.
const MESSAGE: usize = 12;
const DESTINATION_LENGTH: usize = 1;
const SOURCE_LENGTH: usize = 2;
const TABLE: usize = 4;
const KIND: usize = 7;
const FLAGS: usize = 8;
/// Enough for every question, with addresses of IPv6.
const ROOM: usize = 128;

/// Which route packets to an address take.
pub(super) struct Question(Vec<u8>);

impl Question {
    pub(super) fn new(peer: IpAddr) -> Self {
        let mut bytes = Vec::with_capacity(ROOM);
        bytes.resize(HEADER + MESSAGE, 0);
        bytes[HEADER] = if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let mut question = Self(bytes);
        question.address(RTA_DST, DESTINATION_LENGTH, peer);
        question
    }

    /// From this address.
    pub(super) fn source(&mut self, local: IpAddr) {
        self.address(RTA_SRC, SOURCE_LENGTH, local);
    }

    /// With this mark.
    pub(super) fn mark(&mut self, mark: u32) {
        self.attribute(RTA_MARK, &mark.to_ne_bytes());
    }

    /// Of TCP, between these ports.
    pub(super) fn tcp(&mut self, source: u16, destination: u16) {
        self.attribute(RTA_IP_PROTO, &[libc::IPPROTO_TCP as u8]);
        self.attribute(RTA_SPORT, &source.to_be_bytes());
        self.attribute(RTA_DPORT, &destination.to_be_bytes());
    }

    /// By this device.
    pub(super) fn device(&mut self, index: u32) {
        self.attribute(RTA_OIF, &index.to_ne_bytes());
    }

    /// The route is wanted as it is in its table, and that table.
    pub(super) fn as_in_its_table(&mut self) {
        let flags = RTM_F_FIB_MATCH | RTM_F_LOOKUP_TABLE;
        self.0[HEADER + FLAGS..HEADER + MESSAGE].copy_from_slice(&flags.to_ne_bytes());
    }

    /// The message, behind room for its header.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn address(&mut self, kind: u16, length_at: usize, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
        self.0[HEADER + length_at] = if ip.is_ipv4() { 32 } else { 128 };
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A route, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) kind: RouteType,
    /// Bits of the destination that count.
    pub(super) destination_length: u8,
    /// The table that it is in.
    pub(super) table: u32,
    /// The index of the device that packets leave by; of a route with several paths those are [`paths`](Self::paths).
    pub(super) device: Option<u32>,
    pub(super) paths: Vec<u32>,
    pub(super) encapsulates: bool,
}

impl Answer {
    /// Reads a message, without its header. `None`: it is none about a route.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let (header, attributes) = message.split_at_checked(MESSAGE)?;
        let mut answer = Self {
            kind: RouteType::from(header[KIND]),
            destination_length: header[DESTINATION_LENGTH],
            table: header[TABLE].into(),
            device: None,
            paths: Vec::new(),
            encapsulates: false,
        };
        for attribute in pieces(attributes, 4, length_of) {
            let value = &attribute[4..];
            match u16::from_ne_bytes([attribute[2], attribute[3]]) & TYPE {
                RTA_OIF => answer.device = Some(number(value)?),
                // The header's field holds only the first 256 numbers.
                RTA_TABLE => answer.table = number(value)?,
                RTA_ENCAP_TYPE | RTA_ENCAP => answer.encapsulates = true,
                // linux/rtnetlink.h `struct rtnexthop`, each with attributes of its own.
                RTA_MULTIPATH => {
                    let paths = pieces(value, 8, length_of);
                    answer.paths = paths.map(|path| number(&path[4..])).collect::<Option<_>>()?;
                }
                _ => {}
            }
        }
        Some(answer)
    }
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk()?))
}

/// The length that an attribute, or a path, begins with.
fn length_of(rest: &[u8]) -> Option<usize> {
    Some(u16::from_ne_bytes(*rest.first_chunk()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{Emitable as _, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteNextHop};
    use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

    /// As a library for all of rtnetlink writes it, without the header.
    fn expected(question: RouteMessage) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let payload = NetlinkPayload::InnerMessage(RouteNetlinkMessage::GetRoute(question));
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes[HEADER..].to_vec()
    }

    #[test]
    fn a_question_is_what_another_implementation_writes() {
        for (family, length, peer, local) in [
            (AddressFamily::Inet, 32, "10.0.0.2", "192.0.2.1"),
            (AddressFamily::Inet6, 128, "2001:db8::2", "fd00::1"),
        ] {
            let [peer, local]: [IpAddr; 2] = [peer, local].map(|ip| ip.parse().unwrap());
            let mut question = Question::new(peer);
            question.source(local);
            question.mark(0x1234_5678);
            question.tcp(40_000, 443);
            question.device(7);
            question.as_in_its_table();
            let mut other = RouteMessage::default();
            other.header.address_family = family;
            other.header.destination_prefix_length = length;
            other.header.source_prefix_length = length;
            other.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
            other.attributes = vec![
                RouteAttribute::Destination(peer.into()),
                RouteAttribute::Source(local.into()),
                RouteAttribute::Mark(0x1234_5678),
                RouteAttribute::IpProto(6),
                RouteAttribute::Sport(40_000),
                RouteAttribute::Dport(443),
                RouteAttribute::Oif(7),
            ];
            assert_eq!(question.into_bytes()[HEADER..], expected(other));
        }
        let mut plain = RouteMessage::default();
        plain.header.address_family = AddressFamily::Inet;
        plain.header.destination_prefix_length = 32;
        plain.attributes = vec![RouteAttribute::Destination("10.0.0.2".parse::<IpAddr>().unwrap().into())];
        assert_eq!(Question::new("10.0.0.2".parse().unwrap()).into_bytes()[HEADER..], expected(plain));
    }

    fn read(kind: RouteType, attributes: Vec<RouteAttribute>) -> Answer {
        let mut route = RouteMessage::default();
        route.header.kind = kind;
        route.header.table = 254;
        route.header.destination_prefix_length = 24;
        route.attributes = attributes;
        let mut bytes = vec![0; route.buffer_len()];
        route.emit(&mut bytes);
        Answer::read(&bytes).unwrap()
    }

    #[test]
    fn an_answer_that_another_implementation_writes_is_understood() {
        let plain = Answer {
            kind: RouteType::Unicast,
            destination_length: 24,
            table: 254,
            device: Some(7),
            paths: Vec::new(),
            encapsulates: false,
        };
        let [oif, priority] = [RouteAttribute::Oif(7), RouteAttribute::Priority(100)];
        assert_eq!(read(RouteType::Unicast, vec![priority.clone(), oif.clone()]), plain);
        let elsewhere = read(RouteType::Local, vec![RouteAttribute::Table(1000), oif.clone()]);
        assert_eq!(elsewhere, Answer { kind: RouteType::Local, table: 1000, ..plain.clone() });
        let wrapped = read(RouteType::Unicast, vec![oif, RouteAttribute::Encap(Vec::new())]);
        assert_eq!(wrapped, Answer { encapsulates: true, ..plain.clone() });
        let path = |index| {
            let mut path = RouteNextHop::default();
            path.interface_index = index;
            path.attributes = vec![priority.clone()];
            path
        };
        let several = read(RouteType::Unicast, vec![RouteAttribute::MultiPath(vec![path(3), path(4)])]);
        assert_eq!(several, Answer { device: None, paths: vec![3, 4], ..plain });
    }

    #[test]
    fn what_is_cut_is_no_answer() {
        assert_eq!(Answer::read(&[0; MESSAGE - 1]), None);
        let mut bytes = vec![0; MESSAGE];
        bytes.extend([6, 0, RTA_OIF as u8, 0, 7, 0, 0, 0]);
        assert_eq!(Answer::read(&bytes), None);
    }
}
