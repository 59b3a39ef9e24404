//! The generic code on wgpu agrees with the CPU's. Where there is no GPU, a software Vulkan driver (Mesa's lavapipe)
//! stands in for one; without any driver the tests say so and pass. It also stands in for CUDA, whose kernels are made
//! from the same sources (CubeCL): asynchronous queues, kernels compiled at run time, a device that is not the host.
#![cfg(all(feature = "wgpu", feature = "flex"))]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_wgpu::{Wgpu, WgpuDevice};
use fedburn::core::{
    ClientId, Evaluator, Metrics, ModelFamily, ParamVector, Population, Reports, RoundIndex, Seed, SideInfo, Strategy,
    TrainTask, flatten, load,
};
use fedburn::data::ClientData;
use fedburn::data::datasets::{self, Dataset, DatasetConfig};
use fedburn::models::{GeneratorConfig, Zoo, ZooConfig};
use fedburn::ops::Kernels;
use fedburn::runtime::{MemoryStore, SamplerConfig, Server, ServerConfig};
use fedburn::strategies::{FedFtg, FedFtgConfig, StrategyConfig};
use fedburn::train::{ClassifierEvaluator, ClientList, LocalTrainingConfig, SupervisedPopulation};
use fedburn::transport::InProcess;
use fedburn_experiment::backend::{BackendError, BackendJob, BackendName};
use fedburn_testkit::{Convexity, Rounds, answer_all, base_case, schema, strategy_laws, vector};

/// What every strategy of the catalogue is tested with.
fn strategies() -> Vec<(StrategyConfig, Convexity)> {
    let strategy = |table: &str, convexity| (toml::from_str(table).unwrap(), convexity);
    vec![
        strategy("kind = 'fedavg'", Convexity::Convex),
        strategy("kind = 'fedavg'\nweighting = 'uniform'\nserver_lr = 0.5", Convexity::Free),
        strategy("kind = 'optimal_averaging'\ntarget = 0\nvariance = 1.0", Convexity::Convex),
        strategy("kind = 'ewwa'", Convexity::Convex),
        strategy("kind = 'ewwa'\nform = 'log_share'\noptimizer = 'yogi'", Convexity::Convex),
        strategy("kind = 'median'", Convexity::Convex),
        strategy("kind = 'trimmed_mean'\nif_too_few = 'median'", Convexity::Convex),
        strategy("kind = 'krum'\nattackers = 0\nif_too_few = 'median'", Convexity::Convex),
        strategy("kind = 'multi_krum'\nattackers = 0\nif_too_few = 'median'", Convexity::Convex),
        strategy("kind = 'bulyan'\nattackers = 0\nif_too_few = 'median'", Convexity::Convex),
        strategy("kind = 'geometric_median'", Convexity::Convex),
        strategy("kind = 'norm_clipping'\nthreshold = 0.5", Convexity::Free),
        strategy("kind = 'weight_erosion'", Convexity::Convex),
        strategy("kind = 'fedavgm'", Convexity::Free),
        strategy("kind = 'fedadagrad'", Convexity::Free),
        strategy("kind = 'fedadam'\nv0 = 0\nbias_correction = true", Convexity::Free),
        strategy("kind = 'fedyogi'", Convexity::Free),
        strategy("kind = 'fedams'", Convexity::Free),
        strategy("kind = 'fednova'\nserver_momentum = 0.5", Convexity::Free),
        strategy("kind = 'scaffold'\nserver_lr = 0.5", Convexity::Free),
        strategy("kind = 'feddyn'\nalpha = 0.1", Convexity::Free),
        strategy("kind = 'swa'\nstart = 1\ncycle = 2\nbase = { kind = 'fedadam' }", Convexity::Free),
    ]
}

