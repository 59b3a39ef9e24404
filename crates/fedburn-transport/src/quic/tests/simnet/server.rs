//! The server of a world: rounds as the runtime runs them, killed and started at any moment.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{ClientId, ClientInfo, Mean, Metrics, ParamVector, Reply, Request, RoundIndex, StateDict};
use fedburn_runtime::{Effect, Input};
use fedburn_testkit::vector;
use quinn::{Endpoint, VarInt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::invariants::{bits, coordinator};
use super::node::info;
use super::world::{CALM, World};
use crate::quic::server::{Opened, Rounds, Setup};
use crate::quic::{QuicConfig, RunFiles, ServerIdentity};
use crate::wire::ServerLimits;

/// A server that runs.
pub(super) struct Server {
    endpoint: Endpoint,
    /// Ends when the run does.
    pub(super) task: JoinHandle<()>,
    pub(super) life: Weak<dyn Any + Send + Sync>,
}

/// What a server finds when it starts: its newest checkpoint, which a crash leaves whole.
#[derive(Clone)]
pub(super) struct Checkpoint {
    pub(super) round: RoundIndex,
    values: Vec<f32>,
}

impl Server {
    /// Goes on after the newest checkpoint.
    pub(super) fn start(world: &Arc<World>) -> Self {
        let checkpoint = world.checkpoint.lock().unwrap().clone();
        let resumed = checkpoint.as_ref().map_or(RoundIndex(0), |checkpoint| checkpoint.round);
        world.published.lock().unwrap().goes_back(resumed);
        let config = QuicConfig { reconnect_grace_secs: 6, upload_slots: 2, ..QuicConfig::default() };
        let (rounds, opened) = Self::open(world, config, resumed);
        let (endpoint, life) = (opened.endpoint.clone(), rounds.life());
        let running = Running { world: world.clone(), rounds, opened };
        Self { endpoint, task: tokio::spawn(running.run(checkpoint)), life }
    }

    /// A server that does nothing by itself but let nodes in.
    pub(super) fn open(world: &Arc<World>, config: QuicConfig, resumed: RoundIndex) -> (Rounds<Flex>, Opened) {
        let surroundings = world.surroundings(World::SERVER.ip());
        let files = RunFiles::new(world.dir.path(), resumed);
        let setup = Setup {
            config: QuicConfig { listen: World::SERVER, ..config },
            identity: ServerIdentity::open(&world.dir.path().join("server")).unwrap(),
            epoch: u64::from_le_bytes(surroundings.random().unwrap()),
            surroundings,
            plan: world.plan(),
            files: if world.script.keeps_answers { files.keeping_answers() } else { files },
            limits: ServerLimits { chunk_len: world.script.chunk_len, inline_len: 4 << 10, ..ServerLimits::default() },
        };
        let rounds = Rounds::new(setup, world.schema.clone().into(), FlexDevice).unwrap();
        let opened = rounds.open().unwrap();
        assert_eq!(opened.address, World::SERVER);
        (rounds, opened)
    }

    /// Ends it without a word: its host is cut off before.
    pub(super) fn kill(self) -> Weak<dyn Any + Send + Sync> {
        self.task.abort();
        self.endpoint.close(VarInt::from_u32(0), b"");
        self.life
    }
}

struct Running {
    world: Arc<World>,
    rounds: Rounds<Flex>,
    opened: Opened,
}

impl Running {
    async fn run(mut self, checkpoint: Option<Checkpoint>) {
        let world = self.world.clone();
        let mut coordinator = coordinator(&world.schema, &world.script);
        if let Some(Checkpoint { round, values }) = checkpoint {
            let global = vector(&values, &world.schema, &FlexDevice);
            coordinator.restore(round, global, None, StateDict::new()).unwrap();
        }
        let mut checkpointed = coordinator.finished();
        loop {
            // A round with nobody would end at once.
            self.rounds.wait_for(1, None, |_| {}).await;
            let calm = world.calm_for();
            let (available, began) = (self.rounds.clients(), Instant::now());
            let mut effects = coordinator.step(Input::Begin(&available), Duration::ZERO).unwrap();
            let requests: Vec<_> = effects
                .extract_if(.., |effect| matches!(effect, Effect::Send(..)))
                .filter_map(|effect| match effect {
                    Effect::Send(client, request) => Some((client, request)),
                    _ => None,
                })
                .collect();
            let asked: BTreeSet<ClientId> = requests.iter().map(|(client, _)| *client).collect();
            let (mut answered, mut outcomes) = (BTreeSet::new(), self.rounds.exchange(requests, ROUND));
            while let Some(outcome) = outcomes.receive().await {
                let client = outcome.client;
                assert!(answered.insert(client), "client {client} is counted once");
                world.note(format_args!(
                    "{client}: {}",
                    outcome.reply.as_ref().map_or_else(|e| e.to_string(), |_| "ok".into())
                ));
                effects.extend(coordinator.step(Input::Outcome(outcome), Duration::ZERO).unwrap());
            }
            drop(outcomes);
            assert_eq!(answered, asked, "each request has its one outcome");
            assert!(began.elapsed() <= ROUND + TICK, "a round lasted {:?}", began.elapsed());
            effects.extend(coordinator.step(Input::Deadline, Duration::ZERO).unwrap());
            let included = effects.into_iter().find_map(|effect| match effect {
                Effect::Close { included, .. } => Some(included),
                _ => None,
            });
            let (round, included) = (coordinator.finished(), included.unwrap());
            self.rounds.close_round(round, &included).unwrap();
            world.note(format_args!("round {round}: {included:?}"));
            world.published.lock().unwrap().closed(round, available, included.clone(), bits(&coordinator));
            world.disk().await;
            assert_eq!(self.rounds.held(), None, "what an exchange leaves");
            if calm.is_some() || round.0 - checkpointed.0 >= world.script.checkpoint_every {
                let values = coordinator.global().to_host();
                *world.checkpoint.lock().unwrap() = Some(Checkpoint { round, values });
                world.disk().await;
                self.rounds.checkpointed(round, round).unwrap();
                checkpointed = round;
            }
            self.evaluate(round, coordinator.global().clone()).await;
            let everybody = world.clients().into_iter().filter(|k| info(*k).num_examples > 0).eq(included);
            if calm.is_some() && everybody {
                break;
            }
            assert!(calm.is_none_or(|calm| calm < CALM), "a round that began after {calm:?} of calm misses somebody");
        }
        assert!(self.rounds.say_goodbye());
        let left = Instant::now();
        self.opened.drain(DRAIN).await;
        assert!(left.elapsed() <= DRAIN + Duration::from_secs(1), "the end has a deadline");
    }

    /// Asks everybody to measure; who answers must have measured this model.
    async fn evaluate(&mut self, round: RoundIndex, global: ParamVector<Flex>) {
        let wanted: f64 = global.to_host().into_iter().map(f64::from).sum();
        let ask = |info: &ClientInfo| (info.id, Request::Evaluate { round, global: global.clone() });
        let requests = self.rounds.clients().iter().map(ask).collect();
        let mut outcomes = self.rounds.exchange(requests, MEASURING);
        let mut measured = BTreeSet::new();
        while let Some(outcome) = outcomes.receive().await {
            if let Ok(Reply::Evaluated(metrics)) = outcome.reply {
                assert!(measured.insert(outcome.client), "client {} measures once", outcome.client);
                let right = Mean::new(wanted, info(outcome.client).num_examples as f64).value();
                assert_eq!(metrics.get(Metrics::LOSS), right, "client {} measures this model", outcome.client);
            }
        }
    }
}

impl World {
    /// A write to the server's disk.
    pub(super) async fn disk(&self) {
        sleep(self.draw(self.script.disk)).await;
    }
}

/// Time of a round, and of an evaluation.
const ROUND: Duration = Duration::from_secs(8);
const MEASURING: Duration = Duration::from_secs(2);
/// Time for nodes to leave.
const DRAIN: Duration = Duration::from_secs(20);
/// The resolution of timers.
const TICK: Duration = Duration::from_millis(1);
