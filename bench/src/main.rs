//! snisplice beside its peers, over real tools, in namespaces of its own.

mod machine;
mod path;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use crate::machine::Machine;
use crate::path::scenarios::{self, Scenario, Size};
use crate::path::subjects::Kind;
use crate::path::topology::Site;
use crate::report::{Report, ScenarioReport, SubjectReport};

/// Measures snisplice and its peers in the same rounds and writes a Markdown table and JSON.
///
/// Needs root (for network namespaces) and the peers: haproxy, nginx with its stream module, envoy,
/// redis-server and redis-benchmark with TLS, iperf3. How it measures: bench/METHOD.md.
#[derive(Parser)]
struct Arguments {
    /// Only the scenarios whose name starts with this (may be given several times)
    #[arg(long, value_name = "SCENARIO")]
    only: Vec<String>,
    /// Only these subjects
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    peers: Vec<Kind>,
    /// Rounds of each scenario [default: 5, quick: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Show in under three minutes that everything works
    #[arg(long)]
    quick: bool,
    /// The gateway to measure [default: $SNISPLICE_BIN, or the one built beside this program]
    #[arg(long, value_name = "PATH")]
    snisplice: Option<PathBuf>,
    /// TCP congestion control of every namespace: one of net.ipv4.tcp_allowed_congestion_control
    #[arg(long, value_name = "NAME", default_value = "reno")]
    congestion_control: String,
    /// Where the results go
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results"), hide_default_value = true)]
    out: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run with sudo");
    let wanted: Vec<&Scenario> = scenarios::ALL.iter().filter(|s| arguments.wants(s)).collect();
    if wanted.is_empty() {
        let names: Vec<_> = scenarios::ALL.iter().map(|s| s.name).collect();
        bail!("no scenario starts with {:?}; there are {}", arguments.only, names.join(", "));
    }
    let snisplice = arguments.gateway()?;
    let machine = Machine::describe(&arguments.programs(snisplice.as_deref()))?;
    if let Some(warning) = machine.warning() {
        eprintln!("warning: {warning}");
    }

    let site = Site::build(&arguments.congestion_control)?;
    let mut report = Report {
        machine,
        quick: arguments.quick,
        congestion_control: arguments.congestion_control.clone(),
        scenarios: Vec::new(),
    };
    for scenario in wanted {
        let found = arguments.measure(scenario, &site, snisplice.as_deref())?;
        println!("{}", found.markdown());
        report.scenarios.push(found);
        // After each, so that a failure later loses nothing.
        report.write(&arguments.out)?;
    }
    eprintln!("results are in {}", arguments.out.display());
    Ok(())
}

impl Arguments {
    fn wants(&self, scenario: &Scenario) -> bool {
        self.only.is_empty() || self.only.iter().any(|start| scenario.name.starts_with(start.as_str()))
    }

    fn wants_subject(&self, kind: Kind) -> bool {
        self.peers.is_empty() || self.peers.contains(&kind)
    }

    /// The gateway's program, unless it is left out of this run.
    fn gateway(&self) -> Result<Option<PathBuf>> {
        if !self.wants_subject(Kind::Snisplice) {
            return Ok(None);
        }
        let path = match (&self.snisplice, std::env::var_os("SNISPLICE_BIN")) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path.into(),
            (None, None) => std::env::current_exe()?.with_file_name("snisplice"),
        };
        let path = path.canonicalize().with_context(|| {
            format!("{} is missing: `cargo build --release`, or name it with --snisplice", path.display())
        })?;
        Ok(Some(path))
    }

    /// The programs of this run, for their versions.
    fn programs(&self, snisplice: Option<&Path>) -> Vec<(&'static str, PathBuf)> {
        let kinds = Kind::value_variants().iter().filter(|kind| self.wants_subject(**kind));
        let mut programs: Vec<_> =
            kinds.filter_map(|kind| kind.program()).chain(["redis-server", "iperf3"]).collect();
        programs.dedup();
        let path = |program| match snisplice {
            Some(path) if program == report::OURS => path.to_owned(),
            _ => PathBuf::from(program),
        };
        programs.into_iter().map(|program| (program, path(program))).collect()
    }

    /// All rounds of one scenario, the subjects interleaved.
    fn measure(&self, scenario: &Scenario, site: &Site, snisplice: Option<&Path>) -> Result<ScenarioReport> {
        let size = if self.quick { Size::QUICK } else { Size::FULL };
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 5 });
        let kinds: Vec<Kind> = scenario.subjects.iter().copied().filter(|k| self.wants_subject(*k)).collect();
        let mut subjects: Vec<SubjectReport> = kinds
            .iter()
            .map(|kind| SubjectReport { name: kind.name(), samples: Vec::new(), complaints: Vec::new() })
            .collect();
        for round in 1..=rounds {
            for (kind, found) in kinds.iter().zip(&mut subjects) {
                eprint!("{} {round}/{rounds} {}: ", scenario.name, found.name);
                let subject = kind.start(site, snisplice)?;
                let sample = scenario
                    .measure(site, &subject, size)
                    .with_context(|| format!("{}, round {round}, {}", scenario.name, found.name))?;
                for complaint in subject.stop()? {
                    if !found.complaints.contains(&complaint) {
                        found.complaints.push(complaint);
                    }
                }
                eprintln!("{}", report::sample_line(&scenario.metrics(), &sample));
                found.samples.push(sample);
            }
        }
        Ok(ScenarioReport {
            name: scenario.name,
            title: scenario.title(size),
            metrics: scenario.metrics(),
            goal: scenario.goal,
            subjects,
        })
    }
}
