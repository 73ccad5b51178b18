//! The last good objects, kept over restarts: `objects.json` of `state_dir`. It holds private keys, and only the owner can read it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::balancers;
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
        Ok((objects(BufReader::new(file))?, metadata.modified()?))
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

/// One object after the other, each of which is a line between the brackets of an array: all of them at once would take many
/// times the memory of what is kept of them.
fn objects(mut file: impl BufRead) -> io::Result<Vec<(Key, Kept)>> {
    let (mut found, mut line) = (Vec::new(), String::new());
    let mut is_whole = false;
    for number in 1.. {
        line.clear();
        if file.read_line(&mut line)? == 0 {
            break;
        }
        // What serde_json says of a value that does not fit could repeat it.
        let damaged =
            || io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged at line {number}"));
        let text = if number == 1 { line.strip_prefix('[').ok_or_else(damaged)? } else { &line[..] };
        let text = match text.strip_suffix(",\n") {
            Some(text) if !is_whole => text,
            _ => {
                let text = text.strip_suffix(']').filter(|_| !is_whole).ok_or_else(damaged)?;
                is_whole = true;
                text
            }
        };
        if !text.is_empty() {
            found.extend(object(text).map_err(|_| damaged())?);
        }
    }
    match is_whole {
        true => Ok(found),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "its end is missing")),
    }
}

/// What is looked at of an object while it is only kept: whoever takes it looks at the rest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
    metadata: Metadata,
    status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// `None`: its kind is of no interest here.
fn object(text: &str) -> Result<Option<(Key, Kept)>, serde_json::Error> {
    let Head { api_version, kind, metadata, status } = serde_json::from_str(text)?;
    let Metadata { name, namespace, labels } = metadata;
    let Some(key) = Key::named(&api_version, &kind, &namespace.unwrap_or_default(), &name) else {
        return Ok(None);
    };
    let kept = match status {
        Some(IgnoredAny) => Kept::new(serde_json::from_str(text)?),
        None => Kept::without_status(text, balancers::is_label(&labels.unwrap_or_default())),
    };
    Ok(Some((key, kept)))
}

/// Replaces the file, in one step: it is never there by half.
pub(super) fn write(path: &Path, objects: &[(Kind, Kept)]) -> io::Result<()> {
    let new = path.with_extension("new");
    // Also what an earlier attempt has left: its mode counts, not ours.
    let _ = fs::remove_file(&new);
    let written = write_new(&new, objects).and_then(|()| fs::rename(&new, path));
    // Keys are in there.
    written.inspect_err(|_| _ = fs::remove_file(&new))
}

fn write_new(path: &Path, objects: &[(Kind, Kept)]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut writer = BufWriter::new(file);
    let mut separator = "[";
    for (kind, object) in objects {
        writer.write_all(separator.as_bytes())?;
        object.lasting(*kind).iter().try_for_each(|part| writer.write_all(part.as_bytes()))?;
        separator = ",\n";
    }
    writer.write_all(if objects.is_empty() { b"[]" } else { b"]" })?;
    writer.flush()?;
    writer.get_ref().sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::TempDir;
    use serde_json::{Value, json};

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
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in [
            &whole[..whole.len() - 1],
            &whole[..whole.len() / 2],
            &whole[..whole.find(",\n").unwrap() + 2],
            &whole[1..],
            &format!("{whole}\n{whole}"),
            "[7]",
            "",
            "[\n]",
        ] {
            fs::write(&path, damaged).unwrap();
            assert!(read(&path).0.is_empty(), "{damaged}");
        }
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let dir = TempDir::new();
        let path = dir.path().join("objects.json");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, &[]).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
