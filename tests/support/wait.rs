//! Waiting for something to become true, with a bound.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The bound of [`eventually`]: far beyond what a busy two-core machine needs, so that only a real fault meets it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `probe` gives a value; `what` names what was awaited in the error.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if start.elapsed() > PATIENCE {
            bail!("gave up after {PATIENCE:?} waiting for {what}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
