//! The server: drives the coordinator over a transport, measures, tells observers, writes checkpoints.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientId, ClientInfo, ClientSampler, CompressionConfig, Evaluator, Event, Metrics, Observer, ParamVector, Reply,
    Request, RoundIndex, Schemas, Seed, ServerTransport, StateStore, StopReason, Strategy, SubModels,
};

use crate::open_round_file::OpenRoundFile;
use crate::{Checkpoint, CheckpointDir, Coordinator, Effect, Input, RunTotals, ServerConfig, ServerError};

/// A federation's server.
///
/// # Determinism
/// On one CPU backend the global vector after each round is a function of configuration and seed: the same bits for
/// any number of workers, any order of answers, and for a run that was interrupted and resumed.
///
/// # Where the time goes
/// At the level `debug` the server traces, for each round, the time of the whole exchange and the part of it in which
/// updates were aggregated, and the time of each evaluation and checkpoint.
pub struct Server<B: Backend> {
    config: ServerConfig,
    coordinator: Coordinator<B>,
    transport: Box<dyn ServerTransport<B>>,
    evaluator: Option<Box<dyn Evaluator<B>>>,
    checkpoints: Option<Checkpoints>,
    open_round: Option<OpenRoundFile>,
    /// Whether the strategy's memory of clients outlives this process.
    durable_memory: bool,
    totals: RunTotals,
    began: Instant,
}

/// Who watches a run. The caller keeps its observers and can ask them afterwards whether all was written.
pub type Observers<'a, 'o> = &'a mut [&'o mut dyn Observer];

struct Checkpoints {
    dir: CheckpointDir,
    config_hash: String,
}

/// What is left when a run ends.
#[derive(Clone, Debug)]
pub struct RunSummary<B: Backend> {
    /// The last finished round.
    pub round: RoundIndex,
    /// The vector to ship.
    pub deployed: ParamVector<B>,
    /// Why the run ended before its last round, if it did.
    pub stopped: Option<StopReason>,
    /// What the run cost, resumed parts included.
    pub totals: RunTotals,
}

impl<B: Backend> Server<B> {
    /// A federation before its first round, starting from `global`; `seed` is the root of the run's seed tree.
    ///
    /// # Errors
    /// [`ServerError::Config`].
    pub fn new(
        config: ServerConfig,
        transport: impl ServerTransport<B> + 'static,
        strategy: Strategy<B>,
        sampler: Box<dyn ClientSampler>,
        global: ParamVector<B>,
        seed: Seed,
    ) -> Result<Self, ServerError> {
        config.check()?;
        Ok(Self {
            coordinator: Coordinator::new(strategy, sampler, global, seed, config.min_updates),
            config,
            transport: Box::new(transport),
            evaluator: None,
            checkpoints: None,
            open_round: None,
            durable_memory: false,
            totals: RunTotals::default(),
            began: Instant::now(),
        })
    }

    /// Measures the model with `evaluator` as often as the configuration says.
    #[must_use]
    pub fn with_evaluator(mut self, evaluator: impl Evaluator<B> + 'static) -> Self {
        self.evaluator = Some(Box::new(evaluator));
        self
    }

    /// Writes checkpoints to `dir` as often as the configuration says. `config_hash` identifies the run: a checkpoint of
    /// another one is refused.
    #[must_use]
    pub fn with_checkpoints(mut self, dir: CheckpointDir, config_hash: &str) -> Self {
        self.checkpoints = Some(Checkpoints { dir, config_hash: config_hash.to_owned() });
        self
    }

    /// Writes what an open round has of its clients to the file `path`, after each 64 updates or a minute, so that a
    /// server that was killed asks only the others again. For strategies of a mean; where the strategy sees single
    /// updates nothing is written. `config_hash` identifies the run: what another one left is removed.
    #[must_use]
    pub fn with_open_rounds(mut self, path: impl Into<PathBuf>, config_hash: &str) -> Self {
        self.open_round = Some(OpenRoundFile::new(path.into(), config_hash));
        self
    }

    /// Keeps what the strategy remembers of each client in `memory`: needed to resume a run of a strategy that
    /// remembers clients (EWWA's moments). Without it, this process's memory holds them.
    #[must_use]
    pub fn with_memory(mut self, memory: Arc<dyn StateStore>) -> Self {
        self.coordinator = self.coordinator.with_memory(memory);
        self.durable_memory = true;
        self
    }

