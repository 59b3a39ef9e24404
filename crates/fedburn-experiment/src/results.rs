//! What a run leaves on disk, read back: one folder a seed, one folder of seeds an experiment.
//!
//! Writers replace files as a whole (a temporary file beside the target, then a rename), so a reader sees the old file
//! or the new one. Readers take whatever is there: a missing file is `None`, a damaged one is told by name in
//! [`SeedResults::problems`], and neither hides the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fedburn::core::Pictures;
use fedburn::data::PartitionStatistics;
use fedburn::train::Sharpness;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use crate::Spread;
use crate::events;
pub use crate::events::Mixing;
pub use crate::files::{ResultsError, write_atomic, write_csv, write_json, write_private, write_private_json};
use crate::files::{noted, optional, read_csv, read_json};
use crate::memory::MEMORY;
pub use crate::memory::MemoryRow;

/// Where and how a run was made: `run.json`, written at its start and again at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// The git revision of the working tree, where it is one.
    pub revision: Option<String>,
    /// Version of fedburn.
    pub fedburn_version: String,
    /// Version of burn.
    pub burn_version: String,
    /// The compiler that built the binary.
    pub rustc_version: String,
    /// The backend: `flex`, `ndarray`, `cuda`, …
    pub backend: String,
    /// The device as the backend names it.
    pub device: String,
    /// Logical processors of the machine.
    pub cores: u64,
    /// Operating system and architecture.
    pub os: String,
    /// Start, seconds since 1970-01-01 UTC.
    pub started: u64,
    /// End, seconds since 1970-01-01 UTC; `None` while it runs, or if it was killed.
    pub ended: Option<u64>,
    /// How the run stands.
    pub status: RunStatus,
    /// The round that ends the run.
    pub rounds: u64,
    /// Hash of the resolved config, hexadecimal.
    pub config_hash: String,
    /// The exact command that repeats the run.
    pub command: String,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RunStatus {
    /// It runs, or was killed.
    Running {},
    /// All rounds are done, or a stopping rule of the config ended it.
    Finished {},
    /// It was interrupted and can go on.
    Stopped {
        /// Who or what stopped it.
        reason: String,
    },
    /// An error ended it.
    Failed {
        /// The error and its sources, outermost first.
        cause: Vec<String>,
    },
}

/// One line of `rounds.csv`. Measurements are `None` where the model was not evaluated or the figure was not finite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundRow {
    /// The round, from 1; 0 is the model before training.
    pub round: u64,
    /// Number of updates combined.
    #[serde(default, deserialize_with = "zero_if_empty")]
    pub updates: u64,
    /// Number of clients that failed.
    #[serde(default, deserialize_with = "zero_if_empty")]
    pub failures: u64,
    /// Mean loss over the cohort's local training.
    #[serde(default, deserialize_with = "finite")]
    pub train_loss: Option<f64>,
    /// Loss of the global model on the server's held-out data.
    #[serde(default, deserialize_with = "finite")]
    pub loss: Option<f64>,
    /// Accuracy of the global model on the server's held-out data, in `[0, 1]`.
    #[serde(default, deserialize_with = "finite")]
    pub accuracy: Option<f64>,
    /// Bytes sent to clients in this round.
    #[serde(default, deserialize_with = "zero_if_empty")]
    pub bytes_down: u64,
    /// Bytes received from clients in this round.
    #[serde(default, deserialize_with = "zero_if_empty")]
    pub bytes_up: u64,
    /// Wall-clock seconds of the round.
    #[serde(default, deserialize_with = "finite")]
    pub seconds: Option<f64>,
}

/// One line of `clients.csv`: the final model on one client's own held-out data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRow {
    /// The client.
    pub client: u64,
    /// Number of its held-out examples.
    pub num_examples: u64,
    /// Accuracy in `[0, 1]`; `None` without held-out examples.
    #[serde(default, deserialize_with = "finite")]
    pub accuracy: Option<f64>,
    /// Mean loss; `None` without held-out examples or where it was not finite.
    #[serde(default, deserialize_with = "finite")]
    pub loss: Option<f64>,
    /// Accuracy of the plain global model on the same examples, in `[0, 1]`; `accuracy` is that of the client's own
    /// model, where it keeps one.
    #[serde(default, deserialize_with = "finite")]
    pub global_accuracy: Option<f64>,
}

