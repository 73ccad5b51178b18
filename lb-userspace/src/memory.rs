//! Free memory, and what gives it back to the system.

use std::fmt;

/// Returns free memory to the system.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and touches only memory that nobody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The tops of the heaps of threads that have allocated much for others. When this is dropped, behind all that, it goes back to
/// the system: glibc gives back free memory between two allocations, but keeps what is free at the top of a thread's heap.
#[derive(Default)]
pub(crate) struct HeapTops(Vec<HeapTop>);

/// Without what is in it: two configurations that differ only in how many threads have read them are shown alike.
impl fmt::Debug for HeapTops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeapTops")
    }
}

/// The last allocation of a thread. Nothing is ever written there, so that it takes no memory.
pub(crate) struct HeapTop {
    _top: Vec<u8>,
}

/// Larger than what is free below, but not so large that it gets a mapping of its own (128 KiB), in bytes.
const TOP: usize = 120 << 10;

impl HeapTop {
    /// Of the calling thread.
    pub(crate) fn reach() -> Self {
        Self { _top: Vec::with_capacity(TOP) }
    }
}

impl HeapTops {
    pub(crate) fn push(&mut self, top: HeapTop) {
        self.0.push(top);
    }

    pub(crate) fn append(&mut self, others: &mut Self) {
        self.0.append(&mut others.0);
    }
}

impl Drop for HeapTops {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            give_back();
        }
    }
}
