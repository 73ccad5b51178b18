//! The clock of all timestamps: CLOCK_MONOTONIC as the kernel programs read it, which goes on when the process is restarted.
//!
//! The programs read the machine's. A process in a time namespace (time_namespaces(7)) reads one that is shifted by a
//! constant, which is subtracted here.

use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::sync::LazyLock;

static START: LazyLock<u64> = LazyLock::new(now_ms);

/// Nanoseconds by which CLOCK_MONOTONIC of this process is ahead of the machine's. Fixed: a namespace's offsets cannot be
/// changed once a process is in it.
static AHEAD: LazyLock<i64> = LazyLock::new(ahead);

/// Nanoseconds since the machine started.
pub fn now_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// As [`now_ns`], at the kernel's last timer interrupt, up to 10 ms ago. The kernel programs use this clock.
pub fn now_coarse_ns() -> u64 {
    read(ClockId::MonotonicCoarse)
}

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // The kernel refuses offsets with which the clock would be below zero, or beyond 2^63 ns.
    (now.tv_sec * 1_000_000_000 + now.tv_nsec).saturating_sub(*AHEAD).max(0).unsigned_abs()
}

/// Milliseconds since the machine started.
pub fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// When the process started ([`now_ms`] at the first call).
pub fn started_ms() -> u64 {
    *START
}

/// Milliseconds since the process started.
pub fn uptime_ms() -> u64 {
    // Read before the clock: the first call sets it.
    let start = started_ms();
    now_ms() - start
}

/// 0 where there are no time namespaces, or no /proc.
fn ahead() -> i64 {
    // The file shows the offsets of the namespace of this process's children. If that is another than its own, the process
    // itself is assumed to be in the machine's.
    let [own, of_children] =
        ["time", "time_for_children"].map(|name| fs::read_link(format!("/proc/self/ns/{name}")));
    match (own, of_children) {
        (Ok(own), Ok(of_children)) if own == of_children => {
            let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
            monotonic_offset(&offsets).unwrap_or(0)
        }
        _ => 0,
    }
}

/// The offset of CLOCK_MONOTONIC in nanoseconds. Each line has a clock's name, seconds and nanoseconds.
fn monotonic_offset(offsets: &str) -> Option<i64> {
    let mut lines = offsets.lines().map(str::split_ascii_whitespace);
    let mut fields = lines.find_map(|mut fields| (fields.next()? == "monotonic").then_some(fields))?;
    let (seconds, nanoseconds): (i64, i64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // The nanoseconds are never negative: they are added also to negative seconds.
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_writes_them() {
        let of = |seconds, nanoseconds| {
            let text = format!("monotonic  {seconds:10} {nanoseconds:9}\nboottime   {:10} {:9}\n", 7, 8);
            monotonic_offset(&text)
        };
        assert_eq!(of(0, 0), Some(0));
        assert_eq!(of(100_000, 5), Some(100_000_000_000_005));
        assert_eq!(of(-60, 999_999_999), Some(-59_000_000_001));
        assert_eq!(of(i64::MAX, 0), None);
        assert_eq!(monotonic_offset("boottime 1 2\nmonotonic 3 4\n"), Some(3_000_000_004));
        for broken in ["", "\n", "monotonic", "monotonic 1", "monotonic x 0", "monotonics 1 2"] {
            assert_eq!(monotonic_offset(broken), None, "{broken:?}");
        }
    }
}
