//! What operators have drained, kept in `state_dir` over restarts: the file `drained`, with a line for each pool (`POOL`) and
//! each server (`POOL/SERVER`).

use crate::serving::{Pool, Snapshot};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "drained";

/// The file in a state directory.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Bytes of the file: room for ten thousand servers with names.
const MAX: u64 = 1 << 20;

/// Drains what the file says. What is not configured any more is left out, of the file too.
pub(super) fn restore(state_dir: &Path, snapshot: &Snapshot) {
    let path = state_dir.join(FILE);
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            return tracing::error!(path = %path.display(), %error, "nothing is drained: cannot read");
        }
    };
    let pools: HashMap<&str, &Arc<Pool>> = snapshot.pools.iter().map(|pool| (&*pool.name, pool)).collect();
    let mut is_current = true;
    for line in text.lines() {
        let (pool, server) = parts(line);
        let address = server.map(str::parse).transpose();
        match (pools.get(pool), address) {
            (Some(pool), Ok(None)) => _ = pool.drain(None, true),
            (Some(pool), Ok(Some(address))) if pool.may_have(&address) => {
                _ = pool.drain(Some(&address), true)
            }
            _ => {
                gone(line);
                is_current = false;
            }
        }
    }
    if !is_current && let Err(error) = save(state_dir, snapshot) {
        tracing::warn!(path = %path.display(), %error, "cannot write");
    }
}

/// A new configuration is in force: what it does not have any more is drained no longer.
pub(super) fn follow(state_dir: &Path, old: &Snapshot, new: &Snapshot) {
    let before: Vec<_> = lines(old).collect();
    for pool in &new.pools {
        pool.forget_drains();
    }
    let after: HashSet<_> = lines(new).collect();
    let lost: Vec<_> = before.iter().filter(|line| !after.contains(*line)).collect();
    lost.iter().for_each(|line| gone(line));
    if !lost.is_empty()
        && let Err(error) = save(state_dir, new)
    {
        tracing::warn!(path = %state_dir.join(FILE).display(), %error, "cannot write");
    }
}

/// Writes the file.
pub(super) fn save(state_dir: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let text: String = lines(snapshot).map(|line| line + "\n").collect();
    if text.len() as u64 > MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it would have more than {MAX} bytes"),
        ));
    }
    write_whole(&state_dir.join(FILE), &text)
}

/// Writes a file of the state directory, in one step: it is never there by half.
pub(super) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| _ = fs::remove_file(&new))
}

/// `POOL/SERVER` or `POOL`.
pub(super) fn parts(target: &str) -> (&str, Option<&str>) {
    target.split_once('/').map_or((target, None), |(pool, server)| (pool, Some(server)))
}

fn lines(snapshot: &Snapshot) -> impl Iterator<Item = String> {
    snapshot.pools.iter().flat_map(|pool| {
        let (is_drained, servers) = pool.drained();
        let servers = servers.into_iter().map(|server| format!("{}/{server}", pool.name));
        is_drained.then(|| pool.name.to_string()).into_iter().chain(servers)
    })
}

fn gone(line: &str) {
    tracing::warn!("{line:?} was drained and is not configured any more: forgotten");
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::TempDir;

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let dir = TempDir::new();
        let path = dir.path().join(FILE);
        write_whole(&path, "a\n").unwrap();
        assert_eq!(read(&path).unwrap(), "a\n");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        write_whole(&path, "b\n").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
