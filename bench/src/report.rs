//! What a run found: every sample as JSON, medians and paired ratios as Markdown.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::chart;
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
    /// Writes `NAME.json`, `NAME.md` and the charts; returns the Markdown.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> Result<String> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let write = |file: String, text: &str| {
            let path = dir.join(file);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        let markdown = self.markdown(name);
        write(format!("{name}.json"), &(serde_json::to_string_pretty(self)? + "\n"))?;
        write(format!("{name}.md"), &markdown)?;
        for scenario in self.scenarios() {
            write(chart_file(name, scenario), &chart::scenario(self, scenario))?;
        }
        Ok(markdown)
    }

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

    fn markdown(&self, name: &str) -> String {
        let mut out = String::from("# Side by side\n\n");
        if self.depth == "quick" {
            out += "A quick run: it shows that everything works, not how fast it is.\n\n";
        }
        out += "Median (lowest to highest) over the rounds. The columns \"÷ it\" compare round by round, so that above 1 \
                the first of the snisplice tiers in the table is the better one, also where less is better. How it was \
                measured: [METHOD.md](../METHOD.md).\n\n";
        out += &self.machine.markdown();
        let _ = writeln!(out, "- TCP congestion control in every namespace: {}", self.congestion_control);
        out += &self.behind();
        for scenario in self.scenarios() {
            let _ = write!(out, "\n## {scenario}\n\n![{scenario}]({})\n", chart_file(name, scenario));
            for table in self.tables.iter().filter(|table| table.scenario == scenario) {
                out.push('\n');
                out += &table.markdown();
            }
        }
        out
    }

    /// Every ratio that is not good enough: below 1 against a peer, below 0.95 against the bare route.
    fn behind(&self) -> String {
        let mut out = String::new();
        for table in &self.tables {
            let Some(ours) = table.ours() else { continue };
            for row in table.rows.iter().filter(|row| !OURS.contains(&row.subject.as_str())) {
                let enough = if row.subject == BARE { 0.95 } else { 1.0 };
                for (index, metric) in table.metrics.iter().enumerate().filter(|(_, metric)| metric.compared)
                {
                    let found = ratios(metric, ours, row, index);
                    if median(found.clone()) < enough {
                        let _ = writeln!(
                            out,
                            "| {} {} | {} | {} ÷ {} | {} |",
                            table.scenario,
                            table.case,
                            metric.name,
                            ours.subject,
                            row.subject,
                            spread(found, ratio)
                        );
                    }
                }
            }
        }
        if out.is_empty() {
            return out;
        }
        format!(
            "\n## Where it is behind\n\nBelow 1.00 against a peer, below 0.95 against bare routing.\n\n| case | figure | against | ratio |\n|---|---|---|---:|\n{out}"
        )
    }
}

fn chart_file(name: &str, scenario: &str) -> String {
    format!("{name}-{scenario}.svg")
}

impl Table {
    /// The row that the others are compared with.
    pub(crate) fn ours(&self) -> Option<&Row> {
        OURS.iter().find_map(|name| self.row(name).filter(|row| row.samples.iter().any(Option::is_some)))
    }

