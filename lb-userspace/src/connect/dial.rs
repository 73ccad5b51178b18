//! A server is dialled, at one of its addresses and perhaps from a port of the gateway's own, and greeted.

use super::preamble::{Greeting, Unwelcome, Welcome};
use super::race::race;
use super::source::{GatewayPorts, SourcePort};
use crate::kernel::tcp;
use crate::mysql::ServerError;
use crate::reason::{CloseReason, TlsError};
use crate::serving::{Addresses, Pool, Server, ServerGuard};
use crate::tls::{Dialling, Session};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

/// How many source ports are tried until one is found that no socket has.
const PORT_ATTEMPTS: usize = 16;

/// The most source ports that are tried for one connection, each a third of `connect_timeout` after the one before, if
/// there is no answer.
const UNANSWERED_PORTS: u32 = 3;

/// From where a server is dialled, if the kernel is not to choose that.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The ports to choose from: those of spliced connections are taken, which the kernel does not know.
    pub ports: &'a Arc<GatewayPorts>,
    /// Present: the server is to see this address, and, if it is one of `ports` and free, the port. Servers of its family
    /// are dialled, no others.
    pub client: Option<SocketAddr>,
    /// The MSS option of the client, beyond which the server must send no segments.
    pub mss: Option<u16>,
    /// The family of the server's addresses to try first: that of the client's leg. Only two legs of the same family can be
    /// spliced.
    pub ipv4: bool,
}

/// Where a socket is bound before it connects.
struct Bind {
    /// Unspecified: the route's.
    address: IpAddr,
    /// 0: the kernel's choice.
    port: u16,
    mss: Option<u16>,
}

/// The client's address cannot be a source toward the server.
#[derive(Debug, thiserror::Error)]
#[error("the client's address cannot be the source of a connection to the server")]
struct UnusableAddress;

/// A connected socket, with its source port if it is one of [`GatewayPorts`].
type Dialled = (TcpStream, Option<SourcePort>);

/// A connection as its server is dialled for it.
pub struct Dial<'a> {
    /// Who it is for.
    pub client: IpAddr,
    /// Present: it may be spliced, or the server is to see the client's address.
    pub source: Option<Source<'a>>,
    /// What the server is told before the client's first byte, and asked.
    pub greeting: Greeting,
    /// The client's first bytes are there. They, or what comes before them, follow the connect at once.
    pub at_once: bool,
}

/// A server that takes the connection.
pub struct Connected {
    /// The socket to it; it has been greeted.
    pub socket: TcpStream,
    /// Present: its pool has `tls`.
    pub session: Option<Box<Session<Dialling>>>,
    /// A MySQL server's number of the connection.
    pub thread: Option<u32>,
    /// Present: one of ours.
    pub port: Option<SourcePort>,
    /// Its place among the server's connections.
    pub guard: ServerGuard,
}

/// No server takes the connection.
pub struct Failure {
    /// As the last one that was tried, or the lack of one, has it.
    pub reason: CloseReason,
    /// Why the TLS of that server failed, if it did.
    pub tls_error: Option<TlsError>,
    /// What that server has said in MySQL's protocol, if it has refused the connection.
    pub words: Option<Box<ServerError>>,
    /// The one that was reached, and did not answer the greeting as it should.
    pub server: Option<Arc<Server>>,
}

impl From<CloseReason> for Failure {
    fn from(reason: CloseReason) -> Self {
        Self { reason, tls_error: None, words: None, server: None }
    }
}

/// Connects to this server at this address, though it may be full or drained, and greets it.
pub async fn reach(
    pool: &Pool,
    server: &Server,
    address: SocketAddr,
    greeting: &Greeting,
) -> io::Result<(TcpStream, Option<Box<Session<Dialling>>>)> {
    let deadline = Instant::now() + pool.connect_timeout;
    let speaks = greeting.is_sent_first(pool.tls.is_some(), false);
    let mut socket = open(address, None, speaks).await?;
    match greeting.exchange(&mut socket, deadline, server, pool.tls.as_deref()).await {
        Ok(Welcome { session, .. }) => Ok((socket, session)),
        Err(Unwelcome { reason, .. }) => Err(io::Error::other(reason.name())),
    }
}

