//! The packet tier's flow table, filled with connections that nobody has, and what its programs cost.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use lb_common::packet::{FLOWS, FORWARD_BARE, FORWARD_ETHERNET, Flow, LOOPBACK, Side, Tuple};
use snisplice_tests::left::{flow, pinned, tuples};

use super::subjects::pins;

/// A port of the gateway at which nobody listens.
const PORT: u16 = 443;

/// The flow table of the running gateway.
pub(crate) struct Table(std::cell::RefCell<HashMap<MapData, Tuple, Flow>>);

impl Table {
    pub(crate) fn open() -> Result<Table> {
        Ok(Table(pinned::<HashMap<_, _, _>>(&pins(), FLOWS, Map::HashMap)?.into()))
    }

    /// Adds so many connections, of two flows each, with addresses that no packet has.
    pub(crate) fn fill(&self, connections: u32) -> Result<()> {
        for number in 0..connections {
            let tuples = tuples(number, PORT);
            for side in Side::BOTH {
                // The slot is somebody else's as well, which no packet ever tells.
                let flow = flow(u64::from(number) | 1 << 63, 0, side, &tuples, [LOOPBACK; 2]);
                self.0.borrow_mut().insert(tuples.get(side), flow, 0).context("filling the flow table")?;
            }
        }
        Ok(())
    }

    /// Makes sure that they are still there: the gateway may sweep its table.
    pub(crate) fn check(&self, connections: u32) -> Result<()> {
        let all = (0..connections).map(|number| tuples(number, PORT));
        let all = all.flat_map(|tuples| [tuples.client, tuples.server]);
        let lost = all.filter(|tuple| self.0.borrow().get(tuple, 0).is_err()).count();
        ensure!(lost == 0, "the gateway removed {lost} entries of {connections} connections");
        Ok(())
    }
}

/// The kernel's own figures of how long BPF programs ran; it keeps them while this exists.
pub(crate) struct Statistics {
    _enabled: OwnedFd,
    before: (f64, u64),
}

impl Statistics {
    pub(crate) fn start() -> Result<Statistics> {
        let enabled = enable_stats(Stats::RunTime).context("asking for the run time of BPF programs")?;
        Ok(Statistics { _enabled: enabled, before: run_time()? })
    }

    /// Of the packet tier's programs, since the start.
    pub(crate) fn nanoseconds_per_run(&self) -> Result<f64> {
        let (time, runs) = run_time()?;
        ensure!(runs > self.before.1, "no program of the packet tier has run");
        Ok((time - self.before.0) / (runs - self.before.1) as f64)
    }
}

/// Nanoseconds and runs of the packet tier's programs on this machine.
fn run_time() -> Result<(f64, u64)> {
    let mut total = (0.0, 0);
    for program in loaded_programs() {
        let program = program?;
        if [FORWARD_ETHERNET, FORWARD_BARE].iter().any(|name| program.name() == name.as_bytes()) {
            total.0 += program.run_time().as_nanos() as f64;
            total.1 += program.run_count();
        }
    }
    Ok(total)
}
