//! Waiting for something to become true, with a bound.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Names the bound in seconds, for machines that are slower than a real one.
const PATIENCE_ENV: &str = "SNISPLICE_PATIENCE";

/// The bound of [`eventually`]: far beyond what a busy two-core machine needs, so that only a real fault meets it.
pub fn patience() -> Duration {
    let asked_for = std::env::var(PATIENCE_ENV).ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(asked_for.unwrap_or(20))
}

/// Polls until `probe` gives a value; `what` names what was awaited in the error.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let (start, patience) = (Instant::now(), patience());
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if start.elapsed() > patience {
            bail!("gave up after {patience:?} waiting for {what}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
