//! The server: drives the coordinator over a transport, measures, tells observers, writes checkpoints.

use std::ops::ControlFlow;
use std::time::Instant;

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientId, ClientSampler, Evaluator, Event, Metrics, Observer, ParamVector, Reply, Request, RoundIndex, Seed, ServerTransport,
    StopReason, Strategy,
};

use crate::{Checkpoint, CheckpointDir, Coordinator, Effect, Input, ServerConfig, ServerError};

/// A federation's server.
///
/// # Determinism
/// On one CPU backend the global vector after each round is a function of configuration and seed: the same bits for
/// any number of workers, any order of answers, and for a run that was interrupted and resumed.
pub struct Server<B: Backend> {
    config: ServerConfig,
    coordinator: Coordinator<B>,
    transport: Box<dyn ServerTransport<B>>,
    evaluator: Option<Box<dyn Evaluator<B>>>,
    observers: Vec<Box<dyn Observer>>,
    checkpoints: Option<Checkpoints>,
    began: Instant,
    stop: Option<StopReason>,
}

struct Checkpoints {
    dir: CheckpointDir,
    run: String,
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
            observers: Vec::new(),
            checkpoints: None,
            began: Instant::now(),
            stop: None,
        })
    }

    /// Measures the model with `evaluator` as often as the configuration says.
    #[must_use]
    pub fn with_evaluator(mut self, evaluator: impl Evaluator<B> + 'static) -> Self {
        self.evaluator = Some(Box::new(evaluator));
        self
    }

    /// Tells `observer` every event, after the observers added before it.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Writes checkpoints to `dir` as often as the configuration says, and goes on from the newest one that is there.
    /// `run` identifies the configuration: a checkpoint of another one is refused.
    ///
    /// # Errors
    /// [`ServerError::Checkpoint`] where the newest checkpoint belongs to another run or cannot be read,
    /// [`ServerError::State`] and [`ServerError::Schema`] where it does not fit the strategy or the model.
    pub fn with_checkpoints(mut self, dir: CheckpointDir, run: &str) -> Result<Self, ServerError> {
        let global = self.coordinator.global();
        if let Some(found) = dir.latest::<B>(run, self.coordinator.strategy().name(), global.schema(), &global.device())? {
            self.coordinator.restore(found.round, found.global, found.deploy, found.strategy)?;
        }
        self.checkpoints = Some(Checkpoints { dir, run: run.to_owned() });
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

    /// Runs the remaining rounds.
    ///
    /// # Errors
    /// [`ServerError`]: the strategy, the evaluator, the transport as a whole or a checkpoint failed. What was on disk
    /// stays usable.
    pub fn run(&mut self) -> Result<RunSummary<B>, ServerError> {
        self.began = Instant::now();
        self.stop = None;
        let (rounds, parameters) = (self.config.rounds, self.coordinator.global().num_values() as u64);
        let clients = self.transport.clients().len() as u64;
        self.emit(&Event::RunStarted { round: self.finished(), rounds, clients, parameters });
        if self.finished() == RoundIndex(0) {
            self.evaluate()?;
        }
        while self.finished().0 < rounds && self.stop.is_none() {
            self.round()?;
            let last = self.finished().0 == rounds || self.stop.is_some();
            if last || due(self.finished(), self.config.eval_every) {
                self.evaluate()?;
            }
            // An observer may have asked for the end on seeing the evaluation: that state must not be lost either.
            if last || self.stop.is_some() || due(self.finished(), self.config.checkpoint_every) {
                self.checkpoint()?;
            }
        }
        let (round, stopped) = (self.finished(), self.stop.clone());
        self.emit(&Event::RunEnded { round, stopped: stopped.clone() });
        Ok(RunSummary { round, deployed: self.coordinator.deployed().clone(), stopped })
    }

    /// Asks `clients` to measure the model to ship on their own data. Clients that do not answer are left out.
    pub fn evaluate_clients(&mut self, clients: &[ClientId]) -> Vec<(ClientId, Metrics)> {
        let (round, global) = (self.finished(), self.coordinator.deployed().clone());
        let requests = clients.iter().map(|&client| (client, Request::Evaluate { round, global: global.clone() })).collect();
        let outcomes = self.transport.exchange(requests, self.config.timeout());
        let mut measured: Vec<_> = outcomes
            .filter_map(|outcome| match outcome.reply {
                Ok(Reply::Evaluated(metrics)) => Some((outcome.client, metrics)),
                _ => None,
            })
            .collect();
        measured.sort_by_key(|(client, _)| *client);
        for (client, metrics) in &measured {
            self.emit(&Event::ClientEvaluated { round, client: *client, metrics: metrics.clone() });
        }
        measured
    }

    fn round(&mut self) -> Result<(), ServerError> {
        let clients = self.transport.clients();
        let effects = self.coordinator.step(Input::Begin(&clients), self.began.elapsed())?;
        let requests = self.apply(effects)?;
        if requests.is_empty() {
            return Ok(());
        }
        // The exchange borrows the transport, which closing the round needs too: effects wait until it ends.
        let mut effects = Vec::new();
        let mut closing = Ok(());
        {
            let (coordinator, observers, stop) = (&mut self.coordinator, &mut self.observers, &mut self.stop);
            for outcome in self.transport.exchange(requests, self.config.timeout()) {
                match coordinator.step(Input::Outcome(outcome), self.began.elapsed()) {
                    // Client events are told as they come, what ends the round once the exchange is over.
                    Ok(step) => effects.extend(step.into_iter().filter_map(|effect| match effect {
                        Effect::Emit(event @ (Event::ClientTrained { .. } | Event::ClientFailed { .. })) => {
                            tell(observers, stop, &event);
                            None
                        }
                        other => Some(other),
                    })),
                    Err(error) => {
                        closing = Err(error);
                        break;
                    }
                }
            }
        }
        closing?;
        effects.extend(self.coordinator.step(Input::Deadline, self.began.elapsed())?);
        self.apply(effects)?;
        Ok(())
    }

    /// Does what the coordinator wants and returns the requests to send.
    fn apply(&mut self, effects: Vec<Effect<B>>) -> Result<Vec<(ClientId, Request<B>)>, ServerError> {
        let mut requests = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(client, request) => requests.push((client, request)),
                Effect::Emit(event) => self.emit(&event),
                Effect::Close { round, included } => {
                    self.transport.close_round(round, &included).map_err(|source| ServerError::Transport { round, source })?;
                }
            }
        }
        Ok(requests)
    }

    fn evaluate(&mut self) -> Result<(), ServerError> {
        let round = self.finished();
        if self.config.eval_every == 0 {
            return Ok(());
        }
        if let Some(evaluator) = &mut self.evaluator {
            let metrics = evaluator.evaluate(self.coordinator.deployed()).map_err(|source| ServerError::Evaluate { round, source })?;
            self.emit(&Event::Evaluated { round, metrics });
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), ServerError> {
        let round = self.finished();
        if self.config.checkpoint_every == 0 {
            return Ok(());
        }
        if let Some(Checkpoints { dir, run }) = &self.checkpoints {
            dir.save(&Checkpoint {
                round,
                run: run.clone(),
                strategy_name: self.coordinator.strategy().name().to_owned(),
                strategy: self.coordinator.strategy().state(),
                global: self.coordinator.global().clone(),
                deploy: self.coordinator.deploy().cloned(),
            })?;
            self.transport.checkpointed(round).map_err(|source| ServerError::Transport { round, source })?;
            self.emit(&Event::Checkpointed { round });
        }
        Ok(())
    }

    fn emit(&mut self, event: &Event) {
        tell(&mut self.observers, &mut self.stop, event);
    }
}

/// Tells every observer; the first that asks for a stop gives the reason.
fn tell(observers: &mut [Box<dyn Observer>], stop: &mut Option<StopReason>, event: &Event) {
    for observer in observers {
        if let ControlFlow::Break(reason) = observer.on_event(event) {
            stop.get_or_insert(reason);
        }
    }
}

fn due(round: RoundIndex, every: u64) -> bool {
    every != 0 && round.0.is_multiple_of(every)
}
