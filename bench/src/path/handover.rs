//! How long the packet tier takes from a known route to flows in the kernel, by the gateway's own histogram.

use anyhow::{Result, ensure};

use super::subjects::Subject;

const NAME: &str = "snisplice_handover_seconds_bucket{le=\"";

/// Connections by the time they took: upper bounds in seconds, the last one infinite, and how many took no longer.
pub(crate) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// What the running gateway has counted so far.
    pub(crate) fn read(subject: &Subject<'_>) -> Result<Histogram> {
        Histogram::parse(&subject.admin("/metrics")?)
    }

    fn parse(metrics: &str) -> Result<Histogram> {
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(NAME)?.split_once("\"}")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.trim().parse().ok()?))
        };
        let buckets: Vec<_> = metrics.lines().filter_map(bucket).collect();
        ensure!(buckets.last().is_some_and(|(bound, _)| bound.is_infinite()), "no histogram in the metrics");
        Ok(Histogram(buckets))
    }

    /// What was counted since an earlier reading.
    pub(crate) fn since(mut self, before: &Histogram) -> Histogram {
        for ((_, count), (_, earlier)) in self.0.iter_mut().zip(&before.0) {
            *count -= earlier;
        }
        self
    }

    pub(crate) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// Seconds, taken as evenly spread within a bucket (as Prometheus' `histogram_quantile` does); `None` where there
    /// is nothing, or it lies beyond the last bound.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let rank = part * self.count();
        let index = self.0.iter().position(|(_, count)| *count > 0.0 && *count >= rank)?;
        let (above, to) = self.0[index];
        let (below, from) = if index == 0 { (0.0, 0.0) } else { self.0[index - 1] };
        above.is_finite().then(|| below + (above - below) * (rank - from) / (to - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: [u32; 3]) -> Histogram {
        let [a, b, all] = counts;
        let text =
            format!("# HELP\n{NAME}0.0001\"}} {a}\n{NAME}0.0002\"}} {b}\n{NAME}+Inf\"}} {all}\nother 3\n");
        Histogram::parse(&text).unwrap()
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let seen = histogram([15, 35, 45]).since(&histogram([5, 5, 5]));
        assert_eq!(seen.count(), 40.0);
        let close = |part, expected: f64| (seen.quantile(part).unwrap() - expected).abs() < 1e-9;
        assert!(close(0.125, 0.00005) && close(0.25, 0.0001) && close(0.5, 0.00015) && close(0.75, 0.0002));
        assert_eq!(seen.quantile(0.9), None);
    }

    #[test]
    fn of_nothing_there_is_no_quantile() {
        assert_eq!(histogram([5, 5, 5]).since(&histogram([5, 5, 5])).quantile(0.5), None);
        assert!(Histogram::parse("snisplice_bytes_total 1\n").is_err());
    }
}
