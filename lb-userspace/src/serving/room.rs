//! Connections that wait for a place with one of a pool's servers, each of which has as many as it may have.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::futures::Notified;
use tokio::sync::{Mutex, MutexGuard, Notify};

/// Who waits, in the order of arrival. Kept across reloads that leave the way to speak to the servers as it is.
#[derive(Default)]
pub struct Room {
    /// Whose turn it is: the first in the queue has it, the others wait for it, in the order of arrival.
    turn: Mutex<()>,
    freed: Notify,
    waiting: AtomicUsize,
}

/// A place in the queue, until it is dropped.
pub struct Waiting<'a>(&'a Room);

impl Room {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Joins the queue, unless it has `most` already.
    pub fn join(&self, most: usize) -> Option<Waiting<'_>> {
        let waiting = Waiting(self);
        (self.waiting.fetch_add(1, Relaxed) < most).then_some(waiting)
    }

    /// A connection has ended, or other servers are there: the first in the queue may look.
    pub fn free(&self) {
        self.freed.notify_one();
    }
}

impl Waiting<'_> {
    /// Ends when this one is the first in the queue, which it then is until the guard is dropped.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.0.turn.lock().await
    }

    /// Ends at [`Room::free`]; for the first in the queue. A call while it does not wait for this is remembered, so nothing is
    /// lost between a look and this.
    pub fn freed(&self) -> Notified<'_> {
        self.0.freed.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
