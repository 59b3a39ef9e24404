//! Server and nodes on loopback, real sockets and TLS; and nodes that do not keep to the rules.

mod crash;
mod crowd;
mod federation;
mod honest;
mod hostile;
mod loris;
mod member;
mod raw;
mod resume;
mod rogues;
mod schemas;
mod simnet;
mod slices;
mod strangers;
mod traced;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    Answerer, Asked, ClientFailure, ClientId, ClientInfo, ClientTransport, Outcome, ParamSchema, Population, Reply,
    Reports, Request, RoundIndex, Schemas, Seed, ServerTransport, SideInfo, StateDict, TrainTask, TransportError,
};
use fedburn_testkit::{EchoPopulation, vector};

use super::*;
use crate::wire::ServerLimits;

/// A server in a directory of its own.
struct Site {
    dir: tempfile::TempDir,
    schema: Arc<ParamSchema>,
    /// Of which the model's is one.
    schemas: Schemas,
    config: QuicConfig,
    keep_answers: bool,
    limits: ServerLimits,
}

impl Site {
    fn new(schema: Arc<ParamSchema>) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = QuicConfig { listen, ..QuicConfig::default() };
        let (dir, schemas, limits) = (tempfile::tempdir().unwrap(), schema.clone().into(), ServerLimits::default());
        Self { dir, schema, schemas, config, keep_answers: false, limits }
    }

    fn plan(&self) -> Plan {
        Plan {
            name: "test".to_owned(),
            text: "rounds = 3\n".repeat(100),
            seed: 7,
            backend: "flex".to_owned(),
            hash: [3; 32],
        }
    }

    fn start<B: Backend>(&self, device: B::Device, resumed: u64) -> QuicServer<B> {
        let identity = ServerIdentity::open(&self.dir.path().join("server")).unwrap();
        let files = RunFiles { keep_answers: self.keep_answers, ..RunFiles::new(self.dir.path(), RoundIndex(resumed)) };
        let (config, schemas) = (self.config.clone(), self.schemas.clone());
        QuicServer::with_limits(config, identity, self.plan(), schemas, device, files, self.limits).unwrap()
    }

    fn server(&self) -> QuicServer<Flex> {
        self.start(FlexDevice, 0)
    }

    fn node_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn node(&self, name: &str) -> NodeIdentity {
        NodeIdentity::open(&self.node_dir(name)).unwrap()
    }

    /// A node of Echo clients that works until the server says goodbye.
    fn spawn<B: Backend>(&self, server: &QuicServer<B>, name: &str, ids: &[u64], device: B::Device) -> Node {
        let joined = join(&server.join_string(), self.node(name), client_config()).unwrap();
        let clients: Vec<ClientInfo> = ids.iter().map(|&k| echo(k)).collect();
        let client = joined.start::<B>(&clients, self.schema.clone(), device).unwrap();
        Node { thread: Some(std::thread::spawn(move || work(&client, &EchoPopulation::new(64)))) }
    }
}

/// A node's thread.
struct Node {
    thread: Option<JoinHandle<Result<(), TransportError>>>,
}

impl Node {
    fn end(mut self) -> Result<(), TransportError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

fn client_config() -> ClientConfig {
    ClientConfig { backoff_base_ms: 10, backoff_cap_secs: 1, server_away_secs: 60, ..ClientConfig::default() }
}

fn echo(k: u64) -> ClientInfo {
    ClientInfo { id: ClientId(k), num_examples: k % 7 }
}

/// Answers requests as a population does, with each client's state of each round in memory.
fn work<B: Backend>(client: &QuicClient<B>, population: &EchoPopulation) -> Result<(), TransportError> {
    let states: Mutex<BTreeMap<(ClientId, RoundIndex), StateDict>> = Mutex::default();
    let serve = || {
        while let Some(asked) = client.next()? {
            let (id, round, reply) = answer(asked, population, &states);
            client.reply(id, round, reply)?;
        }
        Ok(())
    };
    // Two workers, so that a node's tasks overlap.
    std::thread::scope(|scope| {
        let workers = [scope.spawn(serve), scope.spawn(serve)];
        workers.map(|worker| worker.join().unwrap()).into_iter().collect()
    })
}

type Answered<B> = (ClientId, RoundIndex, Result<Reply<B>, ClientFailure>);

fn answer<B: Backend>(
    asked: Asked<B>,
    population: &EchoPopulation,
    states: &Mutex<BTreeMap<(ClientId, RoundIndex), StateDict>>,
) -> Answered<B> {
    let Asked { client, request, history } = asked;
    let (round, of) = (request.round(), history.state_of);
    let known = || states.lock().unwrap().get(&(client, of)).cloned().expect("a state that the server names is there");
    let state = || Ok((of > RoundIndex(0)).then(known));
    let reply = Answerer::new(population).answer(client, request, state).map(|answered| {
        if let Some(state) = answered.state {
            states.lock().unwrap().insert((client, round), state);
        }
        answered.reply
    });
    (client, round, reply)
}

/// Requests to train from one vector.
fn training(schema: &Arc<ParamSchema>, round: u64, clients: &[u64]) -> Vec<(ClientId, Request<Flex>)> {
    let values: Vec<f32> = (0..schema.num_values()).map(|i| i as f32).collect();
    let global = vector::<Flex>(&values, schema, &FlexDevice);
    let task = |k: u64| TrainTask {
        round: RoundIndex(round),
        global: global.clone(),
        slice: Vec::new(),
        seed: Seed::new(5).round(RoundIndex(round)).client(ClientId(k)),
        side: SideInfo::default(),
        reports: Reports::default(),
        compression: Default::default(),
    };
    clients.iter().map(|&k| (ClientId(k), Request::Train(task(k)))).collect()
}

/// The bits of the updates of one exchange.
fn exchange(
    server: &mut QuicServer<Flex>,
    requests: Vec<(ClientId, Request<Flex>)>,
) -> BTreeMap<ClientId, Result<Vec<u32>, ClientFailure>> {
    server.exchange(requests, LONG).map(bits).collect()
}

fn bits(outcome: Outcome<Flex>) -> (ClientId, Result<Vec<u32>, ClientFailure>) {
    let reply = outcome.reply.map(|reply| match reply {
        Reply::Trained(update) => update.params.to_host().into_iter().map(f32::to_bits).collect(),
        Reply::Evaluated(_) => panic!("a training request is answered by an update"),
    });
    (outcome.client, reply)
}

/// What the same requests give without a network.
fn expected(requests: Vec<(ClientId, Request<Flex>)>) -> BTreeMap<ClientId, Result<Vec<u32>, ClientFailure>> {
    let (population, states) = (EchoPopulation::new(64), Mutex::default());
    let asked = requests.into_iter().map(|(client, request)| Asked { client, request, history: Default::default() });
    asked
        .map(|asked| {
            let (client, _, reply) = answer(asked, &population, &states);
            bits(Outcome { client, reply })
        })
        .collect()
}

/// Looks at something until it holds; fails after a minute.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const LONG: Duration = Duration::from_secs(60);
