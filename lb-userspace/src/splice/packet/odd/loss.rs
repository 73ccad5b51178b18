//! Why odd packets were lost, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why an odd packet was lost in userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Lengths that contradict each other, or a TCP header that is not whole.
    Malformed,
    /// Options or headers that ask for something.
    Unsupported,
    /// Its fragments contradict each other.
    Overlap,
    /// More fragments than there is room for.
    TooMany,
    /// Not all of its fragments came in time.
    Incomplete,
    /// A checksum that is wrong.
    Checksum,
    /// Congestion was experienced by a part of it, and another part says that its sender would not understand.
    Congestion,
    /// The kernel did not take it back.
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

    /// As metrics and `status` call it.
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
    /// So many, for this reason.
    pub fn get(&self, loss: Loss) -> u64 {
        self.0[loss as usize].load(Relaxed)
    }

    pub(super) fn count(&self, loss: Loss) {
        self.0[loss as usize].fetch_add(1, Relaxed);
    }
}
