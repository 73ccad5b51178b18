//! Requests while the packet tier's flow table holds many connections beside those of the load.

use anyhow::Result;

use crate::path::case::{Figure, Load, Measurement, STEADY, compared, metrics, sample, shown};
use crate::path::clients::Requests;
use crate::path::scenarios::requests::{Answered, RedisBenchmark};
use crate::path::subjects::{Kind, Service, Size};
use crate::path::{flows, memory};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

struct Found {
    ns_per_packet: f64,
    answered: Answered,
    bytes_per_connection: f64,
}

const FIGURES: &[Figure<Found>] = &[
    compared("program", "ns per packet", Lower, |found| found.ns_per_packet),
    shown("machine's CPU", "s per million", Lower, |found| found.answered.cpu_per_million),
    shown("requests", "1/s", Higher, |found| found.answered.rate.per_second),
    shown("kernel", "bytes per connection", Lower, |found| found.bytes_per_connection),
];

pub(super) struct Flows {
    pub(super) flows: u32,
}

impl Load for Flows {
    fn services(&self) -> Vec<Service> {
        vec![Service::RedisPlain]
    }

    fn takes(&self, kind: Kind) -> bool {
        kind == Kind::SnisplicePacket
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn size(&self) -> Size {
        Size { connections: self.flows, ..Size::default() }
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let before = memory::of_kernel()?;
        let table = flows::Table::open()?;
        table.fill(self.flows)?;
        let bytes = memory::of_kernel()? as f64 - before as f64;
        let requests = Requests { set: false, clients: STEADY, pipeline: 1, value: 3 };
        let statistics = flows::Statistics::start()?;
        let answered = RedisBenchmark { service: Service::RedisPlain, requests }.run(on)?;
        let ns_per_packet = statistics.nanoseconds_per_run()?;
        table.check(self.flows)?;
        let bytes_per_connection = bytes / f64::from(self.flows);
        Ok(sample(FIGURES, &Found { ns_per_packet, answered, bytes_per_connection }))
    }
}
