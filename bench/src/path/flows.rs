//! The packet tier's flow table, filled with connections that nobody has, and what its programs cost.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use lb_common::packet::{FLOWS, FORWARD_BARE, FORWARD_ETHERNET, Flow, Tuple};

/// The flow table of the running gateway.
pub(crate) struct Table(std::cell::RefCell<HashMap<MapData, Tuple, Flow>>);

impl Table {
    /// By its pin below the gateway's directory in the bpf file system.
    pub(crate) fn open(bpffs: &Path) -> Result<Table> {
        let path = bpffs.join(format!("v{}/packet", lb_common::ABI_VERSION)).join(FLOWS);
        let data = MapData::from_pin(&path).with_context(|| format!("the flow table {}", path.display()))?;
        Ok(Table(HashMap::try_from(Map::HashMap(data))?.into()))
    }

    /// Adds so many connections, of two flows each, with addresses for benchmarks (RFC 2544) that no packet has.
    pub(crate) fn fill(&self, connections: u32) -> Result<()> {
        for number in 0..connections {
            let [from_client, from_server] = tuples(number);
            for (key, out) in [(from_client, from_server.reversed()), (from_server, from_client.reversed())] {
                let flow = flow(u64::from(number) | 1 << 63, out);
                self.0.borrow_mut().insert(key, flow, 0).context("filling the flow table")?;
            }
        }
        Ok(())
    }

    /// Makes sure that they are still there: the gateway may sweep its table.
    pub(crate) fn check(&self, connections: u32) -> Result<()> {
        let kept =
            (0..connections).filter(|number| self.0.borrow().get(&tuples(*number)[0], 0).is_ok()).count();
        ensure!(kept == connections as usize, "the gateway removed all but {kept} of {connections} entries");
        Ok(())
    }
}

/// What the packets of connection `number` would be addressed by: from the client, from the server.
fn tuples(number: u32) -> [Tuple; 2] {
    let address = |last: u32| u32::from_ne_bytes((0xc612_0000 + last).to_be_bytes());
    // 2^16 ports of 2^8 addresses.
    let (host, port) = (number >> 16, (number as u16).to_be());
    [
        Tuple::v4(address(host), address(0xff01), port, 443_u16.to_be()),
        Tuple::v4(address(0xff03), address(0xff02), 6379_u16.to_be(), port.wrapping_add(host as u16)),
    ]
}

fn flow(id: u64, out: Tuple) -> Flow {
    Flow {
        id,
        origin: 0,
        out,
        seq_delta: 0,
        ack_delta: 0,
        tsval_delta: 0,
        tsecr_delta: 0,
        ifindex: 1,
        from: 1,
        // Somebody else's as well, which no packet ever tells.
        slot: 0,
        own_scale: 0,
        peer_scale: 0,
        promised_scale: 0,
        flags: 0,
        exit: lb_common::packet::exit::NEIGHBOUR,
        padding: [0; 3],
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_connections_share_a_tuple() {
        let numbers = (0..10).chain(65_530..65_540).chain(499_990..500_000);
        let all: Vec<Tuple> = numbers.flat_map(tuples).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }
}
