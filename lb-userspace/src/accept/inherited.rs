//! Listening sockets of a service manager (socket activation). It keeps them open while no gateway runs: new clients then
//! wait in the backlog instead of being refused.

use super::listen::{Bind, ListenError, prepare};
use socket2::{Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Why a descriptor of the service manager cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// LISTEN_PID or LISTEN_FDS is no number, or a descriptor is not open.
    #[error("LISTEN_FDS does not describe what was inherited")]
    Environment(#[source] io::Error),
    /// It is not a listening TCP socket.
    #[error("inherited descriptor {0} is not a listening TCP socket (in systemd: ListenStream=ADDRESS:PORT)")]
    NotListening(i32),
    /// A socket of `[::]` that would also accept connections to `0.0.0.0`.
    #[error("the inherited socket of {0} takes IPv4 too (in systemd: BindIPv6Only=ipv6-only)")]
    BothFamilies(SocketAddr),
}

/// The inherited sockets, by address. They are kept as long as the process lives: a reload may use an address again.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<SocketAddr, Vec<Socket>>);

impl Inherited {
    /// Takes over the descriptors that LISTEN_PID and LISTEN_FDS describe (sd_listen_fds(3)). To be called once.
    pub fn from_environment() -> Result<Self, InheritError> {
        let mut sockets = BTreeMap::<_, Vec<_>>::new();
        for descriptor in sd_notify::listen_fds().map_err(InheritError::Environment)? {
            // SAFETY: `listen_fds` has checked that it is open; the service manager has given it to this process, and
            // nothing else here takes it.
            let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
            let address = listening_address(&socket).ok_or(InheritError::NotListening(descriptor))?;
            if address.ip().is_unspecified() && address.is_ipv6() && !socket.only_v6().unwrap_or(false) {
                return Err(InheritError::BothFamilies(address));
            }
            sockets.entry(address).or_default().push(socket);
        }
        Ok(Self(sockets))
    }

    /// Their addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.keys().copied()
    }

    /// A socket for each worker, set up as [`super::listen()`] does; workers share one if there are too few. `None`: the
    /// address was not inherited.
    pub fn sockets(&self, bind: Bind, workers: usize) -> Option<Result<Vec<TcpListener>, ListenError>> {
        let sockets = self.0.get(&bind.address)?.iter().cycle().take(workers);
        let shared = sockets.map(|socket| {
            prepare(socket, bind.backlog)?;
            Ok(socket.try_clone()?.into())
        });
        Some(shared.collect::<io::Result<_>>().map_err(ListenError::Io))
    }
}

fn listening_address(socket: &Socket) -> Option<SocketAddr> {
    let is_tcp = socket.r#type().ok()? == Type::STREAM && socket.protocol().ok()? == Some(Protocol::TCP);
    if !is_tcp || !socket.is_listener().ok()? {
        return None;
    }
    socket.local_addr().ok()?.as_socket()
}
