//! A process that can start no thread for a while, as when a limit of the system is reached.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the kernel counts threads (cgroups, version 1).
const PIDS: &str = "/sys/fs/cgroup/pids";

/// Whether [`NoThreads`] can be had here.
pub fn can_be_bounded() -> bool {
    Path::new(PIDS).join("cgroup.procs").exists()
}

/// The process can start no thread while this is there.
pub struct NoThreads {
    group: PathBuf,
    pid: u32,
}

impl NoThreads {
    /// For a process.
    pub fn of(pid: u32) -> Result<Self> {
        let group = Path::new(PIDS).join(format!("snisplice-test-{pid}"));
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        let bounded = Self { group, pid };
        fs::write(bounded.group.join("cgroup.procs"), pid.to_string())?;
        // Those that it has are more already.
        fs::write(bounded.group.join("pids.max"), "1")?;
        Ok(bounded)
    }
}

impl Drop for NoThreads {
    fn drop(&mut self) {
        // Errors: the process has ended.
        let _ = fs::write(Path::new(PIDS).join("cgroup.procs"), self.pid.to_string());
        let _ = fs::remove_dir(&self.group);
    }
}
