//! A bpf file system for one gateway, so that its pins are separate and are removed with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted bpf file system; unmounted on drop, which ends everything that only a pin kept alive.
#[derive(Debug)]
pub struct BpfFs {
    path: PathBuf,
}

impl BpfFs {
    /// Its name in a [`crate::TempDir`]; what a killed test left mounted there is found by this name.
    pub const NAME: &str = "bpffs";

    /// Mounts one in a directory.
    pub fn mount_in(directory: &Path) -> Result<Self> {
        let path = directory.join(Self::NAME);
        fs::create_dir(&path)?;
        // A gateway pins only in directories where no other user can write.
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("mounting a bpf file system at {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// Unmounts a bpf file system, if there is one, even if it is in use.
pub(crate) fn unmount(path: &Path) {
    // An error: nothing is mounted there.
    let _ = umount2(path, MntFlags::MNT_DETACH);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tempdir::TempDir;

    #[test]
    fn a_bpf_file_system_is_there_and_goes_away_with_its_owner() {
        let mounted = |path: &Path| {
            let path = path.display().to_string();
            fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|line| {
                let mut fields = line.split(' ');
                fields.nth(1) == Some(&path) && fields.next() == Some("bpf")
            })
        };
        let files = TempDir::new().unwrap();
        let bpffs = BpfFs::mount_in(files.path()).unwrap();
        let path = files.join(BpfFs::NAME);
        assert!(mounted(&path));
        drop(bpffs);
        assert!(!mounted(&path));
    }
}
