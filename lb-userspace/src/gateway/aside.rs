//! Work that takes long, beside the connections: to read, build and free very many routes.

use std::io;
use std::thread;

/// Steps by which workers go before it (nice(2)), should there be too few cores for all.
const YIELDS: i32 = 10;

/// Does this on a thread of its own. An error: it was not done, and what it holds was dropped.
pub(super) fn aside(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let run = move || {
        // If the system does not allow it, the work is as important as all else.
        let _ = rustix::process::nice(YIELDS);
        work();
        give_back_memory();
    };
    thread::Builder::new().name("aside".into()).spawn(run).map(drop)
}

/// Returns free memory to the system. Reading a configuration takes several times the memory that it keeps (200 MiB for 100
/// 000 routes), and nothing else needs that much.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and touches only memory that nobody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}
