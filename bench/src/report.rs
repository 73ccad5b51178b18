//! What a run found: every sample as JSON, medians and paired ratios as Markdown.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Machine;

/// The subject every other one is compared with.
pub(crate) const OURS: &str = "snisplice";

/// One figure of a scenario.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// Whether the table shows how snisplice compares in it.
    pub(crate) compared: bool,
}

/// Which end of a metric is the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What one round of one subject measured, in the order of the scenario's metrics.
pub(crate) type Sample = Vec<f64>;

/// "At least `ratio` times the best of `peers`", in every compared metric.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) ratio: f64,
    pub(crate) peers: &'static [&'static str],
}

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) quick: bool,
    pub(crate) congestion_control: String,
    pub(crate) scenarios: Vec<ScenarioReport>,
}

/// One scenario's samples.
#[derive(Debug, Serialize)]
pub(crate) struct ScenarioReport {
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) goal: Option<Goal>,
    pub(crate) subjects: Vec<SubjectReport>,
}

/// One subject's samples, one a round.
#[derive(Debug, Serialize)]
pub(crate) struct SubjectReport {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
    /// Warnings and errors from the subject's own log.
    pub(crate) complaints: Vec<String>,
}

impl Report {
    /// Writes `NAME.json` and `NAME.md`; returns the Markdown.
    pub(crate) fn write(&self, dir: &Path) -> Result<String> {
        let name = if self.quick { "quick" } else { "results" };
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        let markdown = self.markdown();
        for (ending, text) in [("json", &json), ("md", &markdown)] {
            let path = dir.join(name).with_extension(ending);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(markdown)
    }

    fn markdown(&self) -> String {
        let mut out = String::from("# Side by side\n\n");
        if self.quick {
            out += "A quick run: it shows that everything works, not how fast it is.\n\n";
        }
        out += "Median (lowest to highest) over the rounds. The columns \"snisplice ÷ it\" compare round by \
                round, so that above 1 snisplice is the better one, also where less is better. How it was \
                measured: [METHOD.md](../METHOD.md).\n\n";
        out += &self.machine.markdown();
        let _ = writeln!(out, "- TCP congestion control in every namespace: {}", self.congestion_control);
        for scenario in &self.scenarios {
            out.push('\n');
            out += &scenario.markdown();
        }
        out
    }
}

impl ScenarioReport {
    /// The scenario as a Markdown section.
    pub(crate) fn markdown(&self) -> String {
        let rounds = self.subjects.iter().map(|s| s.samples.len()).max().unwrap_or(0);
        let mut out = format!("## {}: {} ({rounds} rounds)\n\n", self.name, self.title);
        let ours = self.subject(OURS);
        let compared = || self.metrics.iter().enumerate().filter(|(_, m)| m.compared && ours.is_some());

        let mut header = String::from("| subject |");
        let mut rule = String::from("|---|");
        for metric in &self.metrics {
            let _ = write!(header, " {}, {} |", metric.name, metric.unit);
            rule += "---:|";
        }
        for (_, metric) in compared() {
            let _ = write!(header, " snisplice ÷ it, {} |", metric.name);
            rule += "---:|";
        }
        let _ = writeln!(out, "{header}\n{rule}");

        for subject in &self.subjects {
            let _ = write!(out, "| {} |", subject.name);
            for index in 0..self.metrics.len() {
                let _ = write!(out, " {} |", spread(subject.column(index), quantity));
            }
            for (index, metric) in compared() {
                let cell = match ours {
                    Some(ours) if ours.name != subject.name => {
                        spread(ratios(metric.better, ours.column(index), subject.column(index)), ratio)
                    }
                    _ => String::new(),
                };
                let _ = write!(out, " {cell} |");
            }
            out.push('\n');
        }
        out += &self.verdict();
        for subject in &self.subjects {
            for complaint in &subject.complaints {
                let _ = writeln!(out, "\n{} logged: `{complaint}`", subject.name);
            }
        }
        out
    }

    fn verdict(&self) -> String {
        let (Some(goal), Some(ours)) = (self.goal, self.subject(OURS)) else {
            return String::new();
        };
        let peers: Vec<_> = goal.peers.iter().filter_map(|name| self.subject(name)).collect();
        if peers.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        for (index, metric) in self.metrics.iter().enumerate().filter(|(_, m)| m.compared) {
            let best = best_of(metric.better, peers.iter().map(|peer| peer.column(index)));
            let against = ratios(metric.better, ours.column(index), best);
            let met = if median(against.clone()) >= goal.ratio { "met" } else { "MISSED" };
            let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
            let _ = writeln!(
                out,
                "\n{}: {} times the best of {} in the same round; goal {:.2}: {met}.",
                metric.name,
                spread(against, ratio),
                names.join(", "),
                goal.ratio,
            );
        }
        out
    }

