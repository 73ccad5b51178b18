//! What came of test programs, by what they print.

use anyhow::{Result, bail};

/// How the tests of the Kubernetes cluster end the line that says that they are skipped.
const OPTIONAL: &str = ": the programs of the cluster are not built";

/// What came of the tests.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    /// `name: reason` of each test that said it could not run here.
    pub(crate) skipped: Vec<String>,
    /// The same of those that may be skipped everywhere: what they need takes long to build, and comes from elsewhere.
    optional: Vec<String>,
    /// Tests marked `#[ignore]`.
    ignored: usize,
    /// Something else went wrong than a test.
    pub(crate) broken: bool,
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

    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.broken |= other.broken;
    }

    /// Takes the tests that wrote a line to SNISPLICE_SKIPS out of the passed ones: libtest has no word for
    /// "skipped", so they returned without doing anything.
    pub(crate) fn skip(&mut self, lines: &str) {
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let skips = if line.ends_with(OPTIONAL) { &mut self.optional } else { &mut self.skipped };
            skips.push(line.to_owned());
        }
        for skips in [&mut self.skipped, &mut self.optional] {
            skips.sort();
            skips.dedup();
            self.passed = self.passed.saturating_sub(skips.len());
        }
    }

    /// Adds the results of the skipped tests from where they could run.
    pub(crate) fn make_up(&mut self, elsewhere: &Self) {
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
        for skip in self.skipped.iter().chain(&self.optional) {
            writeln!(f, "SKIPPED {skip}")?;
        }
        let skipped = self.skipped.len() + self.optional.len();
        let (passed, failed) = (self.passed, self.failed);
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
    fn what_needs_the_cluster_may_be_skipped_and_is_said() {
        let mut tally = Tally { passed: 2, ..Tally::default() };
        tally.skip("pods_follow: the programs of the cluster are not built\n");
        assert!(tally.verdict(true).is_ok());
        assert_eq!(
            tally.to_string(),
            "SKIPPED pods_follow: the programs of the cluster are not built\ntests: 1 passed, 0 failed, 1 skipped\n"
        );
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
