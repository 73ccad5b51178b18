//! The last good objects, kept over restarts: `objects.json` of `state_dir`. It holds private keys, and only the owner can read it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::config::gateway_api::{Key, Object};

/// Bytes of the file at most: far more than an API server keeps.
const MAX: u64 = 1 << 30;

/// The file in a state directory.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("objects.json")
}

/// The objects that were kept, and since when they are. None if there is no such file, or none that can be read: the log says why.
pub(super) fn read(path: &Path) -> (Vec<(Key, Value)>, Option<SystemTime>) {
    let read = || -> io::Result<(Vec<Value>, SystemTime)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() > MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large"));
        }
        // What serde_json says of a value that does not fit could repeat it; it has only been written by us.
        let objects = serde_json::from_reader(BufReader::new(file)).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged at line {}", error.line()))
        })?;
        Ok((objects, metadata.modified()?))
    };
    match read() {
        Ok((values, since)) => {
            let key = |value: &Value| Some(Object::read(value.clone()).ok()??.key);
            let objects = values.into_iter().filter_map(|value| Some((key(&value)?, value))).collect();
            (objects, Some(since))
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the objects of the last run are lost");
            }
            (Vec::new(), None)
        }
    }
}

/// Replaces the file, in one step: it is never there by half.
pub(super) fn write(path: &Path, objects: &[Value]) -> io::Result<()> {
    let new = path.with_extension("new");
    // Also what an earlier attempt has left: its mode counts, not ours.
    let _ = fs::remove_file(&new);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let mut writer = BufWriter::new(file);
    serde_json::to_writer(&mut writer, objects)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(&new, path)
}
