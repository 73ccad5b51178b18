//! The process's monotonic clock, in the one unit that counters use.

use std::sync::LazyLock;
use std::time::Instant;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process started (since the first call).
pub fn now_ms() -> u64 {
    // 584 million years fit.
    START.elapsed().as_millis() as u64
}