    pub(crate) fn row(&self, subject: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.subject == subject)
    }

    /// The case as a Markdown section.
    pub(crate) fn markdown(&self) -> String {
        let rounds = self.rows.iter().map(|row| row.samples.len()).max().unwrap_or(0);
        let rounds = if rounds == 1 { "1 round".to_owned() } else { format!("{rounds} rounds") };
        let mut out = format!("### {}: {} ({rounds})\n\n", self.case, self.title);
        let ours = self.ours().filter(|_| self.rows.len() > 1);
        let compared =
            || self.metrics.iter().enumerate().filter(|(_, metric)| metric.compared && ours.is_some());

        let mut header = String::from("| subject |");
        let mut rule = String::from("|---|");
        for metric in &self.metrics {
            let _ = write!(header, " {} |", metric.label());
            rule += "---:|";
        }
        for (_, metric) in compared() {
            let name = ours.map_or("", |row| &row.subject);
            let _ = write!(header, " {name} ÷ it, {} |", metric.name);
            rule += "---:|";
        }
        let _ = writeln!(out, "{header}\n{rule}");

        for row in &self.rows {
            let _ = write!(out, "| {} |", row.subject);
            for index in 0..self.metrics.len() {
                let values = row.column(index).into_iter().flatten().collect::<Vec<_>>();
                let cell = if values.is_empty() { "failed".to_owned() } else { spread(values, quantity) };
                let _ = write!(out, " {cell} |");
            }
            for (index, metric) in compared() {
                let cell = match ours {
                    Some(ours) if ours.subject != row.subject => {
                        spread(ratios(metric, ours, row, index), ratio)
                    }
                    _ => String::new(),
                };
                let _ = write!(out, " {cell} |");
            }
            out.push('\n');
        }
        for row in &self.rows {
            let failed = row.samples.iter().filter(|sample| sample.is_none()).count();
            for failure in &row.failures {
                let _ =
                    writeln!(out, "\n{} failed ({failed} of {}): {failure}", row.subject, row.samples.len());
            }
            for complaint in &row.complaints {
                let _ = writeln!(out, "\n{} logged: `{complaint}`", row.subject);
            }
        }
        out
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

/// How the medians of two runs compare, case by case, for the subjects that are in both.
pub(crate) fn compare(before: &Report, after: &Report) -> String {
    let mut out = String::from(
        "| case | subject | figure | before | after | times better |\n|---|---|---|---:|---:|---:|\n",
    );
    for new in &after.tables {
        let Some(old) =
            before.tables.iter().find(|old| (&old.scenario, &old.case) == (&new.scenario, &new.case))
        else {
            continue;
        };
        for row in &new.rows {
            let Some(old_row) = old.row(&row.subject) else { continue };
            for (index, metric) in new.metrics.iter().enumerate() {
                let old_index =
                    old.metrics.iter().position(|old| (&old.name, &old.unit) == (&metric.name, &metric.unit));
                let was = old_index.and_then(|index| old_row.summary(index));
                if let (Some([was, ..]), Some([is, ..])) = (was, row.summary(index)) {
                    let times = match metric.better {
                        Better::Higher => is / was,
                        Better::Lower => was / is,
                    };
                    let _ = writeln!(
                        out,
                        "| {} {} | {} | {} | {} | {} | {} |",
                        new.scenario,
                        new.case,
                        row.subject,
                        metric.label(),
                        quantity(was),
                        quantity(is),
                        ratio(times)
                    );
                }
            }
        }
    }
    out
}

/// One sample in one line, for the progress of a run.
pub(crate) fn sample_line(metrics: &[Metric], sample: &Sample) -> String {
    let parts: Vec<_> = metrics
        .iter()
        .zip(sample)
        .map(|(metric, value)| {
            format!("{} {} {}", metric.name, quantity(*value), metric.unit).trim().to_owned()
        })
        .collect();
    parts.join(", ")
}

/// Round by round, how many times better `ours` is than `theirs`, where both have a value. What is a part of the bare
/// route's already is not compared with that of another minute.
fn ratios(metric: &Metric, ours: &Row, theirs: &Row, index: usize) -> Vec<f64> {
    let is_itself = metric.of_bare && theirs.subject == BARE;
    ours.column(index)
        .into_iter()
        .zip(theirs.column(index))
        .filter_map(|(ours, theirs)| {
            let (ours, theirs) = (ours?, if is_itself { 1.0 } else { theirs? });
            Some(if metric.better == Better::Higher { ours / theirs } else { theirs / ours })
        })
        // Where one of them is nothing, or a difference below it, there is no "times".
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .collect()
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

fn lowest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn highest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// "median (lowest to highest)".
fn spread(values: Vec<f64>, show: fn(f64) -> String) -> String {
    let (from, to) = (show(lowest(&values)), show(highest(&values)));
    match values.len() {
        0 => "–".to_owned(),
        _ if from == to => from,
        _ => format!("{} ({from} to {to})", show(median(values))),
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Three significant digits or more, thousands set apart.
pub(crate) fn quantity(value: f64) -> String {
    match value.abs() {
        v if v < 1e4 && v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 9_999.5 => {
            let digits = format!("{:.0}", v);
            let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
            format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(" "))
        }
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.0995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn table(better: Better, rows: &[(&str, &[f64])]) -> Table {
        let row = |(subject, values): &(&str, &[f64])| Row {
            samples: values.iter().map(|value| value.is_finite().then(|| vec![*value])).collect(),
            ..Row::new(subject)
        };
        Table {
            scenario: "example".to_owned(),
            case: "one".to_owned(),
            title: "an example".to_owned(),
            metrics: vec![Metric {
                name: "speed".to_owned(),
                unit: "1/s".to_owned(),
                better,
                compared: true,
                of_bare: false,
            }],
            rows: rows.iter().map(row).collect(),
        }
    }

    fn report(table: Table) -> Report {
        Report {
            machine: Machine::example(),
            depth: "default".to_owned(),
            congestion_control: "reno".to_owned(),
            tables: vec![table],
        }
    }

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn ratios_pair_the_rounds_in_which_both_have_a_value_and_point_the_same_way_for_both_kinds_of_metric() {
        let pair = table(
            Better::Higher,
            &[("snisplice-copy", &[20.0, f64::NAN, 30.0]), ("haproxy", &[10.0, 1.0, 10.0])],
        );
        let mut metric = pair.metrics[0].clone();
        assert_eq!(ratios(&metric, &pair.rows[0], &pair.rows[1], 0), [2.0, 3.0]);
        metric.better = Better::Lower;
        assert_eq!(ratios(&metric, &pair.rows[0], &pair.rows[1], 0), [0.5, 1.0 / 3.0]);
    }

    #[test]
    fn a_part_of_the_bare_route_is_compared_with_others_and_not_with_the_bare_route_again() {
        let mut table =
            table(Better::Lower, &[("snisplice-packet", &[0.5]), (BARE, &[2.0]), ("haproxy", &[1.5])]);
        table.metrics[0].of_bare = true;
        let text = table.markdown();
        assert!(text.contains("| bare | 2 | 2.00 |"), "{text}");
        assert!(text.contains("| haproxy | 1.50 | 3.00 |"), "{text}");
    }

    #[test]
    fn the_table_compares_with_the_best_tier_that_did_not_fail_and_names_the_failure() {
        let mut table = table(
            Better::Higher,
            &[("snisplice-packet", &[f64::NAN]), ("snisplice-copy", &[12_345.0]), ("haproxy", &[10_000.0])],
        );
        table.rows[0].failures.push("no tier".to_owned());
        let text = table.markdown();
        assert!(text.contains("| snisplice-packet | failed | – |"), "{text}");
        assert!(text.contains("| snisplice-copy | 12 345 |  |"), "{text}");
        assert!(text.contains("| haproxy | 10 000 | 1.23 |"), "{text}");
        assert!(text.contains("snisplice-packet failed (1 of 1): no tier"), "{text}");
    }

    #[test]
    fn what_is_behind_is_said_with_its_own_bound_for_the_bare_route() {
        let ours: (&str, &[f64]) = ("snisplice-packet", &[96.0]);
        let behind = |theirs: (&str, &[f64])| report(table(Better::Higher, &[ours, theirs])).behind();
        assert_eq!(behind((BARE, &[100.0])), "");
        assert!(behind((BARE, &[110.0])).contains("snisplice-packet ÷ bare | 0.87 |"));
        assert!(behind(("nginx", &[100.0])).contains("snisplice-packet ÷ nginx | 0.96 |"));
        assert_eq!(behind(("snisplice-copy", &[100.0])), "");
    }

    #[test]
    fn a_result_is_read_as_it_was_written_and_compared_by_case_and_subject() {
        let before = report(table(Better::Lower, &[("haproxy", &[20.0]), ("gone", &[1.0])]));
        let text = serde_json::to_string(&before).unwrap();
        let before: Report = serde_json::from_str(&text).unwrap();
        let after = report(table(Better::Lower, &[("haproxy", &[10.0]), ("new", &[1.0])]));
        let text = compare(&before, &after);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("| example one | haproxy | speed, 1/s | 20 | 10 | 2.00 |"), "{text}");
    }

    #[test]
    fn figures_keep_three_digits() {
        let shown =
            [0.0, 8.0, 0.012_34, 1.234, 12.34, 123.4, 1234.0, 9_999.7, 12_345.6, 1_234_567.0].map(quantity);
        assert_eq!(
            shown,
            ["0", "8", "0.012", "1.23", "12.3", "123", "1234", "10 000", "12 346", "1 234 567"]
        );
    }

    #[test]
    fn a_reason_fits_into_a_table() {
        assert_eq!(one_line("a\n  b | c"), "a b / c");
        assert_eq!(one_line(&"x".repeat(500)).chars().count(), 401);
    }
}
