//! The programs of the cluster, as `cargo xtask cluster` builds them from Go modules.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Names the directory with the programs; without it, `cluster/bin` of the target directory in which the running program
/// lies.
pub const DIRECTORY_ENV: &str = "SNISPLICE_CLUSTER_BIN";

/// Where the programs are.
pub fn directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(DIRECTORY_ENV) {
        return Ok(directory.into());
    }
    let here = std::env::current_exe()?;
    let found = here.ancestors().map(|directory| directory.join("cluster/bin")).find(|bin| bin.is_dir());
    found.with_context(|| {
        format!("no programs of a cluster near {}: `cargo xtask cluster --build` builds them", here.display())
    })
}

/// The path of a program.
pub fn path(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not there: `cargo xtask cluster --build` builds it",
        path.display()
    );
    Ok(path)
}

/// What stands in for a container's image: a program on this machine.
pub fn of_image(image: &str) -> Option<PathBuf> {
    // registry.k8s.io/gateway-api/echo-basic:v1.5.1@sha256:… is `echo-basic`.
    let name = image.split('@').next()?.rsplit('/').next()?.split(':').next()?;
    match name {
        "snisplice" => snisplice_tests::gateway::binary().ok(),
        "redis" => snisplice_tests::process::find_program("redis-server"),
        name => path(name).ok().or_else(|| snisplice_tests::process::find_program(name)),
    }
}
