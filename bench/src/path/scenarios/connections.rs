//! `connections`: new TLS connections, each with one PING.

use anyhow::{Result, bail, ensure};

use crate::path::case::{Case, Depth, Figure, Load, Measurement, Spent, compared, metrics, sample, shown};
use crate::path::clients::{self, Connections};
use crate::path::handover::Histogram;
use crate::path::subjects::{Kind, Service};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    let case = |service, clients, resume| {
        let (kind, how) = match service {
            Service::RedisTls => ("tls", "passed through by SNI"),
            _ => ("terminated", "terminated at the gateway (bare: at the server)"),
        };
        let (handshake, handshakes) =
            if resume { ("resumed", "resumed") } else { ("full", "full handshakes") };
        let many = if clients == 1 { "one after another".to_owned() } else { format!("{clients} clients") };
        depth.case(
            format!("{kind}-{handshake}-{clients}"),
            format!("new TLS connections, {handshakes}, {many}, one PING each, {how}"),
            Connect { service, clients, resume },
        )
    };
    let handover = |clients: u32| {
        depth.case(
            format!("handover-{clients}"),
            format!("from a known route to flows in the kernel, {clients} clients with full handshakes"),
            Handover { clients },
        )
    };
    use Service::{RedisTerminated, RedisTls};
    match depth {
        Depth::Quick => {
            vec![case(RedisTls, 16, false), case(RedisTls, 16, true), case(RedisTerminated, 16, false)]
        }
        _ => [RedisTls, RedisTerminated]
            .into_iter()
            .flat_map(|service| [case(service, 16, false), case(service, 16, true), case(service, 1, false)])
            .chain([handover(1), handover(16)])
            .collect(),
    }
}

/// Of one client, which waits for each connection.
const ONE: &[Figure<Spent<Connections>>] = &[
    compared("first byte, p50", "ms", Lower, |spent| spent.found.first_byte_p50_ms),
    shown("first byte, p99", "ms", Lower, |spent| spent.found.first_byte_p99_ms),
    shown("connections", "1/s", Higher, |spent| spent.found.per_second),
    shown("machine's CPU", "s per million", Lower, |spent| spent.per_million(spent.found.count)),
];

/// Of several, which take what the machine has.
const SEVERAL: &[Figure<Spent<Connections>>] = &[
    compared("connections", "1/s", Higher, |spent| spent.found.per_second),
    compared("machine's CPU", "s per million", Lower, |spent| spent.per_million(spent.found.count)),
    shown("first byte, p50", "ms", Lower, |spent| spent.found.first_byte_p50_ms),
    shown("first byte, p99", "ms", Lower, |spent| spent.found.first_byte_p99_ms),
];

/// From so many clients at once.
struct Connect {
    service: Service,
    clients: u32,
    resume: bool,
}

impl Connect {
    fn figures(&self) -> &'static [Figure<Spent<Connections>>] {
        if self.clients == 1 { ONE } else { SEVERAL }
    }
}

impl Load for Connect {
    fn services(&self) -> Vec<Service> {
        vec![self.service]
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(self.figures())
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(self.service);
        let run = |seconds| clients::connect(on.stand, &endpoint, self.clients, 1, self.resume, seconds);
        run(0.1)?;
        let spent = Spent::on(|| run(on.seconds))?;
        ensure!(spent.found.count > 0, "no connection was answered");
        Ok(sample(self.figures(), &spent))
    }
}

struct HandedOver {
    p50_ms: f64,
    p99_ms: f64,
    connections: Connections,
}

const HANDOVER: &[Figure<HandedOver>] = &[
    compared("p50", "ms", Lower, |found| found.p50_ms),
    shown("p99", "ms", Lower, |found| found.p99_ms),
    shown("of the first byte's p50", "%", Lower, |found| {
        100.0 * found.p50_ms / found.connections.first_byte_p50_ms
    }),
    shown("connections", "1/s", Higher, |found| found.connections.per_second),
];

/// How long the handover of so many clients' connections to the kernel takes.
struct Handover {
    clients: u32,
}

impl Load for Handover {
    fn services(&self) -> Vec<Service> {
        vec![Service::RedisTls]
    }

    fn takes(&self, kind: Kind) -> bool {
        kind == Kind::SnisplicePacket
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(HANDOVER)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(Service::RedisTls);
        let run = |seconds| clients::connect(on.stand, &endpoint, self.clients, 1, false, seconds);
        run(0.1)?;
        let before = Histogram::read(on.subject)?;
        let connections = run(on.seconds)?;
        let seen = Histogram::read(on.subject)?.since(&before);
        let ms = |part| seen.quantile(part).map(|seconds| seconds * 1e3);
        let (Some(p50_ms), Some(p99_ms)) = (ms(0.5), ms(0.99)) else {
            bail!("no quantile of {} handovers", seen.count())
        };
        Ok(sample(HANDOVER, &HandedOver { p50_ms, p99_ms, connections }))
    }
}
