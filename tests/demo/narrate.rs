//! What the demo says, as it happens.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use snisplice_tests::interrupt::pause_point;

/// Announces the next step.
pub(crate) fn step(text: &str) -> Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    pause_point()?;
    println!("\n{}. {text}", NUMBER.fetch_add(1, Ordering::Relaxed));
    Ok(())
}

/// A remark on what just happened.
pub(crate) fn note(text: &str) {
    println!("  {text}");
}

/// A text as a program wrote it or reads it.
pub(crate) fn quote(text: &str) {
    for line in text.trim_end().lines() {
        println!("  | {line}");
    }
}
