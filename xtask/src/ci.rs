//! `cargo xtask ci`.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{bench, build_ebpf, circles, cluster, demo, ebpf, setup, steps, test, vm_test};

/// What `.ci/run` runs: format, circles of files, lints, documentation, build, the demo, every test.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// In a build of its own, whose object is not the one that is shipped.
const KERNEL_LOG: [&str; 7] =
    ["test", "--quiet", "--package", "snisplice-tests", "--features=kernel-log", "--test", "log"];

/// A named part of the run; the first that fails ends it.
type Step<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

pub(crate) fn run(_: &Args) -> Result<()> {
    let mut times = Vec::new();
    let toolchain = timed(&mut times, "setup", || setup::ensure(setup::Scope::Test))?;

    // No step changes RUSTFLAGS: warnings are denied by arguments, so that nothing is compiled twice.
    let steps: [Step<'_>; 15] = [
        ("format", Box::new(|| steps::show(&mut steps::cargo(&["fmt", "--all", "--check"])))),
        ("format of lb-ebpf", Box::new(|| steps::show(&mut host_cargo_for_ebpf(&["fmt", "--check"])))),
        ("circles", Box::new(circles::check)),
        (
            "lints",
            Box::new(|| {
                let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-Dwarnings"];
                steps::show(&mut steps::cargo(&clippy))
            }),
        ),
        (
            // For the host: aya-ebpf compiles there, and the kernel's toolchain seldom has clippy.
            "lints of lb-ebpf",
            Box::new(|| {
                let clippy = ["clippy", "--quiet", "--release", "--", "-Dwarnings"];
                steps::show(&mut host_cargo_for_ebpf(&clippy))?;
                let clippy = ["clippy", "--quiet", "--release", "--features", "log", "--", "-Dwarnings"];
                steps::show(&mut host_cargo_for_ebpf(&clippy))
            }),
        ),
        ("kernel programs", Box::new(|| build_ebpf(&toolchain))),
        (
            "documentation",
            Box::new(|| {
                let doc = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
                steps::show(steps::cargo(&doc).env("RUSTDOCFLAGS", "-Dwarnings"))
            }),
        ),
        ("build", Box::new(|| steps::show(&mut steps::cargo(steps::BUILD)))),
        ("demo", Box::new(|| steps::show(&mut demo::built()))),
        ("programs of the test cluster", Box::new(cluster::build_programs_in_time)),
        ("conformance", Box::new(cluster::conformance_built)),
        // These two before the tests, whose closing line is to be the last.
        ("instructions", Box::new(|| bench::instructions(&[]))),
        ("log of the kernel programs", Box::new(|| steps::show(&mut steps::cargo(&KERNEL_LOG)))),
        ("tracker on other kernels", Box::new(vm_test::run_tracker)),
        ("tests", Box::new(|| test::run_prepared(None, true))),
    ];
    for (name, step) in steps {
        timed(&mut times, name, step)?;
    }

    println!("\n== ci passed");
    for (name, time) in &times {
        println!("{name:>26}  {}", steps::seconds(*time));
    }
    println!("{:>26}  {}", "total", steps::seconds(times.iter().map(|(_, time)| time).sum()));
    Ok(())
}

fn timed<T>(
    times: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    step: impl FnOnce() -> Result<T>,
) -> Result<T> {
    println!("\n== {name}");
    let start = Instant::now();
    let result = step().map_err(|error| error.context(format!("ci failed at: {name}")));
    times.push((name, start.elapsed()));
    result
}

/// The host's cargo in `lb-ebpf`, with a target directory of its own.
fn host_cargo_for_ebpf(args: &[&str]) -> Command {
    let mut cargo = steps::cargo(args);
    cargo.current_dir(steps::root().join("lb-ebpf")).env("CARGO_TARGET_DIR", build_ebpf::target_dir());
    cargo
}

/// Builds for the kernel with warnings denied: some appear only for that target.
fn build_ebpf(toolchain: &ebpf::Toolchain) -> Result<()> {
    let mut cargo = ebpf::cargo(toolchain, steps::root());
    cargo
        .args(["rustc", "--quiet", "--locked"])
        .args(ebpf::TARGET_ARGS)
        .arg("--target-dir")
        .arg(build_ebpf::target_dir())
        .args(["--", "-Dwarnings"]);
    match cargo.status()?.success() {
        true => Ok(()),
        false => bail!("lb-ebpf does not build with {toolchain}"),
    }
}