/// What the federation is held against: `baselines.json`. Measured on the server's held-out data, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baselines {
    /// Training on the pooled data, epoch by epoch.
    pub centralised: Option<Vec<BaselinePoint>>,
    /// Each client trained alone on its own data.
    pub local_only: Option<Vec<LocalOnly>>,
}

/// The centralised model after an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselinePoint {
    /// The epoch, from 1.
    pub epoch: u64,
    /// Loss; `None` where it was not finite.
    #[serde(deserialize_with = "finite")]
    pub loss: Option<f64>,
    /// Accuracy in `[0, 1]`.
    #[serde(deserialize_with = "finite")]
    pub accuracy: Option<f64>,
}

/// A client's own model, trained without the federation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalOnly {
    /// The client.
    pub client: u64,
    /// Number of its training examples.
    pub num_examples: u64,
    /// Accuracy in `[0, 1]`.
    #[serde(deserialize_with = "finite")]
    pub accuracy: Option<f64>,
    /// Loss; `None` where it was not finite.
    #[serde(deserialize_with = "finite")]
    pub loss: Option<f64>,
    /// Accuracy on the client's own held-out examples (its training examples, where it holds none out), in `[0, 1]`.
    #[serde(default, deserialize_with = "finite")]
    pub own_accuracy: Option<f64>,
}

impl Baselines {
    /// The centralised model after its last epoch.
    pub fn centralised_final(&self) -> Option<&BaselinePoint> {
        self.centralised.as_deref()?.last()
    }

    /// Accuracy over clients that were trained alone, every client counting the same.
    pub fn local_only_accuracy(&self) -> Option<Spread> {
        Spread::of(self.local_only.iter().flatten().filter_map(|client| client.accuracy))
    }

    /// Loss over clients that were trained alone, every client counting the same.
    pub fn local_only_loss(&self) -> Option<Spread> {
        Spread::of(self.local_only.iter().flatten().filter_map(|client| client.loss))
    }
}

/// The figures of a finished run: `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Hash of the resolved config, hexadecimal.
    pub config_hash: String,
    /// The run's seed.
    pub seed: u64,
    /// The last finished round.
    pub rounds: u64,
    /// Accuracy at the last evaluated round.
    pub final_accuracy: Option<Measured>,
    /// Loss at the last evaluated round.
    pub final_loss: Option<Measured>,
    /// Highest accuracy. Choosing the round by it looks at held-out data: it is no estimate of future accuracy.
    pub best_accuracy: Option<Measured>,
    /// Lowest loss, with the same caution.
    pub best_loss: Option<Measured>,
    /// Bytes sent to clients, all rounds.
    pub bytes_down: u64,
    /// Bytes received from clients, all rounds.
    pub bytes_up: u64,
    /// Clients that failed, all rounds.
    pub failures: u64,
    /// Wall-clock seconds, all rounds.
    pub seconds: f64,
    /// Median wall-clock seconds of a round.
    pub seconds_per_round: Option<f64>,
    /// The baselines' accuracy, where asked for.
    pub baselines: BaselineFigures,
    /// Largest eigenvalue of the loss's Hessian at the final model, where sharpness was measured.
    pub top_eigenvalue: Option<f64>,
    /// Fingerprint of the partition.
    pub partition_fingerprint: Option<String>,
    /// [`model_hash`] of the final global vector.
    pub model_hash: Option<String>,
}

/// A measurement and the round it was made after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The round.
    pub round: u64,
    /// The value.
    pub value: f64,
}

/// Accuracy of the baselines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineFigures {
    /// Centralised training after its last epoch.
    pub centralised: Option<f64>,
    /// Mean over clients trained alone.
    pub local_only_mean: Option<f64>,
    /// The worst client trained alone.
    pub local_only_min: Option<f64>,
    /// The best client trained alone.
    pub local_only_max: Option<f64>,
}

