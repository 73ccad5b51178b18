//! The files of a configuration: read within bounds, and noted, so that a change of one of them is seen.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Upper bound on the size of the configuration file, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// Upper bound on the size of a certificate, key or passphrase file, in bytes.
pub const MAX_PEM_BYTES: u64 = 4 << 20;

/// SHA-256 of a file's content.
pub type Digest = [u8; 32];

/// The files of a configuration, by what was read of them; `None`: nothing, or not the same each time.
pub type Sources = BTreeMap<PathBuf, Option<Digest>>;

/// SHA-256 of what is in the file at `path` now; `None`: it cannot be read.
pub fn digest(path: &Path) -> Option<Digest> {
    Some(digest_of(&read_bounded(path, MAX_CONFIG_BYTES).ok()?))
}

fn digest_of(content: &[u8]) -> Digest {
    Sha256::digest(content).into()
}

/// Where the files come from that a configuration names.
pub trait Files {
    /// The whole content of `path`; a relative path starts at the configuration file's directory.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// The disk, seen from the directory of the configuration file.
pub(super) struct Directory {
    path: PathBuf,
    sources: RefCell<Sources>,
}

impl Directory {
    pub(super) fn of(config: &Path) -> Self {
        Self { path: config.parent().unwrap_or(Path::new("")).to_owned(), sources: RefCell::default() }
    }

    /// What was read since, also in vain.
    pub(super) fn into_sources(self) -> Sources {
        self.sources.into_inner()
    }

    pub(super) fn read_noting(&self, path: PathBuf, limit: u64) -> io::Result<Vec<u8>> {
        let content = read_bounded(&path, limit);
        let digest = content.as_ref().ok().map(|content| digest_of(content));
        // Several routes may name a file, which may be replaced between two readings.
        let agree = |known: &mut Option<Digest>| *known = known.filter(|known| Some(*known) == digest);
        self.sources.borrow_mut().entry(path).and_modify(agree).or_insert(digest);
        content
    }
}

impl Files for Directory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.read_noting(self.path.join(path), MAX_PEM_BYTES)
    }
}

pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than the limit tells "just fits" from "too large".
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {} MiB", limit >> 20)));
    }
    Ok(content)
}
