//! Counters of lost odd packets, by reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why an odd packet was lost in userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its lengths contradict each other, or its TCP header is incomplete.
    Malformed,
    /// It has options or extension headers that a host must not ignore.
    Unsupported,
    /// Its fragments overlap.
    Overlap,
    /// There were more fragments than are kept.
    TooMany,
    /// Not all of its fragments arrived in time.
    Incomplete,
    /// Its TCP checksum is wrong.
    Checksum,
    /// A fragment is marked "congestion experienced", and another one "not ECN-capable" (RFC 3168, section 5.3).
    Congestion,
    /// The kernel refused to send the plain packet.
    NotSent,
}

impl Loss {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::Unsupported,
        Self::Overlap,
        Self::TooMany,
        Self::Incomplete,
        Self::Checksum,
        Self::Congestion,
        Self::NotSent,
    ];

    /// The name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "odd_malformed",
            Self::Unsupported => "odd_unsupported",
            Self::Overlap => "odd_overlap",
            Self::TooMany => "odd_too_many",
            Self::Incomplete => "odd_incomplete",
            Self::Checksum => "odd_checksum",
            Self::Congestion => "odd_congestion",
            Self::NotSent => "odd_not_sent",
        }
    }
}

/// How many odd packets were lost in userspace, by [`Loss`].
#[derive(Debug, Default)]
pub struct Losses([AtomicU64; Loss::ALL.len()]);

impl Losses {
    /// How many, for this reason.
    pub fn get(&self, loss: Loss) -> u64 {
        self.0[loss as usize].load(Relaxed)
    }

    pub(super) fn count(&self, loss: Loss) {
        self.0[loss as usize].fetch_add(1, Relaxed);
    }
}
