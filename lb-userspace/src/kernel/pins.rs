//! The directory of pins in the bpf file system.
//!
//! A user who may write there could replace our maps, and one who may open the directory could take its lock. So the
//! configured directory and those below it must belong to this user and be closed to all others.

use super::error::{KernelError, pin_error};
use super::probe::Answer;
use aya::maps::{MapInfo, MapType};
use caps::{CapSet, Capability};
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, fstat};
use rustix::process::geteuid;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `f_type` of a bpf file system (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// The usual mount point of the bpf file system.
const BPFFS_ROOT: &str = "/sys/fs/bpf";

/// Mode bits of users other than the owner, of which a directory of ours has none.
const OTHERS: u32 = 0o077;
/// Those of them that allow a change of the directory.
const OTHERS_WRITE: u32 = 0o022;

/// What a pinned map must be like to be adopted.
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
    /// The directory, which may be locked; `None`: the lock was given up.
    handle: Mutex<Option<File>>,
}

impl Pins {
    /// The directory if it is there.
    pub(super) fn existing(bpffs: &Path, tier: &str) -> Result<Option<Self>, KernelError> {
        let mut handle = None;
        let path = directories(bpffs, tier);
        for dir in &path {
            handle = open_ours(dir)?;
            if handle.is_none() {
                break;
            }
        }
        let [.., dir] = path;
        Ok(handle.map(|handle| Self { dir, handle: Mutex::new(Some(handle)) }))
    }

    /// Makes the directory. Mounts the bpf file system at [`BPFFS_ROOT`] if the directory lies there and none is mounted.
    pub(super) fn create(bpffs: &Path, tier: &str) -> Result<Self, KernelError> {
        let no_bpffs = |source| KernelError::NoBpffs { path: bpffs.to_owned(), source };
        if !is_bpffs(bpffs) {
            if !bpffs.starts_with(BPFFS_ROOT) {
                return Err(no_bpffs(io::ErrorKind::NotFound.into()));
            }
            let flags = rustix::mount::MountFlags::empty();
            // The default mode is 1777, as that of /tmp.
            rustix::mount::mount("bpf", BPFFS_ROOT, "bpf", flags, Some(c"mode=0700"))
                .map_err(|error| no_bpffs(error.into()))?;
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for dir in directories(bpffs, tier) {
            builder.create(&dir).map_err(|error| pin_error(dir.clone(), error))?;
            // Before anything is made in it: it may have been made by another user.
            open_ours(&dir)?;
        }
        Self::existing(bpffs, tier)?.ok_or_else(|| no_bpffs(io::ErrorKind::NotFound.into()))
    }

    /// Locks the pinned maps for this process, until the value is dropped. `false`: another process has the lock.
    pub(super) fn lock(&self) -> bool {
        let handle = lock(&self.handle);
        handle.as_ref().is_some_and(|handle| flock(handle, FlockOperation::NonBlockingLockExclusive).is_ok())
    }

    /// Takes the lock of another process that lets this one have it too: its directory, locked. `false`: it is another
    /// directory.
    pub(super) fn share(&self, theirs: OwnedFd) -> bool {
        let mut handle = lock(&self.handle);
        let place = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let ours = handle.as_ref().and_then(|handle| fstat(handle).ok()).map(place);
        let is_same = ours.is_some() && fstat(&theirs).ok().map(place) == ours;
        if is_same {
            *handle = Some(theirs.into());
        }
        is_same
    }

    /// The locked directory, for a process that is to have the lock too.
    pub(super) fn share_lock(&self) -> io::Result<OwnedFd> {
        let handle = lock(&self.handle);
        handle.as_ref().ok_or(io::ErrorKind::NotFound)?.try_clone().map(Into::into)
    }

    /// Lets other processes have the lock.
    pub(super) fn unlock(&self) {
        *lock(&self.handle) = None;
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.dir
    }

    /// The path of the pin of that name.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether the map that is pinned under the name, if any, has this shape. aya would adopt any map.
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

    /// The names of all pins.
    pub(super) fn names(&self) -> Result<Vec<String>, KernelError> {
        let entries = fs::read_dir(&self.dir).map_err(|error| pin_error(self.dir.clone(), error))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Removes the pin of that name, if there is one.
    pub(super) fn clear(&self, name: &str) -> Result<(), KernelError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error(path, error)),
            _ => Ok(()),
        }
    }
}

