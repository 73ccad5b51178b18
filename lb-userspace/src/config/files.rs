//! The files of a configuration: read within bounds, and noted, so that a change of one of them is seen.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Upper bound on the size of the configuration file, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// Upper bound on the size of a certificate, key or passphrase file, in bytes.
pub const MAX_PEM_BYTES: u64 = 4 << 20;

/// SHA-256 of a file's content.
pub type Digest = [u8; 32];

/// The files of a configuration, by what was read of them; `None`: nothing, or not the same each time.
pub type Sources = BTreeMap<PathBuf, Option<Digest>>;

/// SHA-256 of what is in the file at `path` now, or of the names in that directory; `None`: it cannot be read.
pub fn digest(path: &Path) -> Option<Digest> {
    if path.is_dir() {
        return Some(digest_of_names(&names(path).ok()?));
    }
    Some(digest_of(&read_bounded(path, MAX_CONFIG_BYTES).ok()?))
}

/// The names in a directory, sorted.
pub(super) fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

pub(super) fn digest_of_names(names: &[OsString]) -> Digest {
    let mut digest = Sha256::new();
    for name in names {
        digest.update(name.as_encoded_bytes());
        // No name has it.
        digest.update([0]);
    }
    digest.finalize().into()
}

pub(super) fn digest_of(content: &[u8]) -> Digest {
    Sha256::digest(content).into()
}

/// Where the files come from that a configuration names.
pub trait Files {
    /// The whole content of `path`; a relative path starts at the configuration file's directory.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The authorities that this system trusts, and why some of them are missing.
    fn system_authorities(&self) -> (Vec<CertificateDer<'static>>, Option<String>);
}

/// The disk, seen from the directory of the configuration file.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    sources: RefCell<Sources>,
    /// What was read stays in memory, and is not read again.
    remembered: Option<RefCell<Remembered>>,
}

#[derive(Debug, Default)]
struct Remembered {
    files: HashMap<PathBuf, Zeroizing<Vec<u8>>>,
    authorities: Option<(Vec<CertificateDer<'static>>, Option<String>)>,
}

impl Directory {
    pub(super) fn of(config: &Path) -> Self {
        Self {
            path: config.parent().unwrap_or(Path::new("")).to_owned(),
            sources: RefCell::default(),
            remembered: None,
        }
    }

    /// From now on every file is read once: the configuration is to be checked again and again, as it is.
    pub(super) fn remember(&mut self) {
        self.remembered.get_or_insert_default();
    }

    /// Where a path leads that starts at the configuration file.
    pub(super) fn path_of(&self, path: &Path) -> PathBuf {
        self.path.join(path)
    }

    /// What was read since, also in vain.
    pub(super) fn sources(&self) -> Sources {
        self.sources.borrow().clone()
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
        let path = self.path_of(path);
        let Some(remembered) = &self.remembered else { return self.read_noting(path, MAX_PEM_BYTES) };
        if let Some(known) = remembered.borrow().files.get(&path) {
            return Ok(known.to_vec());
        }
        let content = self.read_noting(path.clone(), MAX_PEM_BYTES)?;
        remembered.borrow_mut().files.insert(path, Zeroizing::new(content.clone()));
        Ok(content)
    }

    fn system_authorities(&self) -> (Vec<CertificateDer<'static>>, Option<String>) {
        let load = || {
            let found = rustls_native_certs::load_native_certs();
            (found.certs, found.errors.first().map(ToString::to_string))
        };
        match &self.remembered {
            Some(remembered) => remembered.borrow_mut().authorities.get_or_insert_with(load).clone(),
            None => load(),
        }
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
