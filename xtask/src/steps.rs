//! Running other programs: where things lie, what is said about it, how long it took.

use std::{
    env, fs,
    io::{IsTerminal as _, Write as _, stderr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        LazyLock,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::ebpf::Places;

/// The root of the workspace: of the one that cargo was called in, which is not always the one that this was compiled in,
/// when two share a target directory.
pub(crate) fn root() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
    });
    PACKAGE.parent().expect("xtask lies in the workspace")
}

/// Where cargo builds: CARGO_TARGET_DIR, else `target`.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A cargo at the root of the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(args);
    cargo
}

/// Builds all that tests and demo run. Each cargo of these commands selects the whole workspace: a narrower one enables fewer
/// features of shared dependencies, and would compile them again.
pub(crate) const BUILD: &[&str] = &["build", "--workspace", "--all-targets"];

/// Whether a command is installed; the directories for administrators count, whoever runs us.
pub(crate) fn installed(command: &str) -> bool {
    let places = Places::here();
    places.command(command).is_some()
        || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(command).is_file())
}

/// Whether this process may install packages.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Runs a command whose output is for the reader.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a long command whose output matters only if it fails: says what it is for, how long it has run (on a
/// terminal, while it runs) and took.
pub(crate) fn quietly(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("  {what}: {}", line(command));
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot start {}", line(command)))?;
    let (done, waiting) = channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    let output = loop {
        match waiting.recv_timeout(Duration::from_secs(1)) {
            Ok(output) => break output?,
            Err(RecvTimeoutError::Timeout) if stderr().is_terminal() => {
                eprint!("\r  … {}", seconds(start.elapsed()));
                stderr().flush()?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("lost {}", line(command)),
        }
    };
    let clear = if stderr().is_terminal() { "\r" } else { "" };
    if !output.status.success() {
        eprintln!("{clear}  failed after {}", seconds(start.elapsed()));
        let said = [output.stdout, output.stderr].concat();
        bail!("{} failed ({})\n{}", line(command), output.status, tail(&String::from_utf8_lossy(&said), 15));
    }
    eprintln!("{clear}  done in {}", seconds(start.elapsed()));
    Ok(())
}

/// `12.3 s`, or minutes where that reads better.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

/// A command as one would type it.
fn line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_output_is_kept() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }

    #[test]
    fn a_failing_command_is_reported_with_what_it_said() {
        let error = quietly("a test", Command::new("sh").args(["-c", "echo why; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }
}
