//! `bulk`: one way, as much as goes through.

use anyhow::Result;

use crate::path::case::{Case, Depth, Figure, Load, Measurement, Spent, compared, metrics, sample};
use crate::path::clients::{self, Direction, Length};
use crate::path::subjects::{Kind, Service};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

/// Bytes that warm a TLS transfer up.
const WARM_UP: u64 = 64 << 20;

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    use Direction::{Down, Up};
    let way = |direction| if direction == Up { "up" } else { "down" };
    let iperf = |direction, streams: u32| {
        let plural = if streams == 1 { "one iperf3 stream" } else { "8 iperf3 streams" };
        let toward = if direction == Up { "toward" } else { "from" };
        depth.case(
            format!("tcp-{}-{streams}", way(direction)),
            format!("{plural} {toward} the server through a plain TCP listener"),
            Iperf { direction, streams },
        )
    };
    let stream = |direction, service| {
        let (kind, how) = match service {
            Service::BulkTls => ("passthrough", "passed through by SNI"),
            _ => ("terminated", "terminated at the gateway (bare: at the server)"),
        };
        depth.case(
            format!("tls-{kind}-{}", way(direction)),
            format!(
                "one TLS stream {}, {how}",
                if direction == Up { "toward the server" } else { "from the server" }
            ),
            Stream { service, direction },
        )
    };
    let mut cases = vec![iperf(Up, 1), iperf(Down, 1)];
    if depth != Depth::Quick {
        cases.extend([iperf(Up, 8), iperf(Down, 8)]);
    }
    for service in [Service::BulkTls, Service::BulkTerminated] {
        if depth != Depth::Quick {
            cases.push(stream(Up, service));
        }
        cases.push(stream(Down, service));
    }
    cases
}

struct Transferred {
    gbit_per_second: f64,
    gib: f64,
    /// Core seconds.
    cpu: f64,
}

const FIGURES: &[Figure<Transferred>] = &[
    compared("throughput", "Gbit/s", Higher, |found| found.gbit_per_second),
    compared("machine's CPU", "s per GiB", Lower, |found| found.cpu / found.gib),
];

/// iperf3, plain TCP.
struct Iperf {
    direction: Direction,
    streams: u32,
}

impl Load for Iperf {
    fn services(&self) -> Vec<Service> {
        vec![Service::Iperf]
    }

    fn takes(&self, _: Kind) -> bool {
        true
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(Service::Iperf);
        let run = |length| clients::iperf(on.stand, &endpoint, self.direction, self.streams, length);
        run(Length::Mebibytes(64))?;
        let Spent { found, cpu } = Spent::on(|| run(Length::Seconds(on.seconds)))?;
        let clients::Bulk { gbit_per_second, gib } = found;
        Ok(sample(FIGURES, &Transferred { gbit_per_second, gib, cpu }))
    }
}

/// One TLS transfer.
struct Stream {
    service: Service,
    direction: Direction,
}

impl Load for Stream {
    fn services(&self) -> Vec<Service> {
        vec![self.service]
    }

    fn takes(&self, kind: Kind) -> bool {
        kind != Kind::HaproxySplice || self.service == Service::BulkTls
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(self.service);
        let run = |bytes| clients::stream(on.stand, &endpoint, self.direction, bytes);
        let warm = run(WARM_UP)?;
        let bytes = (WARM_UP as f64 / warm.seconds * on.seconds) as u64;
        let Spent { found, cpu } = Spent::on(|| run(bytes))?;
        let found = Transferred {
            gbit_per_second: bytes as f64 * 8.0 / 1e9 / found.seconds,
            gib: bytes as f64 / f64::from(1 << 30),
            cpu,
        };
        Ok(sample(FIGURES, &found))
    }
}
