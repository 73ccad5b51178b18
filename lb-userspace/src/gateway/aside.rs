//! Work that takes long, beside the connections: to read, build and free very many routes.

use crate::config::Config;
use crate::memory::{give_back, made_apart};
use crate::serving::{CertificateRefused, Snapshot};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Works aside with a value that is only lent: it comes back whatever happens, perhaps half changed if the work has panicked. An
/// error says why there is no answer. What the work makes besides is dropped after the answer, and nobody waits for that.
pub(super) async fn lend_aside<S: Send + 'static, T: Send + 'static, Rest>(
    value: S,
    work: impl FnOnce(&mut S) -> (T, Rest) + Send + 'static,
) -> (S, Result<T, String>) {
    fn lock<S>(lent: &Mutex<Option<S>>) -> MutexGuard<'_, Option<S>> {
        lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
    let lent = Arc::new(Mutex::new(Some(value)));
    let borrowed = lent.clone();
    let (answer, answered) = oneshot::channel();
    let started = aside(move || {
        let mut value = lock(&borrowed);
        let (made, rest) = work(value.as_mut().expect("it is taken back after this"));
        drop(value);
        // Whoever asked may have gone.
        let _ = answer.send(made);
        drop(rest);
    });
    let made = match started {
        Ok(()) => answered.await.map_err(|_| "the thread that was to do it has panicked".to_owned()),
        Err(error) => Err(format!("cannot start a thread: {error}")),
    };
    (lock(&lent).take().expect("only this takes it"), made)
}

/// Of something that has fewer parts than this, the memory is kept for the next of its kind.
const MANY: usize = 1000;

/// Builds what a configuration becomes. Where that is large, it is kept apart from the configuration, which goes.
pub(super) fn snapshot(config: &Config, previous: Option<&Snapshot>) -> Result<Snapshot, CertificateRefused> {
    let build = || Snapshot::new(config, previous);
    if config.routes.len() + config.pools.len() < MANY { build() } else { made_apart(build) }
}

/// Something that may be large: when it is dropped, its memory goes back to the system. Reading a configuration takes several times
/// the memory that it keeps (200 MiB for 100 000 routes), and nothing else needs that much.
pub(super) struct Large<T> {
    value: Option<T>,
    parts: usize,
}

impl<T> Large<T> {
    /// Of how many parts nothing else has a share.
    pub(super) fn new(value: Option<T>, parts: usize) -> Self {
        Self { value, parts }
    }
}

impl<T> Drop for Large<T> {
    fn drop(&mut self) {
        drop(self.value.take());
        if self.parts >= MANY {
            give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_lent_comes_back() {
        let (value, made) = lend_aside(vec![1], |value| (value.push(2), ())).await;
        assert_eq!((value, made), (vec![1, 2], Ok(())));
    }

    #[tokio::test]
    async fn what_is_lent_comes_back_from_a_panic() {
        let work = |value: &mut Vec<i32>| -> ((), ()) {
            value.push(2);
            panic!("on purpose");
        };
        let (value, made) = lend_aside(vec![1], work).await;
        assert_eq!(value, [1, 2]);
        assert!(made.unwrap_err().contains("panicked"));
    }
}
