//! Two runs beside each other.

use std::fmt::Write as _;

use super::data::{Better, Report};
use super::numbers::{quantity, ratio};

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

#[cfg(test)]
mod tests {
    use super::super::example::{report, table};
    use super::*;

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
}
