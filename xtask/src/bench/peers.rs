//! The same jobs in fedburn and in its peers, in turn.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde_json::{Value, json};

use super::jobs::{Job, JobName, Ours, Participant, jobs};
use super::machine::Machine;
use super::measure::{Measurement, run};
use super::python::{Peer, Python};
use super::statistics::{Spread, digits};
use super::table::Table;
use super::{target, write};
use crate::launch;

/// What to play, with whom, how often.
#[derive(Args)]
pub struct Peers {
    /// Jobs; all by default.
    #[arg(long, value_delimiter = ',', value_name = "JOBS")]
    jobs: Vec<JobName>,
    /// Peers; all by default. Those that are not installed are left out with a word.
    #[arg(long, value_delimiter = ',', value_name = "PEERS")]
    peers: Vec<Peer>,
    /// Turns: in each, everybody plays once.
    #[arg(long, default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    runs: usize,
    /// Rounds of a run instead of the jobs' own numbers; the first is a warm-up.
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    rounds: Option<usize>,
    /// The Python that has the peers [default: $FEDBURN_PEERS_PYTHON, else python3].
    #[arg(long)]
    python: Option<PathBuf>,
    /// Write the tables as Markdown into this file too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// A job with everybody's measurements, one for each turn.
struct Played {
    job: &'static Job,
    participants: Vec<Participant>,
    /// By participant, then by turn.
    measurements: Vec<Vec<Measurement>>,
}

impl Peers {
    /// Plays everything and prints the tables.
    pub fn run(self) -> Result<ExitCode, String> {
        let names = if self.jobs.is_empty() { JobName::ALL.to_vec() } else { self.jobs.clone() };
        let wanted = if self.peers.is_empty() { Peer::ALL.to_vec() } else { self.peers.clone() };
        let python = python(self.python.clone(), &wanted)?;
        let ours = ours()?;
        let machine = Machine::now();
        machine.warning().into_iter().chain(python.missing.iter().cloned()).for_each(|line| eprintln!("note: {line}"));
        let (mut all, mut pages) = (Vec::new(), Vec::new());
        println!("{}", machine.shown());
        for job in jobs(&names) {
            let participants = job.participants(&ours, Some(&python), machine.cores, self.rounds);
            let played = Played::play(job, participants, self.runs)?;
            print!("\n{}\n{}{}", played.heading(), played.table().text(), played.conclusions().join("\n") + "\n");
            pages.push(played.markdown());
            all.push(played.json());
            // After each job: an hour's measurements are not lost where the last job fails.
            let record = json!({ "machine": machine.json(), "runs": self.runs, "jobs": all });
            write(&target().join("bench/peers.json"), &format!("{record:#}\n"))?;
            if let Some(file) = &self.markdown {
                write(file, &format!("{}.\n\n{}", machine.shown(), pages.join("\n")))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The Python that was named, or the environment's, or the usual one.
pub fn python(named: Option<PathBuf>, wanted: &[Peer]) -> Result<Python, String> {
    let program = named.or_else(|| std::env::var_os("FEDBURN_PEERS_PYTHON").map(PathBuf::from));
    Python::ask(program.unwrap_or_else(|| PathBuf::from("python3")), wanted)
}

/// Builds fedburn's side in release.
pub fn ours() -> Result<Ours, String> {
    let experiments = launch::build("fedburn-experiment", "fedburn", None)?;
    Ok(Ours { experiments, jobs: launch::build("fedburn-benches", "fedburn-jobs", None)? })
}

impl Played {
    fn play(job: &'static Job, participants: Vec<Participant>, turns: usize) -> Result<Self, String> {
        let mut measurements = vec![Vec::with_capacity(turns); participants.len()];
        for turn in 1..=turns {
            for (participant, measured) in participants.iter().zip(&mut measurements) {
                eprintln!("{}: turn {turn} of {turns}: {}", job.name, participant.label());
                measured.push(run(participant)?);
            }
        }
        Ok(Self { job, participants, measurements })
    }

    fn heading(&self) -> String {
        let turns = self.measurements.first().map_or(0, Vec::len);
        let rounds = self.participants.first().map_or(0, |p| p.rounds);
        format!("{}: {}; {turns} runs of {rounds}", self.job.name, self.job.title)
    }

    /// Everybody's figure of each turn over the reference's of the same turn.
    fn ratios(&self, figures: &[f64]) -> Option<Spread> {
        over(figures, &self.figures(self.job.reference(&self.participants)))
    }

    /// Seconds of a unit, for each turn.
    fn figures(&self, participant: usize) -> Vec<f64> {
        self.measurements[participant].iter().map(|measured| measured.per(self.job.examples)).collect()
    }

    /// Processor seconds of a unit, for each turn.
    fn processor(&self, participant: usize) -> Vec<f64> {
        self.measurements[participant].iter().map(|measured| measured.processor_per(self.job.examples)).collect()
    }

    fn table(&self) -> Table {
        let Job { unit, .. } = self.job;
        let head = [format!("ms a {unit}"), format!("processor ms a {unit}"), format!("examples a {unit}")];
        let [time, processor, examples] = head.each_ref().map(String::as_str);
        let mut table = Table::new([
            "",
            time,
            processor,
            "peak MiB",
            "whole run, s",
            examples,
            "times fedburn",
            "in processor time",
        ]);
        let reference = self.processor(self.job.reference(&self.participants));
        for (k, participant) in self.participants.iter().enumerate() {
            let of = |figure: &dyn Fn(&Measurement) -> f64| Spread::of(self.measurements[k].iter().map(figure));
            let median = |spread: Option<Spread>| spread.map_or("-".to_owned(), |spread| digits(spread.median));
            let shown = |spread: Option<Spread>| spread.map_or("-".to_owned(), |spread| spread.shown());
            table.row([
                participant.label(),
                shown(Spread::of(self.figures(k).into_iter().map(|seconds| 1e3 * seconds))),
                median(Spread::of(self.processor(k).into_iter().map(|seconds| 1e3 * seconds))),
                median(of(&|m| m.peak_memory_mib.unwrap_or(f64::NAN))),
                median(of(&|m| m.whole_seconds)),
                median(of(&|m| if *unit == "round" { m.examples() } else { self.job.examples })),
                shown(self.ratios(&self.figures(k))),
                median(over(&self.processor(k), &reference)),
            ]);
        }
        table
    }

    /// For everybody who played in several ways: the best of each turn over the reference.
    fn conclusions(&self) -> Vec<String> {
        let mut ways: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (k, participant) in self.participants.iter().enumerate() {
            ways.entry(&participant.who).or_default().push(k);
        }
        let reference = self.participants[self.job.reference(&self.participants)].label();
        let several = ways.into_iter().filter(|(who, ways)| *who != "fedburn" && ways.len() > 1);
        let lines = several.filter_map(|(who, ways)| {
            let figures = ways.into_iter().map(|k| self.figures(k));
            let best = figures.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a.min(*b)).collect())?;
            Some(format!("{who}, the better of its ways each turn: {} times {reference}", self.ratios(&best)?.shown()))
        });
        lines.collect()
    }

    fn markdown(&self) -> String {
        let conclusions: String = self.conclusions().iter().map(|line| format!("{line}.\n")).collect();
        format!("{}.\n\n{}\n{conclusions}", self.heading(), self.table().markdown())
    }

    fn json(&self) -> Value {
        let participants = self.participants.iter().zip(&self.measurements).map(|(participant, measured)| {
            let runs: Vec<Value> = measured.iter().map(Measurement::json).collect();
            json!({ "who": participant.who, "threads": participant.threads, "runs": runs })
        });
        let Job { name, title, unit, examples, .. } = self.job;
        let participants: Vec<Value> = participants.collect();
        json!({ "job": name, "title": title, "unit": unit, "examples": examples, "participants": participants })
    }
}

/// The ratio of each turn.
fn over(figures: &[f64], reference: &[f64]) -> Option<Spread> {
    Spread::of(figures.iter().zip(reference).map(|(figure, reference)| figure / reference))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        peers: Peers,
    }

    fn parse(line: &str) -> Result<Peers, String> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.peers).map_err(|error| error.to_string())
    }

