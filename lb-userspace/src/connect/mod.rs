//! Connect: a socket to one server of the route's pool.

mod pool;
pub mod ports;
mod preamble;
pub mod resolve;

pub use pool::{Pool, Server, ServerGuard, ServerRecord};
pub use preamble::{Endpoints, proxy_header, request_tls};

use crate::account::CloseReason;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

/// Servers tried for one connection. More would keep the client waiting for longer than it will.
const ATTEMPTS: usize = 4;

/// Idle time before the kernel asks whether the peer is still there; the system's own interval and count follow.
pub const KEEPALIVE: Duration = Duration::from_secs(300);

/// Connects to a server of `pool`; on failure to the next one.
pub async fn connect(pool: &Pool, client: IpAddr) -> Result<(TcpStream, ServerGuard), CloseReason> {
    let mut tried = Vec::new();
    let mut reason = CloseReason::NoServer;
    while tried.len() < ATTEMPTS {
        let Some(guard) = pool.choose(client, &tried) else { break };
        let server = guard.server().clone();
        match dial(&server, pool.connect_timeout).await {
            Ok(stream) => {
                server.state.total.fetch_add(1, Relaxed);
                return Ok((stream, guard));
            }
            Err(error) => {
                server.state.failures.fetch_add(1, Relaxed);
                tracing::debug!(pool = %pool.name, server = %server.address, %error, "cannot connect");
                reason = reason_of(&error);
            }
        }
        tried.push(server);
    }
    Err(reason)
}

fn reason_of(error: &io::Error) -> CloseReason {
    const EXHAUSTED: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EADDRNOTAVAIL];
    match error.raw_os_error() {
        Some(code) if EXHAUSTED.contains(&code) => CloseReason::Resource,
        _ if error.kind() == io::ErrorKind::TimedOut => CloseReason::ConnectTimeout,
        _ => CloseReason::ConnectFailed,
    }
}

/// Tries the server's addresses in turn; `timeout` bounds all of them together.
async fn dial(server: &Server, timeout: Duration) -> io::Result<TcpStream> {
    let attempts = async {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in server.addresses().iter() {
            match open(*address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    tokio::time::timeout(timeout, attempts).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    socket.connect(address).await
}
