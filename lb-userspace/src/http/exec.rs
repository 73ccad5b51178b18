//! Tasks of hyper, on the worker.

use hyper::rt::Executor;

/// Spawns them on the worker that asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { _ = future.await });
    }
}
