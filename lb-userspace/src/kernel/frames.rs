//! Injected frames: sent on the loopback device, where the programs redirect them. So they bypass netfilter, which does not
//! know spliced connections, and the routing table.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;

use lb_common::packet::inject::INJECTED_MARK;
use lb_common::packet::{Ethernet, LOOPBACK};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

/// linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;
/// linux/virtio_net.h.
const NEEDS_CHECKSUM: u8 = 1;
const SEGMENTS_V4: u8 = 1;
const SEGMENTS_V6: u8 = 4;
const ETHERNET: u16 = 14;
/// Offset of the checksum in a TCP header, in bytes.
const TCP_CHECKSUM: u16 = 16;

/// A socket that sends injected frames and receives nothing. Never blocks.
#[derive(Debug)]
pub struct Frames(Socket);

/// What a device has still to do to a TCP packet: compute its checksum, and maybe cut it into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Bytes of its IP header.
    pub ip_header: u16,
    /// Bytes of its TCP header.
    pub tcp_header: u16,
    /// Payload of each segment that it is to be cut into, in bytes; 0: it is not cut.
    pub segment: u16,
}

impl Frames {
    /// Opens it, in the network namespace in which the calling thread is. Needs CAP_NET_RAW and CAP_NET_ADMIN, which
    /// may be dropped afterwards.
    pub fn open() -> io::Result<Self> {
        // Without a protocol the socket receives nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.set_nonblocking(true)?;
        socket.set_mark(INJECTED_MARK)?;
        let on: libc::c_int = 1;
        // SAFETY: the option takes one int, which outlives the call.
        let status = unsafe {
            let value = (&raw const on).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, value, 4)
        };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        socket.bind(&link(LOOPBACK, 0))?;
        Ok(Self(socket))
    }

    /// Sends an IP packet in a frame with these Ethernet addresses. Its TCP checksum is complete, or, if the packet is
    /// `unfinished`, that of the pseudo-header.
    pub fn send(&self, addresses: Ethernet, packet: &[u8], unfinished: Option<Unfinished>) -> io::Result<()> {
        let is_v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
        let kind: [u8; 2] = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        let todo = unfinished.map_or([0; 10], |unfinished| unfinished.header(is_v4));
        let parts = [&todo[..], &addresses, &kind, packet].map(IoSlice::new);
        // A packet is sent whole or not at all.
        self.0.send_vectored(&parts).map(drop)
    }
}

impl Unfinished {
    /// linux/virtio_net.h `struct virtio_net_hdr`, whose numbers are in the byte order of the machine.
    fn header(self, is_v4: bool) -> [u8; 10] {
        let kind = match self.segment {
            0 => 0,
            _ if is_v4 => SEGMENTS_V4,
            _ => SEGMENTS_V6,
        };
        let headers = (ETHERNET + self.ip_header + self.tcp_header).to_ne_bytes();
        let segment = self.segment.to_ne_bytes();
        let start = (ETHERNET + self.ip_header).to_ne_bytes();
        let at = TCP_CHECKSUM.to_ne_bytes();
        let [[a, b], [c, d], [e, f], [g, h]] = [headers, segment, start, at];
        [NEEDS_CHECKSUM, kind, a, b, c, d, e, f, g, h]
    }
}

/// A device, as packet(7) has it. `protocol`: what a socket that is bound to it receives (ETH_P_*), 0 for nothing.
pub(super) fn link(index: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: an address of that family is what is written, and zeros are a value of its other fields.
    let address: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as libc::c_int;
    // SAFETY: the address is complete and has this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
