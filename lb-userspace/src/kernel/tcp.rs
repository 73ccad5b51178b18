//! What the kernel knows of one TCP socket, in numbers that can be compared with a [`Flow`]'s.
//!
//! [`Flow`]: lb_common::sockmap::Flow

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
    _options: [u8; 7],
    _counters: [u32; 24],
    _pacing: [u64; 2],
    bytes_acked: u64,
}

const _: () = assert!(offset_of!(TcpInfo, bytes_acked) == 120, "linux/tcp.h");

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

/// Bytes in the receive queue. Not by SIOCINQ, which some kernels answer with 0 for a socket in a sockmap.
fn unread(socket: BorrowedFd<'_>) -> io::Result<u32> {
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
        // SAFETY: zeroed, then written; `T` is `TcpInfo` or a number, for which every bit pattern is a value.
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