/// The wgpu device, found as the program finds it; `None` says that there is none.
fn wgpu() -> Option<WgpuDevice> {
    struct Probe;
    impl BackendJob for Probe {
        type Output = ();
        fn run<B: Kernels>(self, _: B::Device) {}
    }
    match BackendName::Wgpu.run(Probe) {
        Ok(()) => Some(WgpuDevice::default()),
        Err(BackendError::Unavailable { reason, .. }) => {
            eprintln!("no Vulkan adapter: skipped ({reason})");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn digits() -> Dataset {
    datasets::load(&DatasetConfig::Digits {}, Path::new("")).unwrap()
}

fn two_nn() -> Zoo {
    ZooConfig::TwoNn { hidden: 32 }.build([1, 8, 8], 10).unwrap()
}

fn initial<B: Kernels>(device: &B::Device) -> ParamVector<B> {
    flatten(&ModelFamily::<B>::init(&two_nn(), Seed::new(3), device)).unwrap()
}

/// Three clients with 40, 24 and 7 digits.
fn population<B: Kernels>(training: LocalTrainingConfig, device: &B::Device) -> SupervisedPopulation<B, Zoo> {
    let digits = digits();
    let client = |range: std::ops::Range<usize>| ClientData::new(digits.train.clone(), range.collect()).unwrap();
    let clients: ClientList = [0..40, 40..64, 64..71].into_iter().map(client).collect();
    SupervisedPopulation::new(Arc::new(clients), two_nn(), training.build().unwrap(), device.clone())
}

/// The parameters and the training loss of one client after a few steps with everything that the optimiser knows.
fn local_steps<B: Kernels>(device: &B::Device) -> (Vec<f32>, f64) {
    let training = LocalTrainingConfig {
        momentum: 0.9,
        nesterov: true,
        weight_decay: 1e-3,
        clip_norm: Some(1.0),
        ..LocalTrainingConfig::sgd(2, 16, 0.1)
    };
    let task = TrainTask {
        round: RoundIndex(1),
        global: initial::<B>(device),
        slice: Vec::new(),
        seed: Seed::new(5),
        side: SideInfo::default(),
        reports: Reports::default(),
        compression: Default::default(),
    };
    let update = population::<B>(training, device).worker().client(ClientId(0)).unwrap().train(&task).unwrap();
    (update.params.to_host(), update.metrics.get(Metrics::TRAIN_LOSS).unwrap())
}

/// FedAvg, fine-tuned by a small generator.
fn fine_tuned<B: Kernels>() -> Strategy<B> {
    let config =
        FedFtgConfig { iterations: 2, batch_size: 16, student_lr: 4.0, generator_lr: 1e-3, ..FedFtgConfig::default() };
    let generator = GeneratorConfig { noise: 4, width: 4 }.build([1, 8, 8], 10).unwrap();
    let strategy = FedFtg::new(config, StrategyConfig::default().build().unwrap(), two_nn(), generator).unwrap();
    Strategy::PerClient(Box::new(strategy))
}

/// The global vector after two rounds, and its loss on test digits.
fn federation<B: Kernels>(strategy: Strategy<B>, workers: usize, device: &B::Device) -> (Vec<f32>, f64) {
    let population = Arc::new(population::<B>(LocalTrainingConfig::sgd(1, 16, 0.1), device));
    let sampler = SamplerConfig::All {}.build(&Population::<B>::clients(&*population)).unwrap();
    let transport = InProcess::new(population, Some(Arc::new(MemoryStore::new())), workers).unwrap();
    let config = ServerConfig { eval_every: 0, ..ServerConfig::new(2) };
    let server = Server::new(config, transport, strategy, sampler, initial::<B>(device), Seed::new(7));
    let summary = server.unwrap().run(&mut []).unwrap();
    let held_out = ClientData::new(digits().test.clone(), (0..64).collect()).unwrap();
    let mut evaluator = ClassifierEvaluator::new(two_nn(), held_out, device.clone());
    let metrics = evaluator.evaluate(&summary.deployed).unwrap();
    (summary.deployed.to_host(), metrics.get(Metrics::LOSS).unwrap())
}

/// The global vectors of two rounds over the same updates.
fn two_rounds<B: Backend>(config: &StrategyConfig, device: &B::Device) -> [Vec<f32>; 2] {
    let (global, updates) = base_case::<B>(device);
    let updates: Vec<_> = updates.into_iter().map(answer_all).collect();
    let mut strategy = config.clone().build().unwrap();
    let rounds = Rounds::new(4);
    let first = rounds.combine(&mut strategy, RoundIndex(1), &global, &updates).unwrap().global;
    let second = rounds.combine(&mut strategy, RoundIndex(2), &first, &updates).unwrap().global;
    [first.to_host(), second.to_host()]
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Both backends sum in their own order, so the last bits differ; training itself moves weights by far more.
fn assert_agree((ours, our_loss): (Vec<f32>, f64), (reference, loss): (Vec<f32>, f64)) {
    let moved = largest_difference(&initial::<Flex>(&FlexDevice).to_host(), &reference);
    let difference = largest_difference(&ours, &reference);
    eprintln!("weights moved by up to {moved}, differ by up to {difference}; losses {our_loss} and {loss}");
    assert!(moved > 1e-2, "training moves weights, here by {moved}");
    assert!(difference < 1e-5, "weights differ by {difference}");
    assert!((our_loss - loss).abs() < 1e-5 * loss, "losses {our_loss} and {loss}");
}

#[test]
fn local_training_agrees() {
    let Some(device) = wgpu() else { return };
    assert_agree(local_steps::<Wgpu>(&device), local_steps::<Flex>(&FlexDevice));
}

#[test]
fn a_federation_agrees_and_its_number_of_workers_changes_no_bit() {
    let Some(device) = wgpu() else { return };
    let run = |workers| federation::<Wgpu>(StrategyConfig::default().build().unwrap(), workers, &device);
    let (two_workers, one_worker) = (run(2), run(1));
    assert_eq!(bits(&two_workers.0), bits(&one_worker.0));
    let reference = federation::<Flex>(StrategyConfig::default().build().unwrap(), 1, &FlexDevice);
    assert_agree(two_workers, reference);
}

#[test]
fn fine_tuning_on_the_server_agrees() {
    let Some(device) = wgpu() else { return };
    let (ours, _) = federation::<Wgpu>(fine_tuned(), 1, &device);
    let (reference, _) = federation::<Flex>(fine_tuned(), 1, &FlexDevice);
    let (plain, _) = federation::<Flex>(StrategyConfig::default().build().unwrap(), 1, &FlexDevice);
    // Adam's first step is the sign of a slope, so that a slope that is noise moves a weight either way.
    let (moved, difference) = (largest_difference(&plain, &reference), largest_difference(&ours, &reference));
    eprintln!("fine-tuning moved weights by up to {moved}; they differ by up to {difference}");
    assert!(moved > 1e-2 && difference < 1e-2 * moved, "moved by {moved}, differ by {difference}");
}

#[test]
fn strategies_agree_on_the_base_case() {
    let Some(device) = wgpu() else { return };
    for (config, _) in strategies() {
        let (ours, reference) = (two_rounds::<Wgpu>(&config, &device), two_rounds::<Flex>(&config, &FlexDevice));
        for (round, (ours, reference)) in ours.iter().zip(&reference).enumerate() {
            let difference = largest_difference(ours, reference);
            assert!(difference < 1e-6, "{config:?}, round {}: {ours:?}, expected {reference:?}", round + 1);
        }
    }
}

#[test]
fn strategies_keep_the_laws() {
    let Some(device) = wgpu() else { return };
    for (config, convexity) in strategies() {
        strategy_laws::<Wgpu>(|| config.clone().build().unwrap(), convexity, &device);
    }
}

#[test]
fn models_and_vectors_round_trip_bit_for_bit() {
    let Some(device) = wgpu() else { return };
    let reference = initial::<Flex>(&FlexDevice);
    assert_eq!(bits(&initial::<Wgpu>(&device).to_host()), bits(&reference.to_host()), "one seed, the same weights");

    let mut values = reference.to_host();
    values[..4].copy_from_slice(&[-0.0, f32::MIN_POSITIVE, f32::MAX, -1.0e-30]);
    let flat = vector::<Wgpu>(&values, &schema(&[values.len()]), &device);
    assert_eq!(bits(&flat.to_host()), bits(&values), "up and down again");

    let flat = ParamVector::<Wgpu>::from_host(values.clone(), reference.schema().clone(), &device).unwrap();
    let model = load(ModelFamily::<Wgpu>::init(&two_nn(), Seed::new(4), &device), &flat).unwrap();
    assert_eq!(bits(&flatten(&model).unwrap().to_host()), bits(&values), "through a model");
}

#[test]
fn non_finite_values_are_found_and_named() {
    let Some(device) = wgpu() else { return };
    let schema = schema(&[2, 3]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let params = vector::<Wgpu>(&[0.0, 1.0, 2.0, bad, 4.0], &schema, &device);
        assert!(!params.is_finite(), "{bad}");
        assert_eq!(params.first_non_finite().unwrap().path, "t1", "{bad}");
    }
    for good in [[0.0, 1.0, -2.0, 3.0, 4.0], [f32::MAX; 5]] {
        let params = vector::<Wgpu>(&good, &schema, &device);
        assert!(params.is_finite() && params.first_non_finite().is_none(), "{good:?}");
    }
}

/// Without a driver the program refuses before it writes anything; burn itself would panic.
#[cfg(target_os = "linux")]
#[test]
fn without_an_adapter_the_program_says_what_to_do() {
    let out = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_fedburn"))
        .args(["experiment", "run", "quickstart", "--backend", "wgpu", "--smoke", "--out"])
        .arg(out.path())
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .envs([("VK_DRIVER_FILES", "/nonexistent"), ("VK_ICD_FILENAMES", "/nonexistent")])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains("backend `wgpu` cannot run on this machine"), "{stderr}");
    assert!(stderr.contains("--backend flex") && !stderr.contains("panicked"), "{stderr}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "nothing is written");
}
