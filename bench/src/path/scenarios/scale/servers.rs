//! Very many servers, each with its health checks.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::path::case::{Figure, Load, Measurement, compared, metrics, sample, shown};
use crate::path::memory;
use crate::path::subjects::{Kind, Service, Size};
use crate::report::Better::Lower;
use crate::report::{Metric, Sample};

/// Of each pool.
const PER_POOL: u32 = 100;

/// Two intervals between checks.
const MEASURED: Duration = Duration::from_secs(10);

struct Found {
    started: Duration,
    /// Bytes.
    memory: u64,
    /// Of a core, in percent.
    cpu: f64,
}

const FIGURES: &[Figure<Found>] = &[
    compared("checks", "% of a core", Lower, |found| found.cpu),
    compared("process", "MiB", Lower, |found| memory::mib(found.memory)),
    shown("ready after", "s", Lower, |found| found.started.as_secs_f64()),
];

pub(super) struct Servers {
    pub(super) servers: u32,
}

impl Load for Servers {
    fn services(&self) -> Vec<Service> {
        vec![Service::Routes]
    }

    /// The tiers differ in nothing here.
    fn takes(&self, kind: Kind) -> bool {
        matches!(kind, Kind::SnispliceCopy | Kind::Haproxy)
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn size(&self) -> Size {
        Size { pools: self.servers.div_ceil(PER_POOL), servers: PER_POOL, checked: true, ..Size::default() }
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        // Each has been checked once, and is in its rhythm.
        thread::sleep(MEASURED / 2);
        let (before, start) = (on.subject.cpu()?, Instant::now());
        thread::sleep(MEASURED);
        let cpu = (on.subject.cpu()? - before) / start.elapsed().as_secs_f64() * 100.0;
        Ok(sample(FIGURES, &Found { started: on.started, memory: on.subject.memory()?, cpu }))
    }
}
