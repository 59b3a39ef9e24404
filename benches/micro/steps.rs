//! One step of local training: forward, loss, backward, plain SGD, batch 32, one thread.
//!
//! ```sh
//! cargo xtask bench sgd_step
//! ```

use std::hint::black_box;
use std::sync::Arc;

use burn_flex::Flex;
use burn_ndarray::NdArray;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedburn::data::datasets::{Synthetic, SyntheticConfig};
use fedburn::models::{NormKind, Zoo, ZooConfig};
use fedburn::ops::Kernels;
use fedburn::prelude::*;
use fedburn::train::{CrossEntropy, LocalTraining, ResidentModel, descend};

const BATCH: usize = 32;
/// Steps between two loads of the model, so that loading it does not count much.
const STEPS: usize = 10;

fn models() -> Vec<(&'static str, ZooConfig, [usize; 3])> {
    let resnet = ZooConfig::ResNet { depth: 20, norm: NormKind::Group, groups: Some(4) };
    vec![
        ("2nn", ZooConfig::TwoNn { hidden: 200 }, [1, 28, 28]),
        ("fedavg_cnn", ZooConfig::FedAvgCnn {}, [1, 28, 28]),
        ("resnet20_gn", resnet, [3, 32, 32]),
    ]
}

/// Ten steps from the same weights on the same batches.
fn ten_steps<B: Kernels>(family: &Zoo, training: &LocalTraining, data: &ClientData) -> impl FnMut() + use<B> {
    let device = B::Device::default();
    let global = flatten(&ModelFamily::<B>::init(family, Seed::new(0), &device)).expect("zoo models flatten");
    let mut resident = ResidentModel::<B, Zoo>::new(family.clone(), device.clone());
    let (training, data) = (training.clone(), data.clone());
    move || {
        let model = resident.load(&global).expect("its own vector");
        let batches = training.batches::<B>(&data, Seed::new(1), &device);
        let descent =
            descend(model, batches, &mut CrossEntropy, &mut training.optimiser(), 0.01).expect("it converges");
        resident.keep(black_box(descent.model));
    }
}

fn on<B: Kernels>(criterion: &mut Criterion, backend: &str) {
    let mut group = criterion.benchmark_group("sgd_step");
    group.sample_size(10).throughput(Throughput::Elements(STEPS as u64));
    for (name, config, shape) in models() {
        let blobs = SyntheticConfig { shape, train: BATCH * STEPS, ..SyntheticConfig::default() };
        let examples = Synthetic::new(blobs).and_then(|blobs| blobs.train()).expect("valid settings");
        let family = config.build(shape, 10).expect("valid model");
        let mut settings = LocalTrainingConfig::sgd(1, BATCH, 0.01);
        (settings.epochs, settings.steps) = (None, Some(STEPS));
        let mut run = ten_steps::<B>(&family, &settings.build().expect("valid"), &ClientData::all(Arc::new(examples)));
        group.bench_function(BenchmarkId::new(name, backend), |bencher| bencher.iter(&mut run));
    }
    group.finish();
}

fn steps(criterion: &mut Criterion) {
    on::<Flex>(criterion, "flex");
    on::<NdArray>(criterion, "ndarray");
}

criterion_group!(benches, steps);
criterion_main!(benches);
