//! What the run ran on: enough to judge the numbers, nothing that dates or names the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// The machine and the programs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    memory_gib: f64,
    virtual_machine: bool,
    /// The hard limit of open files of a process: no subject can have more sockets.
    open_files: u64,
    /// Share of all cores that was busy before the first scenario: above a few percent, do not trust the run.
    busy_before: f64,
    versions: Vec<Version>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Version {
    program: String,
    version: String,
}

impl Machine {
    /// Looks at this machine, for a second, and asks every program for its version.
    pub(crate) fn describe(programs: &[(&str, PathBuf)]) -> Result<Machine> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let cpu_field = |name: &str| {
            cpuinfo.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": "))
        };
        let memory_kib: f64 = fs::read_to_string("/proc/meminfo")?
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
            .context("MemTotal in /proc/meminfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let versions =
            programs.iter().map(|(program, path)| Version::of(program, path)).collect::<Result<_>>();
        Ok(Machine {
            kernel: kernel.trim().to_owned(),
            cpu: cpu_field("model name").map_or("unknown", |(_, model)| model).to_owned(),
            cores: cores()?,
            memory_gib: (memory_kib / f64::from(1 << 20)).round(),
            virtual_machine: cpu_field("flags").is_some_and(|(_, flags)| flags.contains("hypervisor")),
            busy_before: busy_share(Duration::from_secs(1))?,
            open_files: open_files()?,
            versions: versions?,
        })
    }

    /// A warning when something else is using the machine.
    pub(crate) fn warning(&self) -> Option<String> {
        let busy = self.busy_before * 100.0;
        (busy > 5.0)
            .then(|| format!("the machine was {busy:.0} % busy before the run: the figures are noise"))
    }

    /// Of a program of the run.
    pub(crate) fn version(&self, program: &str) -> Option<&str> {
        self.versions.iter().find(|found| found.program == program).map(|found| found.version.as_str())
    }

    /// What the charts say of it.
    pub(crate) fn one_line(&self) -> String {
        let machine = if self.virtual_machine { "virtual machine" } else { "machine" };
        format!(
            "{machine}: {} cores of {}, {:.0} GiB; Linux {}",
            self.cores, self.cpu, self.memory_gib, self.kernel
        )
    }

    /// A few lines for the head of the report.
    pub(crate) fn markdown(&self) -> String {
        let versions: Vec<_> = self.versions.iter().map(|v| format!("{} {}", v.program, v.version)).collect();
        let mut out = format!(
            "- {}; {:.1} % busy before the run; {} open files a process at most\n- {}\n",
            self.one_line(),
            self.busy_before * 100.0,
            self.open_files,
            versions.join(", "),
        );
        if let Some(warning) = self.warning() {
            out += &format!("\n**{warning}**\n");
        }
        out
    }
}

impl Version {
    fn of(program: &str, path: &Path) -> Result<Version> {
        let argument = match program {
            "haproxy" | "nginx" => "-v",
            "openssl" => "version",
            _ => "--version",
        };
        let output =
            Command::new(path).arg(argument).output().with_context(|| format!("{program} is missing"))?;
        let text = [output.stdout, output.stderr].concat();
        let version = parse_version(&String::from_utf8_lossy(&text))
            .with_context(|| format!("{program} {argument} prints no version"))?;
        Ok(Version { program: program.to_owned(), version })
    }
}

/// The first thing like `1.2`, behind `version:` where there is one: Envoy prints its path, too.
fn parse_version(text: &str) -> Option<String> {
    let text = text.split_once("version: ").map_or(text, |(_, rest)| rest);
    let words = text.split(|c: char| c.is_whitespace() || "/=,".contains(c));
    words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
        .next()
}

/// Cores that this process may use; every subject gets as many threads.
pub(crate) fn cores() -> Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

/// How many files a process of this run may open, sockets included.
pub(crate) fn open_files() -> Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}

/// Seconds that all cores together have been busy, interrupts included, stolen time not. Only differences mean anything.
///
/// The whole machine, because work that moved into interrupts shows in no process's own time. What was not idle, because
/// most kernels measure idle times exactly but find the busy ones by looking at each tick: a load that wakes up with the
/// ticks, as one at a fixed rate does, is then taken for a core's worth, or for nothing.
pub(crate) fn busy_seconds() -> Result<f64> {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let elapsed = START.elapsed();
    let stat = fs::read_to_string("/proc/stat")?;
    let idle = parse_idle(&stat).context("the first line of /proc/stat")?;
    Ok(elapsed.as_secs_f64() * cores()? as f64 - idle)
}

fn busy_share(window: Duration) -> Result<f64> {
    let before = busy_seconds()?;
    std::thread::sleep(window);
    Ok((busy_seconds()? - before) / window.as_secs_f64() / cores()? as f64)
}

/// The kernel shows times in `USER_HZ`, which is 100 on every architecture Rust's std supports.
const USER_HZ: f64 = 100.0;

/// Seconds of all cores together without work, or taken away by the host.
fn parse_idle(stat: &str) -> Option<f64> {
    let times: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let &[_user, _nice, _system, idle, iowait, _irq, _softirq, steal, ..] = times.as_slice() else {
        return None;
    };
    Some((idle + iowait + steal) as f64 / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Machine {
        /// For the tests of what is written about a run.
        pub(crate) fn example() -> Machine {
            Machine {
                kernel: "6.1".to_owned(),
                cpu: "a processor".to_owned(),
                cores: 2,
                memory_gib: 4.0,
                virtual_machine: true,
                open_files: 1024,
                busy_before: 0.0,
                versions: Vec::new(),
            }
        }
    }

    #[test]
    fn idle_time_is_that_of_all_cores_and_includes_waits_and_what_the_host_took() {
        let stat = "cpu  9999 9999 9999 100 20 9999 9999 3 60 7\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(parse_idle(stat), Some(1.23));
        assert_eq!(parse_idle("cpu0 1 2 3"), None);
        assert_eq!(parse_idle(""), None);
    }

    #[test]
    fn versions_are_found_in_what_each_program_prints() {
        for (text, version) in [
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\n", "2.6.12-1+deb12u4"),
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("\n/opt/python3.11/bin/envoy  version: 9e5580/1.40.0/Clean/RELEASE/BoringSSL\n", "1.40.0"),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64\n", "7.0.15"),
            ("iperf 3.12 (cJSON 1.7.15)\n", "3.12"),
            ("snisplice 0.1.0\n", "0.1.0"),
        ] {
            assert_eq!(parse_version(text).as_deref(), Some(version));
        }
        assert_eq!(parse_version("no such option"), None);
    }
}
