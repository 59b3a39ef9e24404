//! The only round loop of the workspace: a synchronous state machine that every runtime drives.
//!
//! It decides and never acts: an [`Input`] goes in, [`Effect`]s come out, and whoever drives it sends the requests,
//! watches the deadline and writes the events. Time enters as a number. So the in-process simulation, a networked
//! server and fault tests run the same rounds.
//!
//! ```text
//!          Begin                      Outcome (all in) | Deadline
//! Idle ───────────► Collecting ──────────────────────────────────────► Idle   committed: strategy called once
//!                       └── below quorum ────────────────────────────► Idle   abandoned: nothing changed
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientFailure, ClientId, ClientInfo, ClientSampler, ClientUpdate, CodecError,
    CompressionConfig, Event, MemoryStore, Outcome, ParamVector, Purpose, Reply, Request, Round, RoundIndex,
    SchemaError, Schemas, Seed, StateError, StateStore, Strategy, SubModels, TrainTask, UpdateSet,
};

use crate::gather::{Gathered, Sums};
use crate::held::{Held, Holdings};
use crate::open_round::{Accepted, OpenRound, check};
use crate::open_round_file::{Begun, Found};
use crate::running_mean::RunningMeanError;

/// What the driver tells the coordinator.
pub enum Input<'a, B: Backend> {
    /// Begin the next round among these clients, sorted by id. Without effect while a round is open.
    Begin(&'a [ClientInfo]),
    /// A client answered. Without effect where the round did not ask it, or it answered before.
    Outcome(Outcome<B>),
    /// The round's time is over: who has not answered timed out. Without effect while no round is open.
    Deadline,
}

/// What the coordinator wants done, in order.
pub enum Effect<B: Backend> {
    /// Send this request to this client.
    Send(ClientId, Request<B>),
    /// Tell the observers.
    Emit(Event),
    /// The round is over. `included` are the clients whose updates count, sorted; nobody where it was abandoned.
    Close {
        /// The round.
        round: RoundIndex,
        /// Whose updates count.
        included: Vec<ClientId>,
    },
}

/// The state of a federation: the global vector, the strategy, and the open round if there is one.
pub struct Coordinator<B: Backend> {
    strategy: Strategy<B>,
    sampler: Box<dyn ClientSampler>,
    seed: Seed,
    /// What the strategy remembers of each client.
    memory: Arc<dyn StateStore>,
    /// Number of clients that there are, if more than can be reached.
    population: u64,
    min_updates: usize,
    threads: usize,
    compression: CompressionConfig,
    holdings: Option<Holdings>,
    staging: Option<Arc<Path>>,
    finished: RoundIndex,
    global: ParamVector<B>,
    deploy: Option<ParamVector<B>>,
    open: Option<OpenRound<B>>,
    /// The next round, as another process left it.
    found: Option<Found>,
}

impl<B: Backend> Coordinator<B> {
    /// A federation before its first round. `seed` is the root of the run's seed tree; a round with fewer than
    /// `min_updates` usable updates is abandoned.
    pub fn new(
        strategy: Strategy<B>,
        sampler: Box<dyn ClientSampler>,
        global: ParamVector<B>,
        seed: Seed,
        min_updates: usize,
    ) -> Self {
        Self {
            strategy,
            sampler,
            seed,
            memory: Arc::new(MemoryStore::new()),
            population: 0,
            min_updates: min_updates.max(1),
            threads: 1,
            compression: CompressionConfig::default(),
            holdings: None,
            staging: None,
            finished: RoundIndex(0),
            global,
            deploy: None,
            open: None,
            found: None,
        }
    }

    /// Keeps what the strategy remembers of each client in `memory` instead of in this process. Whoever drives the
    /// coordinator commits it where [`Effect::Close`] says.
    #[must_use]
    pub fn with_memory(mut self, memory: Arc<dyn StateStore>) -> Self {
        self.memory = memory;
        self
    }

    /// Lets long vectors be aggregated on up to so many threads, at least 1. Changes no bit of any result.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sends models and updates as `compression` says.
    #[must_use]
    pub fn with_compression(mut self, compression: CompressionConfig) -> Self {
        self.compression = compression;
        self
    }

