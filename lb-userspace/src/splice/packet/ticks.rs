//! The programs' clock, in ticks of 2^TICK_SHIFT nanoseconds.

use crate::clock::now_coarse_ns;
use lb_common::packet::TICK_SHIFT;

/// The programs' clock now.
pub(super) fn now_tick() -> u32 {
    tick_of_ns(now_coarse_ns())
}

const fn tick_of_ns(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

/// The tick at a time of [`now_ms`](crate::clock::now_ms).
pub(super) const fn tick_of_ms(ms: u64) -> u32 {
    tick_of_ns(ms * 1_000_000)
}

/// The time ([`now_ms`](crate::clock::now_ms)) of a tick in the last 26 days; an older one is taken for now. Computed from
/// the coarse clock, which the programs read: compared with the exact one, a tick would seem up to 10 ms later than it was.
pub(super) fn ms_of_tick(tick: u32) -> u64 {
    let now = now_coarse_ns();
    now / 1_000_000 - ms_between(tick, tick_of_ns(now))
}

/// Milliseconds from one tick to a later one; 0 if the second is not later.
pub(super) const fn ms_between(tick: u32, later: u32) -> u64 {
    let ticks = later.wrapping_sub(tick);
    // A tick that was read on another CPU may be newer than ours: a difference of more than half the range is negative.
    if ticks > u32::MAX / 2 { 0 } else { ((ticks as u64) << TICK_SHIFT) / 1_000_000 }
}
