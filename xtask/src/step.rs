//! One step of a run of checks: announced with its number, timed, repeated by one command.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::cargo::Cargo;
use crate::tally::{self, Tally};

/// What a step does.
pub enum Work {
    /// Succeeds where the call does.
    Call(Cargo),
    /// A call that runs tests, which are counted.
    Tests(Cargo),
    /// Nothing, for a reason.
    Skip(String),
}

/// A named piece of work.
pub struct Step {
    pub name: String,
    pub work: Work,
}

/// What became of a step.
pub struct Done {
    pub name: String,
    pub time: Duration,
    pub skipped: bool,
    pub tally: Option<Tally>,
    pub summaries: Vec<String>,
    /// Where the work failed: the step, and the command that repeats it.
    pub failure: Option<String>,
}

impl Step {
    pub fn call(name: impl Into<String>, call: Cargo) -> Self {
        Self { name: name.into(), work: Work::Call(call) }
    }

    pub fn tests(name: impl Into<String>, call: Cargo) -> Self {
        Self { name: name.into(), work: Work::Tests(call) }
    }

    pub fn skip(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), work: Work::Skip(reason.into()) }
    }

    /// Does the work, the `number`-th of `count`.
    ///
    /// # Errors
    /// Where the work could not be begun; work that fails is told by [`Done::failure`].
    pub fn run(self, number: usize, count: usize) -> Result<Done, String> {
        let Self { name, work } = self;
        let start = Instant::now();
        let mut done =
            Done { name, time: Duration::ZERO, skipped: false, tally: None, summaries: Vec::new(), failure: None };
        let heading = format!("[{number}/{count}] {}", done.name);
        let (success, call) = match work {
            Work::Skip(reason) => {
                eprintln!("\n{heading}: skipped: {reason}");
                done.skipped = true;
                return Ok(done);
            }
            Work::Call(call) => {
                eprintln!("\n{heading}: {}", call.shown());
                (call.status()?, call)
            }
            Work::Tests(call) => {
                eprintln!("\n{heading}: {}", call.shown());
                let (success, tally, summaries) = counted(&call)?;
                done.tally = Some(tally);
                done.summaries = summaries;
                (success, call)
            }
        };
        done.time = start.elapsed();
        let time = shown(done.time);
        if success {
            eprintln!("{heading}: done in {time}");
        } else {
            let (name, call) = (&done.name, call.shown());
            let failure =
                format!("step {number} of {count}, `{name}`, failed after {time}; repeat it with:\n\n    {call}\n");
            done.failure = Some(failure);
        }
        Ok(done)
    }
}

/// A table of steps and times, and the sum of all tests.
pub fn summary(steps: &[Done]) -> String {
    let width = steps.iter().map(|s| s.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut total = Tally::default();
    for step in steps {
        let time = if step.skipped { "skipped".to_owned() } else { shown(step.time) };
        let tests = step.tally.map(|tally| format!("  {tally}")).unwrap_or_default();
        text.push_str(&format!("{:width$}  {time:>8}{tests}\n", step.name));
        total.add(step.tally.unwrap_or_default());
    }
    let time = steps.iter().map(|s| s.time).sum();
    text.push_str(&format!("{:width$}  {:>8}\n\n", "all steps", shown(time)));
    steps.iter().flat_map(|s| &s.summaries).for_each(|line| text.push_str(&format!("{line}\n")));
    text.push_str(&format!("all tests: {total}\n"));
    text
}

/// Runs tests, passes their output on and counts them; gives nextest's summary lines too.
fn counted(call: &Cargo) -> Result<(bool, Tally, Vec<String>), String> {
    let failed = |error: std::io::Error| format!("cannot run `{}`: {error}", call.shown());
    let mut command = call.command();
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let lines = thread::scope(|scope| {
        let out = scope.spawn(|| passed_on(out, std::io::stdout()));
        let mut lines = passed_on(err, std::io::stderr());
        lines.extend(out.join().unwrap_or_default());
        lines
    });
    let success = child.wait().map_err(failed)?.success();
    let mut tally = Tally::default();
    let plain: Vec<String> = lines.iter().map(|line| without_colour(line)).collect();
    plain.iter().for_each(|line| tally.read(line));
    Ok((success, tally, plain.into_iter().filter(|line| tally::is_nextest_summary(line)).collect()))
}

/// Copies a stream line by line and keeps the lines that a tally can read.
fn passed_on(from: Option<impl Read>, mut to: impl Write) -> Vec<String> {
    let mut kept = Vec::new();
    let Some(from) = from else { return kept };
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        // A reader that went away does not end the tests.
        let _ = writeln!(to, "{line}");
        if line.contains("test result: ") || line.contains("Summary") {
            kept.push(line);
        }
    }
    kept
}

fn without_colour(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut text = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| text.push_str(part.split_once('m').map_or("", |(_, rest)| rest)));
    text
}

fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} m {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_says_how_to_repeat_it() {
        let done = Step::call("impossible", Cargo::line("no-such-subcommand")).run(2, 7).unwrap();
        let message = done.failure.unwrap();
        assert!(message.contains("step 2 of 7, `impossible`"), "{message}");
        assert!(message.contains("cargo no-such-subcommand"), "{message}");
    }

    #[test]
    fn the_summary_adds_the_tests_of_all_steps() {
        let done = |name: &str, tally| Done {
            name: name.to_owned(),
            time: Duration::from_secs(61),
            skipped: false,
            tally,
            summaries: vec![],
            failure: None,
        };
        let tests = Tally { passed: 2, failed: 0, skipped: 1 };
        let text = summary(&[done("format", None), done("tests", Some(tests)), done("doctests", Some(tests))]);
        assert!(text.ends_with("all tests: 4 tests run: 4 passed, 0 failed, 2 skipped\n"), "{text}");
        assert!(text.contains("3 m 03 s"), "{text}");
    }

    #[test]
    fn colours_are_removed() {
        assert_eq!(without_colour("\u{1b}[32;1mSummary\u{1b}[0m [ 1s]"), "Summary [ 1s]");
    }

    #[test]
    fn output_is_passed_on_and_summaries_kept() {
        let mut copy = Vec::new();
        let kept = passed_on(Some(&b"one\ntest result: ok. 1 passed\n"[..]), &mut copy);
        assert_eq!(copy, b"one\ntest result: ok. 1 passed\n");
        assert_eq!(kept, ["test result: ok. 1 passed"]);
    }
}
