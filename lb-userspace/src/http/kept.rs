//! The connections to servers that a worker keeps for other requests: of HTTP/1.1 the idle ones, of HTTP/2 those that several
//! requests share.

use super::upstream::{H1, H2, Key, Upstream};
use super::watch::Watched;
use crate::clock::now_ms;
use crate::reason::{CloseReason, HttpAnswer};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// How long an idle connection is kept: less than most servers do, so that few are closed at the moment of their next request.
const KEEP: Duration = Duration::from_secs(30);

/// Between two looks for idle connections whose time is over, or that their servers have closed.
const SWEEP: Duration = Duration::from_secs(5);

/// Idle connections that a worker keeps to one server: as many requests as may be under way there at once without a new connection
/// for some of them.
const MOST_IDLE: usize = 512;

/// Requests that wait until a connection of HTTP/2 to one server is open; of more there are none.
const MOST_WAITING: usize = 1024;

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// The connections that a worker keeps.
#[derive(Default)]
struct Kept {
    idle: HashMap<Key, Vec<Idle>>,
    shared: HashMap<Key, Shared>,
    /// A task looks after them.
    is_swept: bool,
}

struct Idle {
    h1: Box<H1>,
    since_ms: u64,
}

#[derive(Default)]
struct Shared {
    open: Vec<H2>,
    /// Present: one is being opened.
    opening: Option<Rc<Queue>>,
}

/// Those who wait until a connection is open.
#[derive(Default)]
struct Queue {
    /// It is, or is not going to be.
    over: Notify,
    waiting: Cell<usize>,
    /// Present: the server has not taken it, and why.
    refusal: Cell<Option<CloseReason>>,
}

/// A place in a queue.
struct Place(Rc<Queue>);

