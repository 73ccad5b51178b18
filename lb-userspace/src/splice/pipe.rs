//! Pipes for splice(2). Each worker keeps some between bulk transfers.

use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::cell::RefCell;
use std::io;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes that a pipe is to hold; an unprivileged process may get less (`/proc/sys/fs/pipe-max-size`).
const CAPACITY: usize = 1024 * 1024;

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Pipes a worker keeps: an empty one costs two descriptors and no pages.
const KEPT: usize = 64;

thread_local! {
    static STORE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe between two sockets. Bytes that are in it when it is dropped are lost; only an empty one may be put back.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    /// Bytes that are not drained yet.
    held: usize,
}

impl Pipe {
    /// A pipe from the store, or a new one; `None` when the process has no descriptors left.
    pub(crate) fn get() -> Option<Self> {
        STORE.with_borrow_mut(Vec::pop).or_else(|| Self::new().ok())
    }

    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = fcntl_setpipe_size(&write, CAPACITY).unwrap_or(64 * 1024);
        Ok(Pipe { read, write, capacity, held: 0 })
    }

    /// Returns an empty pipe to the store.
    pub(crate) fn put_back(self) {
        STORE.with_borrow_mut(|store| {
            if store.len() < KEPT {
                store.push(self);
            }
        });
    }

    /// How many bytes are in it.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Moves what `from` has into the empty pipe; 0 at its end.
    pub(crate) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let fill = || Ok(splice(from, None, &self.write, None, self.capacity, FLAGS)?);
        self.held = from.try_io(Interest::READABLE, fill)?;
        Ok(self.held)
    }

    /// Moves what is in the pipe into `to`, as far as it takes it. How much that was.
    pub(crate) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let drain = || Ok(splice(&self.read, None, to, None, self.held, FLAGS)?);
        let drained = to.try_io(Interest::WRITABLE, drain)?;
        self.held -= drained;
        Ok(drained)
    }
}
