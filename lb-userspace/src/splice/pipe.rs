//! Pipes for splice(2). Each worker keeps some between bulk transfers.

use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::cell::RefCell;
use std::io;
use tokio::net::TcpStream;

/// Bytes that a pipe is to hold; an unprivileged process may get less (`/proc/sys/fs/pipe-max-size`).
const CAPACITY: usize = 1024 * 1024;

/// The most pipes that a worker keeps. An empty one takes two descriptors and no pages.
const KEPT: usize = 64;

thread_local! {
    static STORE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe between two sockets. Bytes that are in it when it is dropped are lost; only an empty one may be put back.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

impl Pipe {
    /// A pipe from the store, or a new one; `None` when the process has no descriptors left.
    pub(crate) fn get() -> Option<Self> {
        STORE.with_borrow_mut(Vec::pop).or_else(|| Self::new().ok())
    }

    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = fcntl_setpipe_size(&write, CAPACITY).unwrap_or(64 * 1024);
        Ok(Pipe { read, write, capacity })
    }

    /// Returns an empty pipe to the store.
    pub(crate) fn put_back(self) {
        STORE.with_borrow_mut(|store| {
            if store.len() < KEPT {
                store.push(self);
            }
        });
    }

    /// Moves bytes of `from`'s receive queue into the empty pipe; 0 after its FIN.
    pub(crate) fn fill(&self, from: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(from, None, &self.write, None, self.capacity, flags)?)
    }

    /// Moves up to `length` bytes of the pipe into `to`.
    pub(crate) fn drain(&self, to: &TcpStream, length: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(&self.read, None, to, None, length, flags)?)
    }
}
