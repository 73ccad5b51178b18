//! Connections that wait for a place with one of a pool's servers, each of which has as many as it may have.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::futures::Notified;
use tokio::sync::{Mutex, MutexGuard, Notify};

/// Who waits. Kept across reloads that leave the way to speak to the servers as it is.
///
/// Connections that may have any place wait in a queue, in the order of arrival. One that a server has not taken may have a place
/// with the others only: at the head of the queue it would keep everybody from a place that it may not have itself. It waits
/// beside the queue.
#[derive(Default)]
pub struct Room {
    /// Whose turn it is: the first in the queue has it, the others wait for it, in the order of arrival.
    turn: Mutex<()>,
    freed: Notify,
    /// For those beside the queue.
    freed_beside: Notify,
    waiting: AtomicUsize,
    /// Of them, those in the queue.
    queued: AtomicUsize,
}

/// A place among those who wait, until it is dropped.
pub struct Waiting<'a> {
    room: &'a Room,
    in_queue: bool,
}

impl Room {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Whether somebody waits in the queue.
    pub fn has_queue(&self) -> bool {
        self.queued.load(Relaxed) > 0
    }

    /// Joins those who wait, `in_queue` or beside it, unless there are `most` already.
    pub fn join(&self, most: usize, in_queue: bool) -> Option<Waiting<'_>> {
        self.queued.fetch_add(in_queue.into(), Relaxed);
        let waiting = Waiting { room: self, in_queue };
        (self.waiting.fetch_add(1, Relaxed) < most).then_some(waiting)
    }

    /// A connection has ended, or other servers are there: the first in the queue may look, and one of those beside it. That one
    /// is told first: it has had a place already.
    pub fn free(&self) {
        self.freed_beside.notify_one();
        self.freed.notify_one();
    }
}

impl Waiting<'_> {
    /// Ends when this one is the first in the queue, which it then is until the guard is dropped; beside the queue at once.
    pub async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        if self.in_queue { Some(self.room.turn.lock().await) } else { None }
    }

    /// Ends at [`Room::free`]; for the first in the queue, or one of those beside it. A call while nobody waits for this is
    /// remembered, so nothing is lost between a look and this.
    pub fn freed(&self) -> Notified<'_> {
        if self.in_queue { self.room.freed.notified() } else { self.room.freed_beside.notified() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.room.waiting.fetch_sub(1, Relaxed);
        self.room.queued.fetch_sub(self.in_queue.into(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn who_waits_beside_the_queue_is_told_of_a_place_as_the_first_in_it_is() {
        let room = Room::default();
        let waiting = [false, true].map(|in_queue| room.join(2, in_queue).unwrap());
        assert!(room.join(2, true).is_none());
        assert_eq!((room.waiting(), room.has_queue()), (2, true));
        room.free();
        for waiting in &waiting {
            let mut context = Context::from_waker(Waker::noop());
            assert!(pin!(waiting.freed()).poll(&mut context).is_ready());
            assert!(pin!(waiting.freed()).poll(&mut context).is_pending());
        }
        let [_beside, first] = waiting;
        drop(first);
        assert_eq!((room.waiting(), room.has_queue()), (1, false));
    }
}
