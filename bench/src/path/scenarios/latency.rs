//! `latency`: PING at a fixed rate, in an open loop.

use anyhow::Result;

use crate::path::case::{
    Case, Depth, Figure, Load, Measurement, STEADY, Spent, compared, metrics, sample, shown,
};
use crate::path::clients::{self, Steady};
use crate::path::subjects::Service;
use crate::report::Better::Lower;
use crate::report::{Metric, Sample};

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    let case = |service, rate| {
        let (kind, how) = match service {
            Service::RedisTls => ("tls", "passed through by SNI"),
            _ => ("terminated", "terminated at the gateway (bare: at the server)"),
        };
        depth.case(
            format!("{kind}-{rate}"),
            format!("PING over TLS at {rate} a second, {STEADY} connections, {how}"),
            Latency { service, rate },
        )
    };
    match depth {
        Depth::Quick => vec![case(Service::RedisTls, 5_000)],
        _ => vec![
            case(Service::RedisTls, 1_000),
            case(Service::RedisTls, 10_000),
            case(Service::RedisTerminated, 10_000),
        ],
    }
}

const FIGURES: &[Figure<Spent<Steady>>] = &[
    compared("p50", "ms", Lower, |spent| spent.found.p50),
    shown("p90", "ms", Lower, |spent| spent.found.p90),
    compared("p99", "ms", Lower, |spent| spent.found.p99),
    shown("p99.9", "ms", Lower, |spent| spent.found.p999),
    shown("worst", "ms", Lower, |spent| spent.found.max),
    shown("machine's CPU", "s per million", Lower, |spent| spent.per_million(spent.found.answered)),
];

/// So many requests a second.
struct Latency {
    service: Service,
    rate: u32,
}

impl Load for Latency {
    fn services(&self) -> Vec<Service> {
        vec![self.service]
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(self.service);
        let (connections, rate) = (STEADY.to_string(), self.rate.to_string());
        let run = |seconds: f64| {
            let seconds = seconds.to_string();
            let args = ["--connections", &connections, "--rate", &rate, "--seconds", &seconds];
            clients::tool::<Steady>(on.stand, "steady", &endpoint, &args)
        };
        run(0.2)?;
        Ok(sample(FIGURES, &Spent::on(|| run(on.seconds))?))
    }
}
