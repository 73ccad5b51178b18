//! Grace periods: waiting until no CPU works any more on a packet that it was working on before.

use crate::privileges::drop_privileges;
use rustix::io::Errno;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// linux/membarrier.h
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// How long to wait where membarrier(2) refuses a grace period (kernels with nohz_full CPUs): far longer than a packet takes
/// from the tc hook to its socket.
const INSTEAD: Duration = Duration::from_millis(100);

/// Any number of connections wait here for the same grace period.
pub(crate) struct Grace(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    news: Condvar,
}

#[derive(Default)]
struct Waiting {
    list: Vec<Box<dyn FnOnce() + Send>>,
    /// The thread is to end.
    over: bool,
}

impl Grace {
    /// Starts the thread that waits: membarrier(2) blocks.
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        std::thread::Builder::new().name("grace".into()).spawn(move || theirs.serve())?;
        Ok(Self(shared))
    }

    /// Returns when every packet that was between the tc hook and its socket at the time of the call has arrived.
    pub(crate) async fn wait(&self) {
        let (sender, over) = oneshot::channel();
        // The send fails if the waiting task was ended.
        self.then(move || _ = sender.send(()));
        // An error: the process is ending, and this task with it.
        let _ = over.await;
    }

    /// Calls the function when every program that was running at the time of the call has ended.
    pub(crate) fn then(&self, call: impl FnOnce() + Send + 'static) {
        self.0.lock().list.push(Box::new(call));
        self.0.news.notify_one();
    }
}

impl Drop for Grace {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.news.notify_one();
    }
}

impl Shared {
    fn serve(&self) {
        // Privileges are per thread, and this one was started before the process dropped them.
        if let Err(error) = drop_privileges() {
            tracing::warn!(%error, "the grace thread keeps its privileges");
        }
        loop {
            let mut waiting = self.lock();
            while waiting.list.is_empty() {
                if waiting.over {
                    return;
                }
                waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let batch = std::mem::take(&mut waiting.list);
            drop(waiting);
            if grace_period().is_err() {
                std::thread::sleep(INSTEAD);
            }
            for call in batch {
                call();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An RCU grace period: the tc hook and what follows, up to the socket, are one RCU read-side section.
fn grace_period() -> Result<(), Errno> {
    // SAFETY: a system call on plain numbers.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}
