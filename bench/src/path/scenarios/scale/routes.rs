//! New connections to any of many names.

use std::time::Duration;

use anyhow::Result;

use crate::path::case::{Figure, Load, Measurement, compared, metrics, sample, shown};
use crate::path::clients::{self, Connections};
use crate::path::memory;
use crate::path::subjects::{Kind, Service, Size};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

struct Found {
    started: Duration,
    /// Bytes.
    memory: u64,
    connections: Connections,
}

const FIGURES: &[Figure<Found>] = &[
    compared("ready after", "s", Lower, |found| found.started.as_secs_f64()),
    compared("process", "MiB", Lower, |found| memory::mib(found.memory)),
    shown("connections", "1/s", Higher, |found| found.connections.per_second),
    shown("first byte, p50", "ms", Lower, |found| found.connections.first_byte_p50_ms),
];

pub(super) struct Routes {
    pub(super) routes: u32,
}

impl Load for Routes {
    fn services(&self) -> Vec<Service> {
        vec![Service::Routes]
    }

    /// The sockmap tier is as the copy tier is, and as the packet tier with the kernel programs to load.
    fn takes(&self, kind: Kind) -> bool {
        !matches!(kind, Kind::HaproxySplice | Kind::SnispliceSockmap)
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn size(&self) -> Size {
        Size { routes: self.routes, ..Size::default() }
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(Service::Routes);
        let run = |seconds| clients::connect(on.stand, &endpoint, 4, self.routes, false, seconds);
        run(0.1)?;
        let connections = run(on.seconds)?;
        let memory = on.subject.memory()?;
        Ok(sample(FIGURES, &Found { started: on.started, memory, connections }))
    }
}
