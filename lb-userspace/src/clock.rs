//! The one clock of counters: CLOCK_MONOTONIC, which the kernel programs read too and which outlives the process.

use rustix::time::{ClockId, clock_gettime};
use std::sync::LazyLock;

static START: LazyLock<u64> = LazyLock::new(now_ms);

/// Milliseconds since the machine started.
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Milliseconds since the process started (since the first call).
pub fn uptime_ms() -> u64 {
    // Read before the clock: the first call sets it.
    let start = *START;
    now_ms() - start
}
