//! Work that takes long, beside the connections: to read, build and free very many routes.

use std::io;
use std::thread;
use tokio::sync::oneshot;

/// Steps by which workers go before it (nice(2)), should there be too few cores for all.
const YIELDS: i32 = 5;

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
