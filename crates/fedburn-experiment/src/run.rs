//! Running the seeds of an experiment: resume what was begun, skip what is done, leave everything a reader needs.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use burn::tensor::backend::Backend;
use fedburn::core::{
    ClientId, ClientInfo, EvaluateError, Event, Metrics, ModelFamily, Observer, ParamSchema, Purpose, RoundIndex,
    SchemaError, ServerTransport, StateError, StopReason, Strategy, TransportError,
};
use fedburn::data::ClientData;
use fedburn::ops::Kernels;
use fedburn::runtime::{
    Attacked, CheckpointDir, CheckpointError, DiskStore, DroppingOut, EarlyStop, EventLog, JsonLines, ObserverError,
    RoundsCsv, RunSummary, Server, ServerError,
};
use fedburn::train::{ClassifierEvaluator, ClientDataSource, MemoryLog, SharpnessEvaluator};
use fedburn::transport::InProcess;
use thiserror::Error;

use crate::assemble::Run;
use crate::backend::{BackendError, BackendJob, BackendName};
use crate::baselines::{Baseline, BaselineError};
use crate::clients;
use crate::config::{ConfigError, TransportConfig};
use crate::federation::{Call, Durability, FederationError, Load, Serving};
use crate::memory;
use crate::progress::Progress;
use crate::results::{self, Baselines, ClientRow, ResultsError, RunInfo, RunStatus, SeedResults, Summary};
use crate::trace::{RoundSpans, RunTrace};

/// Clients that measure the final model on their own data: all of a small population, evenly spaced ones of a large.
const MEASURED_CLIENTS: usize = 1000;

/// How to run.
#[derive(Clone)]
pub struct RunOptions {
    /// The experiment's folder; each seed gets `seed-<n>` in it.
    pub dir: PathBuf,
    /// Where tensors live.
    pub backend: BackendName,
    /// Delete what an earlier run left, instead of resuming it.
    pub fresh: bool,
    /// What to show meanwhile.
    pub progress: Progress,
    /// Set by the user's interrupt: the run ends after its current round, with a checkpoint.
    pub interrupt: Arc<AtomicBool>,
    /// The command that repeats the run.
    pub command: String,
    /// How clients on other machines are served; where `None`, worker threads of this process play them.
    pub serving: Option<Serving>,
}

/// How the run of one seed ended.
#[derive(Clone, Debug, PartialEq)]
pub enum SeedOutcome {
    /// It was finished by an earlier call; nothing was done.
    AlreadyDone,
    /// It ran to its end.
    Finished(Box<Summary>),
    /// The user interrupted it after this round; the same command goes on.
    Interrupted(RoundIndex),
}

/// A run that could not be started or ended early. What is on disk stays usable: the same command goes on from there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The backend cannot be used.
    #[error("{source}")]
    Backend {
        /// Why.
        #[from]
        source: BackendError,
    },
    /// The folder holds another run.
    #[error("{} holds results of another configuration or backend; pass --fresh to replace them, or --out for another place", dir.display())]
    Occupied {
        /// The folder.
        dir: PathBuf,
    },
    /// The config is refused.
    #[error("{source}")]
    Config {
        /// Why.
        #[from]
        source: ConfigError,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Results could not be read or written.
    #[error("{source}")]
    Results {
        /// Why.
        #[from]
        source: ResultsError,
    },
    /// The server stopped.
    #[error("{source}")]
    Server {
        /// Why.
        #[from]
        source: ServerError,
    },
    /// Checkpoints cannot be used.
    #[error("{source}")]
    Checkpoint {
        /// Why.
        #[from]
        source: CheckpointError,
    },
    /// Client state cannot be kept.
    #[error("client state: {source}")]
    State {
        /// Why.
        #[from]
        source: StateError,
    },
    /// The workers could not be started.
    #[error("{source}")]
    Transport {
        /// Why.
        #[from]
        source: TransportError,
    },
    /// The model makes no usable vector.
    #[error("model: {source}")]
    Schema {
        /// Why.
        #[from]
        source: SchemaError,
    },
    /// Events or rounds could not be written.
    #[error("{source}")]
    Observer {
        /// Why.
        #[from]
        source: ObserverError,
    },
    /// A baseline failed.
    #[error("baseline: {source}")]
    Baseline {
        /// Why.
        #[from]
        source: BaselineError,
    },
    /// The final model's sharpness could not be measured.
    #[error("sharpness: {source}")]
    Sharpness {
        /// Why.
        #[from]
        source: EvaluateError,
    },
    /// Clients could not be served over the network.
    #[error("{source}")]
    Federation {
        /// Why.
        #[from]
        source: FederationError,
    },
    /// The parts of the run do not fit.
    #[error("{reason}")]
    Assembly {
        /// Why.
        reason: String,
    },
}

