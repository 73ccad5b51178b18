//! What the programs say by aya-log of packets that they do not forward. Only with the feature `kernel-log`.

use super::error::KernelError;
use aya_log::{EbpfLogger, Level};
use std::os::fd::{AsFd as _, OwnedFd};

/// Ring buffer of what is said, as aya-log names it. Pinned, so that the programs of all kinds of devices share it.
pub(super) const LOGS: &str = "AYA_LOGS";

/// The target of what is said, in `RUST_LOG`.
const TARGET: &str = "snisplice::kernel";

/// The highest level that anybody listens to, for `AYA_LOG_LEVEL`; 0: nobody does. The programs keep that of the process
/// that loaded them.
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

/// `program`: one of them, as the kernel numbers it. What is readable when the programs have said something, and what hands that to `log`, from where tracing has it. Needs
/// CAP_SYS_ADMIN, which may be dropped afterwards.
pub fn open(program: u32) -> Result<(OwnedFd, impl FnMut() + Send + 'static), KernelError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| KernelError::Load(error);
    let mut logger = EbpfLogger::init_from_id(program).map_err(|error| failed(error.into()))?;
    let readable = logger.as_fd().try_clone_to_owned().map_err(|error| failed(error.into()))?;
    Ok((readable, move || logger.flush()))
}
