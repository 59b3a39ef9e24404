//! `fedburn aggregate`: any strategy applied to safetensors files of any tool, without training.

mod state_file;
mod tensors;
mod update_file;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn::core::{
    AggregateError, ClientFailure, ClientId, ClientInfo, Event, LocalUpdate, MemoryStore, Metrics, Outcome,
    ParamVector, Reply, RoundIndex, SchemaError, Seed, SideInfo, StateError, StateStore, Strategy,
};
use fedburn::ops::Kernels;
use fedburn::runtime::{Coordinator, Effect, Input, RestoreError, SamplerConfig, SamplerError};
use fedburn::strategies::{StrategyConfig, StrategyConfigError};
use thiserror::Error;

use self::state_file::StateFile;
use self::tensors::Tensors;
pub use self::update_file::UpdateFile;
use crate::backend::BackendJob;

/// One round over files.
///
/// Float tensors (`F16`, `BF16`, `F32`, `F64`) are combined by the strategy in `f32` and stored in their own type, so
/// `F64` keeps 24 bits of precision. Integer and boolean tensors, such as batch counters, take the element-wise maximum
/// over clients. Tensors keep names, shapes and types; the metadata is the global file's.
#[derive(Clone, Debug)]
pub struct AggregateFiles {
    /// A file with what an experiment's `[strategy]` table holds, e.g. `kind = "fedavg"`.
    pub strategy: PathBuf,
    /// The vector that the clients started from.
    pub global: PathBuf,
    /// What the clients sent.
    pub updates: Vec<UpdateFile>,
    /// Number of clients that there are, `N`; the number of updates where not given.
    pub population: Option<u64>,
    /// The strategy's state and what it remembers of each client: read if the file is there, and written.
    pub state: Option<PathBuf>,
    /// Where the next global vector goes.
    pub out: PathBuf,
    /// Where the vector to evaluate and ship goes, which some strategies keep apart from the global one.
    pub deployed: Option<PathBuf>,
    /// The existing folder for the vectors that the strategy sends to clients of the next round besides the global one, each
    /// as `<name>.safetensors`.
    pub side: Option<PathBuf>,
    /// The root of the strategy's randomness.
    pub seed: u64,
}

/// What one call did.
#[derive(Clone, Debug)]
pub struct AggregateReport {
    /// The round, counted in the state file; 1 without one.
    pub round: RoundIndex,
    /// The strategy's name.
    pub strategy: &'static str,
    /// Number of values combined.
    pub parameters: usize,
    /// The strategy's own figures.
    pub metrics: Metrics,
    /// Numbers that the strategy sends to clients of the next round.
    pub side_scalars: BTreeMap<String, f64>,
    /// Files of the vectors that it sends.
    pub side_vectors: BTreeMap<String, PathBuf>,
    /// Tensors of type `F64`, of which 24 bits of precision were used.
    pub narrowed: Vec<String>,
}

/// Files that cannot be combined. Nothing was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AggregateFilesError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No update was given.
    #[error("no update was given; pass at least one --update FILE:EXAMPLES")]
    NoUpdates,
    /// There cannot be fewer clients than updates.
    #[error("a population of {population} clients cannot send {updates} updates")]
    Population {
        /// The number given.
        population: u64,
        /// Number of updates.
        updates: usize,
    },
    /// The strategy's settings cannot be used.
    #[error("{}: {source}", path.display())]
    Strategy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: StrategyConfigError,
    },
    /// The strategy failed.
    #[error("{source}")]
    Aggregate {
        /// The strategy's error.
        #[from]
        source: AggregateError,
    },
    /// The tensors make no usable model.
    #[error("{source}")]
    Schema {
        /// What is wrong.
        #[from]
        source: SchemaError,
    },
    /// The clients make no usable cohort.
    #[error("{source}")]
    Sampler {
        /// What is wrong.
        #[from]
        source: SamplerError,
    },
}

impl BackendJob for AggregateFiles {
    type Output = Result<AggregateReport, AggregateFilesError>;

    fn run<B: Kernels>(self, device: B::Device) -> Self::Output {
        combine::<B>(&self, &device)
    }
}

