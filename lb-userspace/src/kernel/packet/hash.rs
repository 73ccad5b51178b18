//! A hash that is the same in every process.

use std::fmt;

/// FNV-1a. The input is the operator's or ours, so collisions need not be resisted.
pub(super) struct Hash(pub(super) u64);

impl Hash {
    pub(super) const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    pub(super) fn of(self, bytes: &[u8]) -> u64 {
        bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

impl fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = Self(self.0).of(text.as_bytes());
        Ok(())
    }
}
