//! Listening sockets: one a worker and address, all on the same port (SO_REUSEPORT).
//!
//! SO_REUSEPORT alone lets every program of the same user listen on the port as well, and the kernel then shares new
//! connections out between it and the gateway at random. So the first socket of an address is opened without: the
//! kernel refuses it where anybody listens already, also when two gateways start at the same moment. Only then it is
//! marked, for those of the other workers to come beside it. (A program that comes later, and itself asks for
//! SO_REUSEPORT, is let in all the same.)

use crate::kernel::listeners::{Occupant, others};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// An address to listen on, and how.
#[derive(Clone, Copy, Debug)]
pub struct Bind {
    /// The address. `[::]` takes IPv6 only, so that it can be bound beside `0.0.0.0`.
    pub address: SocketAddr,
    /// Connections the kernel holds until they are accepted.
    pub backlog: u32,
    /// Also while the machine does not have the address (IP_FREEBIND).
    pub freebind: bool,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program listens there, or on an address that includes this one.
    #[error("already in use: {0}")]
    InUse(Occupant),
    /// Somebody listens there, and the kernel does not say who: this gateway itself, or another program.
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

/// Opens `count` listening sockets on one address, over which the kernel spreads new connections, and which no other
/// program has. Sockets of this process may be on the same port: those of `10.0.0.1` get the connections to it, those of
/// `0.0.0.0` the rest.
///
/// Accepted sockets inherit TCP_NODELAY.
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

/// Opens the first socket where the kernel has refused it (`error`): it may be sockets of our own that are in its way,
/// of an address that includes this one or is included, or of one that a reload has just taken out.
///
/// Of two gateways that get here at the same moment the one whose socket comes second sees that of the first.
fn beside_ourselves(bind: Bind, error: io::Error) -> Result<Socket, ListenError> {
    let reject_others = || match others(bind.address) {
        Ok(mut others) => others.pop().map_or(Ok(()), |other| Err(ListenError::InUse(other))),
        Err(unseen) => Err(ListenError::Unseen(unseen)),
    };
    // Before as well: nobody else's connections come to us.
    reject_others()?;
    let socket = open(bind, true).map_err(|_| ListenError::Io(error))?;
    reject_others()?;
    Ok(socket)
}

fn open(bind: Bind, beside_others: bool) -> io::Result<Socket> {
    let Bind { address, backlog, freebind } = bind;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier process, and what remains of them, are no reason to refuse.
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

/// Everything but the address; on a socket that listens already it changes what the next connections get.
pub(super) fn prepare(socket: &Socket, backlog: u32) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}
