//! How much memory a process and its workers use.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Proportional set size of a process and of its children, in bytes: pages they share count once.
pub(crate) fn of_group(pid: u32) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        // Processes come and go while this looks; only those of the group matter.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if ids(&stat).is_some_and(|(own, parent)| own == pid || parent == pid) {
            let rollup = fs::read_to_string(entry.path().join("smaps_rollup"))?;
            total += pss(&rollup).context("no Pss in smaps_rollup")?;
        }
    }
    ensure!(total > 0, "process {pid} is gone");
    Ok(total)
}

/// Seconds of CPU that a process and its children have used, the ones that have ended left out.
pub(crate) fn cpu_of_group(pid: u32) -> Result<f64> {
    let ticks = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        cpu_ticks(&stat).context("no times in /proc/PID/stat")
    };
    let own = ticks(pid)?;
    let total = children(pid)?.into_iter().filter_map(|child| ticks(child).ok()).sum::<u64>() + own;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(total as f64 / per_second as f64)
}

/// The processes that this one has started.
pub(crate) fn children(pid: u32) -> Result<Vec<u32>> {
    let stats = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    Ok(stats.filter_map(|stat| ids(&stat)).filter(|(_, parent)| *parent == pid).map(|(own, _)| own).collect())
}

/// Bytes that the kernel itself uses for objects such as sockets, files and entries of BPF maps: `Slab`, without the
/// names and files that it only remembers.
pub(crate) fn of_kernel() -> Result<u64> {
    fs::write("/proc/sys/vm/drop_caches", "2").context("dropping the kernel's caches of names and files")?;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line =
        meminfo.lines().find_map(|line| line.strip_prefix("Slab:")).context("no Slab in /proc/meminfo")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Process and parent from `/proc/PID/stat`; the name in brackets between them may hold spaces and brackets.
fn ids(stat: &str) -> Option<(u32, u32)> {
    let (own, _) = stat.split_once(' ')?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some((own.parse().ok()?, rest.split_ascii_whitespace().nth(1)?.parse().ok()?))
}

/// Fields 14 and 15 of `/proc/PID/stat`: ticks of its own and of the kernel for it (proc_pid_stat(5)).
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_and_parent_are_found_around_an_awkward_name() {
        assert_eq!(ids("12 (a) b) S 1 345 345 0 -1"), Some((12, 1)));
        assert_eq!(ids("garbage"), None);
        assert_eq!(cpu_ticks("12 (a) b) S 1 345 345 0 -1 4194304 1 2 3 4 70 5 6 7"), Some(75));
    }

    #[test]
    fn pss_is_read_in_bytes_and_not_taken_from_its_parts() {
        assert_eq!(pss("00-ff [rollup]\nRss: 90 kB\nPss:         12 kB\nPss_Dirty: 3 kB\n"), Some(12288));
        assert_eq!(pss("Pss_Dirty: 3 kB\n"), None);
    }
}
