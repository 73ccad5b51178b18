//! Whose the directories of pins are, and who may look into them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use snisplice::kernel::{KernelError, Packet};
use snisplice_tests::bpffs::BpfFs;
use snisplice_tests::{TempDir, eventually};

/// Who runs nothing of ours.
const NOBODY: u32 = 65_534;

/// The configured directory in a bpf file system, and those below it.
fn directories(bpffs: &Path) -> [PathBuf; 3] {
    let version = bpffs.join(format!("v{}", lb_common::ABI_VERSION));
    [bpffs.to_owned(), version.clone(), version.join("packet")]
}

fn mode(path: &Path) -> Result<u32> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o7777)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

/// A file system, and a directory in it that a gateway has used and left.
fn used() -> Result<(TempDir, BpfFs, PathBuf)> {
    let files = TempDir::new()?;
    let bpffs = BpfFs::mount_in(files.path())?;
    let path = files.join(BpfFs::NAME).join("gateway");
    drop(Packet::open(&path, 64)?);
    Ok((files, bpffs, path))
}

#[test]
fn directories_of_pins_are_closed_to_others_and_closed_again() -> Result<()> {
    let (_files, _bpffs, path) = used()?;
    for directory in directories(&path) {
        ensure!(mode(&directory)? == 0o700, "{}", directory.display());
        set_mode(&directory, 0o755)?;
    }
    // A process that another test is starting has the lock's file open until it executes its program.
    eventually("the first one's lock to be free", || Packet::open(&path, 64).ok())?;
    for directory in directories(&path) {
        ensure!(mode(&directory)? == 0o700, "{}", directory.display());
    }
    Ok(())
}

#[test]
fn a_directory_of_somebody_else_is_refused() -> Result<()> {
    for which in 0..3 {
        let (_files, _bpffs, path) = used()?;
        let foreign = directories(&path)[which].clone();
        chown(&foreign, Some(NOBODY), Some(NOBODY))?;
        let refused = Packet::open(&path, 64).err().context("opened")?;
        ensure!(
            matches!(&refused, KernelError::ForeignDirectory { path, owner: NOBODY, us: 0 } if *path == foreign),
            "{refused:?}"
        );
        let said = refused.to_string();
        ensure!(said.starts_with(&format!("{} belongs to user 65534", foreign.display())), "{said}");
    }
    Ok(())
}

#[test]
fn a_directory_that_others_may_write_to_is_refused_and_stays_as_it_is() -> Result<()> {
    for (which, lax) in [(0, 0o1777), (1, 0o770), (2, 0o702)] {
        let (_files, _bpffs, path) = used()?;
        let open = directories(&path)[which].clone();
        set_mode(&open, lax)?;
        let refused = Packet::open(&path, 64).err().context("opened")?;
        ensure!(
            matches!(&refused, KernelError::OpenDirectory { path, mode } if *path == open && *mode == lax),
            "{refused:?}"
        );
        ensure!(mode(&open)? == lax);
    }
    Ok(())
}

#[test]
fn nothing_is_made_in_a_directory_of_somebody_else() -> Result<()> {
    let files = TempDir::new()?;
    let _bpffs = BpfFs::mount_in(files.path())?;
    let path = files.join(BpfFs::NAME).join("gateway");
    fs::create_dir(&path)?;
    chown(&path, Some(NOBODY), Some(NOBODY))?;
    ensure!(matches!(Packet::open(&path, 64).err(), Some(KernelError::ForeignDirectory { .. })));
    ensure!(fs::read_dir(&path)?.next().is_none());
    Ok(())
}

#[test]
fn a_symbolic_link_leads_nowhere() -> Result<()> {
    let (files, _bpffs, path) = used()?;
    let link = files.join(BpfFs::NAME).join("link");
    symlink(&path, &link)?;
    ensure!(matches!(Packet::open(&link, 64).err(), Some(KernelError::Pin { path, .. }) if path == link));
    Ok(())
}

/// What distributions have mounted stays as it is; only what is in it is ours.
#[test]
fn a_file_system_that_is_there_and_open_to_all_is_used_and_not_changed() -> Result<()> {
    let files = TempDir::new()?;
    let _bpffs = BpfFs::mount_in(files.path())?;
    let root = files.join(BpfFs::NAME);
    set_mode(&root, 0o1777)?;
    let path = root.join("gateway");
    drop(Packet::open(&path, 64)?);
    ensure!(mode(&root)? == 0o1777 && mode(&path)? == 0o700);
    Ok(())
}

#[test]
fn a_file_system_that_we_mount_is_closed_to_others() -> Result<()> {
    const NONE: Option<&str> = None;
    const ROOT: &str = "/sys/fs/bpf";
    let mounts = || -> Result<()> {
        // What this thread mounts from here on, nobody else sees.
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        while umount2(ROOT, MntFlags::MNT_DETACH).is_ok() {}
        let path = Path::new(ROOT).join("gateway");
        drop(Packet::open(&path, 64)?);
        // The kernel adds the sticky bit.
        ensure!(mode(Path::new(ROOT))? & 0o777 == 0o700 && fs::metadata(ROOT)?.uid() == 0);
        for directory in directories(&path) {
            ensure!(mode(&directory)? == 0o700, "{}", directory.display());
        }
        Ok(())
    };
    thread::spawn(mounts).join().expect("no assertion in there")
}
