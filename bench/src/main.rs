//! snisplice beside its peers, over real tools, in namespaces of its own.

mod machine;
mod path;
mod report;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use crate::machine::Machine;
use crate::path::case::{Case, Depth, Measurement};
use crate::path::scenarios::{self, Scenario};
use crate::path::subjects::{self, Kind, Stand, Subject};
use crate::path::topology::Site;
use crate::report::{Report, Row, Sample, Table};

/// Measures snisplice and its peers in the same rounds and writes Markdown, JSON and charts.
///
/// Needs root (for network namespaces) and the peers, which `cargo xtask bench` installs. How it measures:
/// bench/METHOD.md.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Print how the medians of a later run compare with those of an earlier one.
    Compare {
        /// The JSON of the earlier run.
        before: PathBuf,
        /// The JSON of the later run.
        after: PathBuf,
    },
    /// Parts of a run.
    #[command(subcommand, hide = true)]
    Tool(tools::Tool),
}

#[derive(clap::Args)]
struct Run {
    /// Only this scenario, or its cases whose name starts so: `bulk`, `requests/tls`
    #[arg(value_name = "SCENARIO")]
    name: Option<String>,
    /// The same (may be given several times)
    #[arg(long, value_name = "SCENARIO")]
    only: Vec<String>,
    /// Only these subjects
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    peers: Vec<Kind>,
    /// Rounds of each scenario [default: 3, quick: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Show in under three minutes that everything works
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Every combination of redis-benchmark's options: hours
    #[arg(long)]
    full: bool,
    /// Name the scenarios and their cases, and measure nothing
    #[arg(long)]
    list: bool,
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

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Not the Debug form: with RUST_BACKTRACE set it buries the message under a backtrace.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Some(Command::Compare { before, after }) => {
            print!("{}", report::compare(&Report::read(before)?, &Report::read(after)?));
            Ok(())
        }
        Some(Command::Tool(tool)) => tool.run(),
        None => arguments.run.run(),
    }
}

/// What every measurement of a run needs.
struct Bench<'r> {
    run: &'r Run,
    stand: Stand,
    rounds: u32,
    /// Measurements, failed ones too; for the progress.
    done: u32,
    total: u32,
    start: Instant,
}

/// A subject that has been started.
struct Started<'s> {
    subject: Subject<'s>,
    took: Duration,
}

impl Run {
    fn run(&self) -> Result<()> {
        let depth = match (self.quick, self.full) {
            (true, _) => Depth::Quick,
            (_, true) => Depth::Full,
            _ => Depth::Default,
        };
        let all = scenarios::all(depth);
        let names = |scenarios: &[Scenario]| -> Vec<String> {
            scenarios
                .iter()
                .flat_map(|s| s.cases.iter().map(|case| format!("{}/{}", s.name, case.name)))
                .collect()
        };
        if self.list {
            println!("{}", names(&all).join("\n"));
            return Ok(());
        }
        let mut wanted = scenarios::all(depth);
        for scenario in &mut wanted {
            let name = scenario.name;
            scenario.cases.retain(|case| self.wants(name, case) && self.kinds().any(|kind| case.takes(kind)));
        }
        wanted.retain(|scenario| !scenario.cases.is_empty());
        if wanted.is_empty() {
            bail!("no scenario of that name; there are\n{}", names(&all).join("\n"));
        }
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run with sudo");

        let snisplice = self.gateway()?;
        let machine = Machine::describe(&self.programs(snisplice.as_ref()))?;
        if let Some(warning) = machine.warning() {
            eprintln!("warning: {warning}");
        }
        subjects::remove_leftovers()?;
        let own = std::env::current_exe()?;
        let stand = Stand { site: Site::build(&self.congestion_control, &own)?, snisplice, own };
        let rounds = self.rounds.unwrap_or(depth.rounds());
        let count = |case: &Case| self.kinds().filter(|kind| case.takes(*kind)).count() as u32;
        let total = wanted.iter().flat_map(|scenario| &scenario.cases).map(count).sum::<u32>() * rounds;
        let mut bench = Bench { run: self, stand, rounds, done: 0, total, start: Instant::now() };
        let mut report = Report {
            machine,
            depth: depth.name().to_owned(),
            congestion_control: self.congestion_control.clone(),
            tables: Vec::new(),
        };
        let name = if depth == Depth::Default { "results" } else { depth.name() };
        for scenario in &wanted {
            let tables = bench.measure(scenario)?;
            tables.iter().for_each(|table| println!("{}", table.markdown()));
            report.tables.extend(tables);
            // After each, so that an interruption loses little.
            report.write(&self.out, name)?;
        }
        let minutes = bench.start.elapsed().as_secs_f64() / 60.0;
        eprintln!("{total} measurements in {minutes:.1} minutes; results are in {}", self.out.display());
        Ok(())
    }

