//! `cargo xtask test`.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    setup,
    steps::{self, BUILD},
    tally::Tally,
    vm,
};

/// Run every test that can run here, and say which could not, and why.
///
/// Unit tests of all crates first, then the tests that put the gateway between real programs in network
/// namespaces of their own (these need root).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,

    /// Fail if a test had to be skipped: those for which this kernel lacks something run on another kernel, in a
    /// virtual machine (see `vm-test`). Implied where the variable CI is set.
    #[arg(long)]
    pub(crate) deny_skips: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Test)?;
    steps::show(&mut steps::cargo(BUILD))?;
    run_prepared(args.filter.as_deref(), args.deny_skips || env::var_os("CI").is_some())
}

/// The tests alone, on a machine that is set up, after [`BUILD`].
pub(crate) fn run_prepared(filter: Option<&str>, deny_skips: bool) -> Result<()> {
    let skips = steps::target_dir().join(format!("skipped-tests-{}", std::process::id()));
    let _ = fs::remove_file(&skips);

    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(env::split_paths(&path).chain([setup::envoy_dir()]))?;
    let mut total = Tally::default();
    for (name, selection) in [
        ("unit tests", &["--lib", "--bins"] as &[&str]),
        ("documentation tests", &["--doc"]),
        ("tests with real programs", &["--test", "*"]),
    ] {
        println!("\n== {name}");
        let mut cargo = steps::cargo(&["test", "--quiet", "--workspace", "--no-fail-fast"]);
        cargo
            .args(selection)
            .arg("--")
            .args(filter)
            .env("SNISPLICE_BIN", steps::target_dir().join("debug/snisplice"))
            .env("SNISPLICE_PYTHON", setup::python())
            .env("PATH", &path)
            .env("SNISPLICE_SKIPS", &skips);
        total.add(&run_counted(&mut cargo)?);
    }
    total.skip(&fs::read_to_string(&skips).unwrap_or_default());
    let _ = fs::remove_file(&skips);

    if deny_skips && !total.skipped.is_empty() && !total.broken {
        let names = total.skipped.iter().filter_map(|skip| skip.split_once(": "));
        let elsewhere = vm::run_exactly(&names.map(|(name, _)| name).collect::<Vec<_>>())?;
        total.make_up(&elsewhere);
    }
    print!("\n{total}");
    total.verdict(deny_skips)
}

/// Runs `cargo test`, shows what it prints and counts what it says.
fn run_counted(cargo: &mut Command) -> Result<Tally> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut tally = Tally::default();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line?;
        println!("{line}");
        tally.read(&line);
    }
    // Also a crate that does not compile, or a test that takes its process down.
    tally.broken |= !child.wait()?.success();
    Ok(tally)
}
