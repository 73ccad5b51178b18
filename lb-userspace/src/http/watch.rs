//! What breaks a request off: its deadline, its silence, or the end of its server or of its route.
//!
//! Each task that carries requests has a [`Watch`], on which it waits beside its work: a client's connection of HTTP/1.1, or a
//! stream of HTTP/2. So one stream is reset, and others go on. What a worker's tasks have is in one list, which one task goes
//! through when the gateway has news: no task has to wait for those itself, in a queue that all workers share.

use crate::clock::now_ms;
use crate::reason::{CloseReason, HttpAnswer};
use crate::running::RunningGateway;
use crate::serving::{Route, Server};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

thread_local! {
    static WATCHES: RefCell<Watches> = RefCell::default();
}

/// Those of a worker.
#[derive(Default)]
struct Watches {
    list: Vec<Rc<Watch>>,
    /// A task hands on the gateway's news.
    is_told: bool,
}

/// The news of the gateway reach the worker's watches from here on.
pub(super) fn follow(gateway: &RunningGateway) {
    if WATCHES.with_borrow_mut(|watches| std::mem::replace(&mut watches.is_told, true)) {
        return;
    }
    let mut notice = gateway.notice.subscribe();
    tokio::task::spawn_local(async move {
        while notice.changed().await.is_ok() {
            WATCHES.with_borrow(|watches| watches.list.iter().for_each(|watch| watch.tell()));
        }
    });
}

/// Of one task.
#[derive(Default)]
pub(super) struct Watch {
    /// In the worker's list.
    place: Cell<usize>,
    /// The task's.
    waker: RefCell<Option<Waker>>,
    /// There are news that the task has not looked at.
    has_news: Cell<bool>,
    /// Why its request is broken off.
    cause: Cell<Option<HttpAnswer>>,
    /// When its request moved last, at its head, its body or the answer's.
    moved_ms: Cell<u64>,
    /// How long it may stand still.
    idle: Cell<Option<Duration>>,
    /// When the answer must have come to its end, or what is said otherwise.
    deadline: Cell<Option<(u64, HttpAnswer)>>,
    /// With what it ends, and the epoch in which it began there.
    server: RefCell<Option<(Arc<Server>, u64)>>,
    route: RefCell<Option<(Arc<Route>, u64)>>,
}

/// A watch in the worker's list, until this is dropped.
pub(super) struct Watched(Rc<Watch>);

impl Watched {
    pub(super) fn new() -> Self {
        let watch = Rc::new(Watch { moved_ms: now_ms().into(), ..Watch::default() });
        WATCHES.with_borrow_mut(|watches| {
            watch.place.set(watches.list.len());
            watches.list.push(watch.clone());
        });
        Watched(watch)
    }

    /// Of the same task.
    pub(super) fn share(&self) -> Rc<Watch> {
        self.0.clone()
    }
}

impl Deref for Watched {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let own = WATCHES.with_borrow_mut(|watches| {
            let place = self.place.get();
            let own = watches.list.swap_remove(place);
            if let Some(moved) = watches.list.get(place) {
                moved.place.set(place);
            }
            own
        });
        // Not while the list is borrowed.
        drop(own);
    }
}

impl Watch {
    /// A request begins. `idle`: how long it may stand still, until it has a route of its own.
    pub(super) fn begin(&self, idle: Option<Duration>) {
        self.cause.set(None);
        self.idle.set(idle);
        self.moves();
    }

    /// It goes to this route.
    pub(super) fn has_route(&self, route: Arc<Route>) {
        self.idle.set(route.idle_timeout());
        let epoch = route.stats.counting().counting_http().epoch.current();
        self.route.replace(Some((route, epoch)));
    }

    /// It is on a connection to this server, which was chosen in this epoch.
    pub(super) fn has_server(&self, server: Arc<Server>, epoch: u64) {
        self.server.replace(Some((server, epoch)));
        self.judge();
    }

    /// It is on no server's connection any more: what happens to that server does not concern it.
    pub(super) fn has_left_server(&self) {
        // Not while it is borrowed.
        let left = self.server.take();
        drop(left);
        if self.cause.get() == Some(HttpAnswer::ServerDown) {
            self.cause.set(None);
        }
    }

    /// Its answer must have come to its end by then.
    pub(super) fn has_deadline(&self, at: Instant, otherwise: HttpAnswer) {
        self.deadline.set(Some((now_ms() + at.duration_since(Instant::now()).as_millis() as u64, otherwise)));
    }

