//! `fedburn aggregate`: any strategy applied to safetensors files of any tool, without training.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn::core::{
    AggregateError, ClientFailure, ClientId, ClientInfo, ClientReport, Event, LocalUpdate, Metrics, Outcome,
    ParamEntry, ParamKind, ParamSchema, ParamVector, Reply, RoundIndex, SchemaError, Seed, SideInfo, StateDict,
    StateError,
};
use fedburn::ops::Kernels;
use fedburn::runtime::{Coordinator, Effect, Input, RestoreError, SamplerConfig, SamplerError};
use fedburn::strategies::{StrategyConfig, StrategyConfigError};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors};
use thiserror::Error;

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
    /// The clients' files and numbers of examples; a client is known by its place in the list.
    pub updates: Vec<(PathBuf, u64)>,
    /// The strategy's state: read if the file is there, and written.
    pub state: Option<PathBuf>,
    /// Where the next global vector goes.
    pub out: PathBuf,
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
    if files.updates.is_empty() {
        return Err(AggregateFilesError::NoUpdates);
    }
    let text = read(&files.strategy)?;
    let text = String::from_utf8(text).map_err(|e| refuse(&files.strategy, e.to_string()))?;
    let config: StrategyConfig = toml::from_str(&text).map_err(|e| refuse(&files.strategy, e.to_string()))?;
    let build = |config: StrategyConfig| {
        config.build::<B>().map_err(|source| AggregateFilesError::Strategy { path: files.strategy.clone(), source })
    };
    let strategy = build(config.clone())?;
    let name = strategy.name();

    let global = Tensors::read(&files.global)?;
    let schema = Arc::new(global.schema()?);
    let vector = |tensors: &Tensors| ParamVector::<B>::from_host(tensors.floats(), schema.clone(), device);
    let clients: Vec<_> = files
        .updates
        .iter()
        .enumerate()
        .map(|(k, (_, n))| ClientInfo { id: ClientId(k as u64), num_examples: *n })
        .collect();
    if let Some((path, _)) = files.updates.iter().find(|(_, n)| *n == 0) {
        return Err(refuse(path, "0 examples, expected at least 1; leave the client out instead".to_owned()));
    }
    // The sampler that takes everybody, so that this is a round like any other.
    let sampler = SamplerConfig::All {}.build(&clients)?;
    let mut coordinator = Coordinator::new(strategy, sampler, vector(&global)?, Seed::new(files.seed), clients.len());
    if let Some(path) = files.state.as_ref().filter(|path| path.exists()) {
        let (round, state) = read_state(path, name, schema.fingerprint())?;
        let global = vector(&global)?;
        coordinator.restore(round, global, None, state).map_err(|e: RestoreError| refuse(path, e.to_string()))?;
    }

    let mut integers = BTreeMap::new();
    let mut effects = coordinator.step(Input::Begin(&clients), Duration::ZERO)?;
    for (info, (path, num_examples)) in clients.iter().zip(&files.updates) {
        let tensors = Tensors::read(path)?;
        global.ensure_like(&tensors, path)?;
        tensors.integers().into_iter().for_each(|(name, values)| maximum(&mut integers, name, values));
        let local = LocalUpdate {
            params: vector(&tensors)?,
            num_examples: *num_examples,
            side: SideInfo::default(),
            report: ClientReport::default(),
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
    let metrics = effects.into_iter().find_map(|effect| match effect {
        Effect::Emit(Event::RoundCommitted { metrics, .. }) => Some(metrics),
        _ => None,
    });

    let next = global.with(&coordinator.global().to_host(), &integers)?;
    // The model first: a call that is cut off between the two files can be repeated and gives the same.
    let next = stage(&files.out, &next)?;
    let state = match &files.state {
        Some(path) => {
            let bytes = state_bytes(coordinator.finished(), name, schema.fingerprint(), coordinator.strategy().state());
            Some((path, stage(path, &bytes.map_err(|e| refuse(path, e.to_string()))?)?))
        }
        None => None,
    };
    keep(next, &files.out)?;
    if let Some((path, state)) = state {
        keep(state, path)?;
    }
    Ok(AggregateReport {
        round: coordinator.finished(),
        strategy: name,
        parameters: schema.num_values(),
        metrics: metrics.unwrap_or_default(),
        narrowed: global.entries.iter().filter(|(_, t)| t.dtype == Dtype::F64).map(|(name, _)| name.clone()).collect(),
    })
}

/// A safetensors file in memory.
struct Tensors {
    path: PathBuf,
    /// The length of the header and the header itself, as the file has them.
    header: Vec<u8>,
    /// Sorted by name.
    entries: BTreeMap<String, StoredTensor>,
}

struct StoredTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where the data begin, counted from the end of the header.
    offset: usize,
    data: Vec<u8>,
}