fn combine<B: Backend>(files: &AggregateFiles, device: &B::Device) -> Result<AggregateReport, AggregateFilesError> {
    let clients = files.clients()?;
    let strategy = files.strategy::<B>()?;
    let name = strategy.name();
    let global = Tensors::read(&files.global)?;
    let schema = Arc::new(global.schema()?);
    let vector = |values| ParamVector::<B>::from_host(values, schema.clone(), device);

    // The sampler that takes everybody, so that this is a round like any other.
    let infos: Vec<_> = clients.iter().map(|(info, _)| *info).collect();
    let sampler = SamplerConfig::All {}.build(&infos)?;
    let memory = Arc::new(MemoryStore::new());
    let mut coordinator =
        Coordinator::new(strategy, sampler, vector(global.floats())?, Seed::new(files.seed), infos.len())
            .with_population(files.population.unwrap_or_default())
            .with_memory(memory.clone());
    if let Some(path) = files.state.as_ref().filter(|path| path.exists()) {
        let unusable = |e: StateError| refuse(path, e.to_string());
        let StateFile { round, strategy, clients } = StateFile::read(path, name, schema.fingerprint())?;
        coordinator
            .restore(round, vector(global.floats())?, None, strategy)
            .map_err(|e: RestoreError| refuse(path, e.to_string()))?;
        let ids: Vec<_> = clients.iter().map(|(client, _)| *client).collect();
        for (client, state) in clients {
            memory.stage(client, round, state).map_err(unusable)?;
        }
        memory.commit(round, &ids).map_err(unusable)?;
    }

    let mut integers = BTreeMap::new();
    let mut effects = coordinator.step(Input::Begin(&infos), Duration::ZERO)?;
    for (info, update) in clients {
        let path = &update.path;
        let tensors = Tensors::read(path)?;
        global.ensure_like(&tensors)?;
        tensors.integers().into_iter().for_each(|(name, values)| maximum(&mut integers, name, values));
        let mut side = SideInfo::default();
        for (name, file) in &update.vectors {
            let values = global.floats_of(&Tensors::read(file)?)?;
            side.vectors.insert(name.clone().into(), vector(values)?);
        }
        side.scalars.extend(update.scalars.iter().map(|(name, value)| (name.clone().into(), *value)));
        let local = LocalUpdate {
            params: vector(tensors.floats())?,
            num_examples: info.num_examples,
            side,
            report: update.report.clone(),
            metrics: Metrics::new(),
        };
        let outcome = Outcome { client: info.id, reply: Ok(Reply::Trained(local)) };
        let step = coordinator.step(Input::Outcome(outcome), Duration::ZERO)?;
        let failed = step.iter().find_map(|effect| match effect {
            Effect::Emit(Event::ClientFailed { failure, .. }) => Some(failure.clone()),
            _ => None,
        });
        match failed {
            Some(ClientFailure::Malformed { reason }) => return Err(refuse(path, reason)),
            Some(other) => return Err(refuse(path, other.to_string())),
            None => effects.extend(step),
        }
    }
    let mut metrics = Metrics::new();
    for effect in effects {
        match effect {
            Effect::Emit(Event::RoundCommitted { metrics: of_round, .. }) => metrics = of_round,
            Effect::Close { round, included } => {
                memory.commit(round, &included).map_err(|e| refuse(&files.out, e.to_string()))?
            }
            _ => {}
        }
    }
    let mut report = AggregateReport {
        round: coordinator.finished(),
        strategy: name,
        parameters: schema.num_values(),
        metrics,
        side_scalars: BTreeMap::new(),
        side_vectors: BTreeMap::new(),
        narrowed: global.doubles(),
    };

    // The state last: a call that is cut off between two files can be repeated and gives the same.
    let mut written = vec![stage(&files.out, &global.with(&coordinator.global().to_host(), &integers)?)?];
    if let Some(path) = &files.deployed {
        written.push(stage(path, &global.with(&coordinator.deployed().to_host(), &integers)?)?);
    }
    let next = coordinator.strategy().side_info(report.round.next(), infos[0].id);
    report.side_scalars.extend(next.scalars.into_iter().map(|(name, value)| (name.into_owned(), value)));
    if let Some(dir) = &files.side {
        for (name, vector) in &next.vectors {
            let path = dir.join(format!("{name}.safetensors"));
            written.push(stage(&path, &global.floats_file(&vector.to_host())?)?);
            report.side_vectors.insert(name.to_string(), path);
        }
    }
    if let Some(path) = &files.state {
        let (strategy, clients) = (coordinator.strategy().state(), memory.newest());
        let file = StateFile { round: report.round, strategy, clients };
        let bytes = file.into_bytes(name, schema.fingerprint()).map_err(|e| refuse(path, e.to_string()))?;
        written.push(stage(path, &bytes)?);
    }
    written.into_iter().try_for_each(Staged::keep)?;
    Ok(report)
}

