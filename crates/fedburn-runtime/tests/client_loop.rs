//! Clients at the other end of a link: the same results as in one process, whatever either end loses.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_core::{
    Aggregate, AggregateError, Asked, Client, ClientFailure, ClientId, ClientInfo, ClientTransport, LocalUpdate,
    MeanStrategy, MemoryStore, Metrics, Outcome, ParamVector, Population, Reply, Reports, Request, Round, RoundIndex,
    RoundMean, Seed, ServerTransport, SideInfo, Strategy, TrainError, TrainTask, TransportError, Worker,
};
use fedburn_runtime::{ClientStates, SamplerConfig, Server, ServerConfig, run_clients};
use fedburn_testkit::{EchoPopulation, LinkServer, MemoryLink, compression_suite, schema, transport_suite, vector};
use fedburn_transport::InProcess;

const MINUTE: Duration = Duration::from_secs(60);

/// A server's end whose clients are played by a thread until it is dropped.
struct Played<B: Backend> {
    server: Option<LinkServer<B>>,
    clients: Option<thread::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl<B: Backend> Played<B> {
    fn new(population: EchoPopulation, workers: usize) -> Self {
        let link = MemoryLink::<B>::new(Population::<B>::clients(&population));
        let (server, client, folder) = (link.server(RoundIndex(0)), link.client(), tempfile::tempdir().unwrap());
        let states = ClientStates::open(folder.path()).unwrap();
        let clients = thread::spawn(move || run_clients(&client, &population, &states, workers).unwrap());
        Self { server: Some(server), clients: Some(clients), _folder: folder }
    }

    fn server(&mut self) -> &mut LinkServer<B> {
        self.server.as_mut().unwrap()
    }
}

impl<B: Backend> Drop for Played<B> {
    fn drop(&mut self) {
        self.server = None;
        self.clients.take().unwrap().join().unwrap();
    }
}

impl<B: Backend> ServerTransport<B> for Played<B> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.server.as_ref().unwrap().clients()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.server().wait(timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        self.server().exchange(requests, timeout)
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.server().close_round(round, included)
    }

    fn checkpointed(&mut self, round: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        self.server().checkpointed(round, oldest)
    }
}

#[test]
fn a_link_with_a_client_loop_keeps_the_laws_of_a_transport() {
    for workers in [1, 5] {
        transport_suite(|population| Played::<Flex>::new(population, workers), &Default::default());
        transport_suite(|population| Played::<NdArray>::new(population, workers), &Default::default());
        compression_suite(|population| Played::<Flex>::new(population, workers), &Default::default());
    }
}

/// The mean itself.
struct Plain;

impl<B: Backend> MeanStrategy<B> for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn step(&mut self, _: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        Ok(mean.params.clone().into())
    }
}

const ROUNDS: u64 = 20;

fn server<B: Backend>(transport: impl ServerTransport<B> + 'static) -> Server<B> {
    let sampler = SamplerConfig::Uniform { per_round: 8 }.build(&transport.clients()).unwrap();
    let global = vector(&[0.0; 7], &schema(&[5, 2]), &B::Device::default());
    let config = ServerConfig { min_updates: 1, eval_every: 0, ..ServerConfig::new(ROUNDS) };
    Server::new(config, transport, Strategy::Mean(Box::new(Plain)), sampler, global, Seed::new(9)).unwrap()
}

fn bits<B: Backend>(params: &ParamVector<B>) -> Vec<u32> {
    params.to_host().into_iter().map(f32::to_bits).collect()
}

fn in_process<B: Backend>() -> Vec<u32> {
    let store = Arc::new(MemoryStore::new());
    let transport = InProcess::new(Arc::new(EchoPopulation::new(30)), Some(store), 2).unwrap();
    bits(&server::<B>(transport).run(&mut []).unwrap().deployed)
}

#[test]
fn a_run_over_a_link_has_the_bits_of_one_process_for_any_number_of_workers() {
    fn check<B: Backend>() {
        for workers in [1, 3] {
            let mut server = server::<B>(Played::new(EchoPopulation::new(30), workers));
            assert_eq!(bits(&server.run(&mut []).unwrap().deployed), in_process::<B>());
        }
    }
    check::<Flex>();
    check::<NdArray>();
}

/// The clients' end of a link whose process dies after training, before it sends its answer number `dies_at`.
struct Dying<T> {
    link: T,
    answers: AtomicU64,
    dies_at: u64,
}

impl<B: Backend, T: ClientTransport<B>> ClientTransport<B> for Dying<T> {
    fn next(&self) -> Result<Option<Asked<B>>, TransportError> {
        self.link.next()
    }

    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError> {
        let number = self.answers.fetch_add(1, Ordering::SeqCst);
        if number == self.dies_at {
            return Err(TransportError::Closed { reason: "killed".to_owned() });
        }
        self.link.reply(client, round, reply)
    }
}

#[test]
fn clients_killed_between_training_and_answering_leave_no_trace() {
    let (link, folder) =
        (MemoryLink::<Flex>::new(Population::<Flex>::clients(&EchoPopulation::new(30))), tempfile::tempdir().unwrap());
    let mut server = server(link.server(RoundIndex(0)));
    let (path, other_end) = (folder.path().to_owned(), link.clone());
    let clients = thread::spawn(move || {
        let mut lives = 0;
        loop {
            lives += 1;
            let states = ClientStates::open(&path).unwrap();
            let link = Dying { link: other_end.client(), answers: AtomicU64::new(0), dies_at: lives % 7 };
            match run_clients(&link, &EchoPopulation::new(30), &states, 1) {
                Ok(()) => return lives,
                Err(error) => assert!(error.to_string().contains("killed"), "{error}"),
            }
        }
    });
    let killed = bits(&server.run(&mut []).unwrap().deployed);
    drop(server);
    assert!(clients.join().unwrap() > 20, "kills are part of this claim");
    assert_eq!(killed, in_process::<Flex>());
}