impl From<&Baselines> for BaselineFigures {
    fn from(baselines: &Baselines) -> Self {
        let local = baselines.local_only_accuracy();
        Self {
            centralised: baselines.centralised_final().and_then(|point| point.accuracy),
            local_only_mean: local.map(|spread| spread.mean),
            local_only_min: local.map(|spread| spread.min),
            local_only_max: local.map(|spread| spread.max),
        }
    }
}

impl Summary {
    /// Condenses the rows of a run. `baselines`, `top_eigenvalue`, `partition_fingerprint` and `model_hash` are filled in by the caller.
    pub fn of_rounds(config_hash: impl Into<String>, seed: u64, rounds: &[RoundRow]) -> Self {
        let series = |value: fn(&RoundRow) -> Option<f64>| {
            let points = rounds.iter().filter_map(|row| Some(Measured { round: row.round, value: value(row)? }));
            points.collect::<Vec<_>>()
        };
        let (accuracy, loss) = (series(|row| row.accuracy), series(|row| row.loss));
        // Ties go to the earlier round.
        let best = |points: &[Measured], sign: f64| {
            points.iter().copied().reduce(|best, p| if sign * p.value > sign * best.value { p } else { best })
        };
        let seconds: Vec<f64> = rounds.iter().filter(|row| row.round > 0).filter_map(|row| row.seconds).collect();
        Self {
            config_hash: config_hash.into(),
            seed,
            rounds: rounds.last().map_or(0, |row| row.round),
            final_accuracy: accuracy.last().copied(),
            final_loss: loss.last().copied(),
            best_accuracy: best(&accuracy, 1.0),
            best_loss: best(&loss, -1.0),
            bytes_down: rounds.iter().map(|row| row.bytes_down).sum(),
            bytes_up: rounds.iter().map(|row| row.bytes_up).sum(),
            failures: rounds.iter().map(|row| row.failures).sum(),
            seconds: seconds.iter().sum(),
            seconds_per_round: median(seconds),
            baselines: BaselineFigures::default(),
            top_eigenvalue: None,
            partition_fingerprint: None,
            model_hash: None,
        }
    }
}

/// How the run of one seed stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SeedStatus {
    /// Nothing was run.
    Missing,
    /// It runs now, was interrupted or was killed.
    Partial {
        /// The last finished round.
        round: u64,
        /// The round that ends the run, where known.
        rounds: Option<u64>,
    },
    /// Done.
    Finished,
    /// An error ended it.
    Failed {
        /// The error, with its sources.
        cause: String,
    },
}

impl fmt::Display for SeedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Partial { round, rounds: Some(rounds) } => write!(f, "partial (round {round} of {rounds})"),
            Self::Partial { round, rounds: None } => write!(f, "partial (round {round})"),
            Self::Finished => f.write_str("finished"),
            Self::Failed { cause } => write!(f, "failed: {cause}"),
        }
    }
}

/// What the folder of one seed holds.
#[derive(Clone, Debug, Default)]
pub struct SeedResults {
    /// The seed.
    pub seed: u64,
    /// The folder.
    pub dir: PathBuf,
    /// `config.toml`, the resolved configuration as text.
    pub config: Option<String>,
    /// `run.json`.
    pub run: Option<RunInfo>,
    /// `rounds.csv` in order of rounds; of a round written twice (before and after a resumption) the later line.
    pub rounds: Vec<RoundRow>,
    /// `clients.csv`.
    pub clients: Vec<ClientRow>,
    /// `memory.csv`.
    pub memory: Vec<MemoryRow>,
    /// `baselines.json`.
    pub baselines: Option<Baselines>,
    /// `partition.json`.
    pub partition: Option<PartitionStatistics>,
    /// `sharpness.json`.
    pub sharpness: Option<Sharpness>,
    /// `summary.json`.
    pub summary: Option<Summary>,
    /// From `events.jsonl`: why clients failed and rounds were abandoned, in words, and how often.
    pub incidents: BTreeMap<String, u64>,
    /// From `events.jsonl`: how much each client counted, where the strategy decides it.
    pub mixing: Option<Mixing>,
    /// From `events.jsonl`: what the strategy's generator made, by round.
    pub pictures: BTreeMap<u64, Pictures>,
    /// Files that could not be read: their name and why.
    pub problems: Vec<String>,
}