/// Whether any version has pins below the directory.
pub(super) fn are_there(bpffs: &Path) -> Result<bool, KernelError> {
    Ok(!versions(bpffs)?.is_empty())
}

/// Removes all pins, and the directory if nothing else is left in it. `false`: there were none.
pub(super) fn remove_all(bpffs: &Path) -> Result<bool, KernelError> {
    let versions = versions(bpffs)?;
    for dir in &versions {
        // A bpf file system has only pins and directories.
        fs::remove_dir_all(dir).map_err(|error| pin_error(dir.clone(), error))?;
    }
    // Fails, as it should, if the directory is not empty or a mount point.
    let _ = fs::remove_dir(bpffs);
    Ok(!versions.is_empty())
}

/// The directories of all versions that have pins.
pub(super) fn versions(bpffs: &Path) -> Result<Vec<PathBuf>, KernelError> {
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

/// The directory of this version's pins of a tier; it need not exist.
pub(super) fn directory(bpffs: &Path, tier: &str) -> PathBuf {
    let [.., dir] = directories(bpffs, tier);
    dir
}

/// Whether [`Pins::create`] finds a bpf file system there, or can mount one.
pub(super) fn place(bpffs: &Path) -> Answer {
    let is_mountable = bpffs.starts_with(BPFFS_ROOT);
    let may_mount = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false);
    if is_bpffs(bpffs) || (is_mountable && may_mount) {
        Answer::Yes
    } else if is_mountable {
        Answer::NotPermitted
    } else {
        Answer::Unknown(format!("{} is on no bpf file system", bpffs.display()))
    }
}

/// The root of the bpf file system that the path lies on; `None`: it lies on none.
pub(super) fn root(bpffs: &Path) -> Option<PathBuf> {
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let existing = bpffs.ancestors().find(|path| path.exists()).filter(|path| is_bpffs(path))?;
    existing.ancestors().take_while(|path| device(path) == device(existing)).last().map(Path::to_owned)
}

/// The configured directory, the version's, and the tier's.
fn directories(bpffs: &Path, tier: &str) -> [PathBuf; 3] {
    let version = bpffs.join(format!("v{}", lb_common::ABI_VERSION));
    let tier = version.join(tier);
    [bpffs.to_owned(), version, tier]
}

/// Opens a directory and closes it to other users; `None`: it does not exist. An error if other users may have changed, or
/// may change, what is pinned in it.
fn open_ours(dir: &Path) -> Result<Option<File>, KernelError> {
    let of_pin = |error: rustix::io::Errno| pin_error(dir.to_owned(), error.into());
    // No symbolic link: if the directory above is open to other users, they decide where it leads.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = match rustix::fs::open(dir, flags, Mode::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(of_pin(error)),
    };
    let stat = fstat(&handle).map_err(of_pin)?;
    let us = geteuid().as_raw();
    if stat.st_uid != us {
        return Err(KernelError::ForeignDirectory { path: dir.to_owned(), owner: stat.st_uid, us });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(KernelError::OpenDirectory { path: dir.to_owned(), mode });
    }
    if mode & OTHERS != 0 {
        fchmod(&handle, Mode::RWXU).map_err(of_pin)?;
    }
    Ok(Some(handle.into()))
}

/// Whether the path, or the part of it that exists, lies on a bpf file system.
fn is_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    rustix::fs::statfs(existing).is_ok_and(|stat| stat.f_type as u64 == BPF_FS_MAGIC)
}

fn lock(handle: &Mutex<Option<File>>) -> MutexGuard<'_, Option<File>> {
    // Never left half-changed.
    handle.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(kind: Option<MapType>, key: u32, value: u32) -> String {
    let kind = kind.map_or_else(|| "unknown type".to_owned(), |kind| format!("{kind:?}"));
    format!("{kind}, {key}-byte key, {value}-byte value")
}
