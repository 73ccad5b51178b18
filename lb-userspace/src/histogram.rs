//! A histogram of durations that any number of workers observe without a lock.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Inclusive upper bounds of the buckets except the last, in microseconds. A connect on the same machine and a handover
/// take 50 to 100 us; `connect_timeout` and `hello_timeout` are seconds.
pub const BOUNDS_US: [u64; 20] = [
    25, 50, 75, 100, 150, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// One bucket for each bound, and one for longer durations.
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Counts durations in fixed buckets, without locks and allocations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// What a [`Histogram`] held at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Observations per bucket, not cumulated as in the metrics.
    pub buckets: [u64; BUCKETS],
    /// The sum of all observations. A concurrent one may be in a bucket and not yet in the sum.
    pub sum: Duration,
}

impl Histogram {
    /// An empty histogram.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let bucket = BOUNDS_US.partition_point(|&bound| Duration::from_micros(bound) < duration);
        self.buckets[bucket].fetch_add(1, Relaxed);
        // 584 years of nanoseconds fit.
        self.sum_ns.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// What has been counted so far.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Relaxed)),
            sum: Duration::from_nanos(self.sum_ns.load(Relaxed)),
        }
    }
}

impl HistogramSnapshot {
    /// The number of observations: the sum of the buckets, as scrapers require.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS_US.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::new();
        histogram.observe(Duration::ZERO);
        histogram.observe(Duration::from_micros(100));
        histogram.observe(Duration::from_nanos(100_001));
        histogram.observe(Duration::from_secs(10));
        histogram.observe(Duration::from_secs(11));
        let seen = histogram.snapshot();
        assert_eq!((seen.buckets[0], seen.buckets[3], seen.buckets[4]), (1, 1, 1));
        assert_eq!((seen.buckets[BUCKETS - 2], seen.buckets[BUCKETS - 1]), (1, 1));
        assert_eq!(seen.count(), 5);
        assert_eq!(seen.sum, Duration::from_nanos(21_000_200_001));
    }

    #[test]
    fn observations_of_several_threads_add_up() {
        let histogram = Histogram::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| histogram.observe(Duration::from_millis(3))));
            }
        });
        assert_eq!(histogram.snapshot().count(), 4000);
        assert_eq!(histogram.snapshot().sum, Duration::from_secs(12));
    }
}
