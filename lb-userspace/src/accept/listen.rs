//! Listening sockets: one a worker and address, all on the same port (SO_REUSEPORT).

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Opens one listening socket. The kernel spreads new connections over all sockets of the same address.
///
/// Accepted sockets inherit TCP_NODELAY. `[::]` takes IPv6 only, so that it can be bound beside `0.0.0.0`.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    prepare(&socket, backlog)?;
    Ok(socket.into())
}

/// Everything but the address; on a socket that listens already it changes what the next connections get.
pub(super) fn prepare(socket: &Socket, backlog: u32) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}
