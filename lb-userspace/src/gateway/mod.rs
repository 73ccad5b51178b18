//! The running gateway: what its workers and its control side share.

mod control;
mod drained;
mod reload;
mod removed;
mod report;
mod watch;
mod worker;

pub use control::run;

use crate::accept::ListenError;
use crate::account::Books;
use crate::kernel::{Kernel, Sockmap};
use crate::reason::{FallbackReason, Tier};
use crate::serving::{CertificateRefused, Limit, Listener, Permit, Snapshot};
use crate::splice::packet::PacketTier;
use crate::tier::{Choice, choose};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Why the gateway cannot start, or a reload cannot take effect.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A certificate cannot be served.
    #[error(transparent)]
    Certificate(#[from] CertificateRefused),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: ListenError,
    },
    /// The access log cannot be opened.
    #[error("gateway.access_log: cannot open {path}")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A worker is gone, which only happens at the end.
    #[error("the gateway is stopping")]
    Stopping,
}

/// A reload asked for over the admin socket; answered when it took effect or failed.
type ReloadRequest = oneshot::Sender<Result<crate::admin::view::Reloaded, String>>;

/// What the workers, the admin side and the control loop share.
pub struct Gateway {
    /// The configuration in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// What connections are entered in.
    pub books: Arc<Books>,
    /// The packet tier, or why it is not used.
    packet: Result<Arc<PacketTier>, FallbackReason>,
    /// The programs of the sockmap tier, or why they are not used.
    sockmap: Result<Kernel, FallbackReason>,
    /// Every listening socket, once more.
    listening: Mutex<HashMap<SocketAddr, Vec<TcpListener>>>,
    workers: usize,
    /// Where it is kept what is drained.
    state_dir: PathBuf,
    stopping: AtomicBool,
    reloads: mpsc::UnboundedSender<ReloadRequest>,
}

impl Gateway {
    /// The tier for a new connection that is passed on. `packet` tries to splice it in the packet tier.
    pub fn choose_tier(
        &self,
        order: &[Tier],
        mut packet: impl FnMut() -> Result<(), FallbackReason>,
    ) -> Choice {
        choose(order, |tier| match tier {
            Tier::Copy => None,
            Tier::Packet => packet().err(),
            Tier::Sockmap => self.sockmap.as_ref().err().copied(),
        })
    }

    /// Lets a listener's next SYN-ACKs announce no larger MSS than this: a server behind it takes no larger segments.
    pub fn clamp_mss(&self, listener: &Listener, mss: u16) {
        if !listener.stats.clamp_mss(mss) {
            return;
        }
        let listening = self.listening();
        for socket in listener.bind.iter().filter_map(|address| listening.get(address)).flatten() {
            if let Err(error) = crate::kernel::tcp::set_mss(socket.as_fd(), mss) {
                tracing::warn!(listener = %listener.name, mss, %error, "cannot announce a smaller MSS");
            }
        }
        tracing::info!(listener = %listener.name, mss, "a server takes smaller segments: clients are told so");
    }

    /// Takes a place under a limit of `max`. At the limit it reads the programs' events first: a connection that has ended
    /// may free one.
    pub fn acquire(&self, limit: &Arc<Limit>, max: Option<usize>) -> Option<Permit> {
        limit.acquire(max).or_else(|| {
            self.packet().ok()?.follow_events();
            limit.acquire(max)
        })
    }

    fn listening(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<TcpListener>>> {
        // The map is never left half-changed.
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The packet tier, where it is to be had.
    pub fn packet(&self) -> Result<&Arc<PacketTier>, FallbackReason> {
        self.packet.as_ref().map_err(|reason| *reason)
    }

    /// The sockmap tier, where it is to be had.
    pub fn sockmap(&self) -> Option<&Sockmap> {
        self.sockmap.as_ref().ok().map(|kernel| &**kernel.sockmap())
    }
}
