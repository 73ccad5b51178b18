//! Small results, for the tests of what is made of them.

use super::data::{Better, Metric, Report, Row, Table};
use crate::machine::Machine;

/// One case with one figure: the values of each subject, by round; a failure is not a number.
pub(super) fn table(better: Better, rows: &[(&str, &[f64])]) -> Table {
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

/// A run of one case.
pub(super) fn report(table: Table) -> Report {
    Report {
        machine: Machine::example(),
        depth: "default".to_owned(),
        congestion_control: "reno".to_owned(),
        tables: vec![table],
    }
}
