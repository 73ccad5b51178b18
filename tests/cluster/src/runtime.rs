//! One thread that does several things at once.

use std::future::Future;

use anyhow::Result;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// Runs a future, and the tasks that it starts, on this thread. Processes that they start die with it.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, future)
}
