//! A scenario as bar charts, in SVG: one panel per case and figure, one bar per subject, with a line from the lowest to the
//! highest round. Written by hand because a bar chart is a few rectangles.

use std::fmt::Write as _;

use super::data::{BARE, Better, OURS, Report, Row, Table};
use super::numbers::quantity;

const PANEL_WIDTH: f64 = 470.0;
const MARGIN: f64 = 24.0;
/// Of a panel: title and subtitle above the bars.
const HEAD: f64 = 50.0;
/// Of a bar with the space around it.
const BAR: f64 = 24.0;
const NAMES: f64 = 128.0;
/// To the right of the longest bar, for its figure.
const FIGURES: f64 = 74.0;
const TITLE: f64 = 56.0;
/// What a letter of a case's title takes, about.
const TITLE_LETTER: f64 = 8.5;

pub(super) const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2937}\
.head{font-size:19px;font-weight:600}.title{font-size:13px;font-weight:600}\
.sub{font-size:11px;fill:#6b7280}.name{font-size:12px}.own{font-weight:600}.figure{font-size:12px;font-weight:500}\
.failed{font-size:11px;fill:#b91c1c}";

/// The name of the chart of one scenario, of a run of this name.
pub(super) fn file(name: &str, scenario: &str) -> String {
    format!("{name}-{scenario}.svg")
}

/// The chart of one scenario.
pub(super) fn scenario(report: &Report, scenario: &str) -> String {
    let tables = || report.tables.iter().filter(|table| table.scenario == scenario);
    let columns = tables().map(|table| compared(table).count()).max().unwrap_or(0).max(1);
    let width = MARGIN + columns as f64 * (PANEL_WIDTH + MARGIN);

    let mut body = String::new();
    let mut top = TITLE;
    for table in tables() {
        let title = shorten(&table.title, (width / TITLE_LETTER) as usize);
        let _ = writeln!(
            body,
            "<g transform=\"translate({MARGIN:.0} {top:.0})\">\n<text class=\"title\" y=\"14\">{}</text>",
            escape(&title)
        );
        for (column, metric) in compared(table).enumerate() {
            let left = column as f64 * (PANEL_WIDTH + MARGIN);
            let panel = panel(table, metric);
            let _ = writeln!(body, "<g transform=\"translate({left:.0} 0)\">\n{panel}</g>");
        }
        body += "</g>\n";
        top += HEAD + table.rows.len() as f64 * BAR + MARGIN;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {total:.0}\" width=\"{width:.0}\" \
         height=\"{total:.0}\">\n<style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text class=\"head\" x=\"{MARGIN}\" y=\"34\">{}</text>\n{body}\
         <text class=\"sub\" x=\"{MARGIN}\" y=\"{:.0}\">{}</text>\n</svg>\n",
        escape(scenario),
        top + 2.0,
        escape(&report.machine.one_line()),
        total = top + 18.0,
    )
}

/// The metrics that have a panel.
fn compared(table: &Table) -> impl Iterator<Item = usize> {
    table.metrics.iter().enumerate().filter(|(_, metric)| metric.compared).map(|(index, _)| index)
}

/// One case and metric; its own corner is at 0, 0, the case's title above it.
fn panel(table: &Table, index: usize) -> String {
    let metric = &table.metrics[index];
    let highest = table.rows.iter().filter_map(|row| row.summary(index)).map(|[.., highest]| highest);
    let full = highest.fold(f64::MIN_POSITIVE, f64::max);
    let scale = (PANEL_WIDTH - NAMES - FIGURES) / full;
    let direction = match metric.better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    let mut out = format!("<text class=\"sub\" y=\"32\">{} ({direction})</text>\n", escape(&metric.label()));
    for (number, row) in table.rows.iter().enumerate() {
        let top = HEAD - 6.0 + number as f64 * BAR;
        let _ = writeln!(out, "<g transform=\"translate(0 {top:.0})\">{}</g>", bar(row, index, scale));
    }
    out
}

fn bar(row: &Row, metric: usize, scale: f64) -> String {
    let own = OURS.contains(&row.subject.as_str());
    let class = if own { "name own" } else { "name" };
    let name = format!(
        "<text class=\"{class}\" x=\"{:.0}\" y=\"15\" text-anchor=\"end\">{}</text>",
        NAMES - 8.0,
        escape(&row.subject)
    );
    let Some([median, lowest, highest]) = row.summary(metric) else {
        let reason = row.failures.first().map_or("", String::as_str);
        return format!(
            "{name}<text class=\"failed\" x=\"{NAMES:.0}\" y=\"15\">failed: {}</text>",
            escape(&shorten(reason, 52))
        );
    };
    // Memory may also become less.
    let length = (median * scale).max(1.0);
    let lowest = lowest.max(0.0);
    let mut out = name;
    let _ = write!(
        out,
        "<rect x=\"{NAMES:.0}\" y=\"3\" width=\"{length:.1}\" height=\"16\" rx=\"2\" fill=\"{}\"/>",
        colour(&row.subject)
    );
    let (from, to) = (NAMES + lowest * scale, NAMES + highest * scale);
    if to - from > 1.0 {
        let _ = write!(
            out,
            "<path d=\"M{from:.1} 11H{to:.1}M{from:.1} 7.5v7M{to:.1} 7.5v7\" stroke=\"#111827\" \
             stroke-opacity=\".55\" stroke-width=\"1.2\" fill=\"none\"/>"
        );
    }
    let _ = write!(
        out,
        "<text class=\"figure\" x=\"{:.1}\" y=\"15\">{}</text>",
        NAMES + length.max(highest * scale) + 6.0,
        quantity(median)
    );
    out
}

/// Ours stand out, the limit and the peers do not.
fn colour(subject: &str) -> &'static str {
    match OURS.iter().position(|own| *own == subject) {
        Some(0) => "#0f766e",
        Some(1) => "#5eaaa2",
        Some(_) => "#99d5cd",
        None if subject == BARE => "#d1d5db",
        None => "#94a3b8",
    }
}

fn shorten(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::example::{report, table};
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share_of_the_longest_and_a_failure_is_said() {
        let mut table = table(
            Better::Higher,
            &[("snisplice-copy", &[50.0]), ("haproxy", &[100.0]), ("nginx", &[f64::NAN])],
        );
        table.rows[2].failures.push("1 < 2".to_owned());
        let report = report(table);
        let svg = scenario(&report, "example");
        assert!(svg.contains("width=\"134.0\"") && svg.contains("width=\"268.0\""), "{svg}");
        assert!(svg.contains("failed: 1 &lt; 2"), "{svg}");
        assert!(!scenario(&report, "another").contains("haproxy"));
    }
}
