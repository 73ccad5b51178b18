//! Development commands: `cargo xtask --help`.

mod bench;
mod build_ebpf;
mod ci;
mod circles;
mod cluster;
mod demo;
mod ebpf;
mod manifests;
mod mirror;
mod mysql;
mod peers;
mod setup;
mod steps;
mod tally;
mod test;
mod vm;
mod vm_test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// snisplice's development commands.
///
/// A fresh clone needs one: `cargo xtask demo` installs what is missing, builds, and shows the gateway at work.
/// The others call `setup` too, so it never has to be remembered.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    BuildEbpf(build_ebpf::Args),
    Demo(demo::Args),
    Cluster(cluster::Args),
    Conformance(cluster::ConformanceArgs),
    Manifests(manifests::Args),
    Test(test::Args),
    VmTest(vm_test::Args),
    Circles(circles::Args),
    Ci(ci::Args),
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Conformance(args) => cluster::conformance(&args),
        Command::Manifests(args) => manifests::run(&args),
        Command::Test(args) => test::run(&args),
        Command::VmTest(args) => vm_test::run(&args),
        Command::Circles(args) => circles::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Not the Debug form: with RUST_BACKTRACE set it buries the message under a backtrace.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