/// Checks what can be checked without running: the backend is usable, it can make the strategy, and the seed's folder
/// is free, or holds this very run, or may be replaced.
///
/// # Errors
/// [`RunError::Backend`], [`RunError::Config`], [`RunError::Occupied`], [`RunError::Assembly`] where clients over a
/// network are not served.
pub fn check_start(run: &Run, options: &RunOptions) -> Result<(), RunError> {
    options.backend.run(PartsCheck(run))??;
    if let (TransportConfig::Quic(_), None) = (&run.experiment().config().transport, &options.serving) {
        let reason = "[transport] the clients of kind `quic` are other processes; use `fedburn serve`, or pass \
                      --workers 0 to play them in this one";
        return Err(RunError::Assembly { reason: reason.to_owned() });
    }
    let (dir, hash) = (seed_dir(run, options), run_hash(run, options));
    let other = || SeedResults::load(run.seed(), &dir).run.is_some_and(|info| info.config_hash != hash);
    if !options.fresh && other() { Err(RunError::Occupied { dir }) } else { Ok(()) }
}

struct PartsCheck<'a>(&'a Run);

impl BackendJob for PartsCheck<'_> {
    type Output = Result<(), ConfigError>;

    fn run<B: Kernels>(self, device: B::Device) -> Self::Output {
        self.0.experiment().strategy::<B>()?;
        self.0.experiment().check_memory::<B>(&device, self.0.clients().clients().len())?;
        self.0.initial::<B>(&device).map(drop)
    }
}

/// Runs one seed, or resumes it, or says that it is done.
///
/// # Errors
/// [`RunError`]; `run.json` then holds the cause.
pub fn run_seed(run: &Run, options: &RunOptions) -> Result<SeedOutcome, RunError> {
    check_start(run, options)?;
    let (dir, hash) = (seed_dir(run, options), run_hash(run, options));
    let done = || SeedResults::load(run.seed(), &dir).run.is_some_and(|info| info.status == RunStatus::Finished {});
    if !options.fresh && done() {
        return Ok(SeedOutcome::AlreadyDone);
    }
    options.backend.run(Job { run, options, dir, hash })?
}

fn seed_dir(run: &Run, options: &RunOptions) -> PathBuf {
    options.dir.join(format!("seed-{}", run.seed()))
}

fn run_hash(run: &Run, options: &RunOptions) -> String {
    run.experiment().config().run_hash(options.backend.as_str(), run.seed())
}

struct Job<'a> {
    run: &'a Run,
    options: &'a RunOptions,
    dir: PathBuf,
    hash: String,
}

impl BackendJob for Job<'_> {
    type Output = Result<SeedOutcome, RunError>;

    fn run<B: Kernels>(self, device: B::Device) -> Self::Output {
        let mut info = self.info::<B>(&device);
        let path = self.path("run.json");
        // Not before here: a backend that cannot be used costs nobody their results.
        if self.options.fresh && self.dir.exists() {
            std::fs::remove_dir_all(&self.dir).map_err(|source| RunError::Io { path: self.dir.clone(), source })?;
        }
        std::fs::create_dir_all(&self.dir).map_err(|source| RunError::Io { path: self.dir.clone(), source })?;
        results::write_json(&path, &info)?;
        let outcome = self.train::<B>(device);
        info.ended = Some(now());
        info.status = match &outcome {
            Ok(SeedOutcome::Interrupted(round)) => {
                RunStatus::Stopped { reason: format!("interrupted after round {round}") }
            }
            Ok(_) => RunStatus::Finished {},
            Err(error) => RunStatus::Failed { cause: causes(error) },
        };
        results::write_json(&path, &info)?;
        outcome
    }
}

impl Job<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn train<B: Kernels>(&self, device: B::Device) -> Result<SeedOutcome, RunError> {
        let (run, experiment) = (self.run, self.run.experiment());
        let (config, progress) = (experiment.config(), &self.options.progress);
        results::write_atomic(&self.path("config.toml"), config.resolved(run.seed()).as_bytes())?;
        results::write_json(&self.path("partition.json"), run.statistics())?;

