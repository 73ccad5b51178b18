//! Where the gateway of a run has its pins.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the bpf file system belongs; each run has a directory of its own in it.
const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_PREFIX: &str = "snisplice-bench-";

/// This run's pins.
pub(crate) fn bpffs() -> PathBuf {
    Path::new(BPFFS).join(format!("{BPFFS_PREFIX}{}", std::process::id()))
}

/// The pins of the packet tier among them.
pub(crate) fn pins() -> PathBuf {
    bpffs().join(format!("v{}/packet", lb_common::ABI_VERSION))
}

/// Removes the pins of runs that were killed.
pub(crate) fn remove_leftovers() -> Result<()> {
    let Ok(entries) = fs::read_dir(BPFFS) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(BPFFS_PREFIX));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a directory, if it is there.
pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
