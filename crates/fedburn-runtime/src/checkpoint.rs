//! Everything a run needs to go on after a round.
//!
//! ```text
//! round-00000010/
//!   manifest.json        round, model, strategy, config hash, totals
//!   global.safetensors   the global vector, readable by any tool
//!   deploy.safetensors   the vector to ship, where it is another one
//!   strategy.safetensors the strategy's state
//!   SHA256SUMS           checksum of each file; `sha256sum -c SHA256SUMS` checks a copy
//! ```
//!
//! A checkpoint is written under another name, synced, and then renamed: it is there whole or not at all. The one
//! before it is kept too, in case a disk spoils the newest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{ParamSchema, ParamVector, RoundIndex, StateDict};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use fedburn_durable as durable;

/// A run after a round.
#[derive(Clone, Debug)]
pub struct Checkpoint<B: Backend> {
    /// The last finished round.
    pub round: RoundIndex,
    /// Identifies the run: the hash of its resolved config.
    pub config_hash: String,
    /// The vector that the next cohort starts from.
    pub global: ParamVector<B>,
    /// The vector that is evaluated and shipped, where it is another one.
    pub deploy: Option<ParamVector<B>>,
    /// Name of the strategy.
    pub strategy: String,
    /// Its state.
    pub strategy_state: StateDict,
    /// What the run has cost so far.
    pub totals: RunTotals,
}

impl<B: Backend> Checkpoint<B> {
    /// Checks that a run with this strategy and config may go on from here.
    ///
    /// # Errors
    /// [`CheckpointError::OtherStrategy`], [`CheckpointError::OtherConfig`].
    pub fn ensure_of(&self, strategy: &str, config_hash: &str) -> Result<(), CheckpointError> {
        if self.strategy != strategy {
            let (expected, found) = (strategy.to_owned(), self.strategy.clone());
            return Err(CheckpointError::OtherStrategy { round: self.round, expected, found });
        }
        if self.config_hash != config_hash {
            let (expected, found) = (config_hash.to_owned(), self.config_hash.clone());
            return Err(CheckpointError::OtherConfig { round: self.round, expected, found });
        }
        Ok(())
    }
}

/// Counters that go on across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTotals {
    /// Updates that went into a global vector.
    pub updates: u64,
    /// Requests that clients did not fulfil.
    pub failures: u64,
    /// Rounds that did not reach their quorum.
    pub abandoned: u64,
    /// Bytes sent to clients.
    pub bytes_down: u64,
    /// Bytes received from clients.
    pub bytes_up: u64,
    /// Wall-clock seconds spent in rounds.
    pub seconds: f64,
}

/// The checkpoints of one run.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use burn_flex::{Flex, FlexDevice};
/// use fedburn_core::{ParamEntry, ParamKind, ParamSchema, ParamVector, RoundIndex, StateDict};
/// use fedburn_runtime::{Checkpoint, CheckpointDir, RunTotals};
///
/// let schema = Arc::new(ParamSchema::new(vec![ParamEntry::new("weight", vec![2], ParamKind::Weight)])?);
/// let directory = tempfile::tempdir()?;
/// let checkpoints = CheckpointDir::open(directory.path())?;
/// checkpoints.save(&Checkpoint {
///     round: RoundIndex(10),
///     config_hash: "5f0c".to_owned(),
///     global: ParamVector::<Flex>::from_host(vec![1.0, 2.0], schema.clone(), &FlexDevice)?,
///     deploy: None,
///     strategy: "fedavg".to_owned(),
///     strategy_state: StateDict::new(),
///     totals: RunTotals::default(),
/// })?;
/// let latest = checkpoints.latest::<Flex>(&schema, &FlexDevice)?.expect("one was saved");
/// latest.ensure_of("fedavg", "5f0c")?;
/// assert_eq!(latest.global.to_host(), [1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CheckpointDir {
    path: PathBuf,
}

/// A checkpoint that cannot be written, read or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file system refused.
    #[error("checkpoint {path}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The vectors or the state cannot be encoded.
    #[error("checkpoint after round {round}: {reason}")]
    Encode {
        /// The checkpoint's round.
        round: RoundIndex,
        /// Why.
        reason: String,
    },
    /// None of the checkpoints can be read.
    #[error("all checkpoints in {path} are damaged ({reason}); delete the directory to start over")]
    Damaged {
        /// The directory.
        path: String,
        /// What is wrong with the newest.
        reason: String,
    },
    /// The checkpoint is of another model.
    #[error("the checkpoint after round {round} is of another model ({reason}); start over or use another directory")]
    OtherModel {
        /// The checkpoint's round.
        round: RoundIndex,
        /// How the models differ.
        reason: String,
    },
    /// The checkpoint is of another strategy.
    #[error(
        "the checkpoint after round {round} is of strategy `{found}`, not `{expected}`; start over or use another directory"
    )]
    OtherStrategy {
        /// The checkpoint's round.
        round: RoundIndex,
        /// The run's strategy.
        expected: String,
        /// The checkpoint's.
        found: String,
    },
    /// The checkpoint is of a run with another config.
    #[error(
        "the checkpoint after round {round} is of config {found}, not {expected}; start over, restore the config or use another directory"
    )]
    OtherConfig {
        /// The checkpoint's round.
        round: RoundIndex,
        /// The run's config hash.
        expected: String,
        /// The checkpoint's.
        found: String,
    },
}