impl SeedResults {
    /// Reads what is there; an absent folder gives an empty result with status [`SeedStatus::Missing`].
    pub fn load(seed: u64, dir: &Path) -> Self {
        let mut found = Self { seed, dir: dir.to_owned(), ..Self::default() };
        let problems = &mut found.problems;
        found.config = noted(problems, optional(dir, "config.toml", |bytes| Ok(String::from_utf8(bytes)?)));
        found.run = noted(problems, read_json(dir, "run.json"));
        found.baselines = noted(problems, read_json(dir, "baselines.json"));
        found.partition = noted(problems, read_json(dir, "partition.json").and_then(rectangular));
        found.sharpness = noted(problems, read_json(dir, "sharpness.json"));
        found.summary = noted(problems, read_json(dir, "summary.json"));
        found.clients = read_csv(dir, "clients.csv", problems);
        found.memory = read_csv(dir, MEMORY, problems);
        let told = events::read(dir, problems);
        (found.incidents, found.mixing, found.pictures) = (told.incidents, told.mixing, told.pictures);
        let rows: Vec<RoundRow> = read_csv(dir, "rounds.csv", problems);
        found.rounds = rows.into_iter().map(|row| (row.round, row)).collect::<BTreeMap<_, _>>().into_values().collect();
        found
    }

    /// How the run stands, from `run.json` and the rounds on disk.
    pub fn status(&self) -> SeedStatus {
        let round = self.rounds.last().map_or(0, |row| row.round);
        match self.run.as_ref().map(|run| (&run.status, run.rounds)) {
            Some((RunStatus::Finished {}, _)) => SeedStatus::Finished,
            Some((RunStatus::Failed { cause }, _)) => SeedStatus::Failed { cause: cause.join(": ") },
            Some((RunStatus::Running {} | RunStatus::Stopped { .. }, rounds)) => {
                SeedStatus::Partial { round, rounds: Some(rounds) }
            }
            None if self.rounds.is_empty() => SeedStatus::Missing,
            None => SeedStatus::Partial { round, rounds: None },
        }
    }

    /// Mean over clients, each counting the same, of the accuracy of what they use on their own held-out examples. `None`
    /// where clients hold nothing out: they are then measured on what they trained on.
    pub fn own_accuracy(&self) -> Option<f64> {
        let config: toml::Table = self.config.as_deref()?.parse().ok()?;
        let share = config.get("evaluation")?.get("client_holdout")?.as_float()?;
        let own = Spread::of(self.clients.iter().filter_map(|client| client.accuracy))?;
        (share > 0.0).then_some(own.mean)
    }

    /// The figures of the rounds on disk, whether or not the run is finished.
    pub fn figures(&self) -> Summary {
        let hash = self.run.as_ref().map(|run| run.config_hash.as_str()).unwrap_or_default();
        let figures = Summary::of_rounds(hash, self.seed, &self.rounds);
        Summary {
            baselines: self.baselines.as_ref().map(BaselineFigures::from).unwrap_or_default(),
            top_eigenvalue: self.sharpness.as_ref().and_then(|sharpness| sharpness.top_eigenvalue),
            ..figures
        }
    }
}

/// What the folder of one experiment holds: all its seeds.
#[derive(Clone, Debug)]
pub struct ExperimentResults {
    /// `suite/name`, the last two parts of the folder.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// The seeds found, ascending.
    pub seeds: Vec<SeedResults>,
}

