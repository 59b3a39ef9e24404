//! Runs a participant and reads what it measured.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::jobs::{Participant, Says};
use super::machine::{field, load};
use super::statistics::Spread;
use super::target;
use crate::workspace;

/// One run of one participant: a value of each list for each round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measurement {
    seconds: Vec<f64>,
    processor_seconds: Vec<f64>,
    examples: Vec<f64>,
    pub peak_memory_mib: Option<f64>,
    versions: Value,
    /// From its start to its end, everything included.
    pub whole_seconds: f64,
    load: Option<f64>,
}

impl Measurement {
    /// Median seconds of a round, brought to a round of so many examples; the first round is a warm-up.
    pub fn per(&self, examples: f64) -> f64 {
        let rates = self.seconds.iter().zip(&self.examples).skip(1).map(|(seconds, trained)| seconds / trained);
        Spread::of(rates).map_or(f64::NAN, |rates| rates.median * examples)
    }

    /// Mean processor seconds of the same.
    pub fn processor_per(&self, examples: f64) -> f64 {
        let sum = |values: &[f64]| values.iter().skip(1).sum::<f64>();
        sum(&self.processor_seconds) / sum(&self.examples) * examples
    }

    /// Mean number of examples of a round.
    pub fn examples(&self) -> f64 {
        self.examples.iter().skip(1).sum::<f64>() / (self.examples.len() - 1) as f64
    }

    pub fn json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "examples": self.examples,
            "peak_memory_mib": self.peak_memory_mib,
            "versions": self.versions,
            "whole_seconds": self.whole_seconds,
            "load_before": self.load,
        })
    }

    /// Reads a script's report.
    pub fn of_report(line: &str) -> Option<Self> {
        let report: Value = serde_json::from_str(line).ok()?;
        let list = |name: &str| report[name].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        let (seconds, processor_seconds, examples) = (list("seconds")?, list("processor_seconds")?, list("examples")?);
        let peak_memory_mib = report["peak_memory_mib"].as_f64();
        Some(Self {
            seconds,
            processor_seconds,
            examples,
            peak_memory_mib,
            versions: report["versions"].clone(),
            ..Self::default()
        })
    }

    /// Whether there is a round after the warm-up, and all of each.
    fn is_whole(&self) -> bool {
        let count = self.seconds.len();
        count >= 2 && self.processor_seconds.len() == count && self.examples.len() == count
    }
}

/// Runs the participant and waits for its end.
pub fn run(participant: &Participant) -> Result<Measurement, String> {
    let label = participant.label();
    let log = target().join("bench/last.log");
    let failed = |error: std::io::Error| format!("{label}: cannot run {}: {error}", participant.program.display());
    fs::create_dir_all(target().join("bench")).map_err(failed)?;
    let mut command = Command::new(&participant.program);
    command.args(&participant.words).current_dir(workspace::root()).env("PYTHONDONTWRITEBYTECODE", "1");
    for pool in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(pool, participant.threads.to_string());
    }
    let (before, began) = (load(), Instant::now());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let lines = child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok);
    let found = match participant.says {
        Says::Report => lines.filter_map(|line| Measurement::of_report(&line)).last(),
        Says::Events => {
            let mut watched = Watched::default();
            let id = child.id();
            lines.for_each(|line| watched.event(&line, || Usage::of(id)));
            Some(watched.measurement)
        }
    };
    let success = child.wait().map_err(failed)?.success();
    let whole_seconds = began.elapsed().as_secs_f64();
    match found.filter(|found| success && found.is_whole()) {
        Some(found) => Ok(Measurement { whole_seconds, load: before, ..found }),
        None => {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            Err(format!("{label} failed; its last words:\n{}", lines[lines.len().saturating_sub(15)..].join("\n")))
        }
    }
}

/// An experiment that is watched through its events.
#[derive(Default)]
struct Watched {
    measurement: Measurement,
    /// Examples of the round so far.
    examples: f64,
    processor_seconds: f64,
}

