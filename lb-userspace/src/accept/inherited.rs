//! Listening sockets that this process has from another. Those of a service manager (socket activation), which keeps them open
//! while no gateway runs: new clients then wait in the backlog instead of being refused. And those of the process that this
//! one takes over from, in whose backlog clients wait as well.

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

/// The inherited sockets, by address. Those of the service manager are kept as long as the process lives: a reload may use an
/// address again.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<SocketAddr, Vec<InheritedSocket>>);

#[derive(Debug)]
struct InheritedSocket {
    socket: Socket,
    /// It is the service manager's.
    is_managers: bool,
}

impl Inherited {
    /// Takes over the descriptors that LISTEN_PID and LISTEN_FDS describe (sd_listen_fds(3)). To be called once.
    pub fn from_environment() -> Result<Self, InheritError> {
        let mut inherited = Self::default();
        for descriptor in sd_notify::listen_fds().map_err(InheritError::Environment)? {
            // SAFETY: `listen_fds` has checked that it is open; the service manager has given it to this process, and
            // nothing else here takes it.
            let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
            inherited.add(socket, true)?.ok_or(InheritError::NotListening(descriptor))?;
        }
        Ok(inherited)
    }

    /// Adds a socket that listens, and says where; `None`: it does not.
    pub fn add(
        &mut self,
        descriptor: OwnedFd,
        is_managers: bool,
    ) -> Result<Option<SocketAddr>, InheritError> {
        let socket = Socket::from(descriptor);
        let Some(address) = listening_address(&socket) else { return Ok(None) };
        if address.ip().is_unspecified() && address.is_ipv6() && !socket.only_v6().unwrap_or(false) {
            return Err(InheritError::BothFamilies(address));
        }
        self.0.entry(address).or_default().push(InheritedSocket { socket, is_managers });
        Ok(Some(address))
    }

    /// Adds those of another process.
    pub fn extend(&mut self, others: Self) {
        for (address, sockets) in others.0 {
            self.0.entry(address).or_default().extend(sockets);
        }
    }

    /// Their addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.keys().copied()
    }

    /// Those of the service manager.
    pub fn of_manager(&self) -> impl Iterator<Item = &Socket> {
        self.0.values().flatten().filter(|inherited| inherited.is_managers).map(|inherited| &inherited.socket)
    }

    /// Closes those that are not the service manager's.
    pub fn keep_managers(&mut self) {
        self.0.retain(|_, sockets| {
            sockets.retain(|inherited| inherited.is_managers);
            !sockets.is_empty()
        });
    }

    /// Sockets for so many workers, set up as [`super::listen()`] does. All of them, should there be more: connections wait in
    /// each. If there are too few, more are opened beside them, or shared where the kernel does not allow that. `None`: the
    /// address was not inherited.
    pub fn sockets(&self, bind: Bind, workers: usize) -> Option<Result<Vec<TcpListener>, ListenError>> {
        let inherited = self.0.get(&bind.address)?;
        let all = || -> Result<Vec<TcpListener>, ListenError> {
            let mut sockets = Vec::new();
            for InheritedSocket { socket, .. } in inherited {
                prepare(socket, bind.backlog).map_err(ListenError::Io)?;
                sockets.push(socket.try_clone().map_err(ListenError::Io)?.into());
            }
            let missing = workers.saturating_sub(sockets.len());
            if missing > 0
                && inherited.iter().all(|InheritedSocket { socket, .. }| socket.reuse_port().unwrap_or(false))
            {
                sockets.extend(super::listen(bind, missing)?);
            }
            let there = sockets.len();
            for nth in there..workers {
                sockets.push(sockets[nth % there].try_clone().map_err(ListenError::Io)?);
            }
            Ok(sockets)
        };
        Some(all())
    }
}

fn listening_address(socket: &Socket) -> Option<SocketAddr> {
    let is_tcp = socket.r#type().ok()? == Type::STREAM && socket.protocol().ok()? == Some(Protocol::TCP);
    if !is_tcp || !socket.is_listener().ok()? {
        return None;
    }
    socket.local_addr().ok()?.as_socket()
}
