//! Child processes that end with their owner and whose output is at hand when something fails.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tempdir::TempDir;
use crate::wait::eventually;

/// Print the output of each process when it is dropped: tests set it, and libtest shows it for failures only.
pub static PRINT_OUTPUT: AtomicBool = AtomicBool::new(false);

/// How long a process may take to end after SIGTERM before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A running program; killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    files: TempDir,
}

impl Process {
    /// Starts a command with its output going to files.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let files = TempDir::new()?;
        command.stdin(Stdio::null());
        command.stdout(File::create(files.join("stdout"))?);
        command.stderr(File::create(files.join("stderr"))?);
        let child = command.spawn().with_context(|| format!("starting {name} ({command:?})"))?;
        Ok(Self { name: name.to_owned(), child, files })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something listens on each of these ports in the process's network namespace. Reads
    /// /proc instead of connecting, so that no counter of the program moves.
    pub fn wait_listening(&mut self, ports: &[u16]) -> Result<()> {
        let pid = self.pid();
        let mut exited = None;
        let ready = eventually(&format!("{} to listen on {ports:?}", self.name), || {
            exited = self.child.try_wait().ok().flatten();
            let listening = listening_ports(pid);
            (exited.is_some() || ports.iter().all(|port| listening.contains(port))).then_some(())
        });
        if ready.is_err() || exited.is_some() {
            bail!("{} does not listen on {ports:?} (exit: {exited:?})\n{}", self.name, self.output());
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("{signal} to {}", self.name))
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the end, at most this long.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < bound {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("{} still runs after {bound:?}\n{}", self.name, self.output())
    }

    /// SIGTERM, and SIGKILL if that was not enough.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(STOP_PATIENCE).or_else(|_| {
            self.child.kill()?;
            Ok(self.child.wait()?)
        })
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// CPU time used so far, user and system, in clock ticks (10 ms).
    pub fn cpu_ticks(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The second field, the program's name in brackets, may hold spaces.
        let fields: Vec<&str> =
            stat.rsplit(')').next().context("/proc/PID/stat has a name")?.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }

    /// Resident memory in KiB, of `VmRSS` or `VmHWM` (the peak).
    pub fn memory_kib(&self, key: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such key")?;
        Ok(line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse()?)
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    fn read(&self, file: &str) -> String {
        let bytes = fs::read(self.files.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of what it wrote, for messages.
    pub fn output(&self) -> String {
        let mut text = String::new();
        for (kind, content) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            if !content.is_empty() {
                text += &format!("--- {} {kind}\n{}", self.name, tail(&content));
            }
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() || PRINT_OUTPUT.load(Ordering::Relaxed) {
            print!("{}", self.output());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end: standard output, or an error with everything it said.
pub fn checked_output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

/// Looks a program up on `PATH`, in the sbin directories and where Debian keeps PostgreSQL's servers.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    versions.sort();
    directories.extend(versions.into_iter().rev());
    directories.into_iter().map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// The ports with a listening TCP socket in the network namespace of a process.
fn listening_ports(pid: u32) -> Vec<u16> {
    const LISTEN: &str = "0A";
    let tables =
        ["tcp", "tcp6"].map(|f| fs::read_to_string(format!("/proc/{pid}/net/{f}")).unwrap_or_default());
    tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next()?;
            let state = fields.nth(1)?;
            let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
            (state == LISTEN).then_some(port)
        })
        .collect()
}

/// The last few kilobytes, from a line's start.
fn tail(text: &str) -> &str {
    const BOUND: usize = 16 * 1024;
    let Some(start) = text.len().checked_sub(BOUND) else {
        return text;
    };
    let newline = text.as_bytes()[start..].iter().position(|&b| b == b'\n');
    newline.map_or("", |newline| &text[start + newline + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_captured_and_the_exit_is_seen() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let mut process = Process::spawn("sh", command).unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().code(), Some(3));
        assert_eq!((process.stdout().as_str(), process.stderr().as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_program_that_ends_instead_of_listening_is_an_error_with_its_output() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such option; exit 1"]);
        let error = Process::spawn("sh", command).unwrap().wait_listening(&[1]).unwrap_err();
        assert!(error.to_string().contains("no such option"), "{error}");
    }

    #[test]
    fn a_stopped_process_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut process = Process::spawn("sleep", command).unwrap();
        assert!(process.is_running());
        process.stop().unwrap();
        assert!(!process.is_running());
    }
}
