//! Tests that cannot run here say so, loudly, and leave a line for the summary.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

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

/// Names the Python that has the drivers of databases.
pub const PYTHON_ENV: &str = "SNISPLICE_PYTHON";

/// The Python that has a module, if there is one.
pub fn python_with(module: &str) -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os(PYTHON_ENV).unwrap_or_else(|| "python3".into()));
    let found = Command::new(&python).args(["-c", &format!("import {module}")]).output().ok()?;
    found.status.success().then_some(python)
}
