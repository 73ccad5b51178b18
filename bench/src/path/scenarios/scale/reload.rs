//! A reload of very many routes, seen by clients and by the operator.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::path::case::{Figure, Load, Measurement, STEADY, metrics, sample, shown};
use crate::path::clients::{Running, Steady};
use crate::path::memory;
use crate::path::subjects::{Kind, Service, Size};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};
use crate::tools::quantile;

struct Found {
    load: Steady,
    /// In ms, sorted.
    took: Vec<f64>,
    /// Bytes, before the first and after the last.
    memory: [u64; 2],
}

const FIGURES: &[Figure<Found>] = &[
    shown("a reload, median", "ms", Lower, |found| quantile(&found.took, 0.5)),
    shown("p99", "ms", Lower, |found| found.load.p99),
    shown("p99.9", "ms", Lower, |found| found.load.p999),
    shown("slowest answer", "ms", Lower, |found| found.load.max),
    shown("slowest connection", "ms", Lower, |found| found.load.slowest),
    shown("process before", "MiB", Lower, |found| memory::mib(found.memory[0])),
    shown("process after", "MiB", Lower, |found| memory::mib(found.memory[1])),
    shown("reloads", "", Higher, |found| found.took.len() as f64),
];

pub(super) struct Reload {
    pub(super) size: Size,
    /// `false`: nothing happens, to compare with.
    pub(super) reloads: bool,
}

impl Load for Reload {
    fn services(&self) -> Vec<Service> {
        vec![Service::RedisTls]
    }

    /// The peers do not say when a new configuration is in force.
    fn takes(&self, kind: Kind) -> bool {
        matches!(kind, Kind::SnisplicePacket | Kind::SnispliceCopy)
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn size(&self) -> Size {
        self.size
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(Service::RedisTls);
        let before = on.subject.memory()?;
        let (connections, seconds) = (STEADY.to_string(), (on.seconds * 5.0).to_string());
        let args = ["--connections", &connections, "--rate", "2000", "--seconds", &seconds];
        let args = [&args[..], &["--reconnect", "--new-per-second", "50"]].concat();
        let mut running = Running::start(on.stand, "steady", &endpoint, &args)?;
        let mut took = Vec::new();
        thread::sleep(Duration::from_millis(500));
        while running.is_running()? {
            if self.reloads {
                took.push(on.subject.reload_and_wait()?.as_secs_f64() * 1e3);
            }
            thread::sleep(Duration::from_secs(1));
        }
        let load: Steady = running.finish()?;
        ensure!(load.lost == 0 && load.refused == 0, "{} were cut, {} refused", load.lost, load.refused);
        took.sort_by(f64::total_cmp);
        Ok(sample(FIGURES, &Found { load, took, memory: [before, on.subject.memory()?] }))
    }
}
