//! Conformance suite of [`ServerTransport`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Answered, Answerer, ClientFailure, ClientId, Codec, CompressionConfig, ParamSchema, ParamVector, Reply, Reports,
    Request, RoundIndex, Seed, ServerTransport, SideInfo, TrainTask,
};

use crate::{EchoPopulation, schema, vector};

type Answers = BTreeMap<ClientId, Result<Vec<u32>, ClientFailure>>;

/// The schema of every vector that [`transport_suite`] sends: some transports have to know it before.
pub fn transport_suite_schema() -> Arc<ParamSchema> {
    schema(&[4, 3])
}

/// Checks a transport that `connect` builds over a given population, where `connect` is called anew for every law.
///
/// # Panics
/// With the broken law.
pub fn transport_suite<B: Backend, T: ServerTransport<B>>(connect: impl Fn(EchoPopulation) -> T, device: &B::Device) {
    let population = || EchoPopulation::new(20);

    let mut transport = connect(population());
    transport.wait(Duration::MAX).expect("nobody is waited for where clients are there");
    let clients = transport.clients();
    assert!(clients.is_sorted_by(|a, b| a.id < b.id), "clients are sorted by id, without repeats");
    assert_eq!(clients.len(), 20, "every client is known");

    let everyone: Vec<u64> = (0..20).collect();
    let first = train(&mut connect(population()), 1, &everyone, device);
    assert_eq!(first.len(), 20, "each request yields exactly one outcome");
    for (client, answer) in &first {
        match client.0 % 7 {
            0 => assert_eq!(answer, &Err(ClientFailure::NoData), "a client without data says so"),
            _ => assert!(answer.is_ok(), "client {client} trains: {answer:?}"),
        }
    }
    assert_eq!(
        first,
        train(&mut connect(population()), 1, &everyone, device),
        "answers are a function of the requests"
    );

    let mut transport = connect(population());
    let unknown = train(&mut transport, 1, &[3, 99], device);
    assert!(
        unknown[&ClientId(3)].is_ok() && unknown[&ClientId(99)].is_err(),
        "an unknown client is one failure, not the end"
    );
    assert_eq!(train(&mut transport, 2, &[], device).len(), 0, "no request, no outcome");

    // Echo clients count their committed rounds, so state that is lost, kept twice or kept after an abandoned round shows.
    let mut kept = connect(population());
    train(&mut kept, 1, &[3], device);
    kept.close_round(RoundIndex(1), &[ClientId(3)]).expect("state is kept");
    let second = train(&mut kept, 2, &[3], device);
    let mut fresh = connect(population());
    assert_ne!(second, train(&mut fresh, 2, &[3], device), "state of a committed round is there in the next");
    let mut abandoned = connect(population());
    train(&mut abandoned, 1, &[3], device);
    abandoned.close_round(RoundIndex(1), &[]).expect("state is dropped");
    assert_eq!(
        train(&mut abandoned, 2, &[3], device),
        train(&mut connect(population()), 2, &[3], device),
        "state of an abandoned round is forgotten"
    );

    let mut dropped = connect(population());
    let requests = requests(1, &everyone, device);
    drop(dropped.exchange(requests, Duration::from_secs(60)));
    assert_eq!(train(&mut dropped, 2, &everyone, device).len(), 20, "an exchange given up does not disturb the next");

    let global = vector(&[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0], &transport_suite_schema(), device);
    let evaluate = Request::Evaluate { round: RoundIndex(1), global };
    let outcomes: Vec<_> =
        connect(population()).exchange(vec![(ClientId(1), evaluate)], Duration::from_secs(60)).collect();
    assert!(
        matches!(&outcomes[0].reply, Ok(Reply::Evaluated(m)) if m.get("loss") == Some(3.0)),
        "clients evaluate: {outcomes:?}"
    );
}

