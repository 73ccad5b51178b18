//! `cargo xtask bench`.

use std::{env, ffi::OsString};

use anyhow::Result;

use crate::{setup, steps};

/// Measure the gateway beside its peers; tables go into bench/results/.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of the benchmark; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Bench)?;
    steps::show(&mut steps::cargo(&[
        "build",
        "--release",
        "--package",
        "snisplice",
    ]))?;
    steps::show(
        steps::cargo(&[
            "run",
            "--release",
            "--quiet",
            "--package",
            "snisplice-bench",
            "--",
        ])
        .args(&args.args)
        .env("PATH", path_with_envoy()?)
        .env("SNISPLICE_BIN", steps::target_dir().join("release/snisplice")),
    )
}

/// PATH, with the place where `setup` puts Envoy behind it.
fn path_with_envoy() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain([setup::envoy_venv().join("bin")]);
    Ok(env::join_paths(dirs)?)
}
