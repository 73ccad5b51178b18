//! Entries of netfilter's connection tracking (conntrack), by ctnetlink: removing those of spliced connections, and reading which
//! connections it redirects. Packets of a spliced connection no longer
//! pass netfilter, which would keep its entry for days.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

use super::netlink::Netlink;

/// Bytes of an answer that are read: its header and the error number, without the request that it quotes.
const ANSWER: usize = 20;

/// The number of entries in the table of the reader's network namespace.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Removes entries from the table of one network namespace. Never waits.
pub struct Conntrack {
    socket: Socket,
    /// `None`: the file cannot be opened.
    count: Option<File>,
    /// When the table was found empty last.
    empty: Mutex<Option<Instant>>,
}

impl Conntrack {
    /// For the network namespace in which the calling thread is. `None`: the kernel has no ctnetlink.
    ///
    /// Needs CAP_NET_ADMIN, here and later.
    pub fn open() -> io::Result<Option<Self>> {
        let socket = match Socket::new(NETLINK_NETFILTER) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
            socket => socket?,
        };
        socket.set_non_blocking(true)?;
        // To the kernel: a connected socket receives from nobody else.
        socket.connect(&NetlinkAddress::new(0, 0))?;
        // A first request, which finds no entry. The kernel loads ctnetlink for it; where it cannot, it would try with every
        // request, so ctnetlink is then not used.
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        socket.send(&deletion(nobody, nobody), 0)?;
        // The kernel has answered before `send` returned.
        let mut answer = Vec::with_capacity(ANSWER);
        socket.recv(&mut answer, 0)?;
        let number = answer.get(16..).and_then(<[u8]>::first_chunk).map(|bytes| -i32::from_ne_bytes(*bytes));
        match number {
            Some(libc::ENOENT) => {
                Ok(Some(Self { socket, count: File::open(COUNT).ok(), empty: Mutex::default() }))
            }
            Some(libc::EPERM) => Err(io::Error::from_raw_os_error(libc::EPERM)),
            _ => Ok(None),
        }
    }

    /// Removes the entries of TCP connections, as far as there are any. Each is from the first address, which began it, to the
    /// second. `since`: from when on no packet of theirs came by.
    ///
    /// Entries in a conntrack zone of their own (`ct zone set`) are not found.
    pub fn forget(&self, since: Instant, connections: impl Iterator<Item = [SocketAddr; 2]>) {
        let mut connections = connections.peekable();
        if connections.peek().is_none() || self.is_empty(since) {
            return;
        }
        for [source, destination] in connections {
            // After an error the entry stays until netfilter's timeout.
            let _ = self.socket.send(&deletion(source, destination), 0);
        }
        // The kernel answers only errors, mostly that there is no such entry. They are read so that the buffer does not
        // fill.
        let mut answer = Vec::with_capacity(ANSWER);
        while self.socket.recv(&mut answer, 0).is_ok() {
            answer.clear();
        }
    }

    /// Whether the table is empty, or was at some time since: one system call for all connections that end together, instead
    /// of a request and its answer for each.
    fn is_empty(&self, since: Instant) -> bool {
        let Some(count) = &self.count else { return false };
        let mut empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        if empty.is_some_and(|empty| empty >= since) {
            return true;
        }
        let (now, mut digits) = (Instant::now(), [0; 2]);
        let is_empty = count.read_at(&mut digits, 0).is_ok_and(|length| digits[..length] == *b"0\n");
        *empty = is_empty.then_some(now);
        is_empty
    }
}

