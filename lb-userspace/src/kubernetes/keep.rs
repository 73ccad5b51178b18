//! The last good objects, kept over restarts: `objects.json` of `state_dir`. It holds private keys, and only the owner can read it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};
use serde_json::Value;

use super::store::Kept;
use crate::config::gateway_api::{Key, Kind};

/// Bytes of the file at most: far more than an API server keeps.
const MAX: u64 = 1 << 30;

/// The file in a state directory.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("objects.json")
}

/// The objects that were kept, and since when they are. None if there is no such file, or none that can be read: the log says why.
pub(super) fn read(path: &Path) -> (Vec<(Key, Kept)>, Option<SystemTime>) {
    let read = || -> io::Result<(Vec<(Key, Kept)>, SystemTime)> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() > MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large"));
        }
        // What serde_json says of a value that does not fit could repeat it; it has only been written by us.
        let mut text = serde_json::Deserializer::from_reader(BufReader::new(file));
        let objects = text.deserialize_seq(Objects).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged at line {}", error.line()))
        })?;
        Ok((objects, metadata.modified()?))
    };
    match read() {
        Ok((objects, since)) => (objects, Some(since)),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the objects of the last run are lost");
            }
            (Vec::new(), None)
        }
    }
}

/// Reads one object after the other: all of them at once would take many times the memory of what is kept of them.
struct Objects;

impl<'de> Visitor<'de> for Objects {
    type Value = Vec<(Key, Kept)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(object) = objects.next_element::<Value>()? {
            found.extend(Key::of(&object).map(|key| (key, Kept::new(object))));
        }
        Ok(found)
    }
}

/// Replaces the file, in one step: it is never there by half.
pub(super) fn write(path: &Path, objects: &[(Kind, Kept)]) -> io::Result<()> {
    let new = path.with_extension("new");
    // Also what an earlier attempt has left: its mode counts, not ours.
    let _ = fs::remove_file(&new);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let mut writer = BufWriter::new(file);
    let mut separator = "[";
    for (kind, object) in objects {
        writer.write_all(separator.as_bytes())?;
        object.lasting(*kind).iter().try_for_each(|part| writer.write_all(part.as_bytes()))?;
        separator = ",\n";
    }
    writer.write_all(if objects.is_empty() { b"[]" } else { b"]" })?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::TempDir;
    use serde_json::json;

    #[test]
    fn what_is_kept_is_read_again_without_statuses_but_those_that_have_addresses() {
        let object = |kind: &str, labels: Value| {
            let group = if kind == "Service" { "v1" } else { "gateway.networking.k8s.io/v1" };
            json!({
                "apiVersion": group, "kind": kind, "status": {"of": kind},
                "metadata": {"name": "a", "namespace": "db", "labels": labels}, "spec": {"text": "{\"}\n"},
            })
        };
        let balancer = json!({"service.kubernetes.io/service-proxy-name": "snisplice"});
        let objects = [
            (object("Gateway", json!({})), true),
            (object("TLSRoute", json!({})), false),
            (object("Service", json!({})), false),
            (object("Service", balancer), true),
        ];
        let dir = TempDir::new();
        let path = dir.path().join("objects.json");
        let kept: Vec<_> = objects
            .iter()
            .map(|(object, _)| (Key::of(object).unwrap().kind, Kept::new(object.clone())))
            .collect();
        for some in [&kept[..0], &kept[..1], &kept] {
            write(&path, some).unwrap();
            let (found, since) = read(&path);
            assert!(since.is_some());
            assert_eq!(found.len(), some.len());
            for ((key, found), (object, has_status)) in found.iter().zip(&objects) {
                let mut expected = object.clone();
                if !has_status {
                    expected.as_object_mut().unwrap().remove("status");
                }
                assert_eq!((Some(key), found.read()), (Key::of(object).as_ref(), expected));
            }
        }
        fs::write(&path, "[{\"apiVersion\": \"v1\"}, 7").unwrap();
        assert!(read(&path).0.is_empty(), "it is damaged");
    }
}
