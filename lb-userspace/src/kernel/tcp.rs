//! The state of a TCP socket, in numbers that can be compared with a flow's; and repair mode, in which a socket is closed
//! without FIN or reset.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

/// How often an answer that takes several system calls is tried again when traffic changes it in between.
const ATTEMPTS: usize = 1000;

/// linux/tcp.h: leaves repair mode without a window probe.
const TCP_REPAIR_OFF_NO_WP: libc::c_int = -1;
/// linux/tcp.h: the queue whose sequence number TCP_QUEUE_SEQ is about.
const TCP_RECV_QUEUE: libc::c_int = 1;

/// linux/tcp.h `struct tcp_info`, as far as it is read.
#[derive(Clone, Copy)]
#[repr(C)]
struct TcpInfo {
    state: u8,
    _recovery: [u8; 4],
    options: u8,
    /// Low half: the scale the peer announced; high half: ours.
    window_scales: u8,
    _flags: u8,
    _timers: [u32; 2],
    _mss: [u32; 2],
    /// Segments.
    unacked: u32,
    _segments: [u32; 8],
    pmtu: u32,
    _estimates: [u32; 5],
    advmss: u32,
    _more: [u32; 4],
    _pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    _packets: [u32; 2],
    notsent_bytes: u32,
    _min_rtt: u32,
}

impl TcpInfo {
    /// The send queue is empty.
    fn is_idle(&self) -> bool {
        self.unacked == 0 && self.notsent_bytes == 0
    }
}

const _: () = assert!(offset_of!(TcpInfo, unacked) == 24, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, notsent_bytes) == 144, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, pmtu) == 60, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, advmss) == 84, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, bytes_acked) == 120, "linux/tcp.h");

/// linux/tcp.h `tcpi_options`.
const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_ECN: u8 = 8;
/// TSvals count microseconds (a route with `features tcp_usec_ts`). Since Linux 6.7, as is the meaning of the lowest bit of
/// TCP_TIMESTAMP: before, that bit is part of the time.
const TCPI_OPT_USEC_TS: u8 = 64;

/// linux/tcp.h: the queue whose sequence number is that of the next byte to send.
const TCP_SEND_QUEUE: libc::c_int = 2;

/// linux/tcp_states.h.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;

/// How many bytes were written to a socket, at least, and whether it takes more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Bytes acknowledged or in the send queue. Only differences have a meaning.
    pub(crate) bytes: u64,
    /// The connection is closed; bytes that were not acknowledged are lost.
    pub(crate) is_closed: bool,
}

/// Whether the connection is established in both directions.
pub(crate) fn is_established(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(info(socket)?.state == ESTABLISHED)
}

/// Whether the connection is closed.
pub(crate) fn is_closed(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(info(socket)?.state == CLOSE)
}

/// What was written by now. Never too much: bytes that are acknowledged between the two system calls are missing.
pub(crate) fn sent(socket: BorrowedFd<'_>) -> io::Result<Sent> {
    let info = info(socket)?;
    Ok(Sent { bytes: info.bytes_acked + u64::from(queued(socket)?), is_closed: info.state == CLOSE })
}

