//! The packets that the programs have dropped, and what the manual says about the reasons.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::lines::{Line, LineState};
use crate::kernel::packet::Counts;
use lb_common::packet::Count;
use std::time::SystemTime;

/// Where each reason for a drop is explained.
const MANUAL: &str = include_str!("../../../docs/operating.md");

/// A line for each reason that has occurred.
pub(super) fn dropped_packets(counted: &Result<Option<(SystemTime, Counts)>, String>) -> Vec<Line> {
    let line = |state, found: String| Line::new("dropped packets", state, found);
    let (since, counts) = match counted {
        Ok(Some((since, counts))) => (humantime::format_rfc3339_seconds(*since), counts),
        Ok(None) => return vec![],
        Err(error) => {
            let unread = line(LineState::Note, format!("cannot be read: {error}"));
            return vec![unread.remedy("run as root, or as the user the gateway runs as")];
        }
    };
    let dropped = counts.iter().filter(|(reason, n)| reason.is_drop() && *n > 0);
    let explained = |(reason, n): &(Count, u64)| {
        let explanation = explanation(reason.name());
        let [what, harmless, remedy] = explanation.expect("the manual has a row for each reason");
        let state = if remedy == NOTHING { LineState::Ok } else { LineState::Note };
        let found = format!("{}, {n} since {since}: {what}", reason.name());
        line(state, found).remedy(format!("harmless: {harmless}; {remedy}"))
    };
    dropped.map(explained).collect()
}

/// The manual's remedy if nothing is to be done.
const NOTHING: &str = "nothing";

/// The reason's row in the manual: what was dropped, when that is harmless, and what to do.
fn explanation(reason: &str) -> Option<[&'static str; 3]> {
    let (_, section) = MANUAL.split_once("\n### Dropped packets\n")?;
    let section = section.split("\n#").next()?;
    section.lines().find_map(|line| {
        let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ");
        let is_it = cells.next()?.strip_suffix('`')? == reason;
        if is_it { Some([cells.next()?, cells.next()?, cells.next()?]) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splice::packet::Loss;
    use std::collections::BTreeSet;

    /// This many packets for each reason.
    fn counted(n: u64) -> Result<Option<(SystemTime, Counts)>, String> {
        Ok(Some((SystemTime::UNIX_EPOCH, Count::ALL.map(|what| (what, n)))))
    }

    #[test]
    fn every_reason_for_a_drop_is_explained_where_it_occurs() {
        let lines = dropped_packets(&counted(3));
        let reasons: Vec<_> = Count::ALL.into_iter().filter(|what| what.is_drop()).collect();
        for reason in &reasons {
            let begin = format!("{}, 3 since 1970-01-01T00:00:00Z: ", reason.name());
            let line = lines.iter().find(|line| line.found.starts_with(&begin));
            let line = line.unwrap_or_else(|| panic!("{} has no row in docs/operating.md", reason.name()));
            assert_eq!(line.remedy.is_some(), line.state == LineState::Note, "{}", line.found);
        }
        assert_eq!(lines.len(), reasons.len());
        assert!(dropped_packets(&counted(0)).is_empty());
        assert!(dropped_packets(&Ok(None)).is_empty());
    }

    #[test]
    fn the_manual_has_a_row_for_all_that_is_counted_and_no_other() {
        let (_, section) = MANUAL.split_once("\n### Dropped packets\n").unwrap();
        let rows = section.split("\n#").next().unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
        let named: BTreeSet<_> = rows.map(|row| row.split('`').next().unwrap()).collect();
        let counted = Count::ALL.iter().map(|what| what.name());
        assert_eq!(named, counted.chain(Loss::ALL.iter().map(|loss| loss.name())).collect());
    }
}
