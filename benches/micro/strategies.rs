//! A round on the server, for each strategy of the catalogue: 10 answers of 10 million parameters, from their arrival
//! to the next global vector.
//!
//! ```sh
//! cargo xtask bench strategies
//! ```
//!
//! Beside each time stands a floor: the bytes that the rule must touch, once, at the speed at which this machine reads
//! memory on as many threads.

use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use burn_flex::{Flex, FlexDevice};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fedburn::core::{
    ClientId, ClientInfo, ClientReport, LocalUpdate, Metrics, Outcome, ParamEntry, ParamKind, ParamSchema, ParamVector,
    Reply, SideInfo,
};
use fedburn::prelude::*;
use fedburn::runtime::{All, Coordinator, Effect, Input};
use fedburn::strategies::StrategyConfig;
use rand::RngExt;

/// The `[strategy]` table of each entry, and the vectors of the model's length that its rule reads or writes: every
/// answer, the global vector where it is read, the next one, state in and out.
const ENTRIES: &[(&str, u64)] = &[
    ("kind = 'fedavg'", CLIENTS + 1),
    // Two moments of every client.
    ("kind = 'ewwa'\nform = 'softmax'", CLIENTS + 2 + 4 * CLIENTS),
    ("kind = 'ewwa'\nform = 'log_share'", CLIENTS + 2 + 4),
    ("kind = 'median'", CLIENTS + 1),
    ("kind = 'trimmed_mean'", CLIENTS + 1),
    // The next vector is the winner's own.
    ("kind = 'krum'", CLIENTS),
    ("kind = 'multi_krum'", CLIENTS + 1),
    ("kind = 'bulyan'", CLIENTS + 1),
    ("kind = 'geometric_median'", CLIENTS + 1),
    ("kind = 'norm_clipping'", CLIENTS + 2),
    ("kind = 'weight_erosion'", CLIENTS + 2),
];

const CLIENTS: u64 = 10;
const VALUES: usize = 10_000_000;

fn rounds(criterion: &mut Criterion) {
    let schema = ParamSchema::new(vec![ParamEntry::new("weight", vec![VALUES], ParamKind::Weight)]);
    let schema = Arc::new(schema.expect("one tensor"));
    let answers: Vec<Vec<f32>> = (0..CLIENTS).map(numbers).collect();
    let clients: Vec<_> = (0..CLIENTS).map(|k| ClientInfo { id: ClientId(k), num_examples: 100 + 31 * k }).collect();
    let mut group = criterion.benchmark_group("strategies");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(1));
    for threads in [1, 2] {
        let bandwidth = bandwidth(&answers, threads);
        for (table, vectors) in ENTRIES {
            let name = table.split_whitespace().collect::<Vec<_>>().join(" ").replace("kind = ", "").replace('\'', "");
            let config: StrategyConfig = toml::from_str(table).expect("a table of the catalogue");
            let floor = (vectors * 4 * VALUES as u64) as f64 / bandwidth;
            println!("{name}, {threads} threads: floor {:.1} ms at {:.1} GB/s", floor * 1e3, bandwidth / 1e9);
            let vector = |values: Vec<f32>| ParamVector::<Flex>::from_host(values, schema.clone(), &FlexDevice);
            let strategy = config.build().expect("valid settings");
            let global = vector(vec![0.0; VALUES]).expect("as long as the schema");
            let mut coordinator =
                Coordinator::new(strategy, Box::new(All), global, Seed::new(0), 1).with_threads(threads);
            group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                bencher.iter_batched(
                    // Answers of its own for each round: the server may use their memory.
                    || answers.iter().cloned().map(|v| vector(v).expect("as long as the schema")).collect::<Vec<_>>(),
                    |answers| round(&mut coordinator, &clients, answers),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

fn round(coordinator: &mut Coordinator<Flex>, clients: &[ClientInfo], answers: Vec<ParamVector<Flex>>) {
    coordinator.step(Input::Begin(clients), Duration::ZERO).expect("a round can begin");
    for (client, params) in clients.iter().zip(answers) {
        let update = LocalUpdate {
            params,
            num_examples: client.num_examples,
            side: SideInfo::default(),
            report: ClientReport::default(),
            metrics: Metrics::new(),
        };
        let outcome = Outcome { client: client.id, reply: Ok(Reply::Trained(update)) };
        let effects = coordinator.step(Input::Outcome(outcome), Duration::ZERO).expect("a finite mean");
        for effect in effects {
            if let Effect::Close { round, included } = effect {
                assert_eq!(included.len(), clients.len(), "every answer counts");
                let memory = coordinator.memory();
                memory
                    .commit(round, &included)
                    .and_then(|()| memory.checkpointed(round))
                    .expect("this process's memory");
            }
        }
    }
}

/// Bytes a second that `threads` threads read, the best of five.
fn bandwidth(vectors: &[Vec<f32>], threads: usize) -> f64 {
    let read = |vector: &Vec<f32>| black_box(vector.iter().fold(0, |all, v| all | v.to_bits()));
    let once = || {
        let began = Instant::now();
        thread::scope(|scope| {
            for part in vectors.chunks(vectors.len().div_ceil(threads)) {
                scope.spawn(move || part.iter().for_each(|vector| _ = read(vector)));
            }
        });
        began.elapsed().as_secs_f64()
    };
    (vectors.len() * 4 * VALUES) as f64 / (0..5).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn numbers(seed: u64) -> Vec<f32> {
    let mut rng = Seed::new(seed).rng();
    (0..VALUES).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

criterion_group!(benches, rounds);
criterion_main!(benches);
