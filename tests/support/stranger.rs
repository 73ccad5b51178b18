//! Sends forged segments: with another host's addresses, or with wrong numbers.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Result, bail};
use etherparse::PacketBuilder;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use std::os::fd::OwnedFd;

use crate::netns::NetNs;

/// TCP flags of a [`Forged`] segment, as in the header.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// A forged segment.
#[derive(Clone, Copy, Debug)]
pub struct Forged<'a> {
    /// See [`flag`].
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The payload.
    pub payload: &'a [u8],
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Whether its checksum is right.
    pub is_sound: bool,
}

impl Default for Forged<'_> {
    fn default() -> Self {
        Self { flags: flag::ACK, seq: 0, ack: 0, payload: &[], hops: 64, is_sound: true }
    }
}

/// Sends segments in the name of one end of a connection.
#[derive(Debug)]
pub struct Stranger {
    raw: OwnedFd,
    from: SocketAddr,
    to: SocketAddr,
}

impl Stranger {
    /// In this namespace, in the name of `from`, to `to`.
    pub fn new(ns: &NetNs, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        ns.run(|| Self::here(from, to))
    }

    /// In the namespace of this thread.
    pub fn here(from: SocketAddr, to: SocketAddr) -> Result<Self> {
        // A socket that is bound to :: sees IPv4 as IPv6.
        let [from, to] = [from, to].map(|end| SocketAddr::new(end.ip().to_canonical(), end.port()));
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        Ok(Self { raw, from, to })
    }

    /// In the name of this socket's own end.
    pub fn as_end(ns: &NetNs, stream: &TcpStream) -> Result<Self> {
        Self::new(ns, stream.local_addr()?, stream.peer_addr()?)
    }

    /// Sends a segment.
    pub fn send(&self, forged: &Forged<'_>) -> Result<()> {
        self.send_from(self.from.port(), forged)
    }

    /// Sends a segment from another port.
    pub fn send_from(&self, port: u16, forged: &Forged<'_>) -> Result<()> {
        let builder = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), forged.hops)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), forged.hops)
            }
            _ => bail!("{} and {} are of two families", self.from, self.to),
        };
        const WINDOW: u16 = 500;
        let mut tcp = builder.tcp(port, self.to.port(), forged.seq, WINDOW);
        let has = |flag: u8| forged.flags & flag != 0;
        if has(flag::FIN) {
            tcp = tcp.fin();
        }
        if has(flag::SYN) {
            tcp = tcp.syn();
        }
        if has(flag::RST) {
            tcp = tcp.rst();
        }
        if has(flag::PSH) {
            tcp = tcp.psh();
        }
        if has(flag::ACK) {
            tcp = tcp.ack(forged.ack);
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, forged.payload)?;
        if !forged.is_sound {
            let checksum = if self.from.is_ipv4() { 20 + 16 } else { 40 + 16 };
            packet[checksum] ^= 0x55;
        }
        // A raw socket would take the port for a protocol number.
        let mut to = self.to;
        to.set_port(0);
        sendto(self.raw.as_raw_fd(), &packet, &SockaddrStorage::from(to), MsgFlags::empty())?;
        Ok(())
    }
}

/// The numbers of a socket's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Sequence number of the next byte that it sends.
    pub next: u32,
    /// Sequence number that it expects next.
    pub expected: u32,
    /// Right edge of the window that it has offered.
    pub edge: u32,
}

/// linux/tcp.h.
const TCP_REPAIR_WINDOW: libc::c_int = 29;
/// linux/tcp.h: leaves repair mode without a window probe.
const TCP_REPAIR_OFF_NO_WP: libc::c_int = -1;
/// linux/tcp.h: the queues that TCP_QUEUE_SEQ is about.
const RECEIVED: libc::c_int = 1;
const SENT: libc::c_int = 2;

impl Numbers {
    /// Reads them from the socket, whose connection goes on.
    pub fn of(stream: &TcpStream) -> io::Result<Self> {
        set(stream, libc::TCP_REPAIR, 1)?;
        set(stream, libc::TCP_REPAIR_QUEUE, SENT)?;
        let next = get::<u32>(stream, libc::TCP_QUEUE_SEQ)?;
        set(stream, libc::TCP_REPAIR_QUEUE, RECEIVED)?;
        let expected = get::<u32>(stream, libc::TCP_QUEUE_SEQ)?;
        let [.., window, from] = get::<[u32; 5]>(stream, TCP_REPAIR_WINDOW)?;
        set(stream, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
        Ok(Self { next, expected, edge: from.wrapping_add(window) })
    }
}

/// Whether the socket's connection is closed.
pub fn is_closed(stream: &TcpStream) -> io::Result<bool> {
    /// linux/tcp_states.h.
    const CLOSE: u8 = 7;
    // The state is the first byte of `struct tcp_info`.
    let [state, ..] = get::<[u8; 8]>(stream, libc::TCP_INFO)?;
    Ok(state == CLOSE)
}

/// Bytes, and the FIN, that were written to the socket and are not acknowledged.
pub fn unacknowledged(stream: &TcpStream) -> io::Result<i32> {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ (which is TIOCOUTQ) writes one int.
    let status = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Disconnects a socket without FIN or reset; the kernel then no longer has the connection.
///
/// Closing it would not be enough: a process that another test is just starting has the descriptor too for a moment, and
/// meanwhile the kernel would go on answering.
pub fn forget(stream: TcpStream) -> io::Result<()> {
    set(&stream, libc::TCP_REPAIR, 1)?;
    // tcp_disconnect() sends no reset for a socket in repair mode.
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads the address, which outlives the call.
    let status = unsafe {
        libc::connect(stream.as_raw_fd(), &raw const nowhere, size_of_val(&nowhere) as libc::socklen_t)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set(stream: &TcpStream, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads one int, which outlives the call.
    let status = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), size)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `T` is plain numbers.
fn get<T: Copy + Default>(stream: &TcpStream, option: libc::c_int) -> io::Result<T> {
    let (mut value, mut size) = (T::default(), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `size` bytes, the size of `value`, which has a value whatever they are.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    if status == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
