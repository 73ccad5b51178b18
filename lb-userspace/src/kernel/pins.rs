//! The directory of pins in the bpf file system.

use super::{KernelError, pin_error};
use aya::maps::{MapInfo, MapType};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// `f_type` of a bpf file system (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Where the bpf file system belongs.
const BPFFS_ROOT: &str = "/sys/fs/bpf";

/// What a map must be like to be ours.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    /// Bytes.
    pub(super) key: u32,
    /// Bytes.
    pub(super) value: u32,
}

/// `<bpffs>/v<ABI>/<tier>/`, which exists.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    handle: File,
}

impl Pins {
    /// The directory if it is there.
    pub(super) fn existing(bpffs: &Path, tier: &str) -> Result<Option<Self>, KernelError> {
        let dir = versioned(bpffs).join(tier);
        match File::open(&dir) {
            Ok(handle) => Ok(Some(Self { dir, handle })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(pin_error(dir, error)),
        }
    }

    /// Makes the directory; mounts the file system if it belongs at [`BPFFS_ROOT`] and is not there.
    pub(super) fn create(bpffs: &Path, tier: &str) -> Result<Self, KernelError> {
        let dir = versioned(bpffs).join(tier);
        let no_bpffs = |source| KernelError::NoBpffs { path: bpffs.to_owned(), source };
        if !is_bpffs(bpffs) {
            if !bpffs.starts_with(BPFFS_ROOT) {
                return Err(no_bpffs(io::ErrorKind::NotFound.into()));
            }
            rustix::mount::mount("bpf", BPFFS_ROOT, "bpf", rustix::mount::MountFlags::empty(), None)
                .map_err(|error| no_bpffs(error.into()))?;
        }
        fs::create_dir_all(&dir).map_err(|error| pin_error(dir.clone(), error))?;
        let handle = File::open(&dir).map_err(|error| pin_error(dir.clone(), error))?;
        Ok(Self { dir, handle })
    }

    /// Claims the pinned maps for this process, until the value is dropped. `false`: another has them.
    pub(super) fn lock(&self) -> bool {
        flock(&self.handle, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Where the program or map of that name is pinned.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether what is pinned under the map's name, if anything, has the map's shape. aya would adopt any map.
    pub(super) fn check(&self, shape: &Shape) -> Result<(), KernelError> {
        let path = self.path(shape.name);
        if !path.exists() {
            return Ok(());
        }
        let info =
            MapInfo::from_pin(&path).map_err(|error| pin_error(path.clone(), io::Error::other(error)))?;
        let found = describe(info.map_type().ok(), info.key_size(), info.value_size());
        let expected = describe(Some(shape.kind), shape.key, shape.value);
        if found == expected { Ok(()) } else { Err(KernelError::ForeignPin { path, expected, found }) }
    }

    /// What is pinned.
    pub(super) fn names(&self) -> Result<Vec<String>, KernelError> {
        let entries = fs::read_dir(&self.dir).map_err(|error| pin_error(self.dir.clone(), error))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Removes one pin, if it is there.
    pub(super) fn clear(&self, name: &str) -> Result<(), KernelError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error(path, error)),
            _ => Ok(()),
        }
    }
}

/// Whether something is pinned below the directory, by whichever version.
pub(super) fn are_there(bpffs: &Path) -> Result<bool, KernelError> {
    Ok(!versions(bpffs)?.is_empty())
}

/// Removes all pins, and the directory if nothing else is left in it. `false`: there were none.
pub(super) fn remove_all(bpffs: &Path) -> Result<bool, KernelError> {
    let versions = versions(bpffs)?;
    for dir in &versions {
        // A bpf file system has no other entries than pins and directories.
        fs::remove_dir_all(dir).map_err(|error| pin_error(dir.clone(), error))?;
    }
    // Fails where it should: not empty, or a mount point.
    let _ = fs::remove_dir(bpffs);
    Ok(!versions.is_empty())
}

/// The directories of all versions that have pins.
fn versions(bpffs: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(pin_error(bpffs.to_owned(), error)),
    };
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_version).collect())
}

fn versioned(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{}", lb_common::ABI_VERSION))
}

/// Whether the path, or what is there of it, lies on a bpf file system.
fn is_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    rustix::fs::statfs(existing).is_ok_and(|stat| stat.f_type as u64 == BPF_FS_MAGIC)
}

fn describe(kind: Option<MapType>, key: u32, value: u32) -> String {
    let kind = kind.map_or_else(|| "unknown type".to_owned(), |kind| format!("{kind:?}"));
    format!("{kind}, {key}-byte key, {value}-byte value")
}