impl ExperimentResults {
    /// Reads every `seed-<n>` in `dir`. Damaged files are told in each seed's `problems`.
    ///
    /// # Errors
    /// [`ResultsError::Missing`] where `dir` holds no seed, [`ResultsError::Read`] where it cannot be read.
    pub fn load(dir: &Path) -> Result<Self, ResultsError> {
        let read = |source| ResultsError::Read { path: dir.to_owned(), source };
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ResultsError::Missing { path: dir.to_owned() });
            }
            entries => entries.map_err(read)?,
        };
        let mut seeds = Vec::new();
        for entry in entries {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            let seed = name.to_str().and_then(|name| name.strip_prefix("seed-")).and_then(|n| n.parse().ok());
            seeds.extend(seed.map(|seed| SeedResults::load(seed, &entry.path())));
        }
        if seeds.is_empty() {
            return Err(ResultsError::Missing { path: dir.to_owned() });
        }
        seeds.sort_by_key(|seed| seed.seed);
        let parts: Vec<_> = dir.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
        Ok(Self { name: parts.into_iter().rev().collect::<Vec<_>>().join("/"), dir: dir.to_owned(), seeds })
    }

    /// The title in the resolved configuration, else the name.
    pub fn title(&self) -> String {
        let title = self
            .seeds
            .iter()
            .filter_map(|seed| seed.config.as_deref())
            .find_map(|config| Some(config.parse::<toml::Table>().ok()?.get("title")?.as_str()?.to_owned()));
        title.unwrap_or_else(|| self.name.clone())
    }

    /// The seeds that figures and curves are taken over: the finished ones, or all with rounds while none is finished.
    pub fn counted(&self) -> Vec<&SeedResults> {
        let finished: Vec<_> = self.seeds.iter().filter(|seed| seed.status() == SeedStatus::Finished).collect();
        if finished.is_empty() { self.seeds.iter().filter(|seed| !seed.rounds.is_empty()).collect() } else { finished }
    }

    /// A figure over the counted seeds; `None` where no seed has it.
    pub fn spread(&self, figure: impl Fn(&SeedResults) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.counted().into_iter().filter_map(figure))
    }
}

/// SHA-256 of a flat vector's little-endian bytes, hexadecimal: equal models, equal hashes.
pub fn model_hash(values: &[f32]) -> String {
    let mut hasher = Sha256::new();
    values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Pictures need as many class counts of every client as there are classes.
fn rectangular(found: Option<PartitionStatistics>) -> Result<Option<PartitionStatistics>, String> {
    let fits = |found: &PartitionStatistics| {
        found.clients.iter().all(|client| client.class_counts.len() == found.class_counts.len())
    };
    if found.as_ref().is_none_or(fits) {
        return Ok(found);
    }
    Err("partition.json: clients have different numbers of classes".into())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn finite<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.filter(|value| value.is_finite()))
}

