//! An experiment file: what to run, checked before anything runs.

use std::path::{Path, PathBuf};

use fedburn::core::CompressionConfig;
use fedburn::data::datasets::{DatasetConfig, ReduceConfig, ServerDataConfig};
use fedburn::data::partition::PartitionConfig;
use fedburn::models::ZooConfig;
use fedburn::runtime::{AttackConfig, AvailabilityConfig, EarlyStopConfig, SamplerConfig, ServerConfig};
use fedburn::strategies::StrategyConfig;
use fedburn::train::{LocalTrainingConfig, SharpnessConfig};
use fedburn::transport::quic::QuicConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::federation::Durability;
use crate::initial_model::InitialModelConfig;
use crate::layers::{self, Change};
use crate::{Metric, MetricError};

/// An experiment as its TOML file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentConfig {
    /// What the experiment is, for lists and reports.
    pub title: String,
    /// The paper, table or page that it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// One run for each of these seeds.
    pub seeds: Vec<u64>,
    /// Fixes the split: the same for every seed of the experiment. Where absent, each seed splits anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_seed: Option<u64>,
    /// The examples.
    pub data: DatasetConfig,
    /// How much of them is used.
    #[serde(default, skip_serializing_if = "ReduceConfig::is_none")]
    pub reduce: ReduceConfig,
    /// How much of them the server has and no client; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_data: Option<ServerDataConfig>,
    /// How they are split among clients.
    pub partition: PartitionConfig,
    /// What clients hold out.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// The model.
    pub model: ZooConfig,
    /// What it begins with; with random values where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_model: Option<InitialModelConfig>,
    /// How clients train.
    pub client: LocalTrainingConfig,
    /// How their answers are combined.
    #[serde(default)]
    pub strategy: StrategyConfig,
    /// Who takes part.
    pub sampler: SamplerConfig,
    /// Which clients can be reached and which fail.
    #[serde(default)]
    pub availability: AvailabilityConfig,
    /// Which clients attack, and how; nobody where absent.
    #[serde(default, skip_serializing_if = "AttackConfig::is_none")]
    pub attack: AttackConfig,
    /// How the run is paced.
    pub server: ServerConfig,
    /// How models and updates are sent; as 32-bit floats where absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compression: CompressionConfig,
    /// When to end before the last round; never where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStopConfig>,
    /// How requests reach clients.
    #[serde(default)]
    pub transport: TransportConfig,
    /// What to run beside the federation.
    #[serde(default)]
    pub baselines: BaselinesConfig,
    /// What a sweep varies: dotted fields with their values, or names with a table of choices, each laid over the file.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub sweep: toml::Table,
    /// Executable claims about the results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<ExpectConfig>,
}

/// The `[evaluation]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Share of each client's examples that it holds out to evaluate on, in `[0, 1)`. Where it is 0, clients evaluate
    /// on their training examples.
    pub client_holdout: f64,
    /// How the sharpness of the final model's minimum is measured, on the test set; not at all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharpness: Option<SharpnessConfig>,
}

/// The `[transport]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TransportConfig {
    /// Worker threads in this process.
    InProcess {
        /// Number of threads, 0 for one a core. Does not change results.
        #[serde(default)]
        workers: usize,
    },
    /// Other processes that join over a network (`fedburn serve`). Does not change results either.
    Quic(Box<FederationConfig>),
}

/// The `[transport]` table of `kind = "quic"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FederationConfig {
    /// Number of clients that must be there before the first round; all of the partition where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for: Option<usize>,
    /// Seconds that the server waits for them; for ever where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_secs: Option<u64>,
    /// What the server has on disk of a round that is not over: `round`, `accumulator`, `update` or `auto`.
    pub durability: Durability,
    /// The network's settings.
    pub network: QuicConfig,
}

impl TransportConfig {
    /// Number of threads for what this process computes itself, 0 for one a core.
    pub fn workers(&self) -> usize {
        match self {
            Self::InProcess { workers } => *workers,
            Self::Quic(_) => 0,
        }
    }
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self::InProcess { workers: 0 }
    }
}