impl CheckpointDir {
    /// Uses the directory `path`, which is made where it is missing. Half-written checkpoints are removed.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let path = path.into();
        let clean = || -> io::Result<()> {
            fs::create_dir_all(&path)?;
            for entry in fs::read_dir(&path)? {
                let entry = entry?.path();
                if entry.extension().is_some_and(|extension| extension == UNFINISHED) {
                    fs::remove_dir_all(&entry)?;
                }
            }
            Ok(())
        };
        clean().map_err(|source| failed(&path, source))?;
        Ok(Self { path })
    }

    /// Writes a checkpoint; it is on disk when this returns. The one before it is kept, older ones are removed, and so
    /// are those of later rounds, which the run left behind when it went on from an earlier one.
    ///
    /// Gives the oldest round that the run may still be asked to go on from, for
    /// [`StateStore::checkpointed`](fedburn_core::StateStore::checkpointed).
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Encode`].
    pub fn save<B: Backend>(&self, checkpoint: &Checkpoint<B>) -> Result<RoundIndex, CheckpointError> {
        let files = encode(checkpoint)?;
        let place = self.place(checkpoint.round);
        let unfinished = place.with_extension(UNFINISHED);
        let write = || -> io::Result<()> {
            durable::unless_missing(durable::remove_dir_all(&unfinished))?;
            durable::create_dir(&unfinished)?;
            files.iter().try_for_each(|(name, bytes)| durable::write_synced(&unfinished.join(name), bytes))?;
            durable::sync_directory(&unfinished)?;
            // A run that reaches a round again went on from before it, because this one was damaged.
            durable::unless_missing(durable::remove_dir_all(&place))?;
            durable::rename(&unfinished, &place)?;
            durable::sync_directory(&self.path)
        };
        write().map_err(|source| failed(&place, source))?;

        let rounds = self.rounds()?;
        let (later, mut usable): (Vec<_>, Vec<_>) = rounds.into_iter().partition(|round| *round > checkpoint.round);
        let kept = usable.split_off(usable.len().saturating_sub(KEPT));
        for round in later.into_iter().chain(usable) {
            let place = self.place(round);
            durable::unless_missing(durable::remove_dir_all(&place)).map_err(|source| failed(&place, source))?;
        }
        Ok(kept.first().copied().unwrap_or(checkpoint.round))
    }

    /// The newest checkpoint that is whole; a damaged newer one is passed over with a warning. `None` where the run
    /// has not got to its first.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] where there are checkpoints and none is whole, [`CheckpointError::OtherModel`],
    /// [`CheckpointError::Io`].
    pub fn latest<B: Backend>(
        &self,
        schema: &Arc<ParamSchema>,
        device: &B::Device,
    ) -> Result<Option<Checkpoint<B>>, CheckpointError> {
        let mut newest_damage = None;
        for round in self.rounds()?.into_iter().rev() {
            let place = self.place(round);
            match decode(&place, round, schema, device) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(Unusable::OtherModel(reason)) => return Err(CheckpointError::OtherModel { round, reason }),
                Err(Unusable::Damaged(reason)) => {
                    tracing::warn!(checkpoint = %place.display(), reason, "checkpoint.damaged");
                    newest_damage.get_or_insert(reason);
                }
            }
        }
        match newest_damage {
            None => Ok(None),
            Some(reason) => Err(CheckpointError::Damaged { path: self.path.display().to_string(), reason }),
        }
    }

    /// Removes every checkpoint, for a run that starts over.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn clear(&self) -> Result<(), CheckpointError> {
        for round in self.rounds()?.into_iter().rev() {
            let place = self.place(round);
            durable::remove_dir_all(&place).map_err(|source| failed(&place, source))?;
        }
        durable::sync_directory(&self.path).map_err(|source| failed(&self.path, source))
    }

    /// The rounds with a checkpoint, damaged ones included, sorted.
    fn rounds(&self) -> Result<Vec<RoundIndex>, CheckpointError> {
        let entries = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|source| failed(&self.path, source))?;
        let round = |name: &str| Some(RoundIndex(name.strip_prefix("round-")?.parse().ok()?));
        let mut rounds: Vec<_> = entries.iter().filter_map(|entry| round(entry.file_name().to_str()?)).collect();
        rounds.sort_unstable();
        Ok(rounds)
    }

    fn place(&self, round: RoundIndex) -> PathBuf {
        self.path.join(format!("round-{:08}", round.0))
    }
}

/// What a checkpoint says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    round: RoundIndex,
    config_hash: String,
    schema: ParamSchema,
    strategy: String,
    totals: RunTotals,
}

/// Why a checkpoint was not taken.
enum Unusable {
    Damaged(String),
    OtherModel(String),
}

fn encode<B: Backend>(checkpoint: &Checkpoint<B>) -> Result<BTreeMap<&'static str, Vec<u8>>, CheckpointError> {
    let refuse = |reason: String| CheckpointError::Encode { round: checkpoint.round, reason };
    let vector = |params: &ParamVector<B>| params.to_safetensors().map_err(|e| refuse(e.to_string()));
    let manifest = Manifest {
        version: VERSION,
        round: checkpoint.round,
        config_hash: checkpoint.config_hash.clone(),
        schema: ParamSchema::clone(checkpoint.global.schema()),
        strategy: checkpoint.strategy.clone(),
        totals: checkpoint.totals,
    };
    let mut files = BTreeMap::from([
        (MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(|e| refuse(e.to_string()))?),
        (GLOBAL, vector(&checkpoint.global)?),
        (STRATEGY, checkpoint.strategy_state.to_bytes().map_err(|e| refuse(e.to_string()))?),
    ]);
    if let Some(deploy) = &checkpoint.deploy {
        files.insert(DEPLOY, vector(deploy)?);
    }
    let sums = files.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes))).collect::<String>();
    files.insert(SUMS, sums.into_bytes());
    Ok(files)
}

fn decode<B: Backend>(
    place: &Path,
    round: RoundIndex,
    schema: &Arc<ParamSchema>,
    device: &B::Device,
) -> Result<Checkpoint<B>, Unusable> {
    let damaged = |name: &str, reason: String| Unusable::Damaged(format!("{name}: {reason}"));
    let read = |name: &str| fs::read(place.join(name)).map_err(|e| damaged(name, e.to_string()));
    let sums = String::from_utf8(read(SUMS)?).map_err(|e| damaged(SUMS, e.to_string()))?;
    // The list must end as it was written: a cut in it would hide a file.
    let complete = sums.ends_with(&format!("  {STRATEGY}\n"));
    let mut files = BTreeMap::new();
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").ok_or_else(|| damaged(SUMS, format!("line `{line}`")))?;
        let bytes = read(name)?;
        if sha256(&bytes) != sum {
            return Err(damaged(name, "its checksum is another".to_owned()));
        }
        files.insert(name, bytes);
    }
    let file = |name: &str| files.get(name).filter(|_| complete).ok_or_else(|| damaged(SUMS, "incomplete".to_owned()));
    let vector = |name: &str| {
        let params = ParamVector::from_safetensors(file(name)?, schema.clone(), device);
        params.map_err(|e| damaged(name, e.to_string()))
    };

    let manifest: Manifest = serde_json::from_slice(file(MANIFEST)?).map_err(|e| damaged(MANIFEST, e.to_string()))?;
    if manifest.version != VERSION || manifest.round != round {
        let found = format!("version {}, round {}", manifest.version, manifest.round);
        return Err(damaged(MANIFEST, format!("{found}; expected version {VERSION}, round {round}")));
    }
    schema.ensure_same(&manifest.schema).map_err(|e| Unusable::OtherModel(e.to_string()))?;
    let strategy_state = StateDict::from_bytes(file(STRATEGY)?).map_err(|e| damaged(STRATEGY, e.to_string()))?;
    Ok(Checkpoint {
        round,
        config_hash: manifest.config_hash,
        global: vector(GLOBAL)?,
        deploy: files.contains_key(DEPLOY).then(|| vector(DEPLOY)).transpose()?,
        strategy: manifest.strategy,
        strategy_state,
        totals: manifest.totals,
    })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn failed(path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io { path: path.display().to_string(), source }
}

const VERSION: u32 = 1;
/// Checkpoints kept: the newest, and one to fall back to.
const KEPT: usize = 2;
const UNFINISHED: &str = "unfinished";
const MANIFEST: &str = "manifest.json";
const GLOBAL: &str = "global.safetensors";
const DEPLOY: &str = "deploy.safetensors";
const STRATEGY: &str = "strategy.safetensors";
const SUMS: &str = "SHA256SUMS";
