//! `cargo xtask demo`.

use std::process::Command;

use anyhow::Result;

use crate::{setup, steps};

/// See the gateway at work: real databases behind one address, told apart by SNI.
///
/// Makes network namespaces for a client, the gateway and the servers, runs everything in them, and removes
/// them again. Needs root.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of the demo itself.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Demo)?;
    steps::show(&mut steps::cargo(&["build", "--release", "--package", "snisplice"]))?;
    steps::show(
        steps::cargo(&["run", "--quiet", "--package", "snisplice-tests", "--bin", "demo", "--"])
            .args(&args.args)
            .env("SNISPLICE_BIN", steps::target_dir().join("release/snisplice")),
    )
}

/// The demo as [`steps::BUILD`] has built it, with the gateway of that build.
pub(crate) fn built() -> Command {
    let debug = steps::target_dir().join("debug");
    let mut demo = Command::new(debug.join("demo"));
    demo.env("SNISPLICE_BIN", debug.join("snisplice"));
    demo
}
