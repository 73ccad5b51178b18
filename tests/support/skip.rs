//! Tests that cannot run here say so, loudly, and leave a line for the summary.

use std::fs::OpenOptions;
use std::io::Write;

/// Names the file that collects one `test: reason` line for each skipped test.
pub const SKIPS_ENV: &str = "SNISPLICE_SKIPS";

/// Returns from the calling test, with `Ok(())`, unless the condition holds.
#[macro_export]
macro_rules! require {
    ($condition:expr, $reason:expr) => {
        if !$condition {
            $crate::skip::skipped($reason);
            return Ok(());
        }
    };
}

/// Reports the current test as skipped; what [`require!`] calls.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("unnamed"));
    // Straight to the descriptor: libtest hides what a passing test prints.
    let _ = nix::unistd::write(std::io::stderr(), format!("SKIPPED {line}").as_bytes());
    if let Some(path) = std::env::var_os(SKIPS_ENV) {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the file in SNISPLICE_SKIPS is writable");
    }
}

/// Whether a program is on `PATH` (or where Debian hides PostgreSQL's).
pub fn has_program(name: &str) -> bool {
    crate::process::find_program(name).is_some()
}