impl Place {
    fn take(queue: Rc<Queue>) -> Option<Self> {
        let waiting = queue.waiting.get();
        (waiting < MOST_WAITING).then(|| {
            queue.waiting.set(waiting + 1);
            Place(queue)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Kept {
    /// Gives it back if there are enough.
    fn keep(&mut self, h1: Box<H1>) -> Option<Box<H1>> {
        let idle = self.idle.entry(*h1.key()).or_default();
        if idle.len() >= MOST_IDLE {
            return Some(h1);
        }
        idle.push(Idle { h1, since_ms: now_ms() });
        self.see_to_sweeps();
        None
    }

    fn see_to_sweeps(&mut self) {
        if !std::mem::replace(&mut self.is_swept, true) {
            tokio::task::spawn_local(async {
                let watch = Watched::new();
                while KEPT.with_borrow(|kept| kept.is_swept) {
                    tokio::select! {
                        () = sleep(SWEEP) => {}
                        // A server's connections may be ended.
                        () = poll_fn(|cx| watch.poll_news(cx)) => {}
                    }
                    let (idle, shared) = KEPT.with_borrow_mut(Kept::sweep);
                    // Not while they are borrowed.
                    idle.into_iter().for_each(|idle| idle.h1.retire());
                    drop(shared);
                }
            });
        }
    }

    /// Takes out what is not to be kept any longer.
    fn sweep(&mut self) -> (Vec<Idle>, Vec<H2>) {
        let (mut gone, mut closed, now_ms) = (Vec::new(), Vec::new(), now_ms());
        let keep_ms = KEEP.as_millis() as u64;
        let mut cx = Context::from_waker(Waker::noop());
        self.idle.retain(|_, idle| {
            let mut is_over = |idle: &mut Idle| {
                now_ms.saturating_sub(idle.since_ms) > keep_ms
                    || idle.h1.poll(&mut cx).is_ready()
                    || !idle.h1.is_ready()
            };
            gone.extend(idle.extract_if(.., |idle| is_over(idle)));
            !idle.is_empty()
        });
        self.shared.retain(|_, shared| {
            let is_idle = |h2: &H2| h2.quiet_for(now_ms).is_some_and(|quiet_ms| quiet_ms > keep_ms);
            closed.extend(shared.open.extract_if(.., |h2| h2.is_over() || is_idle(h2)));
            !shared.open.is_empty() || shared.opening.is_some()
        });
        self.is_swept = !self.idle.is_empty() || !self.shared.is_empty();
        (gone, closed)
    }

    fn take_idle(&mut self, key: &Key) -> Option<Box<H1>> {
        let idle = self.idle.get_mut(key)?;
        let last = idle.pop();
        last.map(|idle| idle.h1)
    }
}

/// Keeps a connection for another request, if it can carry one.
pub(super) fn keep(h1: Box<H1>) {
    let left = match h1.is_ready() {
        true => KEPT.with_borrow_mut(|kept| kept.keep(h1)),
        false => Some(h1),
    };
    if let Some(left) = left {
        left.retire();
    }
}

/// Lets others share a connection that was opened.
pub(super) fn share(h2: H2) {
    KEPT.with_borrow_mut(|kept| {
        kept.shared.entry(*h2.key()).or_default().open.push(h2);
        kept.see_to_sweeps();
    });
}

/// Where a request may go.
pub(super) enum Way {
    /// On a kept connection.
    Kept(Upstream),
    /// On one that is to be opened.
    New(Option<Opening>),
    /// To another server: this one has not taken the connection that the request has waited for.
    Elsewhere(CloseReason),
}

/// A kept connection that can carry a request: an idle one, or one with room that others share. If one to share is being opened,
/// waits for that, as long as `patience`. `once`: the request cannot be sent again if the connection turns out to be closed.
pub(super) async fn find(key: &Key, patience: Duration, once: bool) -> Result<Way, HttpAnswer> {
    let mut until = None;
    loop {
        if let Some(h1) = poll_fn(|cx| Poll::Ready(idle(key, cx, once))).await {
            return Ok(Way::Kept(Upstream::H1(h1)));
        }
        let found = KEPT.with_borrow_mut(|kept| {
            if !key.http2 && !kept.shared.contains_key(key) {
                return Ok(Way::New(None));
            }
            let shared = kept.shared.entry(*key).or_default();
            if let Some(h2) = shared.open.iter().find(|h2| h2.has_room()) {
                return Ok(Way::Kept(Upstream::H2(h2.clone())));
            }
            match &shared.opening {
                Some(queue) => Err(queue.clone()),
                None => {
                    let queue = shared.opening.insert(Rc::default()).clone();
                    Ok(Way::New(Some(Opening { key: *key, queue })))
                }
            }
        });
        let queue = match found {
            Ok(way) => return Ok(way),
            Err(queue) => queue,
        };
        let place = Place::take(queue).ok_or(HttpAnswer::ServersFull)?;
        let until = *until.get_or_insert_with(|| Instant::now() + patience);
        let refusal = match timeout_at(until, place.0.over.notified()).await {
            Ok(()) => place.0.refusal.get(),
            Err(_) => Some(CloseReason::ConnectTimeout),
        };
        if let Some(reason) = refusal {
            return Ok(Way::Elsewhere(reason));
        }
    }
}

/// The idle connection that was used last, of those that can carry a request.
fn idle(key: &Key, cx: &mut Context<'_>, once: bool) -> Option<Box<H1>> {
    while let Some(mut h1) = KEPT.with_borrow_mut(|kept| kept.take_idle(key)) {
        if h1.poll(cx).is_pending() && h1.is_ready() && (!once || h1.is_quiet()) {
            return Some(h1);
        }
        h1.retire();
    }
    None
}

/// One of HTTP/2 is to be opened, for all who wait for it. Dropped when that is over, whatever came of it.
pub(super) struct Opening {
    key: Key,
    queue: Rc<Queue>,
}

impl Opening {
    /// The server has not taken it. Those who wait need not try that once more, each as long.
    pub(super) fn refused(self, reason: CloseReason) {
        self.queue.refusal.set(Some(reason));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(|kept| {
            let Some(shared) = kept.shared.get_mut(&self.key) else { return };
            shared.opening = None;
            if shared.open.is_empty() {
                kept.shared.remove(&self.key);
            }
        });
        self.queue.over.notify_waiters();
    }
}

/// The client's connection with this number has ended, with all its requests: what was opened for it alone is of no use any more.
pub(super) fn forget(owner: u64) {
    let (idle, shared) = KEPT.with_borrow_mut(|kept| {
        let shared: Vec<_> = kept.shared.extract_if(|key, _| key.owner == owner).collect();
        let idle = kept.idle.extract_if(|key, _| key.owner == owner);
        (idle.flat_map(|(_, idle)| idle).collect::<Vec<_>>(), shared)
    });
    drop(shared);
    idle.into_iter().for_each(|idle| idle.h1.retire());
}
