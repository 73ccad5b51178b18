//! Kernel programs are loaded whatever happens meanwhile.

use std::path::Path;

use anyhow::{Result, ensure};
use snisplice::kernel::probe::{Answer, pointers, tc_program};
use snisplice::kernel::{Kernel, Packet};
use snisplice_tests::bpffs::BpfFs;
use snisplice_tests::signals::Signals;
use snisplice_tests::{NetNs, TempDir};

#[test]
fn programs_are_loaded_while_signals_come() -> Result<()> {
    let files = TempDir::new()?;
    let _bpffs = BpfFs::mount_in(files.path())?;
    NetNs::new("signals")?.run(|| {
        let signals = Signals::start()?;
        Kernel::open(Path::new("/nonexistent"), 64)?;
        let before = signals.arrived();
        Packet::open(&files.join(BpfFs::NAME), 64)?;
        ensure!(signals.arrived() > before, "no signal came");
        Ok(())
    })
}

#[test]
fn probes_that_load_programs_are_answered_while_signals_come() -> Result<()> {
    let signals = Signals::start()?;
    let before = signals.arrived();
    while signals.arrived() < before + 1000 {
        ensure!((pointers(), tc_program()) == (Answer::Yes, Answer::Yes));
    }
    Ok(())
}
