//! `cargo xtask test`.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{setup, steps, vm};

/// Run every test that can run here, and say which could not, and why.
///
/// Unit tests of all crates first, then the tests that put the gateway between real programs in network
/// namespaces of their own (these need root).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this.
    filter: Option<String>,

    /// Fail if a test had to be skipped: those for which this kernel lacks something run on another kernel, in a
    /// virtual machine (see `vm-test`). Implied where the variable CI is set.
    #[arg(long)]
    pub(crate) deny_skips: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::Scope::Test)?;
    steps::show(&mut steps::cargo(BUILD))?;
    run_prepared(args.filter.as_deref(), args.deny_skips || env::var_os("CI").is_some())
}

/// Builds all that `run_prepared` runs. Each cargo here and there selects the whole workspace: a narrower one
/// enables fewer features of shared dependencies, and would compile them again.
pub(crate) const BUILD: &[&str] = &["build", "--workspace", "--all-targets"];

/// The tests alone, on a machine that is set up, after `BUILD`.
pub(crate) fn run_prepared(filter: Option<&str>, deny_skips: bool) -> Result<()> {
    let skips = steps::target_dir().join(format!("skipped-tests-{}", std::process::id()));
    let _ = fs::remove_file(&skips);

    let mut total = Tally::default();
    for (name, selection) in [
        ("unit tests", &["--lib", "--bins"] as &[&str]),
        ("documentation tests", &["--doc"]),
        ("tests with real programs", &["--test", "*"]),
    ] {
        println!("\n== {name}");
        let mut cargo = steps::cargo(&["test", "--quiet", "--workspace", "--no-fail-fast"]);
        cargo
            .args(selection)
            .arg("--")
            .args(filter)
            .env("SNISPLICE_BIN", steps::target_dir().join("debug/snisplice"))
            .env("SNISPLICE_SKIPS", &skips);
        total.add(&run_counted(&mut cargo)?);
    }
    total.skip(&fs::read_to_string(&skips).unwrap_or_default());
    let _ = fs::remove_file(&skips);

    if deny_skips && !total.skipped.is_empty() && !total.broken {
        let names = total.skipped.iter().filter_map(|skip| skip.split_once(": "));
        let elsewhere = vm::run_exactly(&names.map(|(name, _)| name).collect::<Vec<_>>())?;
        total.make_up(&elsewhere);
    }
    print!("\n{total}");
    total.verdict(deny_skips)
}

/// Runs `cargo test`, shows what it prints and counts what it says.
fn run_counted(cargo: &mut Command) -> Result<Tally> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut tally = Tally::default();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line?;
        println!("{line}");
        tally.read(&line);
    }
    // Also a crate that does not compile, or a test that takes its process down.
    tally.broken |= !child.wait()?.success();
    Ok(tally)
}

/// What came of the tests.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    /// `name: reason` of each test that said it could not run here.
    skipped: Vec<String>,
    /// Tests marked `#[ignore]`.
    ignored: usize,
    broken: bool,
}

impl Tally {
    /// Reads one line of libtest's output: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub(crate) fn read(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let Some(Ok(count)) = words.next().map(str::parse::<usize>) else {
                continue;
            };
            match words.next() {
                Some("passed") => self.passed += count,
                Some("failed") => self.failed += count,
                Some("ignored") => self.ignored += count,
                _ => {}
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.broken |= other.broken;
    }

    /// Takes the tests that wrote a line to SNISPLICE_SKIPS out of the passed ones: libtest has no word for
    /// "skipped", so they returned without doing anything.
    pub(crate) fn skip(&mut self, lines: &str) {
        self.skipped.extend(lines.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        self.skipped.sort();
        self.skipped.dedup();
        self.passed = self.passed.saturating_sub(self.skipped.len());
    }

    /// Adds the results of the skipped tests from where they could run.
    fn make_up(&mut self, elsewhere: &Self) {
        self.add(elsewhere);
        match elsewhere.passed + elsewhere.failed + elsewhere.skipped.len() == self.skipped.len() {
            true => self.skipped.clone_from(&elsewhere.skipped),
            // Not one of them may be lost on the way.
            false => self.broken = true,
        }
    }

    /// An error unless tests ran and passed.
    pub(crate) fn verdict(&self, deny_skips: bool) -> Result<()> {
        if self.broken || self.failed > 0 {
            bail!("tests failed");
        }
        if deny_skips && !self.skipped.is_empty() {
            bail!("{} tests were skipped, and here none may be", self.skipped.len());
        }
        if self.passed == 0 {
            bail!("no test ran");
        }
        Ok(())
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for skip in &self.skipped {
            writeln!(f, "SKIPPED {skip}")?;
        }
        let (passed, failed, skipped) = (self.passed, self.failed, self.skipped.len());
        write!(f, "tests: {passed} passed, {failed} failed, {skipped} skipped")?;
        if self.ignored > 0 {
            write!(f, ", {} ignored", self.ignored)?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_several_test_programs_add_up() {
        let mut tally = Tally::default();
        tally.read(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s",
        );
        tally.read("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s");
        tally.read("running 4 tests");
        assert_eq!(tally, Tally { passed: 5, failed: 1, ignored: 1, ..Tally::default() });
    }

    #[test]
    fn tests_made_up_for_elsewhere_are_no_longer_skipped() {
        let mut tally =
            Tally { passed: 5, skipped: vec!["a: no VLAN".into(), "b: no IPv6".into()], ..Tally::default() };
        let mut lost = Tally { skipped: tally.skipped.clone(), ..Tally::default() };
        tally.make_up(&Tally { passed: 1, skipped: vec!["b: no IPv6".into()], ..Tally::default() });
        assert_eq!((tally.passed, tally.skipped.len(), tally.broken), (6, 1, false));
        assert!(tally.verdict(true).is_err() && tally.verdict(false).is_ok());
        lost.make_up(&Tally { passed: 1, ..Tally::default() });
        assert!(lost.verdict(false).is_err());
    }

    #[test]
    fn a_skipped_test_does_not_count_as_passed() {
        let mut tally = Tally { passed: 5, ..Tally::default() };
        tally.skip("b: no IPv6\na: no kTLS\na: no kTLS\n\n");
        assert_eq!(tally.passed, 3);
        assert_eq!(
            tally.to_string(),
            "SKIPPED a: no kTLS\nSKIPPED b: no IPv6\ntests: 3 passed, 0 failed, 2 skipped\n"
        );
    }
}
