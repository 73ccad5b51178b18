//! What the kernel knows of one TCP socket, in numbers that can be compared with a flow's; and repair mode, in which a
//! socket can be closed without a word.

use rustix::net::sockopt;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// What an answer made of two system calls may take, when traffic changes it in between, before it is given up.
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

const _: () = assert!(offset_of!(TcpInfo, unacked) == 24, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, notsent_bytes) == 144, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, pmtu) == 60, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, advmss) == 84, "linux/tcp.h");
const _: () = assert!(offset_of!(TcpInfo, bytes_acked) == 120, "linux/tcp.h");

/// linux/tcp.h `tcpi_options`.
const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_ECN: u8 = 8;

/// linux/tcp.h: the queue whose sequence number is that of the next byte to send.
const TCP_SEND_QUEUE: libc::c_int = 2;

/// linux/tcp_states.h.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;

/// How much a socket's TCP has taken from its sender, at least, and whether it takes more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Bytes acknowledged or in the send queue, from an origin that is the socket's own.
    pub(crate) bytes: u64,
    /// The connection is gone, and with it what was not acknowledged.
    pub(crate) is_closed: bool,
}

/// Whether the connection is established in both directions.
pub(crate) fn is_established(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(info(socket)?.state == ESTABLISHED)
}

/// Whether the connection is gone.
pub(crate) fn is_closed(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(info(socket)?.state == CLOSE)
}

/// What has been taken by now. Never more than the truth: what moves from the queue to "acknowledged" between
/// the two readings is missing.
pub(crate) fn sent(socket: BorrowedFd<'_>) -> io::Result<Sent> {
    let info = info(socket)?;
    Ok(Sent { bytes: info.bytes_acked + u64::from(queued(socket)?), is_closed: info.state == CLOSE })
}

/// What has been taken, exactly; nobody may be sending meanwhile.
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
/// The kernel only selects a queue in repair mode, but goes on answering afterwards. Repair mode freezes nothing
/// and is left at once; leaving it clears SO_REUSEADDR, without which the connection's TIME_WAIT would keep a
/// restarted gateway from its port.
pub(crate) fn select_receive_queue(socket: BorrowedFd<'_>) -> io::Result<()> {
    let reuse = sockopt::socket_reuseaddr(socket)?;
    set_tcp(socket, libc::TCP_REPAIR, 1)?;
    let selected = set_tcp(socket, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE);
    set_tcp(socket, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    sockopt::set_socket_reuseaddr(socket, reuse)?;
    selected
}

/// Sequence number of the next byte to be taken from the receive queue, by userspace or by a verdict program.
/// Needs [`select_receive_queue`], and SO_OOBINLINE, without which a byte of urgent data confuses the count.
///
/// Takes the socket's lock: a verdict that was running has ended when this returns.
pub(crate) fn next_seq(socket: BorrowedFd<'_>) -> io::Result<u32> {
    next_seq_before(socket, unread)
}

/// [`next_seq`] of a socket in a sockmap, which some kernels tell nothing else about. An error may be the socket's
/// own, which nobody will read again: a connection that is gone then looks like one that has ended.
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

/// Makes the kernel leave arriving bytes in the receive queue, without telling the verdict program, until so
/// many are there that the sender's window is about to close: a quarter of the buffer.
pub(crate) fn hold(socket: BorrowedFd<'_>) -> io::Result<()> {
    // More than the buffer has room for would make the kernel enlarge it.
    let quarter = sockopt::socket_recv_buffer_size(socket)? / 4;
    let bytes = libc::c_int::try_from(quarter).unwrap_or(libc::c_int::MAX);
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// Ends [`hold`]. The kernel announces what is in the receive queue at once, under the socket's lock: to the
/// verdict program if there is one, else to whoever polls.
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

/// Bytes in the receive queue. Leaves the socket's error to whoever reads next, for it tells a reset from an end.
fn unread(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(u32::try_from(rustix::io::ioctl_fionread(socket)?).unwrap_or(u32::MAX))
}

/// Bytes in the receive queue of a socket in a sockmap: some kernels answer [`unread`] with 0 there. When there are
/// none, takes the socket's error.
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
    /// What the peer has announced last; how far beyond what it has acknowledged.
    send: u32,
    /// The largest that it has announced.
    largest: u32,
    /// What the peer was told last.
    receive: u32,
    /// What was acknowledged then.
    receive_from: u32,
}

/// One leg, as the packet tier must know it to take it over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    /// Established in both directions.
    pub(crate) is_established: bool,
    /// Sequence number of the next byte to be written, by userspace.
    pub(crate) write_seq: u32,
    /// Sequence number of the next byte expected from the peer.
    pub(crate) receive_next: u32,
    /// Bytes received and not read.
    pub(crate) unread: u32,
    /// Bytes written that the peer has not acknowledged.
    pub(crate) unacknowledged: u32,
    /// [`promised`].
    pub(crate) promised: u32,
    /// Sequence number behind the last byte that the peer has room for.
    pub(crate) room: u32,
    /// The largest window that the peer has announced, in bytes.
    pub(crate) largest_window: u32,
    /// The window that the peer was told last, in bytes.
    pub(crate) own_window: u32,
    /// Bytes that the peer has acknowledged in all, and maybe the SYN.
    pub(crate) bytes_acked: u64,
    /// Bytes received in all.
    pub(crate) bytes_received: u64,
    /// The window scale the peer has announced.
    pub(crate) peer_scale: u8,
    /// The window scale the peer was promised.
    pub(crate) own_scale: u8,
    pub(crate) timestamps: bool,
    pub(crate) sack: bool,
    pub(crate) ecn: bool,
    /// The MSS that the peer was told.
    pub(crate) advertised_mss: u32,
    /// Largest packet that the path takes, as far as is known.
    pub(crate) path_mtu: u32,
    /// TSval of what is sent now.
    pub(crate) timestamp: u32,
    /// It ticks in microseconds instead of milliseconds.
    pub(crate) fine_timestamps: bool,
}

