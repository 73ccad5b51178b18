//! Grace periods: waiting until no CPU works any more on a packet that it was working on before.

use crate::privileges::drop_privileges;
use rustix::io::Errno;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// linux/membarrier.h
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// How long to wait where membarrier(2) refuses a grace period (kernels with nohz_full CPUs): far longer than a packet takes
/// from the tc hook to its socket.
const INSTEAD: Duration = Duration::from_millis(100);

/// Tasks that wait for something of the kernel look at the same moments, this far apart: a worker wakes once for all of its
/// tasks, and no other thread has to wake it.
const LOOK: Duration = Duration::from_millis(4);

/// Any number of connections wait here for the same grace period.
pub(crate) struct Grace {
    shared: Arc<Shared>,
    /// From when moments are counted.
    start: Instant,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    news: Condvar,
    /// The last grace period that is over.
    ended: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    list: Calls,
    /// Somebody waits for the next grace period, though there is nothing to be called.
    wanted: bool,
    /// Grace periods that have begun.
    begun: u64,
    /// The thread sleeps. To wake one that does not is a system call in vain.
    asleep: bool,
    /// The thread is to end.
    over: bool,
}

/// A grace period that begins after this was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(u64);

type Calls = Vec<Box<dyn FnOnce() + Send>>;

impl Grace {
    /// Starts the thread that waits: membarrier(2) blocks.
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        std::thread::Builder::new().name("grace".into()).spawn(move || theirs.serve())?;
        Ok(Self { shared, start: Instant::now() })
    }

    /// A grace period that begins now or soon: once it [is over](Self::is_over), every packet that was between the tc hook and
    /// its socket at the time of this call has arrived.
    pub(crate) fn begin(&self) -> Period {
        let mut waiting = self.shared.lock();
        let period = waiting.want();
        self.shared.wake(waiting);
        period
    }

    /// Whether that grace period is over.
    pub(crate) fn is_over(&self, period: Period) -> bool {
        self.shared.ended.load(Ordering::Acquire) >= period.0
    }

    /// Waits for `pause`, and then until the next of the moments at which all tasks look.
    pub(crate) async fn moment(&self, pause: Duration) {
        tokio::time::sleep_until(self.start + moment_after(self.start.elapsed() + pause)).await;
    }

    /// Calls the function when every program that was running at the time of the call has ended.
    pub(crate) fn then(&self, call: impl FnOnce() + Send + 'static) {
        let mut waiting = self.shared.lock();
        waiting.list.push(Box::new(call));
        self.shared.wake(waiting);
    }
}

impl Drop for Grace {
    fn drop(&mut self) {
        let mut waiting = self.shared.lock();
        waiting.over = true;
        self.shared.wake(waiting);
    }
}

impl Waiting {
    /// The next grace period, which is to come: one that has begun is of no use to whoever asks now.
    fn want(&mut self) -> Period {
        self.wanted = true;
        Period(self.begun + 1)
    }

    /// A grace period begins: which one, and what is to be called after it.
    fn take(&mut self) -> (Period, Calls) {
        self.wanted = false;
        self.begun += 1;
        (Period(self.begun), std::mem::take(&mut self.list))
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
            while waiting.list.is_empty() && !waiting.wanted {
                if waiting.over {
                    return;
                }
                waiting.asleep = true;
                waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            waiting.asleep = false;
            let (period, batch) = waiting.take();
            drop(waiting);
            if grace_period().is_err() {
                std::thread::sleep(INSTEAD);
            }
            self.ended.store(period.0, Ordering::Release);
            for call in batch {
                call();
            }
        }
    }

    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if std::mem::take(&mut waiting.asleep) {
            drop(waiting);
            self.news.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first moment after this time; both are counted from the same start.
fn moment_after(time: Duration) -> Duration {
    let look = LOOK.as_millis() as u64;
    Duration::from_millis((time.as_millis() as u64 / look + 1) * look)
}

/// An RCU grace period: the tc hook and what follows, up to the socket, are one RCU read-side section.
fn grace_period() -> Result<(), Errno> {
    // SAFETY: a system call on plain numbers.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn until(mut is_so: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_grace_period_that_has_begun_already_does_not_count() {
        let mut waiting = Waiting::default();
        let (first, same) = (waiting.want(), waiting.want());
        assert_eq!(first, same);
        assert_eq!(waiting.take().0, first);
        assert!(!waiting.wanted);
        assert!(waiting.want() > first);
        assert!(waiting.wanted);
    }

    #[test]
    fn a_grace_period_that_somebody_waits_for_ends() {
        let grace = Grace::start().unwrap();
        for _ in 0..3 {
            until(|| grace.shared.lock().asleep);
            let period = grace.begin();
            until(|| grace.is_over(period));
            assert!(!grace.is_over(Period(period.0 + 1)));
        }
    }

    #[test]
    fn whatever_is_to_be_called_is_called_once_whether_the_thread_sleeps_or_not() {
        let grace = Grace::start().unwrap();
        let (calls, called) = mpsc::channel();
        for number in 0..200 {
            let calls = calls.clone();
            grace.then(move || calls.send(number).unwrap());
            if number % 10 == 0 {
                until(|| grace.shared.lock().asleep);
            }
        }
        drop((grace, calls));
        let called: Vec<_> = called.iter().collect();
        assert_eq!(called, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn who_waits_looks_at_moments_that_all_share() {
        let ms = Duration::from_millis;
        for (time, moment) in [(0, 4), (1, 4), (3, 4), (4, 8), (7, 8)] {
            assert_eq!(moment_after(ms(time)), ms(moment), "{time}");
        }
        // Months later.
        assert_eq!(moment_after(ms(1 << 40)), ms((1 << 40) + 4));
    }
}
