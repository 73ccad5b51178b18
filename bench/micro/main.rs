//! Counts the instructions of what every connection or packet costs, and compares them with stored figures.
//!
//! callgrind counts what runs inside [`count_instructions`] and nothing else, so the figures depend on the compiler
//! and the source, and not on how busy the machine is. Only builds with optimisation mean anything.

mod cases;
mod relay;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::cases::{ALL, Case};

/// The stored figures: a line each, name and instructions per operation; the compiler in the first line.
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/figures.txt");
/// How far a figure may be from the stored one. Hash tables with random seeds are the only thing that varies.
const TOLERANCE: f64 = 0.03;

/// Counts instructions per operation under valgrind and compares them with the stored figures.
#[derive(Parser)]
struct Arguments {
    /// Store what is counted now
    #[arg(long)]
    store: bool,
    /// Only run this case, to be counted by whoever started it
    #[arg(long, hide = true, value_name = "CASE")]
    run: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(name) = &arguments.run {
        let case = ALL.iter().find(|case| case.name == name).context("no such case")?;
        count_instructions(case.times, &mut *(case.prepare)());
        return Ok(());
    }
    let counted = ALL.iter().map(|case| Ok((case.name, count(case)?))).collect::<Result<Vec<_>>>()?;
    let compiler = compiler()?;
    if arguments.store {
        fs::write(FIGURES, write(&compiler, &counted)).with_context(|| format!("writing {FIGURES}"))?;
    }
    let stored = Stored::parse(&fs::read_to_string(FIGURES).with_context(|| format!("reading {FIGURES}"))?)?;
    let strayed = compare(&stored, &counted);
    if strayed.is_empty() {
        return Ok(());
    }
    let advice = "`cargo xtask bench instructions --store` stores them, if that is as it should be";
    if stored.compiler != compiler {
        bail!("{}: stored by {}, this is {compiler}; {advice}", strayed.join(", "), stored.compiler);
    }
    bail!("{}: further than {:.0} % from the stored figures; {advice}", strayed.join(", "), TOLERANCE * 100.0)
}

/// Does the work so many times. callgrind knows this function by its name.
#[inline(never)]
fn count_instructions(times: u32, work: &mut dyn FnMut()) {
    for _ in 0..times {
        work();
    }
}

/// Instructions of one operation, in a process of its own under callgrind.
fn count(case: &Case) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*count_instructions*", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--run", case.name])
        .output()
        .context("valgrind is missing: `cargo xtask setup` installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: valgrind: {}\n{said}", case.name, output.status);
    let collected =
        collected(&said).with_context(|| format!("{}: valgrind counted nothing\n{said}", case.name))?;
    Ok(collected / f64::from(case.times))
}

/// From callgrind's `==123== Collected : 4567`.
fn collected(said: &str) -> Option<f64> {
    let (_, rest) = said.split_once("Collected : ")?;
    rest.split_whitespace().next()?.parse().ok().filter(|count| *count > 0.0)
}

fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("asking rustc for its version")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What the file says.
#[derive(Debug, PartialEq)]
struct Stored {
    compiler: String,
    figures: BTreeMap<String, f64>,
}

impl Stored {
    fn parse(text: &str) -> Result<Stored> {
        let mut lines = text.lines();
        let compiler =
            lines.next().and_then(|line| line.strip_prefix("# ")).context("no compiler in the first line")?;
        let figures = lines
            .map(|line| {
                let (name, figure) = line.split_once(' ').with_context(|| format!("not a figure: {line}"))?;
                Ok((name.to_owned(), figure.trim().parse()?))
            })
            .collect::<Result<_>>()?;
        Ok(Stored { compiler: compiler.to_owned(), figures })
    }
}

fn write(compiler: &str, counted: &[(&str, f64)]) -> String {
    counted.iter().fold(format!("# {compiler}\n"), |mut text, (name, figure)| {
        let _ = writeln!(text, "{name} {figure:.0}");
        text
    })
}

/// Shows each figure beside the stored one; the names of those that are too far from it, or new.
fn compare<'c>(stored: &Stored, counted: &[(&'c str, f64)]) -> Vec<&'c str> {
    let mut strayed = Vec::new();
    for (name, figure) in counted {
        let change = stored.figures.get(*name).map(|stored| figure / stored - 1.0);
        let verdict = match change {
            Some(change) if change.abs() <= TOLERANCE => "",
            Some(change) if change < 0.0 => "  BETTER",
            Some(_) => "  WORSE",
            None => "  NEW",
        };
        if !verdict.is_empty() {
            strayed.push(*name);
        }
        let change = change.map_or("      –".to_owned(), |change| format!("{:>+6.1} %", change * 100.0));
        println!("{name:<40} {figure:>10.0} instructions {change}{verdict}");
    }
    strayed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callgrind_collected_is_read_from_what_it_says() {
        assert_eq!(collected("==7== \n==7== Collected : 123456\n==7== \n"), Some(123_456.0));
        assert_eq!(collected("==7== Collected : 0\n"), None);
        assert_eq!(collected("valgrind: no such file"), None);
    }

    #[test]
    fn figures_are_read_as_they_were_written() {
        let stored = Stored::parse(&write("rustc 1", &[("a/b", 12.4), ("c", 7.0)])).unwrap();
        assert_eq!(stored.compiler, "rustc 1");
        assert_eq!(stored.figures, [("a/b".to_owned(), 12.0), ("c".to_owned(), 7.0)].into());
        assert!(Stored::parse("a 1\n").is_err());
    }

    #[test]
    fn only_what_is_new_or_beyond_the_tolerance_is_named_in_either_direction() {
        let figures = ["kept", "more", "less"].map(|name| (name.to_owned(), 1000.0)).into();
        let stored = Stored { compiler: String::new(), figures };
        let counted = [("kept", 1029.0), ("more", 1031.0), ("less", 969.0), ("new", 1.0)];
        assert_eq!(compare(&stored, &counted), ["more", "less", "new"]);
    }

    #[test]
    fn every_case_does_its_work() {
        for case in ALL {
            count_instructions(2, &mut *(case.prepare)());
        }
    }
}