/// The `[baselines]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselinesConfig {
    /// Epochs of training on the pooled data of all clients; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub centralised_epochs: Option<usize>,
    /// Epochs of training of each client alone on its own data; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_only_epochs: Option<usize>,
}

/// An executable claim, an `[[expect]]` table: the mean over seeds of a metric lies within bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectConfig {
    /// A column of `rounds.csv`, `accuracy_over_centralised` or `accuracy_over_local_only`.
    pub metric: String,
    /// The round; the last one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_round: Option<u64>,
    /// Smallest mean that keeps the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Largest mean that keeps the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
}

/// An experiment file that cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, lacks a field, has an unknown one, or a value of the wrong type.
    #[error("{}{}: {reason}", path.display(), field.iter().map(|f| format!(": {f}")).collect::<String>())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The dotted name of the field; `None` where it is the file as a whole.
        field: Option<String>,
        /// What is wrong, with what was expected.
        reason: String,
    },
    /// A value that no run can work with.
    #[error("{}: [{table}] {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The table of the file.
        table: &'static str,
        /// The field, its value and what was expected.
        reason: String,
    },
    /// An override on the command line that cannot be applied.
    #[error("--set {text}: {reason}")]
    Override {
        /// The override as it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
}

impl ExperimentConfig {
    /// Reads and checks the shape of an experiment file and of those that it `extends`, with `overrides` of the form `table.field=value` applied.
    ///
    /// # Errors
    /// [`ConfigError`]. The values are checked by [`crate::assemble`], before anything runs.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        Self::of_table(path, layers::read(path)?, &changes(overrides)?)
    }

    /// [`ExperimentConfig::load`] for text that is already in memory; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(path: &Path, text: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        Self::of_table(path, layers::parse(path, text)?, &changes(overrides)?)
    }

    /// The config of a file's table after `changes`; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn of_table(path: &Path, mut table: toml::Table, changes: &[Change]) -> Result<Self, ConfigError> {
        changes.iter().try_for_each(|change| change.apply(&mut table))?;
        let config: Self = serde_path_to_error::deserialize(table).map_err(|e| {
            let field = Some(e.path().to_string()).filter(|field| field != ".");
            ConfigError::Parse { path: path.to_owned(), field, reason: plain_words(e.into_inner().message()) }
        })?;
        config.check(path)?;
        Ok(config)
    }

    /// Checks that there is a seed and none twice.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] for the field `seeds`.
    pub fn check_seeds(&self, path: &Path) -> Result<(), ConfigError> {
        let refuse =
            |reason| Err(ConfigError::Parse { path: path.to_owned(), field: Some("seeds".to_owned()), reason });
        if self.seeds.is_empty() {
            return refuse("is empty, expected at least one seed".to_owned());
        }
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        match seeds.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => refuse(format!("holds {} twice, expected different seeds", pair[0])),
            None => Ok(()),
        }
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let refuse = |table, reason: String| Err(ConfigError::Value { path: path.to_owned(), table, reason });
        self.check_seeds(path)?;
        let holdout = self.evaluation.client_holdout;
        if !(0.0..1.0).contains(&holdout) {
            return refuse("evaluation", format!("`client_holdout` is {holdout}, expected a share in [0, 1)"));
        }
        if let Some(Err(error)) = self.evaluation.sharpness.map(SharpnessConfig::build) {
            return refuse("evaluation.sharpness", error.to_string());
        }
        for (field, epochs) in [
            ("centralised_epochs", self.baselines.centralised_epochs),
            ("local_only_epochs", self.baselines.local_only_epochs),
        ] {
            if epochs == Some(0) {
                return refuse(
                    "baselines",
                    format!("`{field}` is 0, expected at least 1; leave it out for no such baseline"),
                );
            }
        }
        if let Err(error) = self.compression.check() {
            return refuse("compression", error.to_string());
        }
        if let TransportConfig::Quic(federation) = &self.transport
            && let Err(error) = federation.network.check()
        {
            return refuse("transport.network", error.to_string());
        }
        for expect in &self.expect {
            if let Err(reason) = self.check_claim(expect) {
                return refuse("expect", reason);
            }
        }
        Ok(())
    }

    /// A claim that could never be met would be found out only after the run.
    fn check_claim(&self, expect: &ExpectConfig) -> Result<(), String> {
        let metric: Metric = expect.metric.parse().map_err(|e: MetricError| e.to_string())?;
        let needed = match metric {
            Metric::AccuracyOverCentralised => Some(("centralised_epochs", self.baselines.centralised_epochs)),
            Metric::AccuracyOverLocalOnly => Some(("local_only_epochs", self.baselines.local_only_epochs)),
            _ => None,
        };
        if let Some((field, None)) = needed {
            return Err(format!("metric `{metric}` needs [baselines] {field}, which is not set"));
        }
        if expect.at_least.is_none() && expect.at_most.is_none() {
            return Err(format!("metric `{metric}` has no bound, expected at_least or at_most"));
        }
        match expect.at_round.filter(|&round| round > self.server.rounds) {
            Some(round) => {
                Err(format!("`at_round` is {round}, expected at most [server] rounds = {}", self.server.rounds))
            }
            None => Ok(()),
        }
    }

    /// Identifies what one seed of this experiment computes: a SHA-256 over every field that can change its results,
    /// the backend and the seed. Titles, claims, other seeds, the number of workers and where the initial model's file lies
    /// are left out; what that holds counts once the config was assembled.
    pub fn run_hash(&self, backend: &str, seed: u64) -> String {
        let mut relevant = self.clone();
        relevant.title.clear();
        relevant.reference = None;
        relevant.seeds.clear();
        relevant.expect.clear();
        relevant.sweep.clear();
        relevant.transport = TransportConfig::default();
        relevant.initial_model = relevant.initial_model.map(|initial| initial.without_place());
        // serde_json's maps are sorted, so the text does not depend on the order of fields in the file.
        let value = serde_json::to_value(&relevant).unwrap_or_default();
        let digest = Sha256::digest(format!("fedburn run 1\n{backend}\n{seed}\n{value}"));
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The file with every default written out, for this seed alone.
    pub fn resolved(&self, seed: u64) -> String {
        let one = Self { seeds: vec![seed], sweep: toml::Table::new(), ..self.clone() };
        // A table of plain values always has a TOML form; were it not so, the debug form says what was run.
        toml::to_string_pretty(&one).unwrap_or_else(|_| format!("# {one:?}"))
    }

    /// A small version that shows in seconds that everything works: two rounds, one seed, short baselines.
    #[must_use]
    pub fn smoke(mut self) -> Self {
        self.seeds.truncate(1);
        self.server.rounds = self.server.rounds.min(2);
        self.server.checkpoint_every = self.server.checkpoint_every.min(1);
        self.baselines.centralised_epochs = self.baselines.centralised_epochs.map(|_| 1);
        self.baselines.local_only_epochs = self.baselines.local_only_epochs.map(|_| 1);
        if let Some(sharpness) = &mut self.evaluation.sharpness {
            sharpness.examples = sharpness.examples.min(32);
            sharpness.iterations = sharpness.iterations.min(2);
            sharpness.points = sharpness.points.min(3);
        }
        self.expect.clear();
        self
    }
}

/// Absent from files and hashes of runs that were made before there was such a table.
fn is_default(compression: &CompressionConfig) -> bool {
    *compression == CompressionConfig::default()
}

fn changes(overrides: &[String]) -> Result<Vec<Change>, ConfigError> {
    overrides.iter().map(|text| Change::parse(text)).collect()
}

/// A deserialiser's message without the names of Rust types, which say nothing to the writer of a file.
fn plain_words(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let plain = match expected {
        "f64" | "f32" => "a number",
        "u64" | "usize" | "u32" => "a whole number of at least 0",
        word if word.starts_with("struct ") || word.starts_with("internally tagged enum ") => "a table",
        word if word.starts_with("a map") => "a table",
        "a sequence" => "a list, as in [0, 1]",
        word => word,
    };
    format!("{found}, expected {plain}")
}
