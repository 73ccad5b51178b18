//! The programs' log (aya-log): why packets are not forwarded. Only with the feature `kernel-log`.

use super::error::KernelError;
use aya_log::{EbpfLogger, Level};
use std::os::fd::{AsFd as _, OwnedFd};

/// The ring buffer of the log; the name is aya-log's. Pinned, so that the programs for all kinds of devices share it.
pub(super) const LOGS: &str = "AYA_LOGS";

/// The target of the log's lines in `RUST_LOG`.
const TARGET: &str = "snisplice::kernel";

/// The most detailed level that is enabled, for `AYA_LOG_LEVEL`; 0: none. The programs keep the level of the process that
/// loaded them.
pub(super) fn level() -> u8 {
    if tracing::enabled!(target: TARGET, tracing::Level::TRACE) {
        Level::Trace as u8
    } else if tracing::enabled!(target: TARGET, tracing::Level::DEBUG) {
        Level::Debug as u8
    } else if tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        Level::Info as u8
    } else {
        0
    }
}

/// Opens the log. Returns a descriptor that is readable when there are lines, and a function that passes them to `log`, and
/// so to tracing. `program`: the kernel's id of one of the programs. Needs CAP_SYS_ADMIN, which may be dropped afterwards.
pub fn open(program: u32) -> Result<(OwnedFd, impl FnMut() + Send + 'static), KernelError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| KernelError::Load(error);
    let mut logger = EbpfLogger::init_from_id(program).map_err(|error| failed(error.into()))?;
    let readable = logger.as_fd().try_clone_to_owned().map_err(|error| failed(error.into()))?;
    Ok((readable, move || logger.flush()))
}
