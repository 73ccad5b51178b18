//! Connect: a socket to one server of the route's pool.

mod foreign;
pub mod health;
pub mod ports;
mod preamble;
mod race;
pub mod resolve;
mod service;
mod source;

pub use preamble::{Endpoints, proxy_header, request_tls};
pub use source::{GatewayPorts, SourcePort};

use crate::kernel::tcp;
use crate::reason::CloseReason;
use crate::serving::{Addresses, Pool, ServerGuard};
use race::race;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

/// Servers tried for one connection. More would keep the client waiting for longer than it will.
const ATTEMPTS: usize = 4;

/// Attempts to find a source port of ours that no socket has.
const PORT_ATTEMPTS: usize = 16;

/// Source ports tried for one connection; the next one each time a third of `connect_timeout` has passed unanswered.
const UNANSWERED_PORTS: u32 = 3;

/// What a connection that may be spliced is dialled with.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Whose source ports it takes: the kernel does not know those of spliced connections.
    pub ports: &'a Arc<GatewayPorts>,
    /// The MSS that the client announced: the server shall send it no larger segments.
    pub mss: Option<u16>,
    /// The family of the client's leg: only a leg of the same one can be spliced to it.
    pub ipv4: bool,
}

/// A connected socket, with its source port if that is one of ours.
type Dialled = (TcpStream, Option<SourcePort>);

/// Between two looks whether the first check of a server is done.
const CHECK_POLL: Duration = Duration::from_millis(5);

/// Connects to a server of `pool`; on failure to the next one.
pub async fn connect(
    pool: &Pool,
    client: IpAddr,
    source: Option<Source<'_>>,
) -> Result<(TcpStream, Option<SourcePort>, ServerGuard), CloseReason> {
    if pool.awaits_checks() {
        // After a start or a reload: it takes a moment.
        let checked = async {
            while pool.awaits_checks() {
                sleep(CHECK_POLL).await;
            }
        };
        let _ = timeout(pool.connect_timeout, Box::pin(checked)).await;
    }
    let mut tried = Vec::new();
    let mut reason = None;
    while tried.len() < ATTEMPTS {
        let Some(guard) = pool.choose(client, &tried) else { break };
        let server = guard.server().clone();
        match dial(&server.addresses(), pool.connect_timeout, source).await {
            Ok((stream, port)) => {
                server.state.total.fetch_add(1, Relaxed);
                return Ok((stream, port, guard));
            }
            Err(error) => {
                server.state.failures.fetch_add(1, Relaxed);
                tracing::debug!(pool = %pool.name, server = %server.address, %error, "cannot connect");
                let why = reason_of(&error);
                if why != CloseReason::Resource {
                    pool.failed(&server);
                }
                reason = Some(why);
            }
        }
        tried.push(server);
    }
    Err(reason.unwrap_or_else(|| pool.refusal()))
}

fn reason_of(error: &io::Error) -> CloseReason {
    const EXHAUSTED: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EADDRNOTAVAIL];
    match error.raw_os_error() {
        Some(code) if EXHAUSTED.contains(&code) => CloseReason::Resource,
        _ if error.kind() == io::ErrorKind::TimedOut => CloseReason::ConnectTimeout,
        _ => CloseReason::ConnectFailed,
    }
}

/// Tries a server's addresses, the next one beside those before if these are silent (RFC 8305); `timeout` bounds all of
/// them together.
async fn dial(addresses: &Addresses, timeout: Duration, source: Option<Source<'_>>) -> io::Result<Dialled> {
    let patience = timeout / UNANSWERED_PORTS;
    let open_at = async |address| match source {
        Some(source) => open_from_ports(address, source, UNANSWERED_PORTS, patience).await,
        None => open(address, None).await.map(|stream| (stream, None)),
    };
    let attempts = async {
        if let Some(address) = addresses.only() {
            return open_at(address).await;
        }
        let (order, delay) = addresses.order(source.map(|source| source.ipv4), timeout);
        let attempt = async |&index| {
            let opened = open_at(addresses.at(index)).await;
            match opened {
                Ok(_) => addresses.worked(index),
                Err(_) => addresses.failed(index),
            }
            opened
        };
        // Boxed: most servers have one address.
        Box::pin(race(order.iter().map(attempt), delay, |number| addresses.failed(order[number]))).await
    };
    tokio::time::timeout(timeout, attempts).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Dials from up to `ports` source ports. A gateway we cannot see may use a port toward this server; its flow then takes
/// the SYN-ACK. So after `patience` without an answer another port is tried beside the first, which may only be slow; the
/// first answer counts.
async fn open_from_ports(
    address: SocketAddr,
    source: Source<'_>,
    ports: u32,
    patience: Duration,
) -> io::Result<Dialled> {
    let mut first = pin!(open_from(address, source));
    if ports == 1 {
        return first.await;
    }
    if let Ok(result) = tokio::time::timeout(patience, first.as_mut()).await {
        return result;
    }
    // It may have come just now.
    source.ports.follow_others();
    source.ports.look_elsewhere(address);
    tokio::select! {
        result = first.as_mut() => result,
        Ok(dialled) = Box::pin(open_from_ports(address, source, ports - 1, patience)) => Ok(dialled),
    }
}

/// From a port of ours if there is one, else from one that the kernel chooses: never from that of a spliced connection.
async fn open_from(address: SocketAddr, source: Source<'_>) -> io::Result<Dialled> {
    const TAKEN: [i32; 2] = [libc::EADDRINUSE, libc::EADDRNOTAVAIL];
    for _ in 0..PORT_ATTEMPTS {
        let Some(port) = source.ports.take(address) else { break };
        match open(address, Some((port.number(), source.mss))).await {
            Ok(stream) => return Ok((stream, Some(port))),
            // By a socket: somebody listens there, or another gateway has not spliced its connection yet. The ports that
            // follow may be theirs too.
            Err(error) if error.raw_os_error().is_some_and(|code| TAKEN.contains(&code)) => {
                source.ports.look_elsewhere(address);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((open(address, None).await?, None))
}

async fn open(address: SocketAddr, from: Option<(u16, Option<u16>)>) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    if let Some((port, mss)) = from {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // The same port serves connections to several servers.
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            socket2::SockRef::from(&socket).set_only_v6(true)?;
        }
        socket.bind(SocketAddr::new(any, port))?;
        if let Some(mss) = mss {
            // Refused: larger than any that the kernel would announce by itself, or too small to be used.
            let _ = tcp::set_mss(socket.as_fd(), mss);
        }
    }
    socket.connect(address).await
}
