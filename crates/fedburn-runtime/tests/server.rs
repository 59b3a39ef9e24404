//! The server loop: any number of workers, interruption anywhere, failing clients; the same bits.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use burn::tensor::backend::Backend;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use fedburn_core::{
    Aggregate, AggregateError, ClientId, ClientInfo, EvaluateError, Evaluator, Event, Mean, MeanStrategy, Metrics,
    Observer, Outcome, ParamVector, PerClientStrategy, Request, Round, RoundIndex, RoundMean, Seed, ServerTransport,
    StateDict, StateError, StopReason, Strategy, TransportError, UpdateSet,
};
use fedburn_runtime::{
    All, AttackConfig, Attacked, Availability, AvailabilityConfig, CheckpointDir, DiskStore, DroppingOut,
    ReachableOnly, RunSummary, SamplerConfig, Server, ServerConfig, ServerError,
};
use fedburn_testkit::{EchoPopulation, schema, vector};
use fedburn_transport::InProcess;

/// Keeps a running average of the means, so that lost state shows.
struct Momentum<B: Backend>(Option<ParamVector<B>>);

impl<B: Backend> MeanStrategy<B> for Momentum<B> {
    fn name(&self) -> &'static str {
        "momentum"
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let step = mean.params.minus(round.global).map_err(schema)?;
        let velocity = match &self.0 {
            Some(old) => step.with_values(old.values().clone() * 0.5 + step.values().clone()).map_err(schema)?,
            None => step,
        };
        let next = velocity.with_values(round.global.values().clone() + velocity.values().clone()).map_err(schema)?;
        self.0 = Some(velocity);
        Ok(Aggregate { deploy: Some(mean.params.clone()), ..next.into() })
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        if let Some(velocity) = &self.0 {
            state.insert_params("velocity", velocity);
        }
        state
    }

    fn restore(&mut self, mut state: StateDict, _like: &ParamVector<B>) -> Result<(), StateError> {
        self.0 = match state.is_empty() {
            true => None,
            false => Some(state.take_params("velocity", &model(), &Default::default())?),
        };
        state.expect_empty()
    }
}

/// The update of the client with the most examples: sees every update, keeps nothing.
struct Largest;

impl<B: Backend> PerClientStrategy<B> for Largest {
    fn name(&self) -> &'static str {
        "largest"
    }

    fn aggregate(&mut self, _: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let best = updates.iter().max_by_key(|u| (u.local.num_examples, u.client)).unwrap();
        Ok(best.local.params.clone().into())
    }
}

fn model() -> Arc<fedburn_core::ParamSchema> {
    schema(&[5, 2])
}

#[derive(Clone, Copy)]
enum Kind {
    Mean,
    PerClient,
}

impl Kind {
    fn build<B: Backend>(self) -> Strategy<B> {
        match self {
            Self::Mean => Strategy::Mean(Box::new(Momentum(None))),
            Self::PerClient => Strategy::PerClient(Box::new(Largest)),
        }
    }
}

/// The sum of the vector: cheap, and different for every vector.
struct Sum;

impl<B: Backend> Evaluator<B> for Sum {
    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, EvaluateError> {
        let sum = global.to_host().into_iter().map(f64::from).sum();
        Ok(Metrics::new().with(Metrics::LOSS, Mean::new(sum, 1.0)))
    }
}

/// Keeps every event, and asks for a stop after a round.
#[derive(Default)]
struct Log {
    events: Vec<Event>,
    stop_after: Option<u64>,
}

