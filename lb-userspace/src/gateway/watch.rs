//! Watches the files of the configuration for changes.

use crate::config::{Digest, Sources, digest};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// How often the files are checked.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// The content of each file is read again at least once in this many checks, even if its metadata are the same: some file
/// systems, and writes through mmap(2), change the content without the metadata.
const ROUND: usize = 60;

/// The watched files.
pub(super) struct Watched {
    files: Vec<File>,
    looks: usize,
}

struct File {
    path: PathBuf,
    /// The content that was loaded; `None`: the file could not be read.
    read: Option<Digest>,
    /// The content at the last check; `None`: the file cannot be read.
    seen: Option<Digest>,
    /// The metadata at the last check.
    identity: Option<Identity>,
}

/// Metadata that change with a file's content, and when another file takes its place, also by a symbolic link.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// ctime in seconds and nanoseconds. Unlike mtime, programs cannot set it.
    changed: (i64, i64),
    modified: (i64, i64),
}

impl From<Metadata> for Identity {
    fn from(metadata: Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Watched {
    /// The files of an attempt to load the configuration, successful or not.
    pub(super) fn new(sources: Sources) -> Self {
        let file = |(path, read)| File { path, read, seen: read, identity: None };
        Self { files: sources.into_iter().map(file).collect(), looks: 0 }
    }

    /// Checks all files. `true`: one differs from what was loaded, and none has changed since the last check. A file that
    /// has just changed may still be written.
    pub(super) fn changed(&mut self) -> bool {
        let turn = self.looks % ROUND;
        self.looks += 1;
        let (mut differs, mut rests) = (false, true);
        for (index, file) in self.files.iter_mut().enumerate() {
            rests &= !file.look(index % ROUND == turn);
            differs |= file.seen != file.read;
        }
        differs && rests
    }
}

impl File {
    /// Whether its content has changed since the last check. `closely`: reads it even if the metadata are the same.
    fn look(&mut self, closely: bool) -> bool {
        // Before the content is read: a change in between is then noticed the next time.
        let identity = self.path.metadata().ok().map(Identity::from);
        if identity.is_some() && identity == self.identity && !closely {
            return false;
        }
        self.identity = identity;
        let before = std::mem::replace(&mut self.seen, digest(&self.path));
        before != self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::TempDir;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn watched(paths: &[PathBuf]) -> Watched {
        Watched::new(paths.iter().map(|path| (path.clone(), digest(path))).collect())
    }

    #[test]
    fn other_content_is_a_change_once_it_rests() {
        let dir = TempDir::new();
        let path = dir.path().join("a");
        fs::write(&path, "one").unwrap();
        let mut watched = watched(std::slice::from_ref(&path));
        assert!(!watched.changed());
        for content in ["two", "six"] {
            fs::write(&path, content).unwrap();
            assert!(!watched.changed(), "somebody may still write it");
        }
        assert!(watched.changed());
        fs::write(&path, "one").unwrap();
        assert!(!watched.changed());
        assert!(!watched.changed(), "it is what was read");
    }

    #[test]
    fn what_was_written_between_the_reading_and_the_first_look_is_seen() {
        let dir = TempDir::new();
        let path = dir.path().join("a");
        fs::write(&path, "one").unwrap();
        let mut watched = watched(std::slice::from_ref(&path));
        fs::write(&path, "two").unwrap();
        assert!(!watched.changed());
        assert!(watched.changed());
    }

    #[test]
    fn times_and_modes_alone_are_no_change() {
        let dir = TempDir::new();
        let path = dir.path().join("a");
        fs::write(&path, "one").unwrap();
        let mut watched = watched(std::slice::from_ref(&path));
        fs::rename(&path, dir.path().join("b")).unwrap();
        fs::write(&path, "one").unwrap();
        assert!((0..3).all(|_| !watched.changed()));
    }

    #[test]
    fn a_file_that_goes_and_one_that_comes_are_changes() {
        let dir = TempDir::new();
        let [gone, new] = ["gone", "new"].map(|name| dir.path().join(name));
        fs::write(&gone, "one").unwrap();
        let mut first = watched(std::slice::from_ref(&gone));
        fs::remove_file(&gone).unwrap();
        assert!(!first.changed() && first.changed());
        let mut second = watched(std::slice::from_ref(&new));
        assert!(!second.changed() && !second.changed());
        fs::write(&new, "one").unwrap();
        assert!(!second.changed() && second.changed());
    }

    #[test]
    fn a_link_to_another_directory_is_followed() {
        let dir = TempDir::new();
        let at = |name: &str| dir.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tls.crt"), version).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let mut watched = watched(&[at("tls.crt")]);
        assert!(!watched.changed());
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert!(!watched.changed() && watched.changed());
    }

    #[test]
    fn content_that_changes_beneath_the_same_metadata_is_seen_within_a_round() {
        let dir = TempDir::new();
        let paths: Vec<_> = (0..ROUND + 5).map(|n| dir.path().join(format!("{n:03}"))).collect();
        for path in &paths {
            fs::write(path, "one").unwrap();
        }
        let mut watched = watched(&paths);
        assert!(!watched.changed());
        for file in &mut watched.files {
            fs::write(&file.path, "two").unwrap();
            file.identity = Some(file.path.metadata().unwrap().into());
        }
        for _ in 0..ROUND {
            watched.changed();
        }
        assert!(watched.files.iter().all(|file| file.seen != file.read));
    }
}
