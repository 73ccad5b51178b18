//! One picture that fits a screen: how many times as much as each peer we do, in the cases that are measured in turns with the bare
//! route.

use std::fmt::Write as _;

use super::chart::{STYLE, escape};
use super::data::{Report, Table};
use super::markdown::ratios;
use super::numbers::{median, ratio};

/// The scenario of these cases.
const SCENARIO: &str = "paired";
/// The peers, as people call them, and their colours.
const PEERS: [(&str, &str, &str); 3] =
    [("haproxy", "HAProxy", "#0f766e"), ("nginx", "nginx", "#5eaaa2"), ("envoy", "Envoy", "#94a3b8")];
/// What is the same in the titles of all cases.
const COMMON: &str = ", in turns with the bare route";

/// What is compared.
const WHAT: &str =
    "Bytes, requests or connections a second; at a fixed rate, the time of the median request. Medians.";

const MARGIN: f64 = 24.0;
const HEAD: f64 = 108.0;
const NAMES: f64 = 380.0;
const BARS: f64 = 460.0;
/// To the right of the longest bar, for its figure.
const FIGURES: f64 = 60.0;
const BAR: f64 = 11.0;
/// Between two cases.
const GAP: f64 = 9.0;

/// The picture's name, of a run of this name.
pub(super) fn file(name: &str) -> String {
    format!("{name}-peers.svg")
}

/// The picture; `None`: the run has no such case with a peer.
pub(super) fn picture(report: &Report) -> Option<String> {
    let cases: Vec<(&Table, Vec<(usize, f64)>)> = report
        .tables
        .iter()
        .filter(|table| table.scenario == SCENARIO)
        .map(|table| (table, beside_peers(table)))
        .filter(|(_, ratios)| !ratios.is_empty())
        .collect();
    let longest = cases.iter().flat_map(|(_, ratios)| ratios).map(|(_, ratio)| *ratio).reduce(f64::max)?;
    let scale = BARS / longest.max(1.0);
    let mut body = String::new();
    let mut top = HEAD;
    for (table, ratios) in &cases {
        let height = ratios.len() as f64 * BAR;
        let title = table.title.strip_suffix(COMMON).unwrap_or(&table.title);
        let _ = writeln!(
            body,
            "<text class=\"name\" x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES - 8.0,
            top + height / 2.0 + 4.0,
            escape(title)
        );
        for (number, (peer, found)) in ratios.iter().enumerate() {
            let (y, length) = (top + number as f64 * BAR, found * scale);
            let _ = writeln!(
                body,
                "<rect x=\"{NAMES:.0}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <text class=\"sub\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                BAR - 1.0,
                PEERS[*peer].2,
                NAMES + length + 5.0,
                y + 9.0,
                ratio(*found)
            );
        }
        top += height + GAP;
    }
    let same = NAMES + scale;
    let mut legend = String::new();
    for (number, (program, name, colour)) in PEERS.iter().enumerate() {
        let x = NAMES + number as f64 * 170.0;
        // Without the distribution's own part.
        let version = report.machine.version(program).and_then(|version| version.split('-').next());
        let _ = write!(
            legend,
            "<rect x=\"{x:.0}\" y=\"66\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text class=\"name\" x=\"{:.0}\" y=\"75\">{name} {}</text>",
            x + 16.0,
            escape(version.unwrap_or_default())
        );
    }
    let (width, height) = (NAMES + BARS + FIGURES, top + 26.0);
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\">\n<style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text class=\"head\" x=\"{MARGIN}\" y=\"34\">snisplice: how many times as much as each of these</text>\n\
         <text class=\"sub\" x=\"{MARGIN}\" y=\"52\">{WHAT}</text>\n{legend}\n{body}\
         <path d=\"M{same:.1} {:.0}V{:.0}\" stroke=\"#b91c1c\" stroke-width=\"1.2\"/>\
         <text class=\"sub\" x=\"{same:.1}\" y=\"{:.0}\" text-anchor=\"middle\">1: the same</text>\n\
         <text class=\"sub\" x=\"{MARGIN}\" y=\"{:.0}\">{}</text>\n</svg>\n",
        HEAD - 6.0,
        top - GAP + 4.0,
        HEAD - 10.0,
        height - 8.0,
        escape(&report.machine.one_line()),
    ))
}

/// The median of our ratios to each peer that has figures, in the case's first compared figure: above 1 we are ahead.
fn beside_peers(table: &Table) -> Vec<(usize, f64)> {
    let Some(ours) = table.ours() else { return Vec::new() };
    let Some(index) = table.metrics.iter().position(|metric| metric.compared) else { return Vec::new() };
    let of_peer = |(number, (program, ..)): (usize, &(&str, &str, &str))| {
        let found = ratios(&table.metrics[index], ours, table.row(program)?, index);
        (!found.is_empty()).then(|| (number, median(found)))
    };
    PEERS.iter().enumerate().filter_map(of_peer).collect()
}

#[cfg(test)]
mod tests {
    use super::super::data::Better;
    use super::super::example::{report, table};
    use super::*;

    #[test]
    fn a_case_has_a_bar_for_each_peer_with_figures_and_less_is_better_where_it_is() {
        let subjects: [(&str, &[f64]); 4] = [
            ("snisplice-packet", &[50.0]),
            ("haproxy", &[100.0]),
            ("nginx", &[f64::NAN]),
            ("envoy", &[40.0]),
        ];
        let of = |better, scenario: &str| {
            let mut table = table(better, &subjects);
            table.scenario = scenario.to_owned();
            picture(&report(table))
        };
        let svg = of(Better::Lower, "paired").unwrap();
        // Half as long as HAProxy's time is twice as good, and 0.8 of Envoy's.
        assert!(svg.contains(">2.00<") && svg.contains(">0.80<") && svg.contains("width=\"460.0\""), "{svg}");
        assert_eq!(svg.matches("height=\"10.0\"").count(), 2, "{svg}");
        assert!(of(Better::Higher, "paired").unwrap().contains(">0.50<"));
        assert_eq!(of(Better::Higher, "bulk"), None);
    }
}
