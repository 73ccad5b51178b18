//! The peers to measure against, as today's Debian has them, apart from the machine's own packages.
//!
//! `target/peers/SUITE` is a small Debian; `target/peers/bin` has a script for each of its programs, which enters it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    mirror,
    steps::{self, quietly},
};

/// The newest suite, and where that cannot be had the newest release.
const SUITES: [&str; 2] = ["sid", "trixie"];
const PACKAGES: &str = "haproxy,nginx,libnginx-mod-stream,redis-server,redis-tools";
/// Programs that the benchmark runs, and where they lie inside.
const PROGRAMS: [(&str, &str); 5] = [
    ("haproxy", "/usr/sbin/haproxy"),
    ("nginx", "/usr/sbin/nginx"),
    ("redis-server", "/usr/bin/redis-server"),
    ("redis-cli", "/usr/bin/redis-cli"),
    ("redis-benchmark", "/usr/bin/redis-benchmark"),
];

/// The directory of the scripts, once everything is there.
pub(crate) fn ensure() -> Result<PathBuf> {
    let peers = steps::target_dir().join("peers");
    let bin = peers.join("bin");
    fs::create_dir_all(&bin)?;
    let root = match SUITES.iter().map(|suite| peers.join(suite)).find(|root| root.is_dir()) {
        Some(root) => root,
        None => SUITES
            .iter()
            .find_map(|suite| {
                install(&peers, suite).map_err(|error| println!("  not from {suite}: {error:#}")).ok()
            })
            .context("neither suite of Debian could be unpacked; is deb.debian.org to be reached?")?,
    };
    for (name, program) in PROGRAMS {
        let script = bin.join(name);
        fs::write(&script, entering(&root, program))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(bin)
}

/// Unpacks a suite; a run that was interrupted leaves nothing that looks finished.
fn install(peers: &Path, suite: &str) -> Result<PathBuf> {
    let (root, partial) = (peers.join(suite), peers.join(format!("{suite}.partial")));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), suite]).arg(&partial);
    debootstrap.arg(mirror::debian_mirror());
    quietly(
        &format!("HAProxy, nginx and Redis of Debian {suite}, to measure against (a minute)"),
        &mut debootstrap,
    )?;
    for (name, program) in PROGRAMS {
        ensure!(partial.join(program.trim_start_matches('/')).exists(), "it has no {name}");
    }
    fs::rename(&partial, &root)?;
    Ok(root)
}

/// A script that becomes the program. Its own mount namespace ends with it; the benchmark's files lie in /tmp.
fn entering(root: &Path, program: &str) -> String {
    let root = root.display();
    format!(
        "#!/bin/sh\n# The process keeps its number and its network namespace.\nexec unshare --mount sh -c '\n\
         mount --bind /tmp \"{root}/tmp\" && mount -t proc proc \"{root}/proc\" && mount --rbind /dev \"{root}/dev\" || exit\n\
         exec chroot \"{root}\" {program} \"$@\"' {program} \"$@\"\n"
    )
}