    #[test]
    fn jobs_and_peers_are_lists_of_known_names() {
        let peers = parse("--jobs 2nn,flute --peers torch --runs 3 --rounds 2").unwrap();
        assert_eq!((peers.jobs, peers.peers), (vec![JobName::TwoNn, JobName::Flute], vec![Peer::Torch]));
        assert_eq!((peers.runs, peers.rounds), (3, Some(2)));
        let wrong = parse("--jobs 3nn").err().unwrap();
        assert!(wrong.contains("3nn") && wrong.contains("2nn, cnn, step, mean, flute"), "{wrong}");
        for wrong in ["--runs 0", "--rounds 1", "--peers tensorflow", "--runs many"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    /// Two ways of fedburn and two of PyTorch, two turns, at so many milliseconds a round.
    fn played() -> Played {
        let job = jobs(&[JobName::TwoNn])[0];
        let ours = Ours { experiments: "fedburn".into(), jobs: "fedburn-jobs".into() };
        let python = Python { program: "python3".into(), peers: vec![Peer::Torch], missing: vec![] };
        let participants = job.participants(&ours, Some(&python), 2, None);
        let measured = |ms: f64| {
            let seconds = ms / 1e3;
            let line = json!({
                "seconds": [1.0, seconds, seconds], "processor_seconds": [1.0, 2.0 * seconds, 2.0 * seconds],
                "examples": [6000, 6000, 6000], "peak_memory_mib": 100, "versions": {},
            });
            Measurement::of_report(&line.to_string()).unwrap()
        };
        let times = [[60.0, 64.0], [30.0, 40.0], [120.0, 100.0], [90.0, 200.0]];
        Played { job, participants, measurements: times.map(|turns| turns.map(measured).to_vec()).to_vec() }
    }

    #[test]
    fn ratios_are_taken_turn_by_turn() {
        let text = played().table().markdown();
        let line = text.lines().find(|line| line.starts_with("| PyTorch loop, 1 thread")).unwrap();
        assert!(line.contains("| 110 (100 to 120) |") && line.ends_with("| 3.25 (2.50 to 4.00) | 3.25 |"), "{line}");
        let line = text.lines().find(|line| line.starts_with("| fedburn, 2 threads")).unwrap();
        assert!(line.ends_with("| 1.00 | 1.00 |") && line.contains("| 70.0 |"), "{line}");
    }

    #[test]
    fn the_better_way_of_each_turn_concludes() {
        let conclusions = played().conclusions();
        let expected = "PyTorch loop, the better of its ways each turn: 2.75 (2.50 to 3.00) times fedburn, 2 threads";
        assert_eq!(conclusions, [expected]);
        assert!(played().markdown().contains("| fedburn, 2 threads | 35.0 (30.0 to 40.0) |"));
    }
}