/// What was written, exactly; nobody may write meanwhile.
pub(crate) fn sent_exactly(socket: BorrowedFd<'_>) -> io::Result<u64> {
    for _ in 0..ATTEMPTS {
        let before = info(socket)?.bytes_acked;
        let queued = queued(socket)?;
        if info(socket)?.bytes_acked == before {
            return Ok(before + u64::from(queued));
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Lets [`next_seq`] read the sequence number of the receive queue.
///
/// The kernel selects a queue only in repair mode, but answers afterwards too. Repair mode freezes nothing and is left at
/// once. Leaving it clears SO_REUSEADDR, without which the connection's TIME_WAIT would keep a restarted gateway from its
/// port.
pub(crate) fn select_receive_queue(socket: BorrowedFd<'_>) -> io::Result<()> {
    let reuse = sockopt::socket_reuseaddr(socket)?;
    set_tcp(socket, libc::TCP_REPAIR, 1)?;
    let selected = set_tcp(socket, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE);
    set_tcp(socket, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    sockopt::set_socket_reuseaddr(socket, reuse)?;
    selected
}

/// Sequence number of the next byte in the receive queue, to be read by userspace or by a verdict program. Needs
/// [`select_receive_queue`], and SO_OOBINLINE: without it, urgent data makes the number wrong.
///
/// Takes the socket's lock: a verdict that was running has ended when this returns.
pub(crate) fn next_seq(socket: BorrowedFd<'_>) -> io::Result<u32> {
    next_seq_before(socket, unread)
}

/// [`next_seq`] of a socket in a sockmap, for which some kernels answer no other call. Takes the socket's error, if it has
/// one and the queue is empty: afterwards a reset connection looks like one that has ended.
pub(crate) fn next_seq_in_sockmap(socket: BorrowedFd<'_>) -> io::Result<u32> {
    next_seq_before(socket, peeked)
}

fn next_seq_before(
    socket: BorrowedFd<'_>,
    unread: impl Fn(BorrowedFd<'_>) -> io::Result<u32>,
) -> io::Result<u32> {
    for _ in 0..ATTEMPTS {
        let before = end_of_received(socket)?;
        let unread = unread(socket)?;
        if end_of_received(socket)? == before {
            return Ok(before.wrapping_sub(unread));
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Makes the kernel keep arriving bytes in the receive queue without calling the verdict program, until a quarter of the
/// buffer is full.
pub(crate) fn hold(socket: BorrowedFd<'_>) -> io::Result<()> {
    // The kernel enlarges the buffer for a larger value than that.
    let quarter = sockopt::socket_recv_buffer_size(socket)? / 4;
    let bytes = libc::c_int::try_from(quarter).unwrap_or(libc::c_int::MAX);
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// Ends [`hold`]. For what is in the receive queue, the kernel at once calls the verdict program, if there is one, or wakes
/// whoever polls, under the socket's lock.
pub(crate) fn release(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1)
}

/// `rcv_nxt`, without the FIN.
fn end_of_received(socket: BorrowedFd<'_>) -> io::Result<u32> {
    for _ in 0..ATTEMPTS {
        let before = info(socket)?.state;
        let seq: u32 = get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)?;
        if info(socket)?.state == before {
            let fin = !matches!(before, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2);
            return Ok(seq.wrapping_sub(u32::from(fin)));
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Bytes in the receive queue. Leaves the socket's error for the next read, which tells a reset from an end by it.
fn unread(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(u32::try_from(rustix::io::ioctl_fionread(socket)?).unwrap_or(u32::MAX))
}

/// Bytes in the receive queue of a socket in a sockmap, where some kernels answer [`unread`] with 0. If there are none,
/// takes the socket's error.
fn peeked(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC TCP counts and does not write, so there is no buffer to be valid.
    let n = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), libc::c_int::MAX as usize, flags) };
    match u32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            error => Err(error),
        },
    }
}

/// Bytes in the send queue, sent or not, that are not acknowledged.
fn queued(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (which is TIOCOUTQ) writes one int.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// linux/tcp.h: for sockets in repair mode, since Linux 4.8.
const TCP_REPAIR_WINDOW: libc::c_int = 29;

/// linux/tcp.h `struct tcp_repair_window`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RepairWindow {
    _send_from: u32,
    /// The window that the peer has advertised last.
    send: u32,
    /// The largest window that it has advertised.
    largest: u32,
    /// The window that we have advertised last.
    receive: u32,
    /// The acknowledgement number that went with it.
    receive_from: u32,
}

/// The state of one leg's socket, as the packet tier needs it for the handover.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LegState {
    /// Established in both directions.
    pub(crate) is_established: bool,
    /// Sequence number of the next byte that userspace writes.
    pub(crate) write_seq: u32,
    /// Sequence number of the next byte expected from the peer.
    pub(crate) receive_next: u32,
    /// Bytes received and not read.
    pub(crate) unread: u32,
    /// Bytes written that the peer has not acknowledged.
    pub(crate) unacknowledged: u32,
    /// [`promised`].
    pub(crate) promised: u32,
    /// Right edge of the window that the peer has advertised.
    pub(crate) room: u32,
    /// The largest window that the peer has advertised, in bytes.
    pub(crate) largest_window: u32,
    /// The window that we have advertised last, in bytes.
    pub(crate) own_window: u32,
    /// Bytes that the peer has acknowledged in all, maybe with the SYN.
    pub(crate) bytes_acked: u64,
    /// Bytes received in all.
    pub(crate) bytes_received: u64,
    /// The peer's window scale option.
    pub(crate) peer_scale: u8,
    /// Our window scale option.
    pub(crate) own_scale: u8,
    pub(crate) timestamps: bool,
    pub(crate) sack: bool,
    pub(crate) ecn: bool,
    /// Our MSS option.
    pub(crate) advertised_mss: u32,
    /// The path MTU, as far as it is known.
    pub(crate) path_mtu: u32,
    /// TSval of a segment that is sent now.
    pub(crate) timestamp: u32,
    /// TSval counts microseconds instead of milliseconds.
    pub(crate) fine_timestamps: bool,
}

impl RepairWindow {
    /// Right edge of the window that we have advertised last.
    fn promised(&self) -> u32 {
        self.receive_from.wrapping_add(self.receive)
    }
}

/// Right edge of the window that the socket has advertised last. The socket is in repair mode.
pub(crate) fn promised(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let windows: RepairWindow = get(socket, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW)?;
    Ok(windows.promised())
}

/// TSval of a segment that is sent now, but for its lowest bit.
pub(crate) fn timestamp(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get(socket, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP)
}

/// Reads a leg's state, and sends a delayed ACK, if there is one of bytes. The socket is in repair mode. `isn`: its peer's initial
/// sequence number, as far as it is known.
pub(crate) fn leg_state(socket: BorrowedFd<'_>, isn: u32) -> io::Result<LegState> {
    let timestamp = timestamp(socket)?;
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)?;
    let write_seq: u32 = get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)?;
    let seen = quiet(socket, isn)?.map_or_else(|| seen(socket), Ok)?;
    let Seen { info, windows, receive_next, unread, unacknowledged } = seen;
    Ok(LegState {
        is_established: info.state == ESTABLISHED,
        write_seq,
        receive_next,
        unread,
        unacknowledged,
        promised: windows.promised(),
        room: write_seq.wrapping_sub(unacknowledged).wrapping_add(windows.send),
        largest_window: windows.largest,
        own_window: windows.receive,
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
        peer_scale: info.window_scales & 15,
        own_scale: info.window_scales >> 4,
        timestamps: info.options & TCPI_OPT_TIMESTAMPS != 0,
        sack: info.options & TCPI_OPT_SACK != 0,
        ecn: info.options & TCPI_OPT_ECN != 0,
        advertised_mss: info.advmss,
        path_mtu: info.pmtu,
        timestamp,
        fine_timestamps: info.options & TCPI_OPT_USEC_TS != 0,
    })
}

/// What has passed by a leg's socket.
struct Seen {
    info: TcpInfo,
    windows: RepairWindow,
    /// [`LegState::receive_next`].
    receive_next: u32,
    unread: u32,
    unacknowledged: u32,
}

/// As [`seen`], by fewer questions, if all that has come was read and all that was written is acknowledged. `None`: it is not so;
/// or there is no room for what is to be written, as before a SYN proxy's SYN-ACK is acknowledged; or `isn` is of another
/// connection.
fn quiet(socket: BorrowedFd<'_>, isn: u32) -> io::Result<Option<Seen>> {
    let info = info(socket)?;
    // The ACK of a SYN-ACK alone stays delayed, for the first bytes to acknowledge it ([`delay_acknowledgement`]).
    if info.bytes_received > 0 {
        let _ = flush_acknowledgement(socket);
    }
    let windows: RepairWindow = get(socket, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW)?;
    // Last, and nobody reads meanwhile: if nothing is unread by now, all that had come before was read.
    let is_read = info.bytes_received == 0 || unread(socket)? == 0;
    let receive_next = isn.wrapping_add(1).wrapping_add(info.bytes_received as u32);
    // Another number has been acknowledged: more has come since, or the one that is known is another connection's.
    let is_quiet = is_read && windows.receive_from == receive_next && info.is_idle() && windows.send > 0;
    Ok(is_quiet.then_some(Seen { info, windows, receive_next, unread: 0, unacknowledged: 0 }))
}

/// What has passed. Sends a delayed ACK first: it would come later than ACKs of the other end with higher numbers.
fn seen(socket: BorrowedFd<'_>) -> io::Result<Seen> {
    let _ = flush_acknowledgement(socket);
    select_receive(socket)?;
    for _ in 0..ATTEMPTS {
        let receive_next = receive_next(socket)?;
        let (info, unread) = (info(socket)?, unread(socket)?);
        if self::receive_next(socket)? != receive_next {
            continue;
        }
        let windows: RepairWindow = get(socket, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW)?;
        // Nobody writes meanwhile: an empty send queue stays empty.
        let unacknowledged = if info.is_idle() { 0 } else { queued(socket)? };
        return Ok(Seen { info, windows, receive_next, unread, unacknowledged });
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Enters repair mode. A socket that is closed in it sends neither FIN nor reset, also if its process dies. Until then it
/// goes on receiving, acknowledging and retransmitting.
pub(crate) fn enter_repair(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_REPAIR, 1)
}

/// Leaves repair mode: from here on the socket sends what is written.
pub(crate) fn leave_repair(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
}

/// Leaves repair mode for good.
pub(crate) fn end_repair(socket: BorrowedFd<'_>) -> io::Result<()> {
    leave_repair(socket)?;
    // Leaving repair mode clears it; without it the connection's TIME_WAIT would keep a restarted gateway from its port.
    Ok(sockopt::set_socket_reuseaddr(socket, true)?)
}

/// Selects the receive queue of a socket in repair mode, which can then be peeked at.
pub(crate) fn select_receive(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
}

/// Sequence number that the socket expects next; a received FIN counts as one. Needs [`select_receive`].
pub(crate) fn receive_next(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)
}

/// Sends a delayed ACK, if there is one; the next ones are delayed again.
pub(crate) fn flush_acknowledgement(socket: BorrowedFd<'_>) -> io::Result<()> {
    /// To acknowledge at once from here on would be 1: its lowest bit says so (net/ipv4/tcp.c, `__tcp_sock_set_quickack`).
    const ONCE: libc::c_int = 2;
    set_tcp(socket, libc::TCP_QUICKACK, ONCE)
}

/// Lets what the socket receives next wait for an answer that acknowledges it, as the kernel does by itself behind the first
/// answer. On a socket that is not connected yet, also the SYN-ACK (for 200 ms at most); on one that listens, of the
/// connections that it accepts (40 ms).
pub(crate) fn delay_acknowledgement(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_QUICKACK, 0)
}

/// Bounds the segments of both directions. On a socket that is not connected, also the MSS option of its SYN or SYN-ACKs
/// (RFC 9293, section 3.7.1).
pub(crate) fn set_mss(socket: BorrowedFd<'_>, bytes: u16) -> io::Result<()> {
    set_tcp(socket, libc::TCP_MAXSEG, bytes.into())
}

/// Lets the socket be bound to an address that is not this host's (IP_TRANSPARENT, ip(7)). Needs CAP_NET_ADMIN or
/// CAP_NET_RAW.
pub(crate) fn set_transparent(socket: BorrowedFd<'_>, is_ipv4: bool) -> io::Result<()> {
    let (level, option) = match is_ipv4 {
        true => (libc::SOL_IP, libc::IP_TRANSPARENT),
        false => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    set(socket, level, option, 1)
}

/// Whether this process may do that; the kernel's error if not.
pub(crate) fn may_be_transparent() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    set_transparent(socket.as_fd(), true)
}

/// Lets the kernel choose the port of a socket that is bound to port 0 when it connects, when it knows the peer.
pub(crate) fn choose_port_late(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Whether the peer has acknowledged all that was written.
pub(crate) fn is_acknowledged(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(queued(socket)? == 0)
}

/// What a socket has received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// The connection is closed.
    pub(crate) is_closed: bool,
    /// The peer has sent its FIN.
    pub(crate) has_fin: bool,
    /// Bytes received in all; the FIN counts as one.
    pub(crate) received: u64,
}

/// What the socket has received.
pub(crate) fn progress(socket: BorrowedFd<'_>) -> io::Result<Progress> {
    let info = info(socket)?;
    Ok(Progress {
        is_closed: info.state == CLOSE,
        has_fin: !matches!(info.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2),
        received: info.bytes_received,
    })
}

/// Which of two sockets have something in the receive queue, a FIN or an error. After an error of the question: both.
pub(crate) fn have_news(sockets: [BorrowedFd<'_>; 2]) -> [bool; 2] {
    /// Urgent data at the head of the queue is none of the first.
    const EVENTS: PollFlags = PollFlags::IN.union(PollFlags::PRI).union(PollFlags::RDHUP);
    let mut asked = sockets.map(|socket| PollFd::from_borrowed_fd(socket, EVENTS));
    match poll(&mut asked, Some(&Timespec::default())) {
        Ok(_) => asked.map(|socket| !socket.revents().is_empty()),
        Err(_) => [true; 2],
    }
}

/// Whether one of two sockets has urgent data that was not read (RFC 9293, section 3.8.5). Behind it [`unread`] counts nothing.
pub(crate) fn have_urgent_data(sockets: [BorrowedFd<'_>; 2]) -> io::Result<bool> {
    let mut asked = sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::PRI));
    poll(&mut asked, Some(&Timespec::default()))?;
    Ok(asked.iter().any(|socket| socket.revents().contains(PollFlags::PRI)))
}

/// The bytes in the receive queue after the first `left`, which an earlier call has left there; and how many bytes this
/// call leaves there. The socket is in repair mode: its queue can be peeked at once it is selected, but not read.
///
/// If the queue has only a few bytes, they are read all the same, with the FIN, outside of repair mode: only bytes that
/// were read are acknowledged at once ([`flush_acknowledgement`]). Reading more would open the window, and the peer would
/// send what the other end has no room for.
pub(crate) fn received(socket: BorrowedFd<'_>, left: usize, fin: bool) -> io::Result<(Vec<u8>, usize)> {
    const FEW: usize = 512;
    let length = unread(socket)? as usize;
    if length <= left && !fin {
        return Ok((Vec::new(), left));
    }
    let flags = rustix::net::RecvFlags::DONTWAIT;
    let mut bytes = vec![0; length.max(FEW)];
    if left == 0 && length < FEW {
        leave_repair(socket)?;
        let taken = rustix::net::recv(socket, &mut bytes[..], flags);
        enter_repair(socket)?;
        let taken = match taken {
            Ok((taken, _)) => taken,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        bytes.truncate(taken);
        return Ok((bytes, 0));
    }
    select_receive(socket)?;
    let (peeked, _) = rustix::net::recv(socket, &mut bytes[..], flags | rustix::net::RecvFlags::PEEK)?;
    bytes.truncate(peeked);
    bytes.drain(..left.min(peeked));
    Ok((bytes, peeked))
}

fn info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    get(socket, libc::IPPROTO_TCP, libc::TCP_INFO)
}

fn set_tcp(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, option, value)
}

fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_bytes(socket, level, option, &value.to_ne_bytes())
}

/// Sets an option whose value is other than a number.
pub(super) fn set_bytes(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let size = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is readable for `size` bytes; the kernel copies them and keeps no pointer.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads an option. `T` is plain numbers; fields that an older kernel does not know are 0.
fn get<T: Copy>(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes, the size of `value`.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut size)
    };
    match status {
        // SAFETY: zeroed, then written; `T` is a structure of numbers or a number, for which every bit pattern is a value.
        0 => Ok(unsafe { value.assume_init() }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn what_is_sent_is_counted_whether_acknowledged_or_not() {
        let (mut client, _server) = pair();
        let before = sent_exactly(client.as_fd()).unwrap();
        client.write_all(&[0; 3000]).unwrap();
        assert_eq!(sent_exactly(client.as_fd()).unwrap() - before, 3000);
        assert!(is_established(client.as_fd()).unwrap());
    }

    #[test]
    fn what_is_unread_is_counted_without_reading_it() {
        let (mut client, mut server) = pair();
        assert_eq!(unread(server.as_fd()).unwrap(), 0);
        client.write_all(&[7; 3000]).unwrap();
        server.peek(&mut [0]).unwrap();
        let mut part = [0; 1000];
        server.read_exact(&mut part).unwrap();
        while unread(server.as_fd()).unwrap() != 2000 {
            std::thread::yield_now();
        }
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [7; 2000]);
    }

    #[test]
    fn what_has_come_is_news_until_it_is_read_and_an_end_for_ever() {
        let (mut client, mut server) = pair();
        let news = |client: &TcpStream, server: &TcpStream| have_news([client.as_fd(), server.as_fd()]);
        assert_eq!(news(&client, &server), [false; 2]);
        client.write_all(b"abc").unwrap();
        assert_eq!(news(&client, &server), [false, true]);
        server.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(news(&client, &server), [false; 2]);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(news(&client, &server), [false, true]);
        socket2::SockRef::from(&server).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(server);
        assert_eq!(have_news([client.as_fd(), client.as_fd()]), [true; 2], "a reset");
    }

    /// What both ways of reading a leg say, if it is quiet: they must be the same.
    fn numbers(seen: &Seen) -> [u32; 6] {
        let Seen { windows, receive_next, unread, unacknowledged, .. } = seen;
        [*receive_next, *unread, *unacknowledged, windows.promised(), windows.send, windows.largest]
    }

    /// Before Linux 6.7 half of them would be taken for such by the lowest bit of their time. Needs CAP_NET_ADMIN.
    #[test]
    fn no_socket_has_timestamps_in_microseconds_unless_the_kernel_says_so() {
        for _ in 0..32 {
            let (client, _server) = pair();
            enter_repair(client.as_fd()).unwrap();
            assert!(!leg_state(client.as_fd(), 0).unwrap().fine_timestamps);
            end_repair(client.as_fd()).unwrap();
        }
    }

    /// Needs CAP_NET_ADMIN, as repair mode does.
    #[test]
    fn a_leg_of_which_all_was_read_is_read_by_fewer_questions_and_any_other_is_not() {
        fn isn_of(socket: BorrowedFd<'_>) -> u32 {
            let Seen { info, receive_next, .. } = seen(socket).unwrap();
            receive_next.wrapping_sub(info.bytes_received as u32).wrapping_sub(1)
        }
        let (mut client, mut server) = pair();
        for length in [0, 1000] {
            client.write_all(&vec![7; length]).unwrap();
            server.read_exact(&mut vec![0; length]).unwrap();
            for socket in [client.as_fd(), server.as_fd()] {
                enter_repair(socket).unwrap();
                let isn = isn_of(socket);
                let quick = quiet(socket, isn).unwrap().expect("nothing is left");
                assert_eq!(numbers(&quick), numbers(&seen(socket).unwrap()));
                assert!(quiet(socket, isn.wrapping_add(1)).unwrap().is_none(), "another connection's");
                end_repair(socket).unwrap();
            }
        }
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 400]).unwrap();
        enter_repair(server.as_fd()).unwrap();
        let isn = isn_of(server.as_fd());
        assert!(quiet(server.as_fd(), isn).unwrap().is_none());
        let leg = leg_state(server.as_fd(), isn).unwrap();
        assert_eq!([leg.bytes_received, leg.unread.into()], [2000, 600]);
        end_repair(server.as_fd()).unwrap();
    }
}
