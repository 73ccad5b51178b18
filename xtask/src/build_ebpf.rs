//! `cargo xtask build-ebpf`.

use std::fs;

use anyhow::{Result, anyhow};

use crate::{ebpf, setup, steps};

/// Build the kernel programs alone, and print where the object is.
///
/// `cargo build` does this too and puts the object into the binary; use this to look at it, with
/// llvm-objdump or readelf.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// With what tells why packets are not forwarded, as the feature `kernel-log` of snisplice has it.
    #[arg(long)]
    log: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let toolchain = setup::ensure(setup::Scope::Build)?;
    let object =
        ebpf::build(&toolchain, steps::root(), &target_dir(), args.log).map_err(|error| anyhow!(error))?;
    println!("{} ({} bytes)", object.display(), fs::metadata(&object)?.len());
    Ok(())
}

/// Where xtask builds the kernel programs; the build script has its own place.
pub(crate) fn target_dir() -> std::path::PathBuf {
    steps::target_dir().join("ebpf")
}
