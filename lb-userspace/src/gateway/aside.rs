//! Work that takes long, beside the connections: to read, build and free very many routes.

use std::io;
use std::thread;
use tokio::sync::oneshot;

/// Steps by which workers go before it (nice(2)), should there be too few cores for all.
const YIELDS: i32 = 5;

/// How long it keeps a core that a worker waits for, in nanoseconds: the least that the scheduler takes. Its default is 3 ms, and
/// an answer waits for that long at each program that it wakes on its way.
const SLICE_NS: u64 = 100_000;

/// Does this on a thread of its own. An error: it was not done, and what it holds was dropped.
pub(super) fn aside(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let run = move || {
        // If the system does not allow it, the work is as important as all else.
        let _ = yield_to_workers();
        work();
        give_back_memory();
    };
    thread::Builder::new().name("aside".into()).spawn(run).map(drop)
}

/// Of the calling thread, and of those that it starts.
fn yield_to_workers() -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: YIELDS,
        sched_priority: 0,
        // Kernels before 6.12 keep their own slice.
        sched_runtime: SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes from the pointer, which are those of a live value; 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What work that is done aside answers with; after its answer it may go on. An error says why there is none.
pub(super) async fn answer_aside<T: Send + 'static>(
    work: impl FnOnce(oneshot::Sender<T>) + Send + 'static,
) -> Result<T, String> {
    let (answer, answered) = oneshot::channel();
    aside(move || work(answer)).map_err(|error| format!("cannot start a thread: {error}"))?;
    answered.await.map_err(|_| "the thread that read it has panicked".to_owned())
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
