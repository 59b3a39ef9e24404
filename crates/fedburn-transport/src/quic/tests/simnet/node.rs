//! The nodes of a world.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{Answered, Answerer, Asked, ClientFailure, ClientId, ClientInfo, Reply, Request, TransportError};
use fedburn_runtime::ClientStates;
use fedburn_testkit::EchoPopulation;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::world::World;
use crate::quic::client::{self, Dialer, Invited};
use crate::quic::{ClientConfig, NodeIdentity, Taken};

/// A node that runs.
pub(super) struct Node {
    /// Ends when the server says goodbye.
    pub(super) task: JoinHandle<Result<(), String>>,
    /// What it is once it has joined.
    joined: Arc<OnceLock<Arc<client::Node<Flex>>>>,
}

impl Node {
    pub(super) fn start(world: &Arc<World>, number: usize) -> Self {
        let config = ClientConfig { backoff_cap_secs: 5, server_away_secs: 120, ..ClientConfig::default() };
        Self::start_with(world, number, config)
    }

    pub(super) fn start_with(world: &Arc<World>, number: usize, config: ClientConfig) -> Self {
        let joined = Arc::default();
        Self { task: tokio::spawn(live(world.clone(), number, config, Arc::clone(&joined))), joined }
    }

    /// Leaves as a node does that is asked to.
    pub(super) async fn leave(self) {
        while self.joined.get().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        self.joined.get().unwrap().hang_up().await;
    }

    /// What is left of it.
    pub(super) fn life(self) -> Option<Weak<dyn Any + Send + Sync>> {
        self.joined.get().map(|node| node.life())
    }

    /// Ends it without a word: its host is cut off before.
    pub(super) fn kill(self) -> Option<Weak<dyn Any + Send + Sync>> {
        self.task.abort();
        let node = self.joined.get()?.clone();
        let life = node.life();
        tokio::spawn(async move { node.hang_up().await });
        Some(life)
    }
}

async fn live(
    world: Arc<World>,
    number: usize,
    config: ClientConfig,
    joined: Arc<OnceLock<Arc<client::Node<Flex>>>>,
) -> Result<(), String> {
    let identity = NodeIdentity::open(&world.dir.path().join(format!("node{number}"))).unwrap();
    let surroundings = world.surroundings(World::host(number));
    let dialer = Dialer::new(world.join.clone(), identity, config, surroundings);
    let invited = Invited::by(dialer).await.map_err(|e| e.to_string())?;
    let clients: Vec<ClientInfo> = World::clients_of(number).map(info).collect();
    let started = invited.start(&clients, world.schema.clone().into(), FlexDevice).await;
    let node = Arc::new(started.map_err(|e| e.to_string())?);
    // Set once: a node that starts again is another one.
    let _ = joined.set(node.clone());
    let desk = Desk {
        states: ClientStates::open(world.dir.path().join(format!("states{number}"))).unwrap(),
        world,
        node,
        intake: Mutex::default(),
        turns: clients.iter().map(|info| (info.id, Arc::default())).collect(),
    };
    // Two workers, so that a node's tasks overlap.
    let ends = tokio::join!(desk.work(), desk.work());
    ends.0.and(ends.1).map_err(|e| e.to_string())?;
    desk.node.hang_up().await;
    Ok(())
}

/// Where a node's workers take requests; a client's requests keep their order.
struct Desk {
    world: Arc<World>,
    node: Arc<client::Node<Flex>>,
    states: ClientStates,
    intake: Mutex<()>,
    turns: BTreeMap<ClientId, Arc<Mutex<()>>>,
}

impl Desk {
    async fn work(&self) -> Result<(), TransportError> {
        loop {
            let intake = self.intake.lock().await;
            let Some(Taken { asked, .. }) = self.node.next().await? else { return Ok(()) };
            let _turn = self.turns[&asked.client].lock().await;
            drop(intake);
            sleep(self.world.draw(self.world.script.training)).await;
            let (client, round) = (asked.client, asked.request.round());
            let reply = self.answer(asked);
            if let Err(ClientFailure::Failed { reason }) = &reply {
                panic!("client {client} in round {round}: {reason}");
            }
            self.node.reply(client, round, reply).await?;
        }
    }

    /// As the runtime does it.
    fn answer(&self, asked: Asked<Flex>) -> Result<Reply<Flex>, ClientFailure> {
        let (Asked { client, request, history }, population) = (asked, EchoPopulation::new(32));
        let (round, trains) = (request.round(), matches!(request, Request::Train(_)));
        let state = || match trains {
            true => self.states.begin(client, history),
            false => self.states.load(client, history.state_of),
        };
        let Answered { reply, state } = Answerer::new(&population).answer(client, request, state)?;
        if let Some(state) = state {
            self.states.keep(client, round, &state).unwrap();
        }
        Ok(reply)
    }
}

pub(super) fn info(client: ClientId) -> ClientInfo {
    ClientInfo { id: client, num_examples: client.0 % 7 }
}

/// Long enough for a node that was killed while it started to give up.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(150);
