//! `cargo xtask manifests`.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{cluster, steps};

/// Write deploy/kubernetes.yaml: what the Helm chart makes of its default values, for those who have no Helm.
///
/// Builds Helm from its Go module, if it is not there (three minutes, the first time). A test fails where the file is not
/// current.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    cluster::build_helm()?;
    let binary = cluster::binary()?;
    let output = Command::new(binary).arg("manifests").output().context("rendering the chart")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = steps::root().join("deploy/kubernetes.yaml");
    fs::write(&path, output.stdout)?;
    println!("written: {}", path.display());
    Ok(())
}
