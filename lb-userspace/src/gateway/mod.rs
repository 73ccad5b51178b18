//! The gateway's life: start, reload, stop; its workers, and what operators see and do.

mod aside;
pub(crate) mod attached;
mod control;
mod drained;
pub(crate) mod objects;
mod prospect;
mod release;
mod reload;
mod removed;
mod report;
mod shown;
mod source;
mod start;
mod succession;
mod take_over;
mod watch;
mod worker;

pub use attached::file as attached_file;
pub use drained::file as drained_file;
pub use start::run;

use crate::accept::ListenError;
use crate::config::SourceAddress;
use crate::kernel::tcp;
use crate::serving::{CertificateRefused, Snapshot};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// The kernel does not let this process dial from addresses of others.
    #[error("pool {pool} has source = \"client\", which needs CAP_NET_ADMIN")]
    ClientAddresses {
        /// The pool.
        pool: Arc<str>,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A worker is gone, which only happens at the end.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Fails if servers are to see their clients' addresses and this process may not dial from them.
fn may_use_client_addresses(snapshot: &Snapshot) -> Result<(), Fault> {
    let Some(pool) = snapshot.pools.iter().find(|pool| pool.source == SourceAddress::Client) else {
        return Ok(());
    };
    tcp::may_be_transparent().map_err(|source| Fault::ClientAddresses { pool: pool.name.clone(), source })
}

/// A reload asked for over the admin socket; answered when it took effect or failed.
type ReloadRequest = oneshot::Sender<Result<crate::admin::view::Reloaded, String>>;
