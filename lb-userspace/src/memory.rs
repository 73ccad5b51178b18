//! Free memory, and what gives it back to the system.

use std::panic::resume_unwind;
use std::thread;

/// Bytes. What is free at the end of a heap (each thread has one) goes back when it is more than this. An allocation of at least
/// this size gets a mapping of its own, which goes back when it is freed.
///
/// glibc would choose both by the largest allocation that it has seen freed, up to 64 MiB and 32 MiB (mallopt(3)). So each heap
/// would keep what a start or a long answer took once.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 1 << 20;

/// From here on, heaps keep little that is free at their ends. For a process that serves, before it has other threads. It
/// overrides what the environment says (`GLIBC_TUNABLES`).
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, KEPT),
        (libc::M_MMAP_THRESHOLD, KEPT),
        // No small piece is set aside when it is freed: all become one with what is free beside them. What had been set aside
        // would become part of the heap's end only by malloc_trim(3), which then leaves that as it is.
        (libc::M_MXFAST, 0),
    ] {
        // SAFETY: takes no pointer, and no other thread allocates for the first time meanwhile: there is none. A value that is
        // refused leaves the parameter as it was.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Returns what is free between allocations to the system; what is free at the end of a heap is [`keep_little`]'s. It takes
/// milliseconds where much has been freed, and a thread that wants memory of its heap meanwhile waits.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and touches only memory that nobody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes something that stays beside something large that goes. Each thread has a heap of its own: in the gaps of the one heap,
/// what stays would be all over the other, of which nearly no page would be free when it goes.
pub(crate) fn made_apart<T: Send>(make: impl Fn() -> T + Sync) -> T {
    thread::scope(|scope| match thread::Builder::new().name("apart".into()).spawn_scoped(scope, &make) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
        // It only takes more memory.
        Err(_) => make(),
    })
}
