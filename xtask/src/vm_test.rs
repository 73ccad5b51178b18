//! `cargo xtask vm-test`, and what `cargo xtask ci` runs on other kernels.

use anyhow::Result;

use crate::{
    setup, steps,
    vm::{DEFAULT_SERIES, Machine},
};

/// Run tests that use the kernel on another one than this machine's, in a virtual machine.
///
/// Installs an emulator and a kernel of Debian's, which boots over this machine's files, read-only. Slow, as it uses no
/// hardware acceleration.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The series of Debian's kernel: the newest of it is taken.
    #[arg(long, default_value = DEFAULT_SERIES, value_name = "SERIES")]
    kernel: String,

    /// Only tests whose names contain one of these; without any, a selection that covers each kind of device.
    filter: Vec<String>,
}

/// What is run where nobody names tests: everything would take an hour.
const SELECTION: [&str; 11] = [
    "segments::",
    "closing::",
    "tracker::",
    "forged::",
    "transfers::clean",
    "transfers::lost_reordered",
    "transfers::one_arm",
    "transfers::a_bridge",
    "transfers::a_vlan",
    "transfers::a_device_without",
    "transfers::a_server_on",
];

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Test)?;
    steps::show(&mut steps::cargo(steps::BUILD))?;
    let machine = Machine::prepare(&args.kernel)?;
    let filter: Vec<&str> = match args.filter.is_empty() {
        true => SELECTION.to_vec(),
        false => args.filter.iter().map(String::as_str).collect(),
    };
    let tally = machine.test(&filter)?;
    print!("\n{tally}");
    tally.verdict(false)
}

/// Older kernels, on which the tracker and the attacks are tried in every run of `ci`: the oldest that is tested, and one
/// with tcx.
const OTHER_SERIES: [&str; 2] = ["6.1", DEFAULT_SERIES];

/// What they are tried by: tables of the programs, the programs against the pure tracker, forged packets.
const TRACKER: [&str; 3] = ["closing::", "tracker::", "forged::"];

/// Runs the tests of the tracker and the attacks on other kernels, after [`steps::BUILD`].
pub(crate) fn run_tracker() -> Result<()> {
    for series in OTHER_SERIES {
        let tally = Machine::prepare(series)?.test(&TRACKER)?;
        print!("\n{tally}");
        tally.verdict(true)?;
    }
    Ok(())
}
