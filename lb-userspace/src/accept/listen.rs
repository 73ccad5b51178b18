//! Listening sockets: one for each worker and address, all on the same port (SO_REUSEPORT).
//!
//! With SO_REUSEPORT, any program of the same user can listen on the port too, and the kernel then distributes new
//! connections between it and the gateway at random. So the first socket of an address is opened without: the kernel
//! refuses it if anybody listens there, also when two gateways start at the same moment. It gets the option afterwards, for
//! the sockets of the other workers. (A program that starts later and sets SO_REUSEPORT itself is still let in.)

use crate::kernel::listeners::{Occupant, others};
use crate::kernel::tcp;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;

/// An address to listen on, and how.
#[derive(Clone, Copy, Debug)]
pub struct Bind {
    /// The address. `[::]` is IPv6 only, so that it can be bound beside `0.0.0.0`.
    pub address: SocketAddr,
    /// How many connections the kernel holds until they are accepted.
    pub backlog: u32,
    /// Listen also while the machine does not have the address (IP_FREEBIND).
    pub freebind: bool,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program listens there, or on an address that includes this one.
    #[error("already in use: {0}")]
    InUse(Occupant),
    /// This gateway or another program listens there, and the kernel does not say which.
    #[error("already in use, and the kernel does not say by whom")]
    Unseen(#[source] io::Error),
    /// No device has the address.
    #[error(
        "this machine does not have the address; a `[[listener]]` with `freebind = true` waits until it does, and with \
         the sysctl `net.{}.ip_nonlocal_bind = 1` any program may listen there",
        if *.v6 { "ipv6" } else { "ipv4" }
    )]
    NotHere {
        /// Whether it is an IPv6 address.
        v6: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error(transparent)]
    Io(io::Error),
}

/// Opens `count` listening sockets on one address, among which the kernel distributes new connections. An error if another
/// program listens there. Sockets of this process may be on the same port: those on `10.0.0.1` get the connections to it,
/// those on `0.0.0.0` the rest.
///
/// Accepted sockets inherit TCP_NODELAY, and that the first acknowledgement waits for an answer.
pub fn listen(bind: Bind, count: usize) -> Result<Vec<TcpListener>, ListenError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => ListenError::NotHere { v6: bind.address.is_ipv6(), source: error },
        _ => ListenError::Io(error),
    };
    let first = match open(bind, false) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => beside_ourselves(bind, error)?,
        first => first.map_err(failed)?,
    };
    first.set_reuse_port(true).map_err(failed)?;
    let more = (1..count).map(|_| open(bind, true));
    let sockets = std::iter::once(Ok(first)).chain(more);
    sockets.map(|socket| socket.map(TcpListener::from)).collect::<io::Result<_>>().map_err(failed)
}

/// Opens the first socket after the kernel has refused it (`error`). The conflict may be with our own sockets: on an
/// address that includes this one or is included in it, or on one that a reload has just removed.
///
/// If two gateways get here at the same moment, the one whose socket comes second sees the socket of the first.
fn beside_ourselves(bind: Bind, error: io::Error) -> Result<Socket, ListenError> {
    let reject_others = || match others(bind.address) {
        Ok(mut others) => others.pop().map_or(Ok(()), |other| Err(ListenError::InUse(other))),
        Err(unseen) => Err(ListenError::Unseen(unseen)),
    };
    // Checked before as well, so that we never get another program's connections.
    reject_others()?;
    let socket = open(bind, true).map_err(|_| ListenError::Io(error))?;
    reject_others()?;
    Ok(socket)
}

fn open(bind: Bind, beside_others: bool) -> io::Result<Socket> {
    let Bind { address, backlog, freebind } = bind;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier process, also in TIME_WAIT, must not prevent this.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(beside_others)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(freebind)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(freebind)?;
        }
    }
    socket.bind(&address.into())?;
    prepare(&socket, backlog)?;
    Ok(socket)
}

/// Listens with another backlog where one listens already.
pub fn listen_again(socket: &TcpListener, backlog: u32) -> io::Result<()> {
    prepare(&SockRef::from(socket), backlog)
}

/// Sets the options and listens. On a socket that listens already, it changes the options of the next connections.
pub(super) fn prepare(socket: &Socket, backlog: u32) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    // Only now: listen(2) sets it anew. The answer to a ClientHello then acknowledges it, which saves a segment for each
    // connection. If there is no answer, the kernel acknowledges by itself after 40 ms.
    tcp::delay_acknowledgement(socket.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpStream};

    #[test]
    fn an_accepted_connection_acknowledges_with_its_answer() {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let sockets = listen(Bind { address, backlog: 1, freebind: false }, 1).unwrap();
        let _client = TcpStream::connect(sockets[0].local_addr().unwrap()).unwrap();
        let (accepted, _) = sockets[0].accept().unwrap();
        let accepted = Socket::from(accepted);
        assert!(!accepted.tcp_quickack().unwrap());
        assert!(accepted.tcp_nodelay().unwrap());
    }
}