impl Tensors {
    fn read(path: &Path) -> Result<Self, AggregateFilesError> {
        let mut bytes = read(path)?;
        let damaged = |e: safetensors::SafeTensorError| refuse(path, format!("not a whole safetensors file: {e}"));
        let (length, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let body = bytes.split_off(8 + length);
        let mut entries = BTreeMap::new();
        for (name, info) in header.tensors() {
            let (dtype, shape, (offset, end)) = (info.dtype, info.shape.clone(), info.data_offsets);
            if !is_float(dtype) && integer_size(dtype).is_none() {
                let reason = format!("tensor `{name}` is {dtype:?}, expected a float, integer or boolean type");
                return Err(refuse(path, reason));
            }
            let Some(data) = body.get(offset..end).map(<[u8]>::to_vec) else {
                return Err(refuse(path, format!("not a whole safetensors file: tensor `{name}` is cut off")));
            };
            entries.insert(name, StoredTensor { dtype, shape, offset, data });
        }
        let tensors = Self { path: path.to_owned(), header: bytes, entries };
        if let Some(name) = tensors.non_finite() {
            let reason = "holds a NaN, an infinity or a value beyond the range of 32-bit floats";
            return Err(refuse(path, format!("tensor `{name}` {reason}")));
        }
        Ok(tensors)
    }

    fn float_entries(&self) -> impl Iterator<Item = (&String, &StoredTensor)> {
        self.entries.iter().filter(|(_, t)| is_float(t.dtype))
    }

    /// Checked on the file's own type: an `F64` beyond the range of `f32` is no usable parameter either.
    fn non_finite(&self) -> Option<&String> {
        self.float_entries()
            .find(|(_, t)| decode(t.dtype, &t.data).iter().any(|v| !v.is_finite()))
            .map(|(name, _)| name)
    }

    fn schema(&self) -> Result<ParamSchema, AggregateFilesError> {
        let kind = |name: &str| match name.rsplit('.').next() {
            Some("running_mean" | "running_var") => ParamKind::Buffer,
            _ => ParamKind::Weight,
        };
        let entries: Vec<_> =
            self.float_entries().map(|(name, t)| ParamEntry::new(name.clone(), t.shape.clone(), kind(name))).collect();
        match entries.is_empty() {
            true => Err(refuse(&self.path, "holds no float tensor".to_owned())),
            false => Ok(ParamSchema::new(entries)?),
        }
    }

    fn floats(&self) -> Vec<f32> {
        self.float_entries().flat_map(|(_, t)| decode(t.dtype, &t.data)).collect()
    }

    fn integers(&self) -> BTreeMap<String, Vec<i128>> {
        let integers = self.entries.iter().filter_map(|(name, t)| Some((name.clone(), decode_integers(t)?)));
        integers.collect()
    }

    /// Refuses `other` where it does not have the same names, shapes and types.
    fn ensure_like(&self, other: &Self, path: &Path) -> Result<(), AggregateFilesError> {
        for (name, expected) in &self.entries {
            let Some(found) = other.entries.get(name) else {
                return Err(refuse(path, format!("tensor `{name}` of {} is missing", self.path.display())));
            };
            if (found.dtype, &found.shape) != (expected.dtype, &expected.shape) {
                let (f, e) = (found, expected);
                let reason =
                    format!("tensor `{name}` is {:?} {:?}, expected {:?} {:?}", f.dtype, f.shape, e.dtype, e.shape);
                return Err(refuse(path, reason));
            }
        }
        match other.entries.keys().find(|name| !self.entries.contains_key(*name)) {
            Some(name) => Err(refuse(path, format!("tensor `{name}` is not in {}", self.path.display()))),
            None => Ok(()),
        }
    }

    /// The same file, with its header as it is, around other values.
    fn with(&self, floats: &[f32], integers: &BTreeMap<String, Vec<i128>>) -> Result<Vec<u8>, AggregateFilesError> {
        let mut rest = floats;
        let mut file = self.header.clone();
        file.resize(self.header.len() + self.entries.values().map(|t| t.data.len()).sum::<usize>(), 0);
        for (name, tensor) in &self.entries {
            let data = match integers.get(name) {
                Some(values) => encode_integers(values, tensor.dtype),
                None => {
                    let (now, later) = rest.split_at(tensor.shape.iter().product());
                    rest = later;
                    let data = encode(now, tensor.dtype);
                    if decode(tensor.dtype, &data).iter().any(|v| !v.is_finite()) {
                        let reason = format!("the result does not fit tensor `{name}` of type {:?}", tensor.dtype);
                        return Err(refuse(&self.path, reason));
                    }
                    data
                }
            };
            let start = self.header.len() + tensor.offset;
            file[start..start + data.len()].copy_from_slice(&data);
        }
        Ok(file)
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Bytes of a value and whether the type is signed; `None` for other types.
fn integer_size(dtype: Dtype) -> Option<(usize, bool)> {
    Some(match dtype {
        Dtype::BOOL | Dtype::U8 => (1, false),
        Dtype::U16 => (2, false),
        Dtype::U32 => (4, false),
        Dtype::U64 => (8, false),
        Dtype::I8 => (1, true),
        Dtype::I16 => (2, true),
        Dtype::I32 => (4, true),
        Dtype::I64 => (8, true),
        _ => return None,
    })
}

fn decode(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn decode_integers(tensor: &StoredTensor) -> Option<Vec<i128>> {
    let (size, signed) = integer_size(tensor.dtype)?;
    let value = |bytes: &[u8]| {
        let unsigned = bytes.iter().rev().fold(0u64, |v, &b| (v << 8) | u64::from(b));
        let unused = 64 - 8 * size as u32;
        if signed { i128::from((unsigned << unused) as i64 >> unused) } else { i128::from(unsigned) }
    };
    Some(tensor.data.chunks_exact(size).map(value).collect())
}

fn encode_integers(values: &[i128], dtype: Dtype) -> Vec<u8> {
    let size = integer_size(dtype).map_or(8, |(size, _)| size);
    values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect()
}

/// Takes the first client's values, and from then on the larger ones.
fn maximum(all: &mut BTreeMap<String, Vec<i128>>, name: String, values: Vec<i128>) {
    match all.get_mut(&name) {
        Some(best) => best.iter_mut().zip(values).for_each(|(best, value)| *best = (*best).max(value)),
        None => drop(all.insert(name, values)),
    }
}

fn state_bytes(round: RoundIndex, strategy: &str, fingerprint: u64, state: StateDict) -> Result<Vec<u8>, StateError> {
    let mut dict = StateDict::new();
    dict.insert_u64("round", round.0);
    dict.insert_u64("schema", fingerprint);
    dict.insert_u64(format!("strategy.{strategy}"), 1);
    dict.nest("state", state);
    dict.to_bytes()
}

fn read_state(path: &Path, strategy: &str, fingerprint: u64) -> Result<(RoundIndex, StateDict), AggregateFilesError> {
    let damaged = |e: StateError| refuse(path, e.to_string());
    let mut dict = StateDict::from_bytes(&read(path)?).map_err(damaged)?;
    let state = dict.split_off("state");
    let round = RoundIndex(dict.take_u64("round").map_err(damaged)?);
    if dict.take_u64("schema").map_err(damaged)? != fingerprint {
        return Err(refuse(path, "is the state of another model; give another --state file".to_owned()));
    }
    if dict.take_u64(&format!("strategy.{strategy}")).is_err() {
        return Err(refuse(
            path,
            format!("is the state of another strategy than `{strategy}`; give another --state file"),
        ));
    }
    Ok((round, state))
}

fn refuse(path: &Path, reason: String) -> AggregateFilesError {
    AggregateFilesError::File { path: path.to_owned(), reason }
}

fn read(path: &Path) -> Result<Vec<u8>, AggregateFilesError> {
    std::fs::read(path).map_err(|source| AggregateFilesError::Io { path: path.to_owned(), source })
}

/// Writes `bytes` to a temporary file beside `path`, durable on return.
fn stage(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, AggregateFilesError> {
    let io = |source| AggregateFilesError::Io { path: path.to_owned(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = staging().tempfile_in(dir).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io)?;
    Ok(file)
}

/// Temporary files that become results: as readable as any other file, not for their owner alone.
fn staging() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

fn keep(file: tempfile::NamedTempFile, path: &Path) -> Result<(), AggregateFilesError> {
    file.persist(path).map(drop).map_err(|e| AggregateFilesError::Io { path: path.to_owned(), source: e.error })
}