/// What a process has used up to now.
#[derive(Clone, Copy, Default)]
struct Usage {
    processor_seconds: f64,
    peak_memory_mib: Option<f64>,
}

impl Watched {
    fn event(&mut self, line: &str, usage: impl Fn() -> Usage) {
        let Ok(event) = serde_json::from_str::<Value>(line) else { return };
        match event["event"].as_str() {
            Some("round_started") => {
                self.examples = 0.0;
                self.processor_seconds = usage().processor_seconds;
            }
            Some("client_trained") => self.examples += event["num_examples"].as_f64().unwrap_or_default(),
            Some("round_committed") => {
                let now = usage();
                let all = &mut self.measurement;
                all.seconds.push(event["seconds"].as_f64().unwrap_or(f64::NAN));
                all.processor_seconds.push(now.processor_seconds - self.processor_seconds);
                all.examples.push(self.examples);
                all.peak_memory_mib = now.peak_memory_mib;
            }
            _ => {}
        }
    }
}

impl Usage {
    /// Of a running process, as far as the kernel tells.
    fn of(id: u32) -> Self {
        let file = |name: &str| fs::read_to_string(format!("/proc/{id}/{name}")).unwrap_or_default();
        let peak = field(&file("status"), "VmHWM").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        Self { processor_seconds: processor_seconds(&file("stat")), peak_memory_mib: peak.map(|kib| kib / 1024.0) }
    }
}

/// User and system time from a process's `stat`; the kernel's tick is a hundredth of a second on every Linux.
fn processor_seconds(stat: &str) -> f64 {
    // The name in parentheses may hold anything; the times are the 12th and 13th fields after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_brought_to_the_same_number_of_examples_without_the_first_round() {
        let line = r#"{"seconds": [9, 1, 3, 2], "processor_seconds": [9, 2, 2, 2], "examples": [5, 100, 100, 200],
                       "peak_memory_mib": 12.5, "versions": {"torch": "2.9.0"}}"#;
        let found = Measurement::of_report(line).unwrap();
        assert!(found.is_whole());
        // 0.01, 0.03 and 0.01 s an example.
        assert!((found.per(1000.0) - 10.0).abs() < 1e-9);
        assert!((found.processor_per(1000.0) - 15.0).abs() < 1e-9);
        assert!((found.examples() - 400.0 / 3.0).abs() < 1e-9);
        assert_eq!(found.peak_memory_mib, Some(12.5));
    }

    #[test]
    fn other_lines_and_short_reports_are_no_measurements() {
        assert_eq!(Measurement::of_report("INFO: starting"), None);
        assert_eq!(Measurement::of_report(r#"{"seconds": [1]}"#), None);
        let one = r#"{"seconds": [1], "processor_seconds": [1], "examples": [1]}"#;
        assert!(!Measurement::of_report(one).unwrap().is_whole());
    }

    #[test]
    fn an_experiment_is_measured_by_its_events() {
        let mut watched = Watched::default();
        let events = [
            (r#"{"event":"run_started","round":0}"#, 1.0),
            (r#"{"event":"round_started","round":1}"#, 1.5),
            (r#"{"event":"client_trained","num_examples":60}"#, 2.0),
            (r#"{"event":"client_trained","num_examples":40}"#, 2.1),
            (r#"{"event":"round_committed","seconds":0.25}"#, 2.5),
            ("not json", 2.5),
        ];
        for (line, processor_seconds) in events {
            watched.event(line, || Usage { processor_seconds, peak_memory_mib: Some(7.0) });
        }
        let found = watched.measurement;
        assert_eq!((found.seconds, found.examples), (vec![0.25], vec![100.0]));
        assert_eq!((found.processor_seconds, found.peak_memory_mib), (vec![1.0], Some(7.0)));
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "12 (a ) name) S 1 12 12 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 100";
        assert_eq!(processor_seconds(stat), 2.0);
        assert_eq!(processor_seconds(""), 0.0);
    }
}