        let family = experiment.zoo().clone();
        let initial = run.initial::<B>(&device)?;
        let test = ClientData::all(experiment.dataset().test.clone());
        let checkpoints = CheckpointDir::open(self.path("checkpoint"))?;
        let found = checkpoints.latest::<B>(initial.schema(), &device)?;
        let resumed = found.as_ref().map_or(RoundIndex(0), |checkpoint| checkpoint.round);
        let workers = config.transport.workers();
        let strategy = experiment.strategy()?;
        let looks_at_single = matches!(strategy, Strategy::PerClient(_)) || !run.attack().attackers().is_empty();
        let served = match &self.options.serving {
            Some(serving) => Some(serving.durability(run, &self.dir, self.load(initial.schema(), looks_at_single)?)?),
            None => None,
        };
        let memory = self.options.backend.allocates_here().then(|| memory::resume(&self.dir));
        let Some(transport) = self.transport(&device, initial.schema(), resumed, served, memory.clone())? else {
            return Ok(SeedOutcome::Interrupted(resumed));
        };
        let transport = DroppingOut::new(transport, run.availability(), run.seeds());
        let transport = Attacked::new(transport, run.attack().clone());
        let sampler = run.sampler().map_err(|reason| RunError::Assembly { reason })?;
        let mut pace = config.server.clone();
        if served.is_some() {
            // Nodes forget their answers to a round when it ends: it must never be asked for again.
            pace.checkpoint_every = 1;
        }
        let server = Server::new(pace, transport, strategy, sampler, initial.clone(), run.seeds())?;
        let evaluator = ClassifierEvaluator::new(family.clone(), test.clone(), device.clone()).with_threads(workers);
        let server = server.with_evaluator(evaluator).with_checkpoints(checkpoints, &self.hash);
        let mut server = server.with_threads(workers).with_compression(config.compression);
        if let Some(sub_models) = run.sub_models(&experiment.parts::<B>(&device)?, initial.schema())? {
            let schemas = experiment.schemas::<B>(initial.schema().clone(), &device)?;
            server = server.with_sub_models(schemas, sub_models);
        }
        if let Some(durability) = served {
            server = server.with_staging(&self.dir);
            if durability == Durability::Accumulator {
                server = server.with_open_rounds(self.path("open-round"), &self.hash);
            }
        }
        if server.coordinator().strategy().remembers_clients() {
            server = server.with_memory(Arc::new(DiskStore::open(self.path("memory"), resumed)?));
        }
        if let Some(checkpoint) = found {
            progress.note(&format!("seed {}: resuming after round {resumed}", run.seed()));
            server = server.resume(checkpoint)?;
        }

        let mut events = JsonLines::resume(self.path("events.jsonl"), resumed)?;
        let mut rounds = RoundsCsv::resume(self.path("rounds.csv"), resumed)?;
        let mut console = progress.console();
        let mut interrupt = Interrupt(self.options.interrupt.clone());
        let rule = config.early_stop.clone().unwrap_or_default().build()?;
        let mut early_stop = EarlyStopping::after(rule, EventLog::open(self.path("events.jsonl"))?)?;
        let mut monitor = self.options.serving.as_ref().map(|serving| serving.monitor.clone());
        let tracer = self.options.serving.as_ref().and_then(|serving| serving.tracer.clone());
        let mut spans = tracer.map(|tracer| RoundSpans::new(tracer, RunTrace::new(&self.hash)));
        let mut watchers: Vec<&mut dyn Observer> =
            vec![&mut events, &mut rounds, &mut console, &mut early_stop, &mut interrupt];
        watchers.extend(monitor.as_mut().map(|monitor| monitor as &mut dyn Observer));
        watchers.extend(spans.as_mut().map(|spans| spans as &mut dyn Observer));
        let ended = server.run(&mut watchers);
        let measured = match &ended {
            Ok(summary) if summary.stopped != Some(interrupted()) => {
                server.evaluate_clients(&measured_clients(&run.clients().clients()), &mut [&mut events])
            }
            _ => Vec::new(),
        };
        // A record that could not be written is the cause of the stop that it asked for.
        events.finish().and(rounds.finish()).and(console.finish())?;
        memory.iter().try_for_each(|log| memory::write(&self.dir, log))?;
        if let Some(round) = self.options.serving.as_ref().and_then(|serving| serving.monitor.gave_up()) {
            return Ok(SeedOutcome::Interrupted(round));
        }
        let summary = ended?;
        if summary.stopped.as_ref().is_some_and(|reason| *reason == interrupted()) {
            return Ok(SeedOutcome::Interrupted(summary.round));
        }
        if let Some(serving) = &self.options.serving {
            serving.monitor.over();
        }
        drop(server);

