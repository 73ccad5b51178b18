//! How a program that runs until Ctrl-C ends early.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Set by SIGINT and SIGTERM. Every step looks at it, so that what was started is dropped in order.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// An error if the program was interrupted.
pub fn pause_point() -> Result<()> {
    ensure!(!interrupted(), "interrupted");
    Ok(())
}

/// Whether it was.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// From here on SIGINT and SIGTERM only say that the program is to end.
pub fn watch_for_interrupts() -> Result<()> {
    extern "C" fn note_it(_: nix::libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note_it), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