impl AggregateFiles {
    /// The clients of the round, sorted by id, with what they sent.
    fn clients(&self) -> Result<Vec<(ClientInfo, &UpdateFile)>, AggregateFilesError> {
        if self.updates.is_empty() {
            return Err(AggregateFilesError::NoUpdates);
        }
        let info = |(k, update): (usize, &UpdateFile)| ClientInfo {
            id: update.client.unwrap_or(ClientId(k as u64)),
            num_examples: update.num_examples,
        };
        let mut clients: Vec<_> = self.updates.iter().enumerate().map(|u| (info(u), u.1)).collect();
        clients.sort_by_key(|(info, _)| info.id);
        if let Some(pair) = clients.windows(2).find(|pair| pair[0].0.id == pair[1].0.id) {
            let (id, first) = (pair[0].0.id, pair[0].1.path.display());
            return Err(refuse(
                &pair[1].1.path,
                format!("is of client {id}, as is {first}; expected one update a client"),
            ));
        }
        if let Some((_, update)) = clients.iter().find(|(info, _)| info.num_examples == 0) {
            let reason = "0 examples, expected at least 1; leave the client out instead".to_owned();
            return Err(refuse(&update.path, reason));
        }
        match self.population {
            Some(population) if population < clients.len() as u64 => {
                Err(AggregateFilesError::Population { population, updates: clients.len() })
            }
            _ => Ok(clients),
        }
    }

    fn strategy<B: Backend>(&self) -> Result<Strategy<B>, AggregateFilesError> {
        let path = &self.strategy;
        let text = String::from_utf8(read(path)?).map_err(|e| refuse(path, e.to_string()))?;
        let config: StrategyConfig = toml::from_str(&text).map_err(|e| refuse(path, e.to_string()))?;
        config.build::<B>().map_err(|source| AggregateFilesError::Strategy { path: path.clone(), source })
    }
}

/// Takes the first client's values, and from then on the larger ones.
fn maximum(all: &mut BTreeMap<String, Vec<i128>>, name: String, values: Vec<i128>) {
    match all.get_mut(&name) {
        Some(best) => best.iter_mut().zip(values).for_each(|(best, value)| *best = (*best).max(value)),
        None => drop(all.insert(name, values)),
    }
}

fn refuse(path: &Path, reason: String) -> AggregateFilesError {
    AggregateFilesError::File { path: path.to_owned(), reason }
}

fn read(path: &Path) -> Result<Vec<u8>, AggregateFilesError> {
    std::fs::read(path).map_err(|source| AggregateFilesError::Io { path: path.to_owned(), source })
}

/// A file that is durable and not yet in its place.
struct Staged {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Staged {
    fn keep(self) -> Result<(), AggregateFilesError> {
        let Self { file, path } = self;
        file.persist(&path).map(drop).map_err(|e| AggregateFilesError::Io { path, source: e.error })
    }
}

/// Writes `bytes` to a temporary file beside `path`.
fn stage(path: &Path, bytes: &[u8]) -> Result<Staged, AggregateFilesError> {
    let io = |source| AggregateFilesError::Io { path: path.to_owned(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = staging().tempfile_in(dir).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io)?;
    Ok(Staged { file, path: path.to_owned() })
}

/// Temporary files that become results: as readable as any other file, not for their owner alone.
fn staging() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}