pub(super) fn reason_of(error: &io::Error, source: Option<Source<'_>>) -> CloseReason {
    const EXHAUSTED: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EADDRNOTAVAIL];
    match error.raw_os_error() {
        Some(code) if EXHAUSTED.contains(&code) => CloseReason::Resource,
        _ if error.get_ref().is_some_and(|error| error.is::<UnusableAddress>()) => {
            CloseReason::ClientAddressUnusable
        }
        _ if error.kind() == io::ErrorKind::TimedOut => {
            let by_client = source.is_some_and(|source| source.client.is_some());
            if by_client { CloseReason::ClientAddressUnanswered } else { CloseReason::ConnectTimeout }
        }
        _ => CloseReason::ConnectFailed,
    }
}

/// Opens a connection to a server. Tries its addresses: if one does not answer, the next one is tried as well (RFC 8305).
/// `timeout` bounds all of them together. `speaks`: see [`open`].
pub(super) async fn open_server(
    addresses: &Addresses,
    timeout: Duration,
    source: Option<Source<'_>>,
    speaks: bool,
) -> io::Result<Dialled> {
    let patience = timeout / UNANSWERED_PORTS;
    let open_at = async |address| match source {
        Some(source) => open_from_ports(address, source, UNANSWERED_PORTS, patience, speaks).await,
        None => open(address, None, speaks).await.map(|stream| (stream, None)),
    };
    let client = source.and_then(|source| source.client).map(|client| client.ip());
    let is_possible = |address| client.is_none_or(|client| is_source_toward(client, address));
    let attempts = async {
        if let Some(address) = addresses.only().filter(|address| is_possible(*address)) {
            return open_at(address).await;
        }
        let (order, delay) = addresses.order(source.map(|source| source.ipv4), timeout, is_possible);
        if client.is_some() && order.is_empty() && !addresses.is_empty() {
            return Err(io::Error::other(UnusableAddress));
        }
        let attempt = async |&index| {
            let opened = open_at(addresses.at(index)).await;
            match opened {
                Ok(_) => addresses.worked(index),
                Err(_) => addresses.failed(index),
            }
            opened
        };
        // Boxed: most servers have one address, and need not pay for this future.
        Box::pin(race(order.iter().map(attempt), delay, |number| addresses.failed(order[number]))).await
    };
    let mut attempts = pin!(attempts);
    if let Some(result) = soon(attempts.as_mut()).await {
        return result;
    }
    tokio::time::timeout(timeout, attempts).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What comes of it if it is done by the time the runtime has looked at its sockets once, as a connection to a server nearby: it
/// then needs no timer. To set one that is earlier than all others takes a system call, and another turn of the runtime.
async fn soon<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    if let Some(output) = poll_once(future.as_mut()).await {
        return Some(output);
    }
    tokio::task::yield_now().await;
    poll_once(future).await
}