fn train(
    link: &MemoryLink<Flex>,
    server: &mut LinkServer<Flex>,
    folder: &Path,
    rounds: std::ops::RangeInclusive<u64>,
) -> Vec<Vec<u32>> {
    let (client, states) = (link.client(), ClientStates::open(folder).unwrap());
    thread::scope(|scope| {
        // Ends with the server's goodbye, or at the end of this function by another connection.
        let clients = scope.spawn(move || run_clients(&client, &EchoPopulation::new(30), &states, 2));
        let models = rounds
            .map(|round| {
                let task = TrainTask {
                    round: RoundIndex(round),
                    global: vector(&[round as f32; 7], &schema(&[5, 2]), &FlexDevice),
                    slice: Vec::new(),
                    seed: Seed::new(round),
                    side: SideInfo::default(),
                    reports: Reports::default(),
                    compression: Default::default(),
                };
                let outcome = server.exchange(vec![(ClientId(3), Request::Train(task))], MINUTE).next().unwrap();
                // Every third round's update comes too late to count.
                let included = if round % 3 == 0 { vec![] } else { vec![ClientId(3)] };
                server.close_round(RoundIndex(round), &included).unwrap();
                match outcome.reply.unwrap() {
                    Reply::Trained(update) => bits(&update.params),
                    Reply::Evaluated(_) => unreachable!("it was asked to train"),
                }
            })
            .collect();
        link.client();
        assert!(clients.join().unwrap().is_err());
        models
    })
}

#[test]
fn a_server_that_goes_back_gets_what_it_got_before() {
    let (link, folder) =
        (MemoryLink::new(Population::<Flex>::clients(&EchoPopulation::new(5))), tempfile::tempdir().unwrap());
    let mut server = link.server(RoundIndex(0));
    let first = train(&link, &mut server, folder.path(), 1..=12);
    for after in [9, 4, 0] {
        let mut server = link.server(RoundIndex(after));
        assert_eq!(train(&link, &mut server, folder.path(), after + 1..=12), first[after as usize..], "after {after}");
    }
}

#[test]
fn state_that_is_gone_is_a_failure_that_says_so() {
    let link = MemoryLink::<Flex>::new(Population::<Flex>::clients(&EchoPopulation::new(5)));
    let mut server = link.server(RoundIndex(0));
    train(&link, &mut server, tempfile::tempdir().unwrap().path(), 1..=1);
    let (elsewhere, client) = (tempfile::tempdir().unwrap(), link.client());
    let states = ClientStates::open(elsewhere.path()).unwrap();
    let clients = thread::spawn(move || run_clients(&client, &EchoPopulation::new(5), &states, 1));
    let evaluate = Request::Evaluate { round: RoundIndex(1), global: vector(&[0.0; 7], &schema(&[5, 2]), &FlexDevice) };
    let outcome = server.exchange(vec![(ClientId(3), evaluate)], MINUTE).next().unwrap();
    let failure = outcome.reply.unwrap_err();
    assert!(
        matches!(&failure, ClientFailure::Failed { reason } if reason.contains("after round 1 is missing")),
        "{failure}"
    );
    drop(server);
    clients.join().unwrap().unwrap();
}

/// Client 0 panics.
struct Broken;

impl Population<Flex> for Broken {
    fn clients(&self) -> Arc<[ClientInfo]> {
        (0..2).map(|k| ClientInfo { id: ClientId(k), num_examples: 1 }).collect()
    }

    fn worker(&self) -> Box<dyn Worker<Flex>> {
        Box::new(Self)
    }
}

impl Worker<Flex> for Broken {
    fn client(&mut self, id: ClientId) -> Result<Box<dyn Client<Flex> + '_>, TrainError> {
        Ok(Box::new(BrokenClient(id)))
    }
}

struct BrokenClient(ClientId);

impl Client<Flex> for BrokenClient {
    fn info(&self) -> ClientInfo {
        ClientInfo { id: self.0, num_examples: 1 }
    }

    fn train(&mut self, _: &TrainTask<Flex>) -> Result<LocalUpdate<Flex>, TrainError> {
        unreachable!("the test only evaluates")
    }

    fn evaluate(&mut self, _: &ParamVector<Flex>) -> Result<Metrics, TrainError> {
        if self.0 == ClientId(0) { panic!("client 0 is broken") } else { Ok(Metrics::new()) }
    }
}

#[test]
fn a_client_that_panics_is_one_failure_and_the_loop_goes_on() {
    let (link, folder) = (MemoryLink::<Flex>::new(Broken.clients()), tempfile::tempdir().unwrap());
    let (mut server, client) = (link.server(RoundIndex(0)), link.client());
    let states = ClientStates::open(folder.path()).unwrap();
    let clients = thread::spawn(move || run_clients(&client, &Broken, &states, 1));
    for (client, fails) in [(0, true), (1, false), (0, true), (1, false)] {
        let request = Request::Evaluate { round: RoundIndex(0), global: vector(&[1.0], &schema(&[1]), &FlexDevice) };
        let outcome = server.exchange(vec![(ClientId(client), request)], MINUTE).next().unwrap();
        assert_eq!(outcome.reply.is_err(), fails, "{:?}", outcome.reply);
    }
    drop(server);
    clients.join().unwrap().unwrap();
}
