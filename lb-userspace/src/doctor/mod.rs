//! `snisplice doctor`: what this kernel and this user can do, and how to get the rest.
//!
//! `facts` asks the system, and `answers` servers; all else is a pure function of the `Facts`.

mod answers;
mod dropped;
mod facts;
mod gateways;
mod lines;

use dropped::dropped_packets;
use facts::Facts;
use lines::{Line, LineState, lines};

use crate::config::{Config, Gateway};
use crate::kernel::needs::{self, Lack};
use crate::reason::Tier;
use crate::terminal::in_colour;
use std::fmt;

/// Examines this machine for a gateway with these settings; and with this configuration, if there is one that is whole.
pub fn run(gateway: &Gateway, config: Option<&Config>) -> Report {
    let mut report = Report::new(&Facts::gather(gateway));
    if let Some(config) = config {
        report.lines.extend(answers::ask(&config.pools).iter().map(answers::line));
        report.lines.extend(gateways::lines(config, &gateway.fixed.state_dir));
    }
    report
}

/// The findings, line by line. `{}` is plain text, `{:#}` coloured.
#[derive(Debug)]
pub struct Report {
    lines: Vec<Line>,
    /// The tiers in order of preference, each with what it lacks.
    tiers: Vec<(Tier, Option<Lack>)>,
    /// Those that the configuration names.
    wanted: Vec<Tier>,
}

impl Report {
    /// Judges the facts.
    fn new(facts: &Facts) -> Self {
        let lack = |tier| Lack::first(needs::of(tier).requires, |need| facts.answer(need).clone());
        let mut lines = lines(facts);
        lines.extend(dropped_packets(&facts.counted));
        let tiers = Tier::ALL.iter().map(|tier| (*tier, lack(*tier))).collect();
        Self { lines, tiers, wanted: facts.tiers.clone() }
    }

    /// Prints to standard output, in colour if that is a terminal.
    pub fn print(&self) {
        if in_colour(&std::io::stdout()) {
            print!("{self:#}");
        } else {
            print!("{self}");
        }
    }

    /// Whether a gateway can run here at all: the copy tier works.
    pub fn can_serve(&self) -> bool {
        self.tiers.iter().any(|(tier, lack)| *tier == Tier::Copy && lack.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
        for line in &self.lines {
            let state = mark(f.alternate(), line.state);
            writeln!(f, "{state}  {:width$}  {}", line.what, line.found)?;
            if let Some(remedy) = &line.remedy {
                writeln!(f, "{:7}  {:width$}  -> {remedy}", "", "")?;
            }
        }
        writeln!(f, "\ntiers")?;
        for (tier, lack) in &self.tiers {
            let is_wanted = self.wanted.contains(tier);
            let not_wanted = if is_wanted { "" } else { "; not in `tiers`" };
            let (state, found) = match lack {
                None => (LineState::Ok, format!("works{not_wanted}")),
                Some(lack) if is_wanted => (LineState::Missing, format!("requires {lack}")),
                Some(lack) => (LineState::Note, format!("requires {lack}{not_wanted}")),
            };
            writeln!(f, "{}  {:width$}  {found}", mark(f.alternate(), state), tier.name())?;
        }
        Ok(())
    }
}

/// The state as a word, padded to seven columns, in colour or not.
fn mark(colour: bool, state: LineState) -> String {
    let (word, code) = match state {
        LineState::Ok => ("ok", 32),
        LineState::Note => ("note", 33),
        LineState::Missing => ("missing", 31),
    };
    if colour { format!("\x1b[{code}m{word:7}\x1b[0m") } else { format!("{word:7}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::needs::Need;
    use crate::kernel::probe::Answer;

    fn lack(facts: &Facts, tier: Tier) -> Option<Need> {
        Report::new(facts).tiers.iter().find(|(of, _)| *of == tier).unwrap().1.as_ref().map(Lack::need)
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_remedy() {
        let report = Report::new(&Facts::healthy());
        assert!(
            report.lines.iter().all(|line| line.state == LineState::Ok && line.remedy.is_none()),
            "{report}"
        );
        assert!(report.can_serve());
        assert!(report.tiers.iter().all(|(_, lack)| lack.is_none()), "{report}");
    }

    #[test]
    fn without_tcp_there_is_no_gateway() {
        assert!(!Report::new(&Facts::healthy().with(Need::Tcp, Answer::No)).can_serve());
    }

    #[test]
    fn a_tier_lacks_what_it_requires_and_does_without_what_it_prefers() {
        for need in Need::ALL {
            for tier in Tier::ALL {
                let requires = needs::of(*tier).requires.contains(&need);
                for answer in [Answer::No, Answer::NotPermitted, Answer::Unknown("why".into())] {
                    let facts = Facts::healthy().with(need, answer);
                    assert_eq!(lack(&facts, *tier), requires.then_some(need), "{tier}");
                }
            }
        }
    }

    /// Filters of clsact stand in for tcx, and a pause for a grace period.
    #[test]
    fn the_packet_tier_does_without_tcx_and_membarrier() {
        let facts = Facts::healthy().with(Need::Tcx, Answer::No).with(Need::Membarrier, Answer::No);
        assert_eq!(lack(&facts, Tier::Packet), None);
        let report = Report::new(&facts).to_string();
        let notes: Vec<_> = report.lines().filter(|line| line.starts_with("note")).collect();
        assert!(notes.len() == 2 && notes[0].contains("clsact") && notes[1].contains("100 ms"), "{report}");
        assert!(!report.contains("missing"), "{report}");
    }

    #[test]
    fn the_tiers_line_names_what_is_missing_and_the_remedy() {
        let facts = Facts::healthy().with(Need::SkSkb, Answer::NotPermitted);
        let line = "requires sk_skb (not permitted): run as root, or with CAP_BPF, CAP_NET_ADMIN";
        let report = Report::new(&facts).to_string();
        assert!(report.contains(&format!("{line}; not in `tiers`\n")), "{report}");
        let wanted = Facts { tiers: vec![Tier::Sockmap, Tier::Copy], ..facts };
        let report = Report::new(&wanted).to_string();
        assert!(report.contains(&format!("{line}\n")), "{report}");
    }

    #[test]
    fn what_only_a_tier_without_a_place_in_the_configuration_lacks_is_no_more_than_a_note() {
        let facts = Facts::healthy().with(Need::Ktls, Answer::No);
        let report = Report::new(&facts).to_string();
        assert!(!report.contains("missing"), "{report}");
        assert!(report.contains("note     kTLS") && report.contains("note     ktls"), "{report}");
        let report = Report::new(&Facts { tiers: vec![Tier::Ktls, Tier::Copy], ..facts }).to_string();
        assert!(report.contains("missing  kTLS") && report.contains("missing  ktls"), "{report}");
    }

    #[test]
    fn columns_line_up_and_colour_is_only_in_the_coloured_form() {
        let report = Report::new(&Facts::healthy());
        let plain = report.to_string();
        assert!(!plain.contains('\x1b'));
        assert!(format!("{report:#}").contains('\x1b'));
        assert!(plain.contains("\nok       BTF                   /sys/kernel/btf/vmlinux"), "{plain}");
    }
}
