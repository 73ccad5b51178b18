//! `requests`: redis-benchmark.

use anyhow::{Result, ensure};

use crate::path::case::{Case, Depth, Figure, Load, Measurement, Spent, compared, metrics, sample, shown};
use crate::path::clients::{self, Rate, Requests};
use crate::path::subjects::Service;
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    let case = |service, set, clients, pipeline, value| {
        let (kind, how) = match service {
            Service::RedisPlain => ("plain", "plain TCP"),
            Service::RedisTls => ("tls", "TLS passed through by SNI"),
            _ => ("terminated", "TLS terminated at the gateway (bare: at the server)"),
        };
        let test = if set { "SET" } else { "GET" };
        let bytes = match value {
            bytes if bytes >= 1024 => format!("{} KiB", bytes / 1024),
            bytes => format!("{bytes} B"),
        };
        depth.case(
            format!("{kind}-{}-c{clients}-p{pipeline}-{value}", test.to_lowercase()),
            format!("redis-benchmark {test}, {clients} connections, pipeline {pipeline}, {bytes}, {how}"),
            RedisBenchmark { service, requests: Requests { set, clients, pipeline, value } },
        )
    };
    use Service::{RedisPlain, RedisTerminated, RedisTls};
    match depth {
        Depth::Quick => {
            [RedisTls, RedisPlain, RedisTerminated].map(|service| case(service, false, 50, 1, 3)).into()
        }
        Depth::Default => {
            let mut cases = Vec::new();
            for service in [RedisTls, RedisPlain] {
                cases.extend([
                    case(service, false, 50, 1, 3),
                    case(service, true, 50, 1, 3),
                    case(service, false, 1, 1, 3),
                    case(service, false, 500, 1, 3),
                    case(service, false, 50, 16, 3),
                    case(service, false, 50, 1, 1024),
                    case(service, false, 50, 1, 65536),
                ]);
            }
            cases.extend([
                case(RedisTerminated, false, 50, 1, 3),
                case(RedisTerminated, false, 1, 1, 3),
                case(RedisTerminated, false, 50, 1, 65536),
                // Two records each, of a client that does not set TCP_NODELAY.
                case(RedisTerminated, true, 50, 1, 16384),
            ]);
            cases
        }
        Depth::Full => {
            let mut cases = Vec::new();
            for service in [RedisTls, RedisPlain, RedisTerminated] {
                for (set, clients) in [false, true].into_iter().flat_map(|set| [1, 50, 500].map(|c| (set, c)))
                {
                    for (pipeline, value) in
                        [1, 16].into_iter().flat_map(|p| [3, 1024, 65536].map(|v| (p, v)))
                    {
                        cases.push(case(service, set, clients, pipeline, value));
                    }
                }
            }
            cases
        }
    }
}

/// What redis-benchmark found.
pub(super) struct Answered {
    pub(super) rate: Rate,
    /// Core seconds of the machine per million requests.
    pub(super) cpu_per_million: f64,
}

const FIGURES: &[Figure<Answered>] = &[
    compared("requests", "1/s", Higher, |found| found.rate.per_second),
    compared("machine's CPU", "s per million", Lower, |found| found.cpu_per_million),
    shown("p50", "ms", Lower, |found| found.rate.p50_ms),
    shown("p99", "ms", Lower, |found| found.rate.p99_ms),
];

pub(super) struct RedisBenchmark {
    pub(super) service: Service,
    pub(super) requests: Requests,
}

impl Load for RedisBenchmark {
    fn services(&self) -> Vec<Service> {
        vec![self.service]
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        Ok(sample(FIGURES, &self.run(on)?))
    }
}

impl RedisBenchmark {
    /// For about the wanted time.
    pub(super) fn run(&self, on: &Measurement<'_, '_>) -> Result<Answered> {
        let requests = self.requests;
        let endpoint = on.subject.endpoint(self.service);
        let tls = self.service != Service::RedisPlain;
        let run = |requests, count| clients::redis_benchmark(on.stand, &endpoint, tls, requests, count);
        // So that GET finds a value of this size.
        run(Requests { set: true, clients: 1, pipeline: 1, ..requests }, 10)?;
        let at_once = u64::from(requests.clients * requests.pipeline);
        // A tenth of the load at least, so that its rate means something.
        let mut warm_up = (at_once * 4).max(1_000);
        let mut warm = run(requests, warm_up)?;
        while warm_up as f64 / warm.per_second < on.seconds / 10.0 {
            warm_up *= 4;
            warm = run(requests, warm_up)?;
        }
        let count = ((warm.per_second * on.seconds) as u64).max(at_once);
        let spent = Spent::on(|| run(requests, count))?;
        ensure!(
            spent.found.per_second.is_finite(),
            "{count} requests took no time that redis-benchmark could measure"
        );
        Ok(Answered { cpu_per_million: spent.per_million(count), rate: spent.found })
    }
}