impl Observer for Log {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        self.events.push(event.clone());
        match (event, self.stop_after) {
            (Event::RoundCommitted { round, .. }, Some(stop)) if round.0 >= stop => {
                ControlFlow::Break(StopReason("enough".to_owned()))
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

const ROUNDS: u64 = 12;

fn availability() -> Availability {
    AvailabilityConfig { probability: 0.8, dropout: 0.2 }.build().unwrap()
}

/// A federation of 30 unreliable, stateful clients whose state and checkpoints are in `dir`, resumed if it was begun.
fn server<B: Backend>(kind: Kind, workers: usize, dir: &Path) -> Server<B> {
    let (seed, device) = (Seed::new(9), B::Device::default());
    let checkpoints = CheckpointDir::open(dir.join("checkpoint")).unwrap();
    let found = checkpoints.latest::<B>(&model(), &device).unwrap();
    let after = found.as_ref().map_or(RoundIndex(0), |c| c.round);
    let store = Arc::new(DiskStore::open(dir.join("clients"), after).unwrap());
    let transport = InProcess::new(Arc::new(EchoPopulation::new(30)), Some(store), workers).unwrap();
    let sampler = SamplerConfig::Uniform { per_round: 8 }.build(&ServerTransport::<B>::clients(&transport)).unwrap();
    let sampler = Box::new(ReachableOnly::new(sampler, availability(), seed));
    let transport = DroppingOut::new(transport, availability(), seed);
    let config = ServerConfig { min_updates: 5, eval_every: 2, checkpoint_every: 3, ..ServerConfig::new(ROUNDS) };
    let global = vector(&[0.0; 7], &model(), &device);
    let server = Server::new(config, transport, kind.build(), sampler, global, seed).unwrap();
    let server = server.with_evaluator(Sum).with_checkpoints(checkpoints, "run");
    match found {
        Some(checkpoint) => server.resume(checkpoint).unwrap(),
        None => server,
    }
}

fn run<B: Backend>(kind: Kind, workers: usize) -> (RunSummary<B>, Vec<Event>) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let summary = server::<B>(kind, workers, dir.path()).run(&mut [&mut log]).unwrap();
    (summary, log.events.into_iter().map(without_time).collect())
}

fn without_time(event: Event) -> Event {
    match event {
        Event::RoundCommitted { round, updates, failures, metrics, bytes_down, bytes_up, .. } => {
            Event::RoundCommitted { round, updates, failures, metrics, bytes_down, bytes_up, seconds: 0.0 }
        }
        Event::RoundAbandoned { round, reason, updates, failures, bytes_down, bytes_up, .. } => {
            Event::RoundAbandoned { round, reason, updates, failures, bytes_down, bytes_up, seconds: 0.0 }
        }
        other => other,
    }
}

fn bits<B: Backend>(params: &ParamVector<B>) -> Vec<u32> {
    params.to_host().into_iter().map(f32::to_bits).collect()
}

/// Client events come in order of arrival, which is the one thing that may differ.
fn sorted(mut events: Vec<Event>) -> Vec<String> {
    events.sort_by_key(|event| match event {
        Event::ClientTrained { round, client, .. } | Event::ClientFailed { round, client, .. } => {
            (round.0, 1, client.0)
        }
        Event::RoundStarted { round, .. } => (round.0, 0, 0),
        other => (other.round().0, 2, 0),
    });
    events.iter().map(|event| format!("{event:?}")).collect()
}

fn workers_do_not_matter<B: Backend>() {
    for kind in [Kind::Mean, Kind::PerClient] {
        let (one, events) = run::<B>(kind, 1);
        for workers in [2, 5] {
            let (many, more) = run::<B>(kind, workers);
            assert_eq!(bits(&one.deployed), bits(&many.deployed));
            assert_eq!(sorted(events.clone()), sorted(more));
        }
        let failures = events.iter().filter(|e| matches!(e, Event::ClientFailed { .. })).count();
        assert!(failures > 3, "clients fail in this run: {failures}");
        assert!(events.iter().any(|e| matches!(e, Event::RoundAbandoned { .. })), "and some round misses its quorum");
    }
}

#[test]
fn workers_do_not_matter_on_flex() {
    workers_do_not_matter::<Flex>();
}

#[test]
fn workers_do_not_matter_on_ndarray() {
    workers_do_not_matter::<NdArray>();
}

#[test]
fn a_run_stopped_after_any_round_and_resumed_equals_an_uninterrupted_one() {
    for kind in [Kind::Mean, Kind::PerClient] {
        let (whole, events) = run::<Flex>(kind, 2);
        for stop in 1..ROUNDS {
            let dir = tempfile::tempdir().unwrap();
            let mut log = Log { stop_after: Some(stop), ..Log::default() };
            let first = server::<Flex>(kind, 2, dir.path()).run(&mut [&mut log]).unwrap();
            assert_eq!(first.stopped, Some(StopReason("enough".to_owned())));
            let mut rest = Log::default();
            let mut server = server::<Flex>(kind, 1, dir.path());
            assert_eq!(server.finished(), first.round, "a stop leaves a checkpoint");
            let summary = server.run(&mut [&mut rest]).unwrap();
            assert_eq!(bits(&summary.deployed), bits(&whole.deployed));
            assert_eq!(bits(server.coordinator().global()).len(), 7);
            let same = |t: fedburn_runtime::RunTotals| (t.updates, t.failures, t.abandoned, t.bytes_down, t.bytes_up);
            assert_eq!(same(summary.totals), same(whole.totals));
            let rounds = |events: &[Event]| {
                let commits = events.iter().filter(|e| {
                    matches!(e, Event::RoundCommitted { .. } | Event::RoundAbandoned { .. } | Event::Evaluated { .. })
                });
                commits.cloned().map(without_time).map(|e| format!("{e:?}")).collect::<Vec<_>>()
            };
            assert_eq!([rounds(&log.events), rounds(&rest.events)].concat(), rounds(&events));
        }
    }
}

#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let done = server::<Flex>(Kind::Mean, 2, dir.path()).run(&mut []).unwrap();
    let mut log = Log::default();
    let again = server::<Flex>(Kind::Mean, 2, dir.path()).run(&mut [&mut log]).unwrap();
    assert_eq!(bits(&again.deployed), bits(&done.deployed));
    assert_eq!(log.events.len(), 2, "begun and ended, nothing between: {:?}", log.events);
}

#[test]
fn checkpoints_of_another_run_or_strategy_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    server::<Flex>(Kind::Mean, 1, dir.path()).run(&mut []).unwrap();
    let checkpoints = CheckpointDir::open(dir.path().join("checkpoint")).unwrap();
    let found = || checkpoints.latest::<Flex>(&model(), &Default::default()).unwrap().unwrap();
    let other = tempfile::tempdir().unwrap();
    assert!(matches!(
        server::<Flex>(Kind::PerClient, 1, other.path()).resume(found()),
        Err(ServerError::Checkpoint { .. })
    ));
    let mut renamed = found();
    renamed.config_hash = "another".to_owned();
    assert!(matches!(server::<Flex>(Kind::Mean, 1, other.path()).resume(renamed), Err(ServerError::Checkpoint { .. })));
}