fn zero_if_empty<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Ok(Option::<u64>::deserialize(from)?.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn sample() -> SeedResults {
        let mut run = fixture::finished(&[Some(0.25), None, Some(0.75)]);
        run.baselines = Some(fixture::baselines(0.8, &[0.4, 0.6]));
        run.clients = fixture::clients([0.5, 1.0]);
        run.partition = Some(fixture::partition(20));
        run.sharpness = Some(fixture::sharpness(3.5));
        run.summary = Some(Summary::of_rounds("00", 4, &run.rounds));
        run
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let run = sample();
        fixture::write(&run, dir.path());
        let read = SeedResults::load(4, dir.path());
        assert_eq!(read.problems, Vec::<String>::new());
        assert_eq!((read.run, read.rounds, read.clients), (run.run, run.rounds, run.clients));
        assert_eq!((read.baselines, read.summary, read.config), (run.baselines, run.summary, run.config));
        assert_eq!((read.partition, read.sharpness), (run.partition, run.sharpness));
    }

    #[test]
    fn seeds_are_sorted_and_strangers_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let experiment = dir.path().join("suite/name");
        for seed in ["seed-10", "seed-2", "seed-x", "other"] {
            fixture::write(&sample(), &experiment.join(seed));
        }
        let results = ExperimentResults::load(&experiment).unwrap();
        assert_eq!(results.name, "suite/name");
        assert_eq!(results.title(), "Fixture");
        assert_eq!(results.seeds.iter().map(|run| run.seed).collect::<Vec<_>>(), [2, 10]);
        assert!(matches!(ExperimentResults::load(&dir.path().join("none")), Err(ResultsError::Missing { .. })));
        assert!(matches!(ExperimentResults::load(dir.path()), Err(ResultsError::Missing { .. })));
    }

    #[test]
    fn damage_is_told_by_name_and_hides_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write(&sample(), dir.path());
        fs::write(dir.path().join("baselines.json"), "{\"centralised\": [").unwrap();
        fs::write(dir.path().join("run.json"), [0xff, 0xfe]).unwrap();
        let mut split = fixture::partition(3);
        split.clients[1].class_counts.pop();
        write_json(&dir.path().join("partition.json"), &split).unwrap();
        fs::write(dir.path().join("events.jsonl"), "{\"event\":\"client_failed\"}\n").unwrap();
        let rounds = fs::read_to_string(dir.path().join("rounds.csv")).unwrap();
        fs::write(dir.path().join("rounds.csv"), &rounds[..rounds.len() - 20]).unwrap();
        let read = SeedResults::load(4, dir.path());
        let names: Vec<_> = read.problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        assert_eq!(names, ["run.json", "baselines.json", "partition.json", "events.jsonl", "rounds.csv"]);
        assert_eq!(read.rounds.len(), 2, "the rows before the damage stay");
        assert_eq!(read.status(), SeedStatus::Partial { round: 2, rounds: None });
    }

    #[test]
    fn every_state_of_a_run_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(SeedResults::load(0, dir.path()).status(), SeedStatus::Missing);
        let mut run = sample();
        assert_eq!(run.status(), SeedStatus::Finished);
        fixture::interrupt(&mut run, 1);
        assert_eq!(run.status().to_string(), "partial (round 1 of 3)");
        run.run.as_mut().unwrap().status = RunStatus::Failed { cause: vec!["round 2".into(), "disk full".into()] };
        assert_eq!(run.status().to_string(), "failed: round 2: disk full");
    }

    #[test]
    fn a_round_written_twice_counts_once_and_odd_numbers_are_no_measurement() {
        let dir = tempfile::tempdir().unwrap();
        let text = "round,updates,failures,train_loss,loss,accuracy,bytes_down,bytes_up,seconds\n\
                    0,,,,2.3,0.1,,,\n1,5,0,NaN,inf,0.2,10,10,0.5\n2,5,0,1.0,1.0,0.3,10,10,0.5\n2,5,1,1.0,1.0,0.4,10,10,0.5\n";
        fs::write(dir.path().join("rounds.csv"), text).unwrap();
        let read = SeedResults::load(0, dir.path());
        assert_eq!(read.problems, Vec::<String>::new());
        assert_eq!(read.rounds.iter().map(|row| row.accuracy).collect::<Vec<_>>(), [Some(0.1), Some(0.2), Some(0.4)]);
        assert_eq!((read.rounds[1].loss, read.rounds[1].train_loss), (None, None));
    }

    #[test]
    fn failures_are_counted_by_their_words() {
        let dir = tempfile::tempdir().unwrap();
        let failed = |round, client| {
            format!(r#"{{"event":"client_failed","round":{round},"client":{client},"failure":{{"kind":"timed_out"}}}}"#)
        };
        let lines = [failed(1, 3), failed(1, 4), failed(1, 4), r#"{"event":"checkpointed","round":1}"#.into()];
        fs::write(dir.path().join("events.jsonl"), lines.join("\n") + "\n{\"event\":\"client_fai").unwrap();
        let read = SeedResults::load(0, dir.path());
        assert_eq!(read.incidents, BTreeMap::from([("client timed out".to_owned(), 2)]));
        assert_eq!(read.problems, Vec::<String>::new());
    }

    #[test]
    fn a_summary_names_the_last_and_the_first_best_round() {
        let run = fixture::finished(&[Some(0.5), Some(0.9), Some(0.9), None, Some(0.7), None]);
        let summary = Summary::of_rounds("00", 1, &run.rounds);
        assert_eq!(summary.rounds, 6);
        assert_eq!(summary.final_accuracy, Some(Measured { round: 5, value: 0.7 }));
        assert_eq!(summary.best_accuracy, Some(Measured { round: 2, value: 0.9 }));
        assert_eq!(summary.best_loss.unwrap().round, 2);
        assert_eq!(summary.failures, 1);
        assert_eq!(Summary::of_rounds("00", 1, &[]).seconds_per_round, None);
    }

    #[test]
    fn equal_models_have_equal_hashes() {
        assert_eq!(model_hash(&[1.0, -2.5]), model_hash(&[1.0, -2.5]));
        assert_ne!(model_hash(&[0.0]), model_hash(&[-0.0]), "bits decide");
        // SHA-256 of nothing.
        assert!(model_hash(&[]).starts_with("e3b0c44298fc1c14"));
    }
}
