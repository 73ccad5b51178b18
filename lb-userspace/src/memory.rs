//! Free memory, and what gives it back to the system.

/// What is free at the top of a thread's heap goes back when it is more than this, and what is allocated at once and is larger
/// gets a mapping of its own; in bytes. glibc chooses both itself otherwise, by the largest that it has ever seen freed: up to
/// 64 MiB and 32 MiB, and then keeps, thread by thread, what a start or a long answer has taken once (mallopt(3)).
#[cfg(target_env = "gnu")]
const KEPT_FREE: libc::c_int = 1 << 20;

/// From here on, memory that is not needed any more is not kept for long. For a process that serves.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: takes no pointer. Refused, a value leaves the parameter as it was.
        unsafe { libc::mallopt(parameter, KEPT_FREE) };
    }
}

/// Returns free memory to the system, that between two allocations too. It takes milliseconds where much has been freed.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and touches only memory that nobody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Something that may be large: when it is dropped, its memory goes back to the system.
pub(crate) struct Large<T> {
    value: Option<T>,
    is_large: bool,
}

impl<T> Large<T> {
    pub(crate) fn new(value: Option<T>, is_large: bool) -> Self {
        Self { value, is_large }
    }
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Large<T> {
    fn as_ref(&self) -> &[u8] {
        self.value.as_ref().map_or(&[], AsRef::as_ref)
    }
}

impl<T> Drop for Large<T> {
    fn drop(&mut self) {
        drop(self.value.take());
        if self.is_large {
            give_back();
        }
    }
}
