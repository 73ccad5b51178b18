//! A run as Markdown: a table for each case, with paired ratios.

use std::fmt::Write as _;

use super::chart;
use super::data::{BARE, Better, Metric, OURS, Report, Row, Sample, Table};
use super::numbers::{highest, lowest, median, quantity, ratio, spread};

impl Report {
    /// Everything; `name` is that of the charts beside it.
    pub(super) fn markdown(&self, name: &str) -> String {
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
            let _ = write!(out, "\n## {scenario}\n\n![{scenario}]({})\n", chart::file(name, scenario));
            for table in self.tables.iter().filter(|table| table.scenario == scenario) {
                out.push('\n');
                out += &table.markdown();
            }
        }
        out
    }

    /// Every ratio that is not good enough: below 1 against a peer, below 0.95 against the bare route. Those whose rounds differ by
    /// more than what is missing are no loss that was seen, and stand apart.
    fn behind(&self) -> String {
        let (mut behind, mut unclear) = (String::new(), String::new());
        for table in &self.tables {
            let Some(ours) = table.ours() else { continue };
            for row in table.rows.iter().filter(|row| !OURS.contains(&row.subject.as_str())) {
                let enough = if row.subject == BARE { 0.95 } else { 1.0 };
                for (index, metric) in table.metrics.iter().enumerate().filter(|(_, metric)| metric.compared)
                {
                    let found = ratios(metric, ours, row, index);
                    let missing = enough - median(found.clone());
                    if missing > 0.0 {
                        let is_unclear = highest(&found) - lowest(&found) > missing;
                        let _ = writeln!(
                            if is_unclear { &mut unclear } else { &mut behind },
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
        let section = |title: &str, what: &str, rows: &str| match rows {
            "" => String::new(),
            rows => {
                format!(
                    "\n## {title}\n\n{what}\n\n| case | figure | against | ratio |\n|---|---|---|---:|\n{rows}"
                )
            }
        };
        let bounds = "Below 1.00 against a peer, below 0.95 against bare routing.";
        let rounds =
            "Below these bounds, too, but by less than the rounds differ: more of them would have to tell.";
        section("Where it is behind", bounds, &behind)
            + &section("Not to be told from noise", rounds, &unclear)
    }
}

impl Table {
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
pub(super) fn ratios(metric: &Metric, ours: &Row, theirs: &Row, index: usize) -> Vec<f64> {
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

#[cfg(test)]
mod tests {
    use super::super::example::{report, table};
    use super::*;

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
        let rounds = |ours: &[f64]| {
            let rows = [("snisplice-packet", ours), ("nginx", &[100.0; 3])];
            report(table(Better::Higher, &rows)).behind()
        };
        let (clear, unclear) = (rounds(&[80.0, 81.0, 82.0]), rounds(&[96.0, 97.0, 104.0]));
        assert!(clear.contains("behind") && !clear.contains("noise"), "{clear}");
        assert!(!unclear.contains("is behind") && unclear.contains("0.97 (0.96 to 1.04)"), "{unclear}");
    }
}
