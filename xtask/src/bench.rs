//! `cargo xtask bench`.

use std::{env, ffi::OsString, process::Command};

use anyhow::Result;

use crate::{peers, setup, steps};

/// Measure the gateway beside its peers; tables and charts go into bench/results/.
///
/// `bench instructions` counts instructions instead, against stored figures; `bench compare A.json B.json` compares two
/// runs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of the benchmark: `--quick`, a scenario, …; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some((first, rest)) = args.args.split_first()
        && first == "instructions"
    {
        setup::ensure(setup::Scope::Test)?;
        return instructions(rest);
    }
    setup::ensure(setup::Scope::Bench)?;
    // In one go: each alone would enable fewer features of what they share, and compile that twice.
    steps::show(&mut steps::cargo(&[
        "build",
        "--release",
        "--package",
        "snisplice",
        "--package",
        "snisplice-bench",
    ]))?;
    steps::show(
        Command::new(steps::target_dir().join("release/snisplice-bench"))
            .args(&args.args)
            .env("PATH", path_with_peers()?)
            .env("SNISPLICE_BIN", steps::target_dir().join("release/snisplice")),
    )
}

/// Counts instructions per operation against stored figures, on a machine that is set up.
pub(crate) fn instructions(args: &[String]) -> Result<()> {
    steps::show(
        steps::cargo(&[
            "run",
            "--profile",
            "instructions",
            "--quiet",
            "--package",
            "snisplice-instructions",
            "--",
        ])
        .args(args),
    )
}

/// PATH, behind the peers of today, with the place where `setup` puts Envoy at its end.
fn path_with_peers() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = [peers::ensure()?].into_iter().chain(env::split_paths(&path)).chain([setup::envoy_dir()]);
    Ok(env::join_paths(dirs)?)
}
