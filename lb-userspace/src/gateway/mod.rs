//! The gateway's life: start, reload, stop; its workers, and what operators see and do.

mod aside;
mod control;
mod drained;
mod reload;
mod removed;
mod report;
mod watch;
mod worker;

pub use control::run;

use crate::accept::ListenError;
use crate::serving::CertificateRefused;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::sync::oneshot;

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
