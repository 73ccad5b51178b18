//! A directory that is removed on drop; what a killed process left behind is removed by the next one.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bpffs::{self, BpfFs};

const PREFIX: &str = "snisplice-test-";

/// A directory of its own under the system's temporary directory.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Makes `snisplice-test-PID-N`, searchable by every user (PostgreSQL refuses to run as root).
    pub fn new() -> io::Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(remove_leftovers);

        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{n}", std::process::id()));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nobody is left to tell, and the next sweep tries again.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.split('-').next());
        let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        if owner != std::process::id() && !Path::new(&format!("/proc/{owner}")).exists() {
            // Else the directory could not be removed, and the pins would be.
            bpffs::unmount(&entry.path().join(BpfFs::NAME));
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_away_with_its_owner() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().to_owned();
        fs::write(dir.join("file"), "x").unwrap();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_of_a_dead_process_is_swept() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-sweep", child.id()));
        child.wait().unwrap();
        fs::create_dir(&path).unwrap();
        remove_leftovers();
        assert!(!path.exists());
    }
}