#[test]
fn clients_measure_the_deployed_model_after_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = server::<Flex>(Kind::Mean, 2, dir.path());
    let summary = server.run(&mut []).unwrap();
    let sum: f64 = summary.deployed.to_host().into_iter().map(f64::from).sum();
    let mut log = Log::default();
    let measured = server.evaluate_clients(&[ClientId(3), ClientId(1), ClientId(99)], &mut [&mut log]);
    assert_eq!(measured.iter().map(|(c, _)| c.0).collect::<Vec<_>>(), [1, 3], "sorted, unknown clients left out");
    assert!(measured.iter().all(|(_, m)| m.get(Metrics::LOSS) == Some(sum)));
    assert_eq!(log.events.len(), 2);
}

#[test]
fn impossible_settings_are_refused_by_name() {
    for (config, field) in [
        (ServerConfig::new(0), "rounds"),
        (ServerConfig { min_updates: 0, ..ServerConfig::new(1) }, "min_updates"),
        (ServerConfig { timeout_secs: f64::NAN, ..ServerConfig::new(1) }, "timeout_secs"),
        (ServerConfig { timeout_secs: 0.0, ..ServerConfig::new(1) }, "timeout_secs"),
    ] {
        assert!(config.check().unwrap_err().to_string().contains(field));
    }
    assert_eq!(
        ServerConfig { timeout_secs: f64::INFINITY, ..ServerConfig::new(1) }.timeout(),
        std::time::Duration::MAX
    );
}

#[test]
fn a_run_without_checkpoints_keeps_one_version_of_each_client() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(DiskStore::open(dir.path(), RoundIndex(0)).unwrap());
    let transport = InProcess::<Flex>::new(Arc::new(EchoPopulation::new(6)), Some(store), 1).unwrap();
    let sampler = SamplerConfig::All {}.build(&ServerTransport::<Flex>::clients(&transport)).unwrap();
    let config = ServerConfig { eval_every: 0, checkpoint_every: 0, ..ServerConfig::new(ROUNDS) };
    let global = vector(&[0.0; 7], &model(), &Default::default());
    let mut server = Server::new(config, transport, Kind::Mean.build(), sampler, global, Seed::new(9)).unwrap();
    server.run(&mut []).unwrap();
    let folders = |path: &Path| std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let clients: Vec<_> = folders(&dir.path().join("clients")).iter().flat_map(|p| folders(p)).collect();
    assert_eq!(clients.len(), 5, "client 0 has no data");
    clients.iter().for_each(|client| assert_eq!(folders(client).len(), 1, "{}", client.display()));
}

/// Dies after so many outcomes; counts what it was asked.
struct Mortal<T> {
    transport: T,
    outcomes: usize,
    asked: Arc<Mutex<Vec<usize>>>,
}

impl<B: Backend, T: ServerTransport<B>> ServerTransport<B> for Mortal<T> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.transport.clients()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.transport.wait(timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        self.asked.lock().unwrap().push(requests.len());
        let left = &mut self.outcomes;
        Box::new(self.transport.exchange(requests, timeout).inspect(|_| {
            *left = left.checked_sub(1).expect("the server dies here, on purpose");
        }))
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.transport.close_round(round, included)
    }
}