    /// Lets clients hold parts of the model, those of `schemas` that `sub_models` names. Each value of a mean is then that
    /// of the clients who hold it and stays as it is where nobody does; a strategy that sees single updates sees `x_t` in
    /// place of what a client does not hold. Such clients send no vectors beside the model.
    ///
    /// A client counts in means as many times as `sub_models` says; a strategy that sees single updates is not told.
    ///
    /// What is sent down in blocks of values (`int8`, `int4`) is rounded twice.
    #[must_use]
    pub fn with_sub_models(mut self, schemas: Schemas, sub_models: Arc<dyn SubModels>) -> Self {
        self.holdings = Some(Holdings { schemas, sub_models });
        self
    }

    /// Lets the long vectors of a round wait for its mean in files in `folder` instead of in memory, which then holds
    /// the global vector and the mean however many clients there are, and 16 bytes a value more in an open round that was
    /// written to disk. Changes no bit of any result.
    #[must_use]
    pub fn with_staging(mut self, folder: &Path) -> Self {
        self.staging = Some(folder.into());
        self
    }

    /// Tells strategies of `population` clients (`N`) also in rounds that fewer of them can be reached for.
    #[must_use]
    pub fn with_population(mut self, population: u64) -> Self {
        self.population = population;
        self
    }

    /// Where the strategy's memory of single clients is.
    pub fn memory(&self) -> &Arc<dyn StateStore> {
        &self.memory
    }

    /// Goes back or forward to the state after `round`, dropping an open round.
    ///
    /// # Errors
    /// [`StateError`] where the state is not this strategy's, [`SchemaError`] where the vectors are of another model;
    /// the coordinator must then not be used.
    pub fn restore(
        &mut self,
        round: RoundIndex,
        global: ParamVector<B>,
        deploy: Option<ParamVector<B>>,
        strategy: fedburn_core::StateDict,
    ) -> Result<(), RestoreError> {
        for vector in std::iter::once(&global).chain(&deploy) {
            self.global.schema().ensure_same(vector.schema())?;
        }
        self.strategy.restore(strategy, &global)?;
        (self.finished, self.global, self.deploy, self.open, self.found) = (round, global, deploy, None, None);
        Ok(())
    }

    /// The next round, if it is this one, begins with what another process left of it: the same cohort, and those whose
    /// updates are in its sums are not asked. Without effect where the strategy sees single updates.
    pub(crate) fn go_on_with(&mut self, found: Found) {
        self.found = matches!(self.strategy, Strategy::Mean(_)).then_some(found);
    }

    /// Updates that count in the open round; 0 where none is open.
    pub(crate) fn accepted(&self) -> usize {
        self.open.as_ref().map_or(0, |round| round.accepted.len())
    }

    /// The open round with its sums; `None` where none is open or updates are kept whole.
    ///
    /// # Errors
    /// [`RunningMeanError`] where nothing was folded, or what waits in a file cannot be read.
    pub(crate) fn begun(&mut self) -> Result<Option<(Begun, Sums<'_>)>, RunningMeanError> {
        let Some(round) = &mut self.open else { return Ok(None) };
        round.begun(&self.global)
    }

    /// The last finished round, 0 before the first.
    pub fn finished(&self) -> RoundIndex {
        self.finished
    }

    /// The vector that the next round starts from.
    pub fn global(&self) -> &ParamVector<B> {
        &self.global
    }

    /// The vector to evaluate and ship, which a strategy may keep apart from the global one.
    pub fn deployed(&self) -> &ParamVector<B> {
        self.deploy.as_ref().unwrap_or(&self.global)
    }

    /// The strategy's own deployment vector, where it keeps one.
    pub fn deploy(&self) -> Option<&ParamVector<B>> {
        self.deploy.as_ref()
    }

    /// The strategy.
    pub fn strategy(&self) -> &Strategy<B> {
        &self.strategy
    }

    /// Advances by one input. `now` is the time since any fixed moment.
    ///
    /// # Errors
    /// [`AggregateError`] where the strategy failed or made a non-finite value; the global vector is then the one
    /// before the round.
    pub fn step(&mut self, input: Input<'_, B>, now: Duration) -> Result<Vec<Effect<B>>, AggregateError> {
        match input {
            Input::Begin(clients) => self.begin(clients, now),
            Input::Outcome(outcome) => self.collect(outcome, now),
            Input::Deadline => self.expire(now),
        }
    }