/// Checks that a transport's clients send what codecs make of model and update, to the bit, whatever carries it; in the
/// second round with what the first one left out. Not a law of every transport: some change what clients send.
///
/// # Panics
/// With the codecs that broke it.
pub fn compression_suite<B: Backend, T: ServerTransport<B>>(connect: impl Fn(EchoPopulation) -> T, device: &B::Device) {
    for compression in compressions() {
        let (mut transport, clients) = (connect(EchoPopulation::new(20)), [1, 2, 3, 5]);
        let (population, mut states) = (EchoPopulation::new(20), BTreeMap::new());
        let mut answerer = Answerer::<B>::new(&population);
        for round in 1..=2 {
            let mut expected = Answers::new();
            for (client, request) in compressed(round, &clients, compression, device) {
                let state = states.get(&client).cloned();
                let Answered { reply, state } = answerer.answer(client, request, || Ok(state)).expect("it has data");
                states.insert(client, state.expect("it keeps one"));
                expected.insert(client, Ok(bits(reply)));
            }
            let requests = compressed(round, &clients, compression, device);
            assert_eq!(answers(&mut transport, requests), expected, "round {round} with {compression:?}");
            transport.close_round(RoundIndex(round), &clients.map(ClientId)).expect("state is kept");
        }
    }
}

fn requests<B: Backend>(round: u64, clients: &[u64], device: &B::Device) -> Vec<(ClientId, Request<B>)> {
    let global: ParamVector<B> = vector(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &transport_suite_schema(), device);
    let task = |client: ClientId| TrainTask {
        round: RoundIndex(round),
        global: global.clone(),
        slice: Vec::new(),
        seed: Seed::new(5).round(RoundIndex(round)).client(client),
        side: SideInfo::default(),
        reports: Reports::default(),
        compression: Default::default(),
    };
    clients.iter().map(|&k| (ClientId(k), Request::Train(task(ClientId(k))))).collect()
}

fn train<B: Backend, T: ServerTransport<B>>(
    transport: &mut T,
    round: u64,
    clients: &[u64],
    device: &B::Device,
) -> Answers {
    answers(transport, requests(round, clients, device))
}

fn answers<B: Backend, T: ServerTransport<B>>(transport: &mut T, requests: Vec<(ClientId, Request<B>)>) -> Answers {
    let mut answers = Answers::new();
    for outcome in transport.exchange(requests, Duration::from_secs(60)) {
        let answer = outcome.reply.map(bits);
        assert!(answers.insert(outcome.client, answer).is_none(), "one outcome for client {}", outcome.client);
    }
    answers
}

fn bits<B: Backend>(reply: Reply<B>) -> Vec<u32> {
    match reply {
        Reply::Trained(update) => update.params.to_host().into_iter().map(f32::to_bits).collect(),
        Reply::Evaluated(_) => panic!("a training request is answered by an update"),
    }
}

/// Every codec in each direction that it has.
fn compressions() -> [CompressionConfig; 6] {
    let (f32, f16, bf16) = (Codec::F32 {}, Codec::F16 {}, Codec::Bf16 {});
    let (int8, int4, top_k) = (Codec::Int8 {}, Codec::Int4 {}, Codec::TopK { ratio: 0.4 });
    let ways = [(f16, f32), (bf16, f16), (int8, int4), (int4, int8), (Codec::ScaledSign {}, bf16), (top_k, int8)];
    ways.map(|(up, down)| CompressionConfig { up, down, ..Default::default() })
}

/// The requests of a round whose models and updates go through codecs.
fn compressed<B: Backend>(
    round: u64,
    clients: &[u64],
    compression: CompressionConfig,
    device: &B::Device,
) -> Vec<(ClientId, Request<B>)> {
    let mut requests = requests(round, clients, device);
    let mut sent = None;
    for (_, request) in &mut requests {
        let Request::Train(task) = request else { continue };
        let through = || task.global.through(compression.down, Seed::new(round)).expect("the model is finite");
        (task.global, task.compression) = (sent.get_or_insert_with(through).clone(), compression);
    }
    requests
}
