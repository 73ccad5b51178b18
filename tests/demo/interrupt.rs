//! How the demo ends early.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Set by SIGINT and SIGTERM. Every step looks at it, so that what was started is dropped in order.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends the demo here if it was interrupted.
pub(crate) fn pause_point() -> Result<()> {
    ensure!(!interrupted(), "interrupted");
    Ok(())
}

/// Whether it was.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// From here on SIGINT and SIGTERM only say that the demo is to end.
pub(crate) fn watch_for_interrupts() -> Result<()> {
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
