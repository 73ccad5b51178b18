//! Tasks of hyper, on the worker.

use super::watch::{Watch, Watched};
use hyper::rt::Executor;
use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::task::AbortHandle;

/// Spawns those of a connection of HTTP/2 to a server on the worker that asks. The first of them moves the connection.
#[derive(Clone, Default)]
pub(super) struct Carried(Rc<Carrier>);

#[derive(Default)]
struct Carrier {
    /// Of the first task.
    task: OnceCell<AbortHandle>,
    /// Woken when it has moved.
    waiting: Cell<Option<Waker>>,
}

impl Carried {
    /// Waits until something is there that the connection has brought.
    pub(super) async fn until<R>(&self, mut there: impl FnMut(&mut Context<'_>) -> Poll<R>) -> R {
        poll_fn(|cx| {
            let polled = there(cx);
            if polled.is_pending() {
                self.0.waiting.set(Some(cx.waker().clone()));
            }
            polled
        })
        .await
    }

    /// Ends the connection, whatever is on it.
    pub(super) fn end(&self) {
        self.0.task.get().into_iter().for_each(AbortHandle::abort);
    }
}

impl<F: Future + 'static> Executor<F> for Carried {
    fn execute(&self, future: F) {
        let carrier = self.0.clone();
        let spawned = tokio::task::spawn_local(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                let polled = future.as_mut().poll(cx).map(drop);
                carrier.waiting.take().into_iter().for_each(Waker::wake);
                polled
            })
            .await;
        });
        let _ = self.0.task.set(spawned.abort_handle());
    }
}

tokio::task_local! {
    static WATCH: Rc<Watch>;
}

/// Spawns those of the streams of a client's connection of HTTP/2. Each has a watch: if its request is broken off, its task is
/// dropped, so that h2 resets this stream and no other (RST_STREAM with CANCEL).
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams;

impl<F: Future + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        let watch = Watched::new();
        tokio::task::spawn_local(WATCH.scope(watch.share(), async move {
            tokio::select! {
                biased;
                _ = future => {}
                _ = watch.broken_off() => {}
            }
        }));
    }
}

/// The watch of the stream whose task calls this; `None`: it is not one of a stream.
pub(super) fn stream_watch() -> Option<Rc<Watch>> {
    WATCH.try_with(Rc::clone).ok()
}
