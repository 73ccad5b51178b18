//! What the run ran on: enough to judge the numbers, nothing that dates or names the machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// The machine and the programs.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    memory_gib: f64,
    virtual_machine: bool,
    /// Share of all cores that was busy before the first scenario: above a few percent, do not trust the run.
    busy_before: f64,
    versions: Vec<Version>,
}

#[derive(Debug, Serialize)]
struct Version {
    program: &'static str,
    version: String,
}

impl Machine {
    /// Looks at this machine, for a second, and asks every program for its version.
    pub(crate) fn describe(snisplice: Option<&Path>) -> Result<Machine> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let cpu_field = |name: &str| {
            cpuinfo
                .lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(": "))
        };
        let memory_kib: f64 = fs::read_to_string("/proc/meminfo")?
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse()
                    .ok()
            })
            .context("MemTotal in /proc/meminfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let mut versions = Vec::new();
        if let Some(path) = snisplice {
            versions.push(Version::of("snisplice", path, "--version")?);
        }
        for (program, argument) in [
            ("haproxy", "-v"),
            ("nginx", "-v"),
            ("envoy", "--version"),
            ("redis-server", "--version"),
            ("iperf3", "--version"),
            ("openssl", "version"),
        ] {
            versions.push(Version::of(program, Path::new(program), argument)?);
        }
        Ok(Machine {
            kernel: kernel.trim().to_owned(),
            cpu: cpu_field("model name")
                .map_or("unknown", |(_, model)| model)
                .to_owned(),
            cores: cores()?,
            memory_gib: (memory_kib / f64::from(1 << 20)).round(),
            virtual_machine: cpu_field("flags").is_some_and(|(_, flags)| flags.contains("hypervisor")),
            busy_before: busy_share(Duration::from_secs(1))?,
            versions,
        })
    }

    /// A warning when something else is using the machine.
    pub(crate) fn warning(&self) -> Option<String> {
        let busy = self.busy_before * 100.0;
        (busy > 5.0)
            .then(|| format!("the machine was {busy:.0} % busy before the run: the figures are noise"))
    }

    /// A few lines for the head of the report.
    pub(crate) fn markdown(&self) -> String {
        let machine = if self.virtual_machine {
            "virtual machine"
        } else {
            "machine"
        };
        let versions: Vec<_> = self.versions.iter().map(|v| v.version.as_str()).collect();
        let mut out = format!(
            "- {machine}: {} cores of {}, {:.0} GiB; Linux {}; {:.1} % busy before the run\n- {}\n",
            self.cores,
            self.cpu,
            self.memory_gib,
            self.kernel,
            self.busy_before * 100.0,
            versions.join("; "),
        );
        if let Some(warning) = self.warning() {
            out += &format!("\n**{warning}**\n");
        }
        out
    }
}

impl Version {
    fn of(program: &'static str, path: &Path, argument: &str) -> Result<Version> {
        let output = Command::new(path)
            .arg(argument)
            .output()
            .with_context(|| format!("{program} is missing"))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        match text.lines().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) => {
                // Envoy prints its own path first, others a build date or a link last.
                let line = line.rsplit("version: ").next().unwrap_or(line);
                let version = line.split(" 20").next().unwrap_or(line);
                let named = version
                    .to_lowercase()
                    .contains(program.trim_end_matches("-server"));
                let version = if named {
                    version.to_owned()
                } else {
                    format!("{program} {version}")
                };
                Ok(Version { program, version })
            }
            None => bail!("{program} {argument} printed nothing"),
        }
    }
}

/// Cores that this process may use; every subject gets as many threads.
pub(crate) fn cores() -> Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

/// Seconds that all cores together have been busy since boot, interrupts included, stolen time not.
///
/// The whole machine, because work that moved into interrupts shows in no process's own time.
pub(crate) fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    parse_busy(&stat).context("the first line of /proc/stat")
}

fn busy_share(window: Duration) -> Result<f64> {
    let before = busy_seconds()?;
    std::thread::sleep(window);
    Ok((busy_seconds()? - before) / window.as_secs_f64() / cores()? as f64)
}

/// The kernel shows times in `USER_HZ`, which is 100 on every architecture Rust's std supports.
const USER_HZ: f64 = 100.0;

fn parse_busy(stat: &str) -> Option<f64> {
    let times: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    // user nice system idle iowait irq softirq steal guest guest_nice; the guests are part of user and nice.
    let &[user, nice, system, _idle, _iowait, irq, softirq, ..] = times.as_slice() else {
        return None;
    };
    Some((user + nice + system + irq + softirq) as f64 / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_out_idle_iowait_and_steal_and_counts_guests_once() {
        let stat = "cpu  100 20 3 9999 9999 40 500 9999 60 7\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(parse_busy(stat), Some(6.63));
        assert_eq!(parse_busy("cpu0 1 2 3"), None);
        assert_eq!(parse_busy(""), None);
    }
}