#[test]
fn a_server_that_died_in_a_round_asks_only_those_that_it_has_nothing_of() {
    // 171 of 200 clients have data; two rounds.
    let run = |kind: Kind, lives: &[usize]| {
        let dir = tempfile::tempdir().unwrap();
        let (asked, mut events, mut deployed) = (Arc::default(), Vec::new(), None);
        for &outcomes in lives {
            let checkpoints = CheckpointDir::open(dir.path().join("checkpoint")).unwrap();
            let found = checkpoints.latest::<Flex>(&model(), &Default::default()).unwrap();
            let transport = InProcess::new(Arc::new(EchoPopulation::new(200)), None, 2).unwrap();
            let transport = Mortal { transport, outcomes, asked: Arc::clone(&asked) };
            let config = ServerConfig { eval_every: 0, checkpoint_every: 1, ..ServerConfig::new(2) };
            let global = vector(&[0.0; 7], &model(), &Default::default());
            let server = Server::new(config, transport, kind.build(), Box::new(All), global, Seed::new(9)).unwrap();
            let mut server =
                server.with_checkpoints(checkpoints, "run").with_open_rounds(dir.path().join("open-round"), "run");
            if let Some(checkpoint) = found {
                server = server.resume(checkpoint).unwrap();
            }
            let (began, mut log) = (server.finished(), Log::default());
            let ended = catch_unwind(AssertUnwindSafe(|| server.run(&mut [&mut log]).unwrap()));
            deployed = ended.ok().map(|summary| bits(&summary.deployed));
            events.retain(|event: &Event| event.round() <= began);
            events.extend(log.events.into_iter().filter(|e| !matches!(e, Event::RunStarted { .. })).map(without_time));
        }
        let asked = asked.lock().unwrap().clone();
        (deployed.expect("the last one lives"), sorted(events), asked)
    };
    let (model, events, asked) = run(Kind::Mean, &[usize::MAX]);
    assert_eq!(asked, [171, 171]);
    // Each 64 updates are written: none of the 50 in round 2, and 128 of the 150 in the next life.
    let (again, told, asked) = run(Kind::Mean, &[100, 107 + 50, 150, usize::MAX]);
    assert_eq!(model, again);
    assert_eq!(events, told);
    assert_eq!(asked, [171, 171 - 64, 171, 171, 171 - 128]);
    let (model, events, _) = run(Kind::PerClient, &[usize::MAX]);
    let (again, told, asked) = run(Kind::PerClient, &[100, usize::MAX]);
    assert_eq!((model, events), (again, told));
    assert_eq!(asked, [171, 171, 171], "single updates are not in any sum");
}

/// Has no clients until somebody has waited, and then those of its transport, none, or its end.
struct Late<T> {
    transport: T,
    comes: Comes,
    /// How long it was to wait at most.
    waited: Arc<Mutex<Vec<Duration>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Comes {
    Clients,
    Nobody,
    TheEnd,
}

impl<B: Backend, T: ServerTransport<B>> ServerTransport<B> for Late<T> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        match self.comes == Comes::Clients && !self.waited.lock().unwrap().is_empty() {
            true => self.transport.clients(),
            false => Arc::default(),
        }
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.waited.lock().unwrap().push(timeout);
        match self.comes {
            Comes::TheEnd => Err(TransportError::Closed { reason: "asked to end".to_owned() }),
            _ => Ok(()),
        }
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        self.transport.exchange(requests, timeout)
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.transport.close_round(round, included)
    }
}

#[test]
fn a_round_waits_for_a_client_as_long_as_it_may_last() {
    let run = |comes: Comes| {
        let (transport, waited) = (InProcess::new(Arc::new(EchoPopulation::new(5)), None, 1).unwrap(), Arc::default());
        // Through what every run wraps its transport in.
        let transport = Late { transport, comes, waited: Arc::clone(&waited) };
        let transport = DroppingOut::new(transport, availability(), Seed::new(9));
        let transport = Attacked::new(transport, AttackConfig::default().build(&[], Seed::new(9)).unwrap());
        let config = ServerConfig { eval_every: 0, timeout_secs: 3_600.0, ..ServerConfig::new(3) };
        let global = vector(&[0.0; 7], &model(), &Default::default());
        let strategy = Kind::Mean.build::<Flex>();
        let mut server = Server::new(config, transport, strategy, Box::new(All), global, Seed::new(9)).unwrap();
        let abandoned = server.run(&mut []).map(|summary| summary.totals.abandoned);
        let waited = waited.lock().unwrap().clone();
        assert!(waited.iter().all(|timeout| *timeout == Duration::from_secs(3_600)), "{waited:?}");
        (abandoned, waited.len())
    };
    assert!(matches!(run(Comes::Clients), (Ok(0), 1)), "no round ends because its clients come a little late");
    assert!(matches!(run(Comes::Nobody), (Ok(3), 3)), "and none lasts longer than it may");
    let (ended, _) = run(Comes::TheEnd);
    let reason = ended.unwrap_err().to_string();
    assert_eq!(reason, "round 1: connection closed: asked to end", "an end that was asked for is not waited out");
}
