//! `http`: h2load.

use anyhow::Result;

use crate::path::case::{
    Case, Depth, Figure, Load, Measurement, STEADY, Spent, compared, metrics, sample, shown,
};
use crate::path::clients::{self, HttpRequests, Rate};
use crate::path::subjects::{Service, Size};
use crate::path::topology::ANSWERS;
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

/// Rules of a route, each with a path of its own.
const RULES: [u32; 2] = [10, 1000];

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    let case = |http2, answer, rules| {
        let (short, protocol, streams) =
            if http2 { ("h2", "HTTP/2, 8 streams each", 8) } else { ("h1", "HTTP/1.1", 1) };
        let size = if answer >= 1024 { format!("{} KiB", answer / 1024) } else { format!("{answer} B") };
        depth.case(
            format!("{short}-{answer}-rules-{rules}"),
            format!("{protocol}, {STEADY} connections, {size}, {rules} rules, TLS terminated at the gateway (bare: at the server)"),
            // The last one.
            H2load { requests: HttpRequests { http2, clients: STEADY, streams, rule: rules - 1, answer }, rules },
        )
    };
    let (small, _) = (ANSWERS[0], ANSWERS[1]);
    match depth {
        Depth::Quick => [false, true].map(|http2| case(http2, small, RULES[0])).into(),
        Depth::Default | Depth::Full => {
            let each = [false, true].into_iter().flat_map(|http2| ANSWERS.map(|answer| (http2, answer)));
            each.flat_map(|(http2, answer)| RULES.map(|rules| case(http2, answer, rules))).collect()
        }
    }
}

/// What h2load found.
struct Answered {
    rate: Rate,
    /// Core seconds of the machine per million requests.
    cpu_per_million: f64,
}

const FIGURES: &[Figure<Answered>] = &[
    compared("requests", "1/s", Higher, |found| found.rate.per_second),
    compared("p99", "ms", Lower, |found| found.rate.p99_ms),
    compared("machine's CPU", "s per million", Lower, |found| found.cpu_per_million),
    shown("p50", "ms", Lower, |found| found.rate.p50_ms),
];

struct H2load {
    requests: HttpRequests,
    rules: u32,
}

impl Load for H2load {
    fn services(&self) -> Vec<Service> {
        vec![Service::Http]
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn size(&self) -> Size {
        Size { rules: self.rules, ..Size::default() }
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(Service::Http);
        let run = |count| clients::h2load(on.stand, &endpoint, self.requests, count);
        // A tenth of the load at least, so that its rate means something.
        let at_once = u64::from(self.requests.clients * self.requests.streams);
        let mut warm_up = (at_once * 4).max(1_000);
        let mut warm = run(warm_up)?;
        while warm_up as f64 / warm.per_second < on.seconds / 10.0 {
            warm_up *= 4;
            warm = run(warm_up)?;
        }
        let count = ((warm.per_second * on.seconds) as u64).max(at_once);
        let spent = Spent::on(|| run(count))?;
        let answered = Answered { cpu_per_million: spent.per_million(count), rate: spent.found };
        Ok(sample(FIGURES, &answered))
    }
}
