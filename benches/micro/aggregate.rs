//! The server's work on flat vectors: exact sums, loading and flattening, partitioning. Throughput is in values.
//!
//! ```sh
//! cargo xtask bench exact_sum    # or vectors, or partition
//! ```

use std::hint::black_box;

use burn_flex::{Flex, FlexDevice};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedburn::core::ClassId;
use fedburn::data::partition::PartitionConfig;
use fedburn::models::{Zoo, ZooConfig};
use fedburn::prelude::*;
use fedburn::runtime::{ExactSum, exact_mean_into};

const VALUES: usize = 1_000_000;

fn numbers(seed: u64) -> Vec<f32> {
    use rand::RngExt;
    let mut rng = Seed::new(seed).rng();
    (0..VALUES).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn exact_sum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exact_sum");
    group.sample_size(20).throughput(Throughput::Elements(VALUES as u64));
    let (a, b) = (numbers(1), numbers(2));
    let mut sum = ExactSum::new(VALUES);
    sum.add(&a, 60).expect("finite");
    // The weight is one, so that no number of iterations reaches the limit.
    group.bench_function("add", |bencher| bencher.iter(|| sum.add(black_box(&b), 1)));
    let four = [(&a[..], 1), (&b[..], 1), (&a[..], 1), (&b[..], 1)];
    group.bench_function("add_all/4", |bencher| bencher.iter(|| sum.add_all(black_box(&four))));
    group.bench_function("mean", |bencher| bencher.iter(|| black_box(sum.mean())));
    let vectors: Vec<_> = (0..10).map(numbers).collect();
    let updates: Vec<_> = vectors.iter().zip(600..).map(|(values, weight)| (&values[..], weight)).collect();
    let mut mean = vec![0.0; VALUES];
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("mean_of_10", threads), |bencher| {
            bencher.iter(|| exact_mean_into(black_box(&mut mean), &updates, threads));
        });
    }
    group.finish();
}

fn vectors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("vectors");
    let configs = [("2nn", ZooConfig::TwoNn { hidden: 200 }), ("fedavg_cnn", ZooConfig::FedAvgCnn {})];
    for (name, config) in configs {
        let family: Zoo = config.build([1, 28, 28], 10).expect("valid model");
        let model = ModelFamily::<Flex>::init(&family, Seed::new(0), &FlexDevice);
        let params = flatten(&model).expect("zoo models flatten");
        group.throughput(Throughput::Elements(params.num_values() as u64));
        group.bench_function(BenchmarkId::new("flatten", name), |bencher| bencher.iter(|| flatten(black_box(&model))));
        let mut resident = Some(model);
        group.bench_function(BenchmarkId::new("load", name), |bencher| {
            bencher.iter(|| {
                let loaded = load(resident.take().expect("put back below"), &params).expect("its own vector");
                resident = Some(loaded);
            });
        });
    }
    group.finish();
}

fn partitions(criterion: &mut Criterion) {
    let labels: Vec<_> = (0..60_000).map(|i| ClassId(i % 10)).collect();
    let mut group = criterion.benchmark_group("partition");
    group.throughput(Throughput::Elements(labels.len() as u64));
    let configs = [
        PartitionConfig::Iid { clients: 100 },
        PartitionConfig::Dirichlet { clients: 100, alpha: 0.5, min_examples: 10 },
        PartitionConfig::Shards { clients: 100, shards_per_client: 2 },
    ];
    for config in configs {
        group.bench_function(config.kind(), |bencher| bencher.iter(|| config.partition(&labels, None, Seed::new(1))));
    }
    group.finish();
}

criterion_group!(benches, exact_sum, vectors, partitions);
criterion_main!(benches);
