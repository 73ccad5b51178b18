//! Threads that mostly wait, and still end as soon as they are told to.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// A thread. Dropping this tells it to end and waits for it.
pub(super) struct StoppableThread {
    /// An eventfd, readable once the thread is to end.
    over: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl StoppableThread {
    /// Starts it. `run` gets a descriptor that becomes readable when it is to return.
    pub(super) fn start(name: &str, run: impl FnOnce(Arc<OwnedFd>) + Send + 'static) -> io::Result<Self> {
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let seen = over.clone();
        let thread = Builder::new().name(name.into()).spawn(move || run(seen))?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for StoppableThread {
    fn drop(&mut self) {
        // An eventfd takes a first 1 (eventfd(2)).
        let _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
