//! The thread that reads the kernel programs' log; see [`crate::kernel::log`].

use crate::kernel::{KernelError, Packet, log};
use crate::privileges::drop_privileges;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::thread::Builder;

/// Starts the thread, which ends with the process.
pub(super) fn follow(kernel: &Packet) -> Result<(), KernelError> {
    let (readable, mut flush) = log::open(kernel.program_id()?)?;
    let run = move || {
        // Privileges are per thread, and this one was started before the process dropped them.
        if let Err(error) = drop_privileges() {
            tracing::warn!(%error, "the thread for the programs' log keeps its privileges");
        }
        while matches!(poll(&mut [PollFd::new(&readable, PollFlags::IN)], None), Ok(_) | Err(Errno::INTR)) {
            flush();
        }
    };
    Builder::new()
        .name("programs' log".into())
        .spawn(run)
        .map_err(|error| KernelError::Load(error.into()))?;
    Ok(())
}