    fn begin(&mut self, clients: &[ClientInfo], now: Duration) -> Result<Vec<Effect<B>>, AggregateError> {
        if self.open.is_some() {
            return Ok(Vec::new());
        }
        let index = self.finished.next();
        let rounding = self.seed.purpose(Purpose::Compression).round(index);
        let unusable = |e: CodecError| AggregateError::Compression { round: index, source: e };
        let sent = self.global.through(self.compression.down, rounding).map_err(unusable)?;
        let found = self.found.take().filter(|found| found.begun.round == index);
        let (cohort, available, population) = match &found {
            Some(Found { begun, .. }) => (begun.cohort.iter().copied().collect(), begun.available, begun.population),
            None => {
                let (count, seed) = (clients.len() as u64, self.seed.purpose(Purpose::Sampling));
                (self.sampler.sample(index, clients, seed), count, self.population.max(count))
            }
        };
        let held = Held::new(self.holdings.as_ref(), index, &cohort, self.compression.down, &sent, rounding)
            .map_err(|source| AggregateError::Compression { round: index, source })?;
        let mut effects = vec![Effect::Emit(Event::RoundStarted { round: index, cohort: cohort.clone(), available })];
        let mut round = OpenRound {
            index,
            available,
            cohort: cohort.iter().copied().collect(),
            population,
            began: now,
            sent,
            held,
            waiting: cohort.iter().copied().collect(),
            gathered: Gathered::new(&self.strategy, self.global.num_values(), self.threads, self.staging.clone()),
            accepted: BTreeMap::new(),
            failures: 0,
            bytes_down: 0,
            bytes_up: 0,
        };
        if let Some(found) = found {
            effects.extend(round.go_on(found).into_iter().map(Effect::Emit));
        }
        let seeds = self.seed.purpose(Purpose::Training).round(index);
        for client in cohort {
            let side = self.strategy.side_info(index, client);
            let global = round.held.part(client).map_or(&round.sent, |(_, part)| part).clone();
            round.bytes_down += self.compression.down.vector_len(global.schema()) as u64 + side.num_bytes();
            let task = TrainTask {
                round: index,
                global,
                slice: round.held.names(client).to_vec(),
                seed: seeds.client(client),
                side,
                reports: self.strategy.reports(),
                compression: self.compression,
            };
            if round.waiting.contains(&client) {
                effects.push(Effect::Send(client, Request::Train(task)));
            }
        }
        if round.waiting.is_empty() {
            effects.extend(self.close(round, now)?);
        } else {
            self.open = Some(round);
        }
        Ok(effects)
    }

    fn collect(&mut self, outcome: Outcome<B>, now: Duration) -> Result<Vec<Effect<B>>, AggregateError> {
        let Some(round) = &mut self.open else { return Ok(Vec::new()) };
        let client = outcome.client;
        if !round.waiting.remove(&client) {
            return Ok(Vec::new());
        }
        let reply = outcome.reply.and_then(|reply| match reply {
            Reply::Trained(update) => Ok(update),
            Reply::Evaluated(_) => {
                Err(ClientFailure::Malformed { reason: "an evaluation in answer to a training request".to_owned() })
            }
        });
        let reports = self.strategy.reports();
        let sent = round.held.part(client).map_or(&round.sent, |(_, part)| part);
        let vector_bytes = self.compression.up.vector_len(sent.schema()) as u64;
        let accepted = reply.and_then(|mut update| {
            let bytes_up = vector_bytes + update.side.num_bytes();
            round.bytes_up += bytes_up;
            if !reports.class_counts {
                update.report.class_counts = None;
            }
            if !reports.accumulation {
                update.report.accumulation = None;
            }
            if !reports.steps {
                update.report.steps = None;
            }
            check(&update, sent, &reports)?;
            let (num_examples, metrics) = (update.num_examples, update.metrics.clone());
            round.gathered.add(ClientUpdate { client, local: update }, &round.held, &round.sent)?;
            Ok((num_examples, Accepted { metrics, bytes_up }))
        });
        let event = match accepted {
            Ok((num_examples, accepted)) => {
                let metrics = accepted.metrics.clone();
                round.accepted.insert(client, accepted);
                Event::ClientTrained { round: round.index, client, num_examples, metrics }
            }
            Err(failure) => {
                round.failures += 1;
                Event::ClientFailed { round: round.index, client, failure }
            }
        };
        let mut effects = vec![Effect::Emit(event)];
        if round.waiting.is_empty()
            && let Some(round) = self.open.take()
        {
            effects.extend(self.close(round, now)?);
        }
        Ok(effects)
    }