    /// Sends models and updates as `compression` says; nothing is lost by default.
    #[must_use]
    pub fn with_compression(mut self, compression: CompressionConfig) -> Self {
        self.coordinator = self.coordinator.with_compression(compression);
        self
    }

    /// Lets clients hold parts of the model: [`Coordinator::with_sub_models`].
    #[must_use]
    pub fn with_sub_models(mut self, schemas: Schemas, sub_models: Arc<dyn SubModels>) -> Self {
        self.coordinator = self.coordinator.with_sub_models(schemas, sub_models);
        self
    }

    /// Aggregates long vectors on up to so many threads (0 for one a core); one by default. The workers of the run are
    /// idle by then. Changes no bit of any result.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            n => n,
        };
        self.coordinator = self.coordinator.with_threads(threads);
        self
    }

    /// Lets the long vectors of a round wait for its mean in files in `folder` instead of in memory: for models of which
    /// a few do not fit. Changes no bit of any result. With [`Server::with_open_rounds`] their sums are in memory once an
    /// open round was written, 16 bytes a value.
    #[must_use]
    pub fn with_staging(mut self, folder: &Path) -> Self {
        self.coordinator = self.coordinator.with_staging(folder);
        self
    }

    /// Goes on after the round of `checkpoint`.
    ///
    /// # Errors
    /// [`ServerError::NoMemory`] where the strategy remembers clients and no store was given,
    /// [`ServerError::Checkpoint`] where it belongs to another strategy or run, [`ServerError::Restore`] where it does
    /// not fit the strategy or the model.
    pub fn resume(mut self, checkpoint: Checkpoint<B>) -> Result<Self, ServerError> {
        if self.coordinator.strategy().remembers_clients() && !self.durable_memory {
            return Err(ServerError::NoMemory { strategy: self.coordinator.strategy().name() });
        }
        let hash = self.checkpoints.as_ref().map_or(checkpoint.config_hash.clone(), |c| c.config_hash.clone());
        checkpoint.ensure_of(self.coordinator.strategy().name(), &hash)?;
        let Checkpoint { round, global, deploy, strategy_state, totals, .. } = checkpoint;
        self.coordinator.restore(round, global, deploy, strategy_state)?;
        self.totals = totals;
        Ok(self)
    }

    /// The last finished round: above 0 before [`Server::run`] where a checkpoint was found.
    pub fn finished(&self) -> RoundIndex {
        self.coordinator.finished()
    }

    /// The coordinator, to look at strategy and vectors.
    pub fn coordinator(&self) -> &Coordinator<B> {
        &self.coordinator
    }

    /// Runs the remaining rounds and tells `observers` every event, in their order.
    ///
    /// # Errors
    /// [`ServerError`]: the strategy, the evaluator, the transport as a whole or a checkpoint failed. What was on disk
    /// stays usable.
    pub fn run(&mut self, observers: Observers<'_, '_>) -> Result<RunSummary<B>, ServerError> {
        self.began = Instant::now();
        let mut watch = Watch { observers, stop: None };
        let (rounds, parameters) = (self.config.rounds, self.coordinator.global().num_values() as u64);
        let clients = self.transport.clients().len() as u64;
        watch.tell(&Event::RunStarted { round: self.finished(), rounds, clients, parameters });
        if self.finished() == RoundIndex(0) {
            self.evaluate(&mut watch)?;
        }
        if let Some(file) = &self.open_round {
            let found = file.find(self.finished(), self.coordinator.global());
            let found = found.map_err(|e| self.open_round_error(self.finished().next(), e))?;
            found.into_iter().for_each(|found| self.coordinator.go_on_with(found));
        }
        while self.finished().0 < rounds && watch.stop.is_none() {
            self.round(&mut watch)?;
            // A stop adds no evaluation: a run that is resumed must have measured what an undisturbed one does.
            let last = self.finished().0 == rounds;
            if last || due(self.finished(), self.config.eval_every) {
                self.evaluate(&mut watch)?;
            }
            // An observer may have asked for the end on seeing the evaluation: that state must not be lost either.
            if last || watch.stop.is_some() || due(self.finished(), self.config.checkpoint_every) {
                self.checkpoint(&mut watch)?;
            }
            // A run without checkpoints never goes back, so that it need not keep what was before.
            if !self.checkpointing() {
                self.drop_before(self.finished())?;
            }
        }
        let (round, stopped) = (self.finished(), watch.stop.clone());
        watch.tell(&Event::RunEnded { round, stopped: stopped.clone() });
        Ok(RunSummary { round, deployed: self.coordinator.deployed().clone(), stopped, totals: self.totals })
    }

    /// Asks `clients` to measure the model to ship on their own data. Clients that do not answer are left out.
    pub fn evaluate_clients(&mut self, clients: &[ClientId], observers: Observers<'_, '_>) -> Vec<(ClientId, Metrics)> {
        let mut watch = Watch { observers, stop: None };
        let (round, global) = (self.finished(), self.coordinator.deployed().clone());
        let ask = |&client: &ClientId| (client, Request::Evaluate { round, global: global.clone() });
        let outcomes = self.transport.exchange(clients.iter().map(ask).collect(), self.config.timeout());
        let mut measured: Vec<_> = outcomes
            .filter_map(|outcome| match outcome.reply {
                Ok(Reply::Evaluated(metrics)) => Some((outcome.client, metrics)),
                _ => None,
            })
            .collect();
        measured.sort_by_key(|(client, _)| *client);
        for (client, metrics) in &measured {
            watch.tell(&Event::ClientEvaluated { round, client: *client, metrics: metrics.clone() });
        }
        measured
    }

    /// Who may be asked. Where nobody is there, the first client is waited for, as long as a round may last: else the
    /// rounds of a run whose network is down would end one after another at once.
    fn available(&mut self) -> Result<Arc<[ClientInfo]>, ServerError> {
        let (clients, round) = (self.transport.clients(), self.finished().next());
        if !clients.is_empty() {
            return Ok(clients);
        }
        tracing::warn!(%round, "round.waits");
        let waited = self.transport.wait(self.config.timeout());
        waited.map_err(|source| ServerError::Transport { round, source })?;
        Ok(self.transport.clients())
    }

    fn round(&mut self, watch: &mut Watch<'_, '_>) -> Result<(), ServerError> {
        let clients = self.available()?;
        let opened = self.began.elapsed();
        let effects = self.coordinator.step(Input::Begin(&clients), opened)?;
        let requests = self.apply(effects, watch)?;
        if let Some(file) = &mut self.open_round {
            file.begin(self.coordinator.accepted(), opened);
        }
        if requests.is_empty() {
            return Ok(());
        }
        // Closing the round needs the transport, which the exchange borrows: what ends the round waits until then.
        let mut closing = Vec::new();
        let (round, began, mut aggregating) = (self.finished().next(), Instant::now(), Duration::ZERO);
        for outcome in self.transport.exchange(requests, self.config.timeout()) {
            let came = Instant::now();
            let effects = self.coordinator.step(Input::Outcome(outcome), self.began.elapsed())?;
            if let Some(file) = &mut self.open_round
                && let Err(source) = file.follow(&mut self.coordinator, || self.began.elapsed())
            {
                return Err(ServerError::OpenRound { round, place: file.path().display().to_string(), source });
            }
            aggregating += came.elapsed();
            for effect in effects {
                match effect {
                    Effect::Emit(event @ (Event::ClientTrained { .. } | Event::ClientFailed { .. })) => {
                        watch.tell(&event)
                    }
                    other => closing.push(other),
                }
            }
        }
        closing.extend(self.coordinator.step(Input::Deadline, self.began.elapsed())?);
        tracing::debug!(%round, exchange = ?began.elapsed(), ?aggregating, "round.ended");
        // The coordinator was told the time before it aggregated; a round lasts until its vector is there.
        let spent = self.began.elapsed().saturating_sub(opened).as_secs_f64();
        for effect in &mut closing {
            if let Effect::Emit(Event::RoundCommitted { seconds, .. } | Event::RoundAbandoned { seconds, .. }) = effect
            {
                *seconds = spent;
            }
        }
        self.apply(closing, watch)?;
        Ok(())
    }

    /// Does what the coordinator wants and returns the requests to send.
    fn apply(
        &mut self,
        effects: Vec<Effect<B>>,
        watch: &mut Watch<'_, '_>,
    ) -> Result<Vec<(ClientId, Request<B>)>, ServerError> {
        let mut requests = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(client, request) => requests.push((client, request)),
                Effect::Emit(event) => {
                    count(&mut self.totals, &event);
                    watch.tell(&event);
                }
                Effect::Close { round, included } => {
                    self.transport
                        .close_round(round, &included)
                        .map_err(|source| ServerError::Transport { round, source })?;
                    self.coordinator
                        .memory()
                        .commit(round, &included)
                        .map_err(|source| ServerError::Memory { round, source })?;
                }
            }
        }
        Ok(requests)
    }

    fn evaluate(&mut self, watch: &mut Watch<'_, '_>) -> Result<(), ServerError> {
        let round = self.finished();
        if self.config.eval_every == 0 {
            return Ok(());
        }
        if let Some(evaluator) = &mut self.evaluator {
            let began = Instant::now();
            let metrics = evaluator
                .evaluate(self.coordinator.deployed())
                .map_err(|source| ServerError::Evaluate { round, source })?;
            tracing::debug!(%round, took = ?began.elapsed(), "model.evaluated");
            watch.tell(&Event::Evaluated { round, metrics });
        }
        Ok(())
    }

    /// Whether this round may be one to go back to.
    fn checkpointing(&self) -> bool {
        self.config.checkpoint_every != 0 && self.checkpoints.is_some()
    }

    fn checkpoint(&mut self, watch: &mut Watch<'_, '_>) -> Result<(), ServerError> {
        let round = self.finished();
        let Some(Checkpoints { dir, config_hash }) = self.checkpoints.as_ref().filter(|_| self.checkpointing()) else {
            return Ok(());
        };
        let began = Instant::now();
        // Client state may only be dropped as far back as the oldest checkpoint that is kept.
        let oldest = dir.save(&Checkpoint {
            round,
            config_hash: config_hash.clone(),
            global: self.coordinator.global().clone(),
            deploy: self.coordinator.deploy().cloned(),
            strategy: self.coordinator.strategy().name().to_owned(),
            strategy_state: self.coordinator.strategy().state(),
            totals: self.totals,
        })?;
        if let Some(file) = &self.open_round {
            file.forget().map_err(|e| self.open_round_error(round, e))?;
        }
        self.drop_before(oldest)?;
        tracing::debug!(%round, took = ?began.elapsed(), "checkpoint.written");
        watch.tell(&Event::Checkpointed { round });
        Ok(())
    }

    fn open_round_error(&self, round: RoundIndex, source: std::io::Error) -> ServerError {
        let place = self.open_round.as_ref().map_or_else(String::new, |file| file.path().display().to_string());
        ServerError::OpenRound { round, place, source }
    }

    /// Nothing will go back further than `oldest`: older versions of what is kept of clients may go.
    fn drop_before(&mut self, oldest: RoundIndex) -> Result<(), ServerError> {
        let round = self.finished();
        self.transport.checkpointed(round, oldest).map_err(|source| ServerError::Transport { round, source })?;
        self.coordinator.memory().checkpointed(oldest).map_err(|source| ServerError::Memory { round, source })
    }
}

/// The observers of one call, and the first wish to stop.
struct Watch<'a, 'o> {
    observers: Observers<'a, 'o>,
    stop: Option<StopReason>,
}

impl Watch<'_, '_> {
    fn tell(&mut self, event: &Event) {
        for observer in self.observers.iter_mut() {
            if let ControlFlow::Break(reason) = observer.on_event(event) {
                self.stop.get_or_insert(reason);
            }
        }
    }
}

fn count(totals: &mut RunTotals, event: &Event) {
    let (failed, down, up, time) = match event {
        Event::RoundCommitted { updates, failures, bytes_down, bytes_up, seconds, .. } => {
            totals.updates += updates;
            (failures, bytes_down, bytes_up, seconds)
        }
        Event::RoundAbandoned { failures, bytes_down, bytes_up, seconds, .. } => {
            totals.abandoned += 1;
            (failures, bytes_down, bytes_up, seconds)
        }
        _ => return,
    };
    totals.failures += failed;
    totals.bytes_down += down;
    totals.bytes_up += up;
    totals.seconds += time;
}

fn due(round: RoundIndex, every: u64) -> bool {
    every != 0 && round.0.is_multiple_of(every)
}
