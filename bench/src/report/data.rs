//! What a run found: every sample, as it is kept in JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::numbers::{highest, lowest, median};
use crate::machine::Machine;

/// The subjects that are ours: the others are compared with the first of them that has figures in the table. What is
/// tried by default comes first.
pub(crate) const OURS: &[&str] = &["snisplice-packet", "snisplice-copy", "snisplice-sockmap"];
/// The limit: the kernel forwards, nobody is in between.
pub(crate) const BARE: &str = "bare";

/// One figure of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Metric {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// Whether the table shows how we compare in it.
    pub(crate) compared: bool,
    /// It is a part of the bare route's already, measured in turns with it.
    #[serde(default)]
    pub(crate) of_bare: bool,
}

impl Metric {
    /// With its unit, if it has one.
    pub(crate) fn label(&self) -> String {
        if self.unit.is_empty() { self.name.clone() } else { format!("{}, {}", self.name, self.unit) }
    }
}

/// Which end of a metric is the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What one round of one subject measured, in the order of the case's metrics.
pub(crate) type Sample = Vec<f64>;

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// `quick`, `default` or `full`.
    pub(crate) depth: String,
    pub(crate) congestion_control: String,
    pub(crate) tables: Vec<Table>,
}

/// One case of a scenario.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) scenario: String,
    /// Unique within the scenario.
    pub(crate) case: String,
    pub(crate) title: String,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) rows: Vec<Row>,
}

/// One subject's samples.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) subject: String,
    /// One a round; none where it failed.
    pub(crate) samples: Vec<Option<Sample>>,
    /// Why, each reason once.
    pub(crate) failures: Vec<String>,
    /// Warnings and errors from the subject's own log.
    pub(crate) complaints: Vec<String>,
}

impl Report {
    /// A run that was written before.
    pub(crate) fn read(path: &Path) -> Result<Report> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a result of a run", path.display()))
    }

    /// The names of the scenarios, each once.
    pub(crate) fn scenarios(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tables.iter().map(|table| table.scenario.as_str()).collect();
        names.dedup();
        names
    }
}

impl Table {
    /// The row that the others are compared with.
    pub(crate) fn ours(&self) -> Option<&Row> {
        OURS.iter().find_map(|name| self.row(name).filter(|row| row.samples.iter().any(Option::is_some)))
    }

    pub(crate) fn row(&self, subject: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.subject == subject)
    }
}

impl Row {
    pub(crate) fn new(subject: &str) -> Row {
        Row { subject: subject.to_owned(), samples: Vec::new(), failures: Vec::new(), complaints: Vec::new() }
    }

    /// One metric, round by round.
    pub(crate) fn column(&self, metric: usize) -> Vec<Option<f64>> {
        self.samples.iter().map(|sample| sample.as_ref().map(|sample| sample[metric])).collect()
    }

    /// Median, lowest and highest of one metric.
    pub(crate) fn summary(&self, metric: usize) -> Option<[f64; 3]> {
        let values: Vec<f64> = self.column(metric).into_iter().flatten().collect();
        (!values.is_empty()).then(|| [median(values.clone()), lowest(&values), highest(&values)])
    }

    /// Notes why a round gave nothing.
    pub(crate) fn fail(&mut self, reason: &str) {
        self.samples.push(None);
        note(&mut self.failures, one_line(reason));
    }

    /// Notes what the subject logged.
    pub(crate) fn complain(&mut self, complaints: &[String]) {
        complaints.iter().for_each(|complaint| note(&mut self.complaints, complaint.clone()));
    }
}

fn note(known: &mut Vec<String>, new: String) {
    if !known.contains(&new) {
        known.push(new);
    }
}

/// Fit for a line of a table: no line breaks, no bars, not too long.
fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/");
    if words.chars().count() <= 400 { words } else { words.chars().take(400).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_into_a_table() {
        assert_eq!(one_line("a\n  b | c"), "a b / c");
        assert_eq!(one_line(&"x".repeat(500)).chars().count(), 401);
    }
}