    fn expire(&mut self, now: Duration) -> Result<Vec<Effect<B>>, AggregateError> {
        let Some(mut round) = self.open.take() else { return Ok(Vec::new()) };
        let late = std::mem::take(&mut round.waiting);
        round.failures += late.len() as u64;
        let index = round.index;
        let failed =
            |client| Effect::Emit(Event::ClientFailed { round: index, client, failure: ClientFailure::TimedOut });
        let mut effects: Vec<_> = late.into_iter().map(failed).collect();
        effects.extend(self.close(round, now)?);
        Ok(effects)
    }

    /// Ends the round: calls the strategy once, or leaves everything as it was.
    fn close(&mut self, round: OpenRound<B>, now: Duration) -> Result<Vec<Effect<B>>, AggregateError> {
        let OpenRound {
            index, population, began, sent, held, gathered, accepted, failures, bytes_down, bytes_up, ..
        } = round;
        let seconds = now.saturating_sub(began).as_secs_f64();
        let included = gathered.clients();
        let updates = included.len() as u64;
        if included.len() < self.min_updates {
            self.finished = index;
            let reason = format!("{updates} usable updates where {} are needed", self.min_updates);
            let event =
                Event::RoundAbandoned { round: index, reason, updates, failures, bytes_down, bytes_up, seconds };
            return Ok(vec![Effect::Close { round: index, included: Vec::new() }, Effect::Emit(event)]);
        }
        let seed = self.seed.purpose(Purpose::Strategy).round(index);
        let memory = self.memory.clone();
        let round = Round { index, global: &sent, cohort: &included, population, seed, memory: &*memory };
        let aggregate = self.aggregate(&round, &held, gathered)?;
        // Client metrics merge in client order, so that their sums have the same bits for any order of arrival.
        let mut all = aggregate.metrics;
        accepted.values().for_each(|update| all.merge(&update.metrics));
        let global = self
            .with_left_out(aggregate.global, &sent)
            .map_err(|source| AggregateError::Schema { round: index, source })?;
        (self.finished, self.global, self.deploy) = (index, global, aggregate.deploy);
        let event =
            Event::RoundCommitted { round: index, updates, failures, metrics: all, bytes_down, bytes_up, seconds };
        let mixed = aggregate.mixing.map(|weights| Effect::Emit(Event::Mixed { round: index, weights }));
        let generated = aggregate.pictures.map(|pictures| Effect::Emit(Event::Generated { round: index, pictures }));
        let close = Effect::Close { round: index, included };
        Ok(std::iter::once(close).chain(mixed).chain(generated).chain(std::iter::once(Effect::Emit(event))).collect())
    }

    /// The next global vector with what clients were not sent of the last: the server's error feedback, whose memory is
    /// the vector itself.
    fn with_left_out(&self, next: ParamVector<B>, sent: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        if self.compression.down.is_lossless() || !self.compression.error_feedback {
            return Ok(next);
        }
        let left_out = self.global.minus(sent)?.into_values();
        next.with_values(next.values().clone() + left_out)
    }

    fn aggregate(
        &mut self,
        round: &Round<'_, B>,
        held: &Held<B>,
        gathered: Gathered<B>,
    ) -> Result<Aggregate<B>, AggregateError> {
        let name = self.strategy.name();
        let unusable = |reason: String| AggregateError::Unusable { round: round.index, strategy: name, reason };
        let aggregate = match (&mut self.strategy, gathered) {
            (Strategy::Mean(strategy), Gathered::Mean(sums)) => {
                let mean = sums.mean(round.global, held).map_err(unusable)?;
                strategy.step(round, &mean)?
            }
            (Strategy::PerClient(strategy), Gathered::Updates(updates)) => {
                let set = UpdateSet::new(updates).ok_or_else(|| unusable("no update".to_owned()))?;
                let set = set.with_threads(self.threads);
                strategy.aggregate(round, &set)?
            }
            _ => return Err(unusable("the strategy changed its kind within a round".to_owned())),
        };
        for vector in std::iter::once(&aggregate.global).chain(&aggregate.deploy) {
            let schema = |source| AggregateError::Schema { round: round.index, source };
            round.global.schema().ensure_same(vector.schema()).map_err(schema)?;
            if let Some(entry) = vector.first_non_finite() {
                return Err(AggregateError::NonFinite { round: round.index, strategy: name, path: entry.path.clone() });
            }
        }
        Ok(aggregate)
    }
}

/// A checkpoint that does not fit the federation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The strategy's state does not fit.
    #[error("strategy state: {source}")]
    State {
        /// What does not fit.
        #[from]
        source: StateError,
    },
    /// A vector is of another model.
    #[error("model: {source}")]
    Schema {
        /// What does not fit.
        #[from]
        source: SchemaError,
    },
}