        self.write_model(&summary)?;
        let plain = clients::global_accuracy(run, &measured, &summary.deployed, workers);
        self.write_clients(&measured, &plain)?;
        if let Some(config) = config.evaluation.sharpness {
            let seed = run.seeds().purpose(Purpose::Evaluation);
            let mut evaluator = SharpnessEvaluator::new(family.clone(), config, &test, device);
            let sharpness = evaluator.measure(&summary.deployed, seed)?;
            results::write_json(&self.path("sharpness.json"), &sharpness)?;
        }
        let baseline = Baseline { family, training: experiment.training().clone(), initial, test, run: run.seeds() };
        let baselines = self.baselines(&baseline, workers)?;
        results::write_json(&self.path("baselines.json"), &baselines)?;
        let mut figures = SeedResults::load(run.seed(), &self.dir).figures();
        figures.partition_fingerprint = Some(format!("{:016x}", run.partition().fingerprint()));
        figures.model_hash = Some(results::model_hash(&summary.deployed.to_host()));
        results::write_json(&self.path("summary.json"), &figures)?;
        Ok(SeedOutcome::Finished(Box::new(figures)))
    }

    /// What a round may ask of the disk.
    fn load(&self, schema: &ParamSchema, looks_at_single: bool) -> Result<Load, RunError> {
        let run = self.run;
        let sampler = run.sampler().map_err(|reason| RunError::Assembly { reason })?;
        let seed = run.seeds().purpose(Purpose::Sampling);
        let cohort = sampler.sample(RoundIndex(1), &run.clients().clients(), seed).len() as u64;
        let deadline = run.experiment().config().server.timeout();
        Ok(Load { bytes: cohort * schema.num_bytes(), deadline, looks_at_single })
    }

    /// What carries requests to clients, the only difference between a simulation and a federation; `None` where the
    /// user's interrupt came before the clients did.
    fn transport<B: Kernels>(
        &self,
        device: &B::Device,
        schema: &Arc<ParamSchema>,
        resumed: RoundIndex,
        served: Option<Durability>,
        memory: Option<Arc<MemoryLog>>,
    ) -> Result<Option<Box<dyn ServerTransport<B>>>, RunError> {
        let RunOptions { backend, progress, interrupt, serving, .. } = self.options;
        if let (Some(serving), Some(durability)) = (serving, served) {
            let (run, dir, hash, backend, progress) = (self.run, &*self.dir, &*self.hash, *backend, *progress);
            let schemas = run.experiment().schemas::<B>(schema.clone(), device)?;
            let server = serving.start(&Call {
                run,
                backend,
                dir,
                hash,
                schemas,
                device,
                resumed,
                durability,
                progress,
                interrupt,
            })?;
            return Ok(server.map(|server| Box::new(server) as Box<dyn ServerTransport<B>>));
        }
        let states = self.path("clients");
        if resumed > RoundIndex(0) && !states.exists() {
            let reason = "this run was begun with clients on other machines, which keep their states; \
                          go on with `fedburn serve`, or run it with another --out";
            return Err(FederationError::OtherCarrier { place: self.dir.clone(), reason }.into());
        }
        let population = Arc::new(clients::population::<B>(self.run, device, memory));
        let store = Arc::new(DiskStore::open(states, resumed)?);
        let workers = self.run.experiment().config().transport.workers();
        Ok(Some(Box::new(InProcess::new(population, Some(store), workers)?)))
    }

    fn write_model<B: Backend>(&self, summary: &RunSummary<B>) -> Result<(), RunError> {
        let bytes = summary.deployed.to_safetensors()?;
        Ok(results::write_atomic(&self.path("model.safetensors"), &bytes)?)
    }

    fn write_clients(&self, measured: &[(ClientId, Metrics)], plain: &[Option<f64>]) -> Result<(), RunError> {
        let infos = self.run.clients().clients();
        let rows = measured.iter().zip(plain).map(|((client, metrics), global_accuracy)| ClientRow {
            client: client.0,
            num_examples: infos.binary_search_by_key(client, |c| c.id).map_or(0, |i| infos[i].num_examples),
            accuracy: metrics.get(Metrics::ACCURACY),
            loss: metrics.get(Metrics::LOSS),
            global_accuracy: *global_accuracy,
        });
        Ok(results::write_csv(&self.path("clients.csv"), &rows.collect::<Vec<_>>())?)
    }

    fn baselines<B: Backend, F: ModelFamily<B>>(
        &self,
        baseline: &Baseline<B, F>,
        workers: usize,
    ) -> Result<Baselines, RunError> {
        let wanted = &self.run.experiment().config().baselines;
        let (progress, workers) = (&self.options.progress, clients::threads(workers));
        let centralised = match wanted.centralised_epochs {
            Some(epochs) => {
                let pooled = self.run.pooled().map_err(|reason| RunError::Assembly { reason })?;
                let bar = progress.bar("centralised", epochs as u64);
                Some(baseline.centralised(&pooled, epochs, |_| bar.inc(1))?)
            }
            None => None,
        };
        let local_only = match wanted.local_only_epochs {
            Some(epochs) => {
                let clients = self.run.clients();
                let bar = progress
                    .bar("clients alone", clients.clients().iter().filter(|c| c.num_examples > 0).count() as u64);
                Some(baseline.local_only(&**clients, epochs, workers, || bar.inc(1))?)
            }
            None => None,
        };
        Ok(Baselines { centralised, local_only })
    }

    fn info<B: Backend>(&self, device: &B::Device) -> RunInfo {
        RunInfo {
            revision: revision(),
            fedburn_version: env!("CARGO_PKG_VERSION").to_owned(),
            burn_version: BURN_VERSION.to_owned(),
            rustc_version: env!("FEDBURN_RUSTC_VERSION").to_owned(),
            backend: self.options.backend.to_string(),
            device: format!("{device:?}"),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            started: now(),
            ended: None,
            status: RunStatus::Running {},
            rounds: self.run.experiment().config().server.rounds,
            config_hash: self.hash.clone(),
            command: self.options.command.clone(),
        }
    }
}

