//! Connect: a socket to one server of the route's pool.

mod foreign;
pub mod health;
pub mod ports;
mod preamble;
mod race;
pub mod resolve;
mod service;
mod source;
mod starttls;

pub use preamble::{Endpoints, Greeting, proxy_header};
pub use source::{GatewayPorts, SourcePort};

use crate::kernel::tcp;
use crate::reason::{CloseReason, TlsError};
use crate::serving::{Addresses, Pool, Server, ServerGuard, Unavailable};
use crate::tls::{Dialling, Session};
use preamble::Unwelcome;
use race::race;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// The most servers that are tried for one connection: clients do not wait long enough for more.
const ATTEMPTS: usize = 4;

/// How often a connection that waits for a place with a server looks for one, if no other connection ends meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How many source ports are tried until one is found that no socket has.
const PORT_ATTEMPTS: usize = 16;

/// The most source ports that are tried for one connection, each a third of `connect_timeout` after the one before, if
/// there is no answer.
const UNANSWERED_PORTS: u32 = 3;

/// How a server is dialled for a connection that may be spliced.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The ports to choose from: those of spliced connections are taken, which the kernel does not know.
    pub ports: &'a Arc<GatewayPorts>,
    /// The MSS option of the client, beyond which the server must send no segments.
    pub mss: Option<u16>,
    /// Whether the client's leg is IPv4. Only two legs of the same family can be spliced.
    pub ipv4: bool,
}

/// A connected socket, with its source port if it is one of [`GatewayPorts`].
type Dialled = (TcpStream, Option<SourcePort>);

/// Between two looks whether the first check of a server is done.
const CHECK_POLL: Duration = Duration::from_millis(5);

/// A connection as its server is dialled for it.
pub struct Dial<'a> {
    /// Who it is for.
    pub client: IpAddr,
    /// Present: it may be spliced.
    pub source: Option<Source<'a>>,
    /// What the server is told before the client's first byte, and asked.
    pub greeting: Greeting,
}

/// A server that takes the connection.
pub struct Connected {
    /// The socket to it; it has been greeted.
    pub socket: TcpStream,
    /// Present: its pool has `tls`.
    pub session: Option<Box<Session<Dialling>>>,
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
    /// The one that was reached, and did not answer the greeting as it should.
    pub server: Option<Arc<Server>>,
}

impl From<CloseReason> for Failure {
    fn from(reason: CloseReason) -> Self {
        Self { reason, tls_error: None, server: None }
    }
}

/// Connects to a server of `pool` and greets it; after a failure the next one: nothing of the client's is lost by then.
pub async fn connect(pool: &Pool, dial: &Dial<'_>) -> Result<Connected, Failure> {
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
    let mut failure = None;
    while tried.len() < ATTEMPTS {
        // Nobody goes before those who wait.
        let chosen = match pool.room().waiting() {
            0 => pool.choose(dial.client, &tried),
            _ => Err(Unavailable::Full),
        };
        let guard = match chosen {
            Ok(guard) => guard,
            Err(Unavailable::Full) => match wait(pool, dial.client, &tried).await {
                Some(guard) => guard,
                None => return Err(CloseReason::ServersFull.into()),
            },
            Err(Unavailable::Nobody) => break,
        };
        let server = guard.server().clone();
        let deadline = Instant::now() + pool.connect_timeout;
        let failed = match open_server(&server.addresses(), pool.connect_timeout, dial.source).await {
            Ok((mut socket, port)) => {
                server.state.total.fetch_add(1, Relaxed);
                match dial.greeting.exchange(&mut socket, deadline, &server, pool.tls.as_deref()).await {
                    Ok(session) => return Ok(Connected { socket, session, port, guard }),
                    Err(Unwelcome { reason, tls_error }) => {
                        Failure { reason, tls_error, server: Some(server.clone()) }
                    }
                }
            }
            Err(error) => {
                tracing::debug!(pool = %pool.name, server = %server.address, %error, "cannot connect");
                reason_of(&error).into()
            }
        };
        server.state.failures.fetch_add(1, Relaxed);
        if failed.reason != CloseReason::Resource {
            pool.failed(&server);
        }
        failure = Some(failed);
        tried.push(server);
    }
    Err(failure.unwrap_or_else(|| pool.refusal().into()))
}

/// Connects to this server at this address, though it may be full or drained, and greets it.
pub async fn reach(
    pool: &Pool,
    server: &Server,
    address: SocketAddr,
    greeting: &Greeting,
) -> io::Result<(TcpStream, Option<Box<Session<Dialling>>>)> {
    let deadline = Instant::now() + pool.connect_timeout;
    let mut socket = open(address, None).await?;
    match greeting.exchange(&mut socket, deadline, server, pool.tls.as_deref()).await {
        Ok(session) => Ok((socket, session)),
        Err(Unwelcome { reason, .. }) => Err(io::Error::other(reason.name())),
    }
}

/// Waits, for `connect_timeout` at most, until one of the servers that are full may take the connection.
async fn wait(pool: &Pool, client: IpAddr, tried: &[Arc<Server>]) -> Option<ServerGuard> {
    let place = pool.room().join(pool.most_waiting())?;
    let chosen = async {
        let _turn = place.turn().await;
        loop {
            match pool.choose(client, tried) {
                Ok(guard) => return Some(guard),
                Err(Unavailable::Full) => {}
                Err(Unavailable::Nobody) => return None,
            }
            // A server may also come up, or be allowed more.
            let _ = timeout(LOOK_AGAIN, place.freed()).await;
        }
    };
    timeout(pool.connect_timeout, chosen).await.ok().flatten()
}

fn reason_of(error: &io::Error) -> CloseReason {
    const EXHAUSTED: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EADDRNOTAVAIL];
    match error.raw_os_error() {
        Some(code) if EXHAUSTED.contains(&code) => CloseReason::Resource,
        _ if error.kind() == io::ErrorKind::TimedOut => CloseReason::ConnectTimeout,
        _ => CloseReason::ConnectFailed,
    }
}

/// Opens a connection to a server. Tries its addresses: if one does not answer, the next one is tried as well (RFC 8305).
/// `timeout` bounds all of them together.
async fn open_server(
    addresses: &Addresses,
    timeout: Duration,
    source: Option<Source<'_>>,
) -> io::Result<Dialled> {
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
        // Boxed: most servers have one address, and need not pay for this future.
        Box::pin(race(order.iter().map(attempt), delay, |number| addresses.failed(order[number]))).await
    };
    tokio::time::timeout(timeout, attempts).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Dials from up to `ports` source ports. A gateway that we cannot see may use a port toward this server; its flow then
/// takes the SYN-ACK. So after `patience` without an answer, another port is tried as well. The first connection counts:
/// maybe the server was only slow.
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

/// Dials from a port of ours if one is free, else from one that the kernel chooses. Neither is that of a spliced connection.
async fn open_from(address: SocketAddr, source: Source<'_>) -> io::Result<Dialled> {
    const TAKEN: [i32; 2] = [libc::EADDRINUSE, libc::EADDRNOTAVAIL];
    for _ in 0..PORT_ATTEMPTS {
        let Some(port) = source.ports.take(address) else { break };
        match open(address, Some((port.number(), source.mss))).await {
            Ok(stream) => return Ok((stream, Some(port))),
            // A socket has the port: one that listens there, one of ours in TIME_WAIT, or one of another gateway that has
            // not spliced its connection yet. The ports that follow may be taken in the same way.
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
            // An error: it is larger than what the kernel would announce anyway, or too small.
            let _ = tcp::set_mss(socket.as_fd(), mss);
        }
    }
    socket.connect(address).await
}