    /// It has moved.
    pub(super) fn moves(&self) {
        self.moved_ms.set(now_ms());
    }

    pub(super) fn moved_ms(&self) -> u64 {
        self.moved_ms.get()
    }

    /// Nothing bounds its time any more.
    pub(super) fn is_free(&self) {
        self.idle.set(None);
        self.deadline.set(None);
    }

    /// It is over.
    pub(super) fn end(&self) {
        self.is_free();
        // Not while they are borrowed.
        let ended = (self.server.take(), self.route.take());
        drop(ended);
    }

    /// Why its last request was broken off.
    pub(super) fn cause(&self) -> Option<HttpAnswer> {
        self.cause.get()
    }

    /// Sets the cause if its server or its route has been ended.
    fn judge(&self) {
        let is_over = |now: u64, then: u64| now != then;
        let server = self.server.borrow();
        let route = self.route.borrow();
        let cause = if server.as_ref().is_some_and(|(of, then)| is_over(of.state.epoch.current(), *then)) {
            HttpAnswer::ServerDown
        } else if route
            .as_ref()
            .is_some_and(|(of, then)| is_over(of.stats.counting().counting_http().epoch.current(), *then))
        {
            HttpAnswer::RouteRemoved
        } else {
            return;
        };
        self.cause.set(self.cause.get().or(Some(cause)));
    }

    fn tell(&self) {
        self.has_news.set(true);
        self.judge();
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Waits for news of the gateway.
    pub(super) fn poll_news(&self, cx: &Context<'_>) -> Poll<()> {
        self.register(cx);
        if self.has_news.take() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until its server or its route is ended. The request is then not broken off, but the task's to answer.
    pub(super) async fn ended(&self) -> HttpAnswer {
        poll_fn(|cx| {
            self.register(cx);
            self.take_cause().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Why the request is to be broken off, if it is; the task is to answer it.
    pub(super) fn take_cause(&self) -> Option<HttpAnswer> {
        let cause = self.cause.take()?;
        // It may be tried again elsewhere.
        let ended = match cause {
            HttpAnswer::RouteRemoved => (None, self.route.take()),
            _ => (self.server.take(), None),
        };
        drop(ended);
        Some(cause)
    }

    /// Waits until the request is to be broken off; why.
    pub(super) async fn broken_off(&self) -> HttpAnswer {
        // Of the present bound, or of an earlier one: it is looked at again then.
        let mut timer: Option<(u64, Pin<Box<Sleep>>)> = None;
        poll_fn(|cx| {
            loop {
                self.register(cx);
                if let Some(cause) = self.cause.get() {
                    return Poll::Ready(cause);
                }
                let Some((at_ms, cause)) = self.bound() else { return Poll::Pending };
                let (timer_ms, sleep) = timer.get_or_insert_with(|| (at_ms, Box::pin(sleep_until_ms(at_ms))));
                let is_elapsed = sleep.is_elapsed();
                if is_elapsed && at_ms <= now_ms() {
                    self.cause.set(Some(cause));
                    return Poll::Ready(cause);
                }
                if is_elapsed || *timer_ms > at_ms {
                    *timer_ms = at_ms;
                    sleep.set(sleep_until_ms(at_ms));
                }
                ready!(sleep.as_mut().poll(cx));
            }
        })
        .await
    }

    /// When it is broken off, unless it moves, and why.
    fn bound(&self) -> Option<(u64, HttpAnswer)> {
        let idle = self.idle.get().map(|idle| {
            (self.moved_ms.get().saturating_add(idle.as_millis() as u64), HttpAnswer::IdleTimeout)
        });
        idle.into_iter().chain(self.deadline.get()).min_by_key(|(at_ms, _)| *at_ms)
    }
}

fn sleep_until_ms(at_ms: u64) -> Sleep {
    sleep(Duration::from_millis(at_ms.saturating_sub(now_ms())))
}

/// How a connection of HTTP/1.1 ends whose request is broken off.
pub(super) fn close_reason(cause: HttpAnswer) -> CloseReason {
    match cause {
        HttpAnswer::ServerDown => CloseReason::ServerDown,
        HttpAnswer::RouteRemoved => CloseReason::RouteRemoved,
        HttpAnswer::IdleTimeout => CloseReason::IdleTimeout,
        _ => CloseReason::RequestTimeout,
    }
}