/// The pinned version of burn; a test compares it with the workspace's.
const BURN_VERSION: &str = "0.21.0";

/// Ends the run after the current round once the user has asked for it.
struct Interrupt(Arc<AtomicBool>);

/// Why a run stops that the user interrupts.
fn interrupted() -> StopReason {
    StopReason("interrupted".to_owned())
}

impl Observer for Interrupt {
    fn on_event(&mut self, _: &Event) -> ControlFlow<StopReason> {
        match self.0.load(Ordering::Relaxed) {
            true => ControlFlow::Break(interrupted()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// An early stop that a resumed run meets where an uninterrupted one would.
struct EarlyStopping {
    rule: EarlyStop,
    /// The rule had ended the run already, which was killed before its results were written.
    due: Option<StopReason>,
}

impl EarlyStopping {
    fn after(mut rule: EarlyStop, log: EventLog) -> Result<Self, ObserverError> {
        let mut due = None;
        for event in log {
            if let ControlFlow::Break(reason) = rule.on_event(&event?) {
                due.get_or_insert(reason);
            }
        }
        Ok(Self { rule, due })
    }
}

impl Observer for EarlyStopping {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        match self.due.take() {
            Some(reason) => ControlFlow::Break(reason),
            None => self.rule.on_event(event),
        }
    }
}

fn measured_clients(clients: &[ClientInfo]) -> Vec<ClientId> {
    let with_data: Vec<_> = clients.iter().filter(|c| c.num_examples > 0).map(|c| c.id).collect();
    let count = with_data.len().min(MEASURED_CLIENTS);
    (0..count).map(|i| with_data[i * with_data.len() / count]).collect()
}

fn revision() -> Option<String> {
    let output =
        std::process::Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// An error and what it came from, each told once.
pub(crate) fn causes(error: &dyn std::error::Error) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Most errors already tell their source's words.
        if !causes.iter().any(|c| c.contains(&text)) {
            causes.push(text);
        }
        source = cause.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burn_version_is_the_pinned_one() {
        let workspace = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")).unwrap();
        assert!(workspace.contains(&format!("burn = {{ version = \"={BURN_VERSION}\"")));
    }

    #[test]
    fn measured_clients_are_all_or_evenly_spaced() {
        let clients = |n| (0..n).map(|k| ClientInfo { id: ClientId(k), num_examples: k % 2 }).collect::<Vec<_>>();
        assert_eq!(measured_clients(&clients(5)), [ClientId(1), ClientId(3)]);
        let many = measured_clients(&clients(10_000));
        assert_eq!((many.len(), many[0], many[1]), (1000, ClientId(1), ClientId(11)));
        assert!(measured_clients(&[]).is_empty());
    }
}