    fn subject(&self, name: &str) -> Option<&SubjectReport> {
        self.subjects.iter().find(|subject| subject.name == name)
    }
}

impl SubjectReport {
    fn column(&self, metric: usize) -> Vec<f64> {
        self.samples.iter().map(|sample| sample[metric]).collect()
    }
}

/// One sample in one line, for the progress of a run.
pub(crate) fn sample_line(metrics: &[Metric], sample: &Sample) -> String {
    let parts: Vec<_> = metrics
        .iter()
        .zip(sample)
        .map(|(metric, value)| format!("{} {} {}", metric.name, quantity(*value), metric.unit))
        .collect();
    parts.join(", ")
}

/// Round by round, how many times better `ours` is than `theirs`.
fn ratios(better: Better, ours: Vec<f64>, theirs: Vec<f64>) -> Vec<f64> {
    ours.into_iter()
        .zip(theirs)
        .map(|(ours, theirs)| match better {
            Better::Higher => ours / theirs,
            Better::Lower => theirs / ours,
        })
        .collect()
}

/// Round by round, the best value of any column.
fn best_of(better: Better, columns: impl Iterator<Item = Vec<f64>>) -> Vec<f64> {
    columns
        .reduce(|best, column| {
            let pick = match better {
                Better::Higher => f64::max,
                Better::Lower => f64::min,
            };
            best.into_iter().zip(column).map(|(a, b)| pick(a, b)).collect()
        })
        .unwrap_or_default()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// "median (lowest to highest)".
fn spread(values: Vec<f64>, show: fn(f64) -> String) -> String {
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        0 => "–".to_owned(),
        1 => show(lowest),
        _ => format!("{} ({} to {})", show(median(values)), show(lowest), show(highest)),
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Three significant digits or more, thousands set apart.
fn quantity(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{} {:03}", value as i64 / 1000, (v as i64) % 1000),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(better: Better, ours: &[f64], haproxy: &[f64], nginx: &[f64]) -> ScenarioReport {
        let subject = |name, values: &[f64]| SubjectReport {
            name,
            samples: values.iter().map(|v| vec![*v]).collect(),
            complaints: Vec::new(),
        };
        ScenarioReport {
            name: "example",
            title: "an example".to_owned(),
            metrics: vec![Metric { name: "speed", unit: "1/s", better, compared: true }],
            goal: Some(Goal { ratio: 1.0, peers: &["haproxy", "nginx"] }),
            subjects: vec![subject(OURS, ours), subject("haproxy", haproxy), subject("nginx", nginx)],
        }
    }

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn ratios_pair_the_rounds_and_point_the_same_way_for_both_kinds_of_metric() {
        assert_eq!(ratios(Better::Higher, vec![20.0, 30.0], vec![10.0, 10.0]), [2.0, 3.0]);
        assert_eq!(ratios(Better::Lower, vec![20.0, 30.0], vec![10.0, 10.0]), [0.5, 1.0 / 3.0]);
    }

    #[test]
    fn the_verdict_compares_with_the_best_peer_of_each_round() {
        let text =
            scenario(Better::Higher, &[10.0, 10.0, 10.0], &[20.0, 5.0, 9.0], &[5.0, 20.0, 8.0]).verdict();
        assert!(text.contains("0.50 (0.50 to 1.11) times the best of haproxy, nginx"), "{text}");
        assert!(text.contains("MISSED"), "{text}");

        let text = scenario(Better::Lower, &[1.0], &[2.0], &[3.0]).verdict();
        assert!(text.contains("2.00 times") && text.contains("goal 1.00: met"), "{text}");
    }

    #[test]
    fn the_table_has_a_row_per_subject_and_leaves_our_own_ratio_empty() {
        let text = scenario(Better::Higher, &[12_345.0], &[10_000.0], &[5.0]).markdown();
        assert!(text.contains("| snisplice | 12 345 |  |"), "{text}");
        assert!(text.contains("| haproxy | 10 000 | 1.23 |"), "{text}");
    }
}
