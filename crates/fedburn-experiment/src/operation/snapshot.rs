//! What a federation is doing at one moment.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use fedburn::runtime::RoundRow;
use fedburn::transport::quic::{NetworkStatus, Traffic};
use serde::{Deserialize, Serialize};

use super::Job;
use crate::results::{RunStatus, SeedResults};
use crate::run::causes;

/// What a federation is doing, or did before it ended. Sums count from the start of the server's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Which run it is.
    pub run: RunFacts,
    /// How the run stands.
    pub state: JobState,
    /// What the server is doing.
    pub phase: Phase,
    /// Start of the server's process, seconds since 1970-01-01 UTC.
    pub started: u64,
    /// Seconds since then; 0 where no server runs.
    pub uptime_secs: f64,
    /// The round that is under way, or the last one.
    pub round: u64,
    /// The round that ends the run.
    pub rounds: u64,
    /// Values of the model; 0 before the first round.
    pub parameters: u64,
    /// Clients that must be there before the first round.
    pub wanted: u64,
    /// Who was asked in the round.
    pub cohort: Cohort,
    /// The last round that was written down.
    pub last: Option<RoundRow>,
    /// The round after which the run goes on if the server is killed now; `None` where no server tells it.
    pub checkpoint: Option<u64>,
    /// What a killed server loses, in words; nothing where no server tells it.
    pub durability: String,
    /// Sums over rounds.
    pub totals: Totals,
    /// Seconds of committed rounds.
    pub round_seconds: Histogram,
    /// The last failures, oldest first, at most [`Snapshot::FAILURES`].
    pub failures: Vec<Failure>,
    /// Bytes of models and updates per second over the last seconds.
    pub rate: Traffic,
    /// The network.
    pub network: NetworkStatus,
}

impl Snapshot {
    /// Failures that are told one by one.
    pub const FAILURES: usize = 20;

    /// Before anything is known of a run.
    pub(super) fn new(run: RunFacts, started: u64) -> Self {
        Self {
            run,
            state: JobState::Running,
            phase: Phase::Starting,
            started,
            uptime_secs: 0.0,
            round: 0,
            rounds: 0,
            parameters: 0,
            wanted: 0,
            cohort: Cohort::default(),
            last: None,
            checkpoint: None,
            durability: String::new(),
            totals: Totals::default(),
            round_seconds: Histogram::default(),
            failures: Vec::new(),
            rate: Traffic::default(),
            network: NetworkStatus::default(),
        }
    }

    /// What the folder of a run says of it, where its server, if it `is_served`, does not tell.
    pub(super) fn of_folder(job: &Job, is_served: bool) -> Self {
        let mut snapshot = Self::new(job.run.clone(), job.started);
        let found = SeedResults::load(job.run.seed, &job.run.results);
        (snapshot.state, snapshot.phase) = match found.run.as_ref().map(|info| &info.status) {
            Some(RunStatus::Finished {}) => (JobState::Finished, Phase::Ended),
            Some(RunStatus::Failed { cause }) => (JobState::Failed { cause: cause.join(": ") }, Phase::Ended),
            _ if is_served => (JobState::Running, Phase::Unknown),
            _ => (JobState::Interrupted, Phase::Ended),
        };
        snapshot.rounds = found.run.map_or(0, |info| info.rounds);
        snapshot.tell_rounds(&RoundRows::read(&job.run));
        snapshot
    }

    /// Takes the last round from rows that were written before.
    pub(super) fn tell_rounds(&mut self, rows: &[RoundRow]) {
        self.last = rows.last().cloned();
        self.round = self.last.as_ref().map_or(0, |row| row.round.0);
    }
}

/// The rows of a run's `rounds.csv`.
pub(crate) struct RoundRows;

impl RoundRows {
    /// None where the file is not there or damaged: what is shown is then what comes.
    pub(crate) fn read(run: &RunFacts) -> Vec<RoundRow> {
        fedburn::runtime::RoundsCsv::read(run.results.join("rounds.csv")).unwrap_or_default()
    }
}

/// Which run it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFacts {
    /// The experiment, `suite/name`.
    pub name: String,
    /// Its title.
    pub title: String,
    /// The seed.
    pub seed: u64,
    /// What `run.json` calls `config_hash`.
    pub hash: String,
    /// Where the server's tensors live.
    pub backend: String,
    /// The folder of results, absolute.
    pub results: PathBuf,
}

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobState {
    /// A server runs it.
    Running,
    /// All rounds are done.
    Finished,
    /// It was stopped or killed; the same command goes on.
    Interrupted,
    /// An error ended it.
    Failed {
        /// The error and its sources.
        cause: String,
    },
}

impl JobState {
    /// Ended by this error.
    pub fn failed(error: &dyn Error) -> Self {
        Self::Failed { cause: causes(error).join(": ") }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Finished => f.write_str("finished"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Failed { cause } => write!(f, "failed: {cause}"),
        }
    }
}

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It assembles data and model.
    Starting,
    /// It waits for clients.
    Waiting,
    /// Clients compute, models and updates travel.
    Training,
    /// All have answered.
    Aggregating,
    /// The round is done; the model is being measured, or written down.
    Evaluating,
    /// The rounds are over; results are being written.
    Finishing,
    /// It was asked to end, and finishes what is under way.
    Draining,
    /// Nothing more.
    Ended,
    /// A server runs, but has no page that could be asked.
    Unknown,
}

impl Phase {
    /// Every phase that a server tells, in their order.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Waiting,
        Self::Training,
        Self::Aggregating,
        Self::Evaluating,
        Self::Finishing,
        Self::Draining,
        Self::Ended,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Training => "training",
            Self::Aggregating => "aggregating",
            Self::Evaluating => "evaluating",
            Self::Finishing => "finishing",
            Self::Draining => "draining",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }
}

/// The clients of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cohort {
    /// Asked to train.
    pub asked: u64,
    /// Their updates were accepted.
    pub answered: u64,
    /// They failed, or their updates were refused.
    pub failed: u64,
}

/// Sums over rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Rounds that made a new model.
    pub rounds_committed: u64,
    /// Rounds that did not reach their quorum.
    pub rounds_abandoned: u64,
    /// Updates that were accepted.
    pub updates: u64,
    /// Clients that did not deliver one, by the kind of failure.
    pub failures: BTreeMap<String, u64>,
}

/// A client that did not deliver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The round.
    pub round: u64,
    /// The client.
    pub client: u64,
    /// Why.
    pub reason: String,
}

/// How often a duration was how long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// For each of [`Histogram::BOUNDS`] the number of durations of at most so many seconds, longer than the bound
    /// before.
    pub counts: [u64; Histogram::BOUNDS.len()],
    /// Durations of any length.
    pub count: u64,
    /// Seconds in all.
    pub sum: f64,
}

impl Histogram {
    /// Seconds: from the empty round on loopback to one of a day.
    pub const BOUNDS: [f64; 14] =
        [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];

    /// Counts a duration.
    pub fn observe(&mut self, seconds: f64) {
        if let Some(index) = Self::BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.counts[index] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}