pub(super) async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Whether connections to the server can have this client's address as their source.
fn is_source_toward(client: IpAddr, server: SocketAddr) -> bool {
    let is_hosts = match client {
        IpAddr::V4(ip) => !ip.is_broadcast(),
        // A link-local one has a meaning on the client's link only.
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    // Unspecified, which a proxy may say, would be the gateway's own.
    is_hosts && !client.is_unspecified() && !client.is_multicast() && client.is_ipv4() == server.is_ipv4()
}

/// Dials from up to `ports` source ports. A gateway that we cannot see may use a port toward this server; its flow then
/// takes the SYN-ACK. So after `patience` without an answer, another port is tried as well. The first connection counts:
/// maybe the server was only slow.
async fn open_from_ports(
    address: SocketAddr,
    source: Source<'_>,
    ports: u32,
    patience: Duration,
    speaks: bool,
) -> io::Result<Dialled> {
    let mut first = pin!(open_from(address, source, speaks));
    if ports == 1 {
        return first.await;
    }
    if let Some(result) = soon(first.as_mut()).await {
        return result;
    }
    if let Ok(result) = tokio::time::timeout(patience, first.as_mut()).await {
        return result;
    }
    // It may have come just now.
    source.ports.follow_others();
    source.ports.look_elsewhere(address);
    tokio::select! {
        result = first.as_mut() => result,
        Ok(dialled) = Box::pin(open_from_ports(address, source, ports - 1, patience, speaks)) => Ok(dialled),
    }
}

/// Dials from a port of ours if one is free, else from one that the kernel chooses. Neither is that of a spliced connection.
async fn open_from(address: SocketAddr, source: Source<'_>, speaks: bool) -> io::Result<Dialled> {
    const TAKEN: [i32; 2] = [libc::EADDRINUSE, libc::EADDRNOTAVAIL];
    let bind = |port| Bind {
        address: match (source.client, address) {
            (Some(client), _) => client.ip(),
            (None, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (None, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        },
        port,
        mss: source.mss,
    };
    for _ in 0..PORT_ATTEMPTS {
        let Some(port) = source.ports.take(address, source.client) else { break };
        match open(address, Some(bind(port.number())), speaks).await {
            Ok(stream) => return Ok((stream, Some(port))),
            // A socket has the port: one that listens there, one of ours in TIME_WAIT, or one of another gateway that has
            // not spliced its connection yet. The ports that follow may be taken in the same way.
            Err(error) if error.raw_os_error().is_some_and(|code| TAKEN.contains(&code)) => {
                source.ports.look_elsewhere(address);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((open(address, source.client.map(|_| bind(0)), speaks).await?, None))
}

/// `speaks`: something is to be sent as soon as it is connected, and acknowledges the server's SYN-ACK.
async fn open(address: SocketAddr, from: Option<Bind>, speaks: bool) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    if speaks {
        // A segment less, and the server has the connection and its first bytes at the same time.
        tcp::delay_acknowledgement(socket.as_fd())?;
    }
    if let Some(from) = from {
        // The same port serves connections to several servers.
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            socket2::SockRef::from(&socket).set_only_v6(true)?;
        }
        if !from.address.is_unspecified() {
            tcp::set_transparent(socket.as_fd(), address.is_ipv4())?;
        }
        if from.port == 0 {
            tcp::choose_port_late(socket.as_fd())?;
        }
        socket.bind(SocketAddr::new(from.address, from.port))?;
        if let Some(mss) = from.mss {
            // An error: it is larger than what the kernel would announce anyway, or too small.
            let _ = tcp::set_mss(socket.as_fd(), mss);
        }
    }
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_spoken_to_at_once_is_acknowledged_with_the_first_bytes() {
        let server = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        server.set_nonblocking(true).unwrap();
        // Loopback delivers within the call that sends.
        let has_it = async |speaks| {
            let socket = open(server.local_addr().unwrap(), None, speaks).await.unwrap();
            let has_it = server.accept().is_ok();
            if !has_it {
                socket.try_write(b"first bytes").unwrap();
                server.accept().unwrap();
            }
            has_it
        };
        assert!(has_it(false).await);
        // Not if this thread has slept for 200 ms in between.
        let mut waits = false;
        for _ in 0..20 {
            waits |= !has_it(true).await;
        }
        assert!(waits);
    }

    #[test]
    fn only_a_hosts_address_can_be_a_source_and_only_toward_its_own_family() {
        let (v4, v6) = ("10.0.2.2:6379".parse().unwrap(), "[fd00:2::2]:6379".parse().unwrap());
        for (client, toward_v4, toward_v6) in [
            ("192.0.2.7", true, false),
            ("2001:db8::7", false, true),
            ("127.0.0.1", true, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("224.0.0.1", false, false),
            ("ff02::1", false, false),
            ("255.255.255.255", false, false),
            ("fe80::7", false, false),
        ] {
            let client = client.parse().unwrap();
            let found = [v4, v6].map(|server| is_source_toward(client, server));
            assert_eq!(found, [toward_v4, toward_v6], "{client}");
        }
    }
}