impl RepairWindow {
    /// Sequence number behind the last byte that the peer was allowed to send.
    fn promised(&self) -> u32 {
        self.receive_from.wrapping_add(self.receive)
    }
}

/// Sequence number behind the last byte that the peer was allowed to send. The socket is in repair mode.
pub(crate) fn promised(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let windows: RepairWindow = get(socket, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW)?;
    Ok(windows.promised())
}

/// Reads a leg. The socket is in repair mode, and its receive queue is selected afterwards.
pub(crate) fn leg(socket: BorrowedFd<'_>) -> io::Result<Leg> {
    let timestamp: u32 = get(socket, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP)?;
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)?;
    let write_seq: u32 = get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)?;
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)?;
    for _ in 0..ATTEMPTS {
        let receive_next: u32 = get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)?;
        let (info, unread) = (info(socket)?, unread(socket)?);
        let after: u32 = get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)?;
        if after != receive_next {
            continue;
        }
        let windows: RepairWindow = get(socket, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW)?;
        // Nobody writes meanwhile: where there was nothing, there is nothing.
        let idle = info.unacked == 0 && info.notsent_bytes == 0;
        let unacknowledged = if idle { 0 } else { queued(socket)? };
        return Ok(Leg {
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
            fine_timestamps: timestamp & 1 != 0,
        });
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Enters repair mode: closed in it, a socket sends neither FIN nor reset, also when its process dies. It goes on
/// receiving, acknowledging and retransmitting.
pub(crate) fn enter_repair(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_REPAIR, 1)
}

/// Leaves repair mode; what is written is sent again.
pub(crate) fn leave_repair(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
}

/// Leaves repair mode for good.
pub(crate) fn end_repair(socket: BorrowedFd<'_>) -> io::Result<()> {
    leave_repair(socket)?;
    // Repair mode changes it; a TIME_WAIT without it would keep a restarted gateway from its port.
    Ok(sockopt::set_socket_reuseaddr(socket, true)?)
}

/// Selects the receive queue of a socket in repair mode: then it can be peeked at.
pub(crate) fn select_receive(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
}

/// Sequence number that the socket expects next, a FIN it has taken counted. Needs [`select_receive`].
pub(crate) fn receive_next(socket: BorrowedFd<'_>) -> io::Result<u32> {
    get(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)
}

/// Sends an acknowledgement that is being delayed.
pub(crate) fn flush_acknowledgement(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_tcp(socket, libc::TCP_QUICKACK, 1)
}

/// Bounds the segments of both directions (RFC 9293, section 3.7.1): on a socket that is not connected, what its SYN
/// says, or its SYN-ACKs.
pub(crate) fn set_mss(socket: BorrowedFd<'_>, bytes: u16) -> io::Result<()> {
    set_tcp(socket, libc::TCP_MAXSEG, bytes.into())
}

/// Whether the peer has acknowledged all that was written.
pub(crate) fn is_acknowledged(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(queued(socket)? == 0)
}

/// How far a socket has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// The connection is gone.
    pub(crate) is_closed: bool,
    /// The peer has sent its FIN.
    pub(crate) has_fin: bool,
    /// Bytes received in all, the FIN counted as one.
    pub(crate) received: u64,
}

/// How far the socket has come.
pub(crate) fn progress(socket: BorrowedFd<'_>) -> io::Result<Progress> {
    let info = info(socket)?;
    Ok(Progress {
        is_closed: info.state == CLOSE,
        has_fin: !matches!(info.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2),
        received: info.bytes_received,
    })
}

/// What is in the receive queue behind what is left there of earlier calls, and how much this call leaves there. The
/// socket is in repair mode with that queue selected, in which it cannot be read, only peeked at.
///
/// A few bytes are taken out all the same, and the FIN behind them: only what was read is acknowledged at once
/// ([`flush_acknowledgement`]). More would open the window, for the peer to send what the other end has no room for.
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
        select_receive(socket)?;
        let taken = match taken {
            Ok((taken, _)) => taken,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        bytes.truncate(taken);
        return Ok((bytes, 0));
    }
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
    let (value, size) = ((&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `value` points to an int that outlives the call, and `size` is its size.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `T` is plain numbers; the part of it that an older kernel does not know is 0.
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
    use std::os::fd::AsFd as _;

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
}