    fn wants(&self, scenario: &str, case: &Case) -> bool {
        let name = format!("{scenario}/{}", case.name);
        let mut wanted = self.name.iter().chain(&self.only).peekable();
        wanted.peek().is_none() || wanted.any(|start| name.starts_with(start.as_str()))
    }

    /// The subjects of this run, in the order of the tables.
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let chosen = |kind: &&Kind| self.peers.is_empty() || self.peers.contains(kind);
        Kind::value_variants().iter().filter(chosen).copied()
    }

    /// The gateway's program, unless it is left out of this run.
    fn gateway(&self) -> Result<Option<PathBuf>> {
        if !self.kinds().any(Kind::is_ours) {
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
    fn programs(&self, snisplice: Option<&PathBuf>) -> Vec<(&'static str, PathBuf)> {
        let mut programs: Vec<_> =
            self.kinds().filter_map(Kind::program).chain(["redis-server", "iperf3"]).collect();
        programs.dedup();
        let path = |program| match snisplice {
            Some(path) if program == "snisplice" => path.clone(),
            _ => PathBuf::from(program),
        };
        programs.into_iter().map(|program| (program, path(program))).collect()
    }
}

impl Bench<'_> {
    /// All rounds of one scenario, the subjects interleaved: a table for each case.
    fn measure(&mut self, scenario: &Scenario) -> Result<Vec<Table>> {
        let takes_part = |case: &Case| {
            self.run.kinds().filter(|kind| case.takes(*kind)).map(|kind| Row::new(kind.name())).collect()
        };
        let mut tables: Vec<Table> = scenario
            .cases
            .iter()
            .map(|case| Table {
                scenario: scenario.name.to_owned(),
                case: case.name.clone(),
                title: case.title.clone(),
                metrics: case.load.metrics(),
                rows: takes_part(case),
            })
            .collect();
        for round in 1..=self.rounds {
            for kind in self.run.kinds() {
                let stand = &self.stand;
                let mut running: Option<Started<'_>> = None;
                for (case, table) in scenario.cases.iter().zip(&mut tables) {
                    let Some(row) = table.rows.iter_mut().find(|row| row.subject == kind.name()) else {
                        continue;
                    };
                    self.done += 1;
                    let what =
                        format!("{}/{} {round}/{} {}", scenario.name, case.name, self.rounds, row.subject);
                    eprint!("[{:>3} %] {what}: ", self.done * 100 / self.total);
                    match measure(stand, kind, case, &mut running) {
                        Ok((sample, complaints)) => {
                            eprintln!("{}", report::sample_line(&table.metrics, &sample));
                            row.complain(&complaints);
                            row.samples.push(Some(sample));
                        }
                        // This subject, this case, this round: the others go on.
                        Err(error) => {
                            eprintln!("FAILED: {error:#}");
                            row.fail(&format!("{error:#}"));
                        }
                    }
                }
                if let Some(started) = running
                    && let Err(error) = started.subject.stop()
                {
                    eprintln!("{} did not stop as it should: {error:#}", kind.name());
                }
            }
        }
        Ok(tables)
    }
}

/// One measurement. `running` is the subject as the case before has left it; after a failure it is gone.
fn measure<'s>(
    stand: &'s Stand,
    kind: Kind,
    case: &Case,
    running: &mut Option<Started<'s>>,
) -> Result<(Sample, Vec<String>)> {
    let reusable = running.take().filter(|_| !case.load.is_fresh());
    let mut started = match reusable {
        Some(started) => started,
        None => {
            let (subject, took) = Subject::start(kind, stand, case.load.size())?;
            Started { subject, took }
        }
    };
    let mut on =
        Measurement { subject: &mut started.subject, stand, started: started.took, seconds: case.seconds };
    let sample = case.load.measure(&mut on)?;
    let mut complaints = started.subject.check_tier()?;
    if case.load.is_fresh() {
        complaints.extend(started.subject.stop()?.into_iter().filter(|line| !case.load.expects(line)));
    } else {
        *running = Some(started);
    }
    Ok((sample, complaints))
}
