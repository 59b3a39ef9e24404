//! The in-process transport keeps the laws of its trait, for any number of workers and on both CPU backends.
#![allow(clippy::unwrap_used)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_core::{
    Client, ClientFailure, ClientId, ClientInfo, LocalUpdate, Metrics, Outcome, ParamVector, Population, Request,
    RoundIndex, ServerTransport, TrainError, TrainTask, Worker,
};
use fedburn_runtime::MemoryStore;
use fedburn_testkit::{compression_suite, schema, transport_suite, vector};
use fedburn_transport::InProcess;

fn conforms<B: Backend>(workers: usize) {
    let connect =
        |population| InProcess::<B>::new(Arc::new(population), Some(Arc::new(MemoryStore::new())), workers).unwrap();
    transport_suite(connect, &Default::default());
    compression_suite(connect, &Default::default());
}

#[test]
fn conforms_with_one_worker() {
    conforms::<Flex>(1);
}

#[test]
fn conforms_with_more_workers_than_cores() {
    conforms::<Flex>(5);
    conforms::<NdArray>(3);
}

/// Client 0 panics, client 1 answers when the test lets it, the others at once.
struct Troubled {
    release: Mutex<Option<Receiver<()>>>,
}

struct TroubledWorker(Option<Receiver<()>>);

struct TroubledClient<'a>(ClientId, &'a mut Option<Receiver<()>>);

impl Troubled {
    fn new() -> (Arc<Self>, Sender<()>) {
        let (sender, release) = channel();
        (Arc::new(Self { release: Mutex::new(Some(release)) }), sender)
    }
}

impl Population<Flex> for Troubled {
    fn clients(&self) -> Arc<[ClientInfo]> {
        (0..4).map(|k| ClientInfo { id: ClientId(k), num_examples: 4 - k }).collect()
    }

    fn worker(&self) -> Box<dyn Worker<Flex>> {
        Box::new(TroubledWorker(self.release.lock().unwrap().take()))
    }
}

impl Worker<Flex> for TroubledWorker {
    fn client(&mut self, id: ClientId) -> Result<Box<dyn Client<Flex> + '_>, TrainError> {
        Ok(Box::new(TroubledClient(id, &mut self.0)))
    }
}

impl Client<Flex> for TroubledClient<'_> {
    fn info(&self) -> ClientInfo {
        ClientInfo { id: self.0, num_examples: 1 }
    }

    fn train(&mut self, _: &TrainTask<Flex>) -> Result<LocalUpdate<Flex>, TrainError> {
        unreachable!("the tests only evaluate")
    }

    fn evaluate(&mut self, _: &ParamVector<Flex>) -> Result<Metrics, TrainError> {
        match self.0.0 {
            0 => panic!("client 0 is broken"),
            1 => self.1.iter().for_each(|release| release.recv().unwrap()),
            _ => {}
        }
        Ok(Metrics::new())
    }
}

fn ask(transport: &mut InProcess<Flex>, clients: &[u64], timeout: Duration) -> Vec<Outcome<Flex>> {
    let global = vector(&[1.0], &schema(&[1]), &FlexDevice);
    let requests =
        clients.iter().map(|&k| (ClientId(k), Request::Evaluate { round: RoundIndex(1), global: global.clone() }));
    let mut outcomes: Vec<_> = transport.exchange(requests.collect(), timeout).collect();
    outcomes.sort_by_key(|o| o.client);
    outcomes
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_panicking_client_is_one_failure_and_its_worker_goes_on() {
    let (population, _release) = Troubled::new();
    let mut transport = InProcess::new(population, None, 1).unwrap();
    let outcomes = ask(&mut transport, &[0, 2, 3], MINUTE);
    assert!(
        matches!(&outcomes[0].reply, Err(ClientFailure::Failed { reason }) if reason == "panicked: client 0 is broken")
    );
    assert!(outcomes[1..].iter().all(|o| o.reply.is_ok()));
    assert!(ask(&mut transport, &[2], MINUTE)[0].reply.is_ok());
}

#[test]
fn a_client_past_the_deadline_timed_out_and_its_late_answer_disturbs_nobody() {
    let (population, release) = Troubled::new();
    let mut transport = InProcess::new(population, None, 1).unwrap();
    let outcomes = ask(&mut transport, &[1, 2], Duration::ZERO);
    assert!(outcomes.iter().all(|o| o.reply.as_ref().unwrap_err() == &ClientFailure::TimedOut));
    release.send(()).unwrap();
    let outcomes = ask(&mut transport, &[2, 3], MINUTE);
    assert_eq!(outcomes.iter().map(|o| o.client.0).collect::<Vec<_>>(), [2, 3]);
    assert!(outcomes.iter().all(|o| o.reply.is_ok()));
}

#[test]
fn a_timeout_beyond_the_clock_waits() {
    let (population, _release) = Troubled::new();
    assert!(ask(&mut InProcess::new(population, None, 2).unwrap(), &[2], Duration::MAX)[0].reply.is_ok());
}
