//! Counting tests from what test runners print.

use std::fmt;

/// How many tests ran, and how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Tally {
    /// Adds what a line tells, if it is the summary line of nextest (`Summary [ 1.2s] 3 tests run: 3 passed, 0 skipped`)
    /// or of libtest (`test result: ok. 3 passed; 0 failed; 1 ignored; …`).
    pub fn read(&mut self, line: &str) {
        let Some(counts) = summary(line) else { return };
        let mut previous = "";
        for word in counts.split([' ', ',', ';', '(', ')', '.']).filter(|w| !w.is_empty()) {
            let count = previous.parse().unwrap_or(0);
            match word {
                "passed" => self.passed += count,
                "failed" | "timed" => self.failed += count,
                "skipped" | "ignored" => self.skipped += count,
                _ => {}
            }
            previous = word;
        }
    }

    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.passed + self.failed;
        write!(f, "{run} tests run: {} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Whether nextest's summary line is `line`; it is repeated at the end of a run.
pub fn is_nextest_summary(line: &str) -> bool {
    line.contains("Summary [") && summary(line).is_some()
}

/// What follows the colon or the verdict of a summary line.
fn summary(line: &str) -> Option<&str> {
    let of_nextest = line.split_once(" run: ").filter(|(before, _)| before.contains("test"));
    of_nextest.or_else(|| line.split_once("test result: ")).map(|(_, counts)| counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn nextest_summaries_are_read() {
        let line = "     Summary [   3.512s] 42 tests run: 40 passed (2 slow), 1 failed, 1 timed out, 7 skipped";
        assert!(is_nextest_summary(line));
        assert_eq!(tally(&[line]), Tally { passed: 40, failed: 2, skipped: 7 });
        assert_eq!(tally(&["Summary [ 0.1s] 1 test run: 1 passed, 0 skipped"]).passed, 1);
        let stopped = "     Summary [   0.2s] 5/8 tests run: 4 passed, 1 failed, 3 skipped";
        assert_eq!(tally(&[stopped]), Tally { passed: 4, failed: 1, skipped: 3 });
    }

    #[test]
    fn libtest_summaries_add_up() {
        let lines = [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        ];
        assert_eq!(tally(&lines), Tally { passed: 5, failed: 1, skipped: 1 });
        assert!(!is_nextest_summary(lines[0]));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(tally(&["running 3 tests", "        PASS [   0.1s] xtask run: 5 passed"]), Tally::default());
    }
}
