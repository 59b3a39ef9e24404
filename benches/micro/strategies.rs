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
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fedburn::core::SideInfo;
use fedburn_benches::rounds::{CLIENTS, Rounds, VALUES, numbers};

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

fn rounds(criterion: &mut Criterion) {
    let answers: Vec<Vec<f32>> = (0..CLIENTS).map(numbers).collect();
    let mut group = criterion.benchmark_group("strategies");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(1));
    for threads in [1, 2] {
        let bandwidth = bandwidth(&answers, threads);
        for (table, vectors) in ENTRIES {
            let name = table.split_whitespace().collect::<Vec<_>>().join(" ").replace("kind = ", "").replace('\'', "");
            let floor = (vectors * 4 * VALUES as u64) as f64 / bandwidth;
            println!("{name}, {threads} threads: floor {:.1} ms at {:.1} GB/s", floor * 1e3, bandwidth / 1e9);
            let mut rounds = Rounds::of(table, threads).expect("a table of the catalogue");
            group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                bencher.iter_batched(
                    // Answers of its own for each round: the server may use their memory.
                    || answers.clone(),
                    |answers| round(&mut rounds, answers),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

fn round(rounds: &mut Rounds, answers: Vec<Vec<f32>>) {
    rounds.begin().expect("a round can begin");
    for (client, values) in rounds.clients().into_iter().zip(answers) {
        // Takes the values as they are, without a copy.
        let params = rounds.vector(values).expect("as long as the schema");
        rounds.answer(client, params, SideInfo::default()).expect("a finite mean");
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

criterion_group!(benches, rounds);
criterion_main!(benches);