/// Connections to one of these addresses that a rule of netfilter (DNAT, REDIRECT) has sent elsewhere: the address, and where they
/// went. None where the kernel tracks no connections, and so redirects none.
pub fn redirected(from: &BTreeSet<SocketAddr>) -> io::Result<BTreeSet<(SocketAddr, SocketAddr)>> {
    if !Path::new(COUNT).exists() {
        return Ok(BTreeSet::new());
    }
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let mut found = BTreeSet::new();
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let header = NetfilterHeader::new(family, libc::NFNETLINK_V0 as u8, 0);
        let request = NetfilterMessage::new(header, ConntrackMessage::Get(vec![]));
        found.extend(netlink.list(request, |entry| {
            let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = entry.ok()?.inner
            else {
                return None;
            };
            let (mut wanted, mut answers) = (None, None);
            for attribute in &attributes {
                match attribute {
                    ConntrackAttribute::CtaTupleOrig(tuple) => wanted = tcp_ends(tuple).map(|(_, to)| to),
                    ConntrackAttribute::CtaTupleReply(tuple) => {
                        answers = tcp_ends(tuple).map(|(from, _)| from)
                    }
                    _ => {}
                }
            }
            let (wanted, answers) = (wanted?, answers?);
            (wanted != answers && from.contains(&wanted)).then_some((wanted, answers))
        })?);
    }
    Ok(found)
}

/// Source and destination of a TCP connection's packets in one direction.
fn tcp_ends(tuples: &[Tuple]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut ips, mut ports, mut is_tcp) = ((None, None), (None, None), false);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(ip) => ips.0 = Some(*ip),
                        IPTuple::DestinationAddress(ip) => ips.1 = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => is_tcp = *protocol == Protocol::Tcp,
                        ProtoTuple::SourcePort(port) => ports.0 = Some(*port),
                        ProtoTuple::DestinationPort(port) => ports.1 = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    is_tcp.then_some((SocketAddr::new(ips.0?, ports.0?), SocketAddr::new(ips.1?, ports.1?)))
}

/// IPCTNL_MSG_CT_DELETE of linux/netfilter/nfnetlink_conntrack.h. Without the tuple it would mean the whole table.
fn deletion(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = match source {
        SocketAddr::V4(_) => NetfilterProtoFamily::IPv4,
        SocketAddr::V6(_) => NetfilterProtoFamily::IPv6,
    };
    let tuple = ConntrackAttribute::CtaTupleOrig(vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(source.ip()), IPTuple::DestinationAddress(destination.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(source.port()),
            ProtoTuple::DestinationPort(destination.port()),
        ]),
    ]);
    let request = NetfilterMessage::new(
        NetfilterHeader::new(family, libc::NFNETLINK_V0 as u8, 0),
        ConntrackMessage::Delete(vec![tuple]),
    );
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attribute as linux/netlink.h has it: length, type, value, and what is missing to a multiple of 4.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn expected(family: u8, addresses: [Vec<u8>; 2]) -> Vec<u8> {
        const NESTED: u16 = 0x8000;
        let ports = [
            attribute(1, &[6]),
            attribute(2, &40000_u16.to_be_bytes()),
            attribute(3, &443_u16.to_be_bytes()),
        ];
        let tuple =
            [attribute(NESTED | 1, &addresses.concat()), attribute(NESTED | 2, &ports.concat())].concat();
        let body = [vec![family, 0, 0, 0], attribute(NESTED | 1, &tuple)].concat();
        let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
        // Subsystem 1, message 2; a request, no acknowledgement wanted; sequence and port numbers.
        message.extend(0x0102_u16.to_ne_bytes());
        message.extend(1_u16.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        message
    }

    #[test]
    fn a_deletion_names_one_tcp_connection() {
        let bytes = deletion("10.0.1.2:40000".parse().unwrap(), "10.0.1.1:443".parse().unwrap());
        assert_eq!(bytes, expected(2, [attribute(1, &[10, 0, 1, 2]), attribute(2, &[10, 0, 1, 1])]));

        let bytes = deletion("[fd01::2]:40000".parse().unwrap(), "[fd01::1]:443".parse().unwrap());
        let address = |last: u8| [&[0xfd, 1], &[0; 13][..], &[last]].concat();
        assert_eq!(bytes, expected(10, [attribute(3, &address(2)), attribute(4, &address(1))]));
    }
}
