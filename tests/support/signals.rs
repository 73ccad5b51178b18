//! Signals that come while a thread works.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// Nothing else uses it.
const SIGNAL: Signal = Signal::SIGUSR2;

thread_local! {
    // Nothing is made or dropped with a thread: a signal handler may use it.
    static ARRIVED: Cell<u64> = const { Cell::new(0) };
}

/// The calling thread gets a signal every 50 microseconds while this is there; calls that can be restarted are.
#[derive(Debug)]
pub struct Signals {
    _timer: Timer,
}

impl Signals {
    /// From here on.
    pub fn start() -> Result<Self> {
        extern "C" fn count(_: nix::libc::c_int) {
            ARRIVED.set(ARRIVED.get() + 1);
        }
        // It stays: a signal may still be under way when the timer has gone.
        let action = SigAction::new(SigHandler::Handler(count), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler only adds to a number of the thread's.
        unsafe { sigaction(SIGNAL, &action) }?;
        let thread_id = nix::unistd::gettid().as_raw();
        let to_this_thread = SigevNotify::SigevThreadId { signal: SIGNAL, thread_id, si_value: 0 };
        let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(to_this_thread))?;
        let interval = Duration::from_micros(50).into();
        timer.set(Expiration::Interval(interval), TimerSetTimeFlags::empty())?;
        Ok(Self { _timer: timer })
    }

    /// How many have come to this thread.
    pub fn arrived(&self) -> u64 {
        ARRIVED.get()
    }
}
