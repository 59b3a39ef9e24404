//! FedDF: learns what the clients' models say together, as its definition in `f64`; goes on where it stopped.

use burn::tensor::{TensorData, backend::Backend};
use burn_flex::Flex;
use fedburn_core::{Aggregate, ClientUpdate, ParamVector, RoundIndex, Strategy};
use fedburn_models::Zoo;
use fedburn_ops::Kernels;
use fedburn_strategies::{FedDf, FedDfConfig, StrategyConfig};
use fedburn_testkit::{Rounds, update};
use proptest::prelude::*;

use crate::support::models::{CLASSES, params, round, zoo};
use crate::support::on_both;

const EXAMPLES: usize = 10;

fn small() -> FedDfConfig {
    FedDfConfig { steps: 4, batch_size: 4, lr: 0.05, ..FedDfConfig::default() }
}

/// The server's examples, one row each.
fn rows() -> Vec<Vec<f32>> {
    (0..EXAMPLES).map(|i| (0..16).map(|j| ((i * 16 + j) as f32 * 0.7).sin()).collect()).collect()
}

fn inputs() -> TensorData {
    TensorData::new(rows().concat(), [EXAMPLES, 1, 4, 4])
}

fn feddf<B: Kernels>(config: FedDfConfig, family: Zoo) -> Strategy<B> {
    let base = config.base.clone().build().unwrap();
    Strategy::PerClient(Box::new(FedDf::new(config, base, family, inputs()).unwrap()))
}

/// A client with the model that `seed` draws.
fn client<B: Kernels>(family: &Zoo, seed: u64, num_examples: u64) -> ClientUpdate<B> {
    update(seed, num_examples, params(family, seed))
}

fn cohort<B: Kernels>(family: &Zoo, seed: u64) -> [ClientUpdate<B>; 3] {
    [client(family, seed, 2), client(family, seed + 1, 9), client(family, seed + 2, 1)]
}

fn skipped<B: Backend>(aggregate: &Aggregate<B>) -> f64 {
    aggregate.metrics.get("feddf_skipped").unwrap()
}

/// `log softmax((W x + b) / temperature)` of softmax regression, whose vector is `W` `[inputs, classes]`, then `b`.
fn log_probabilities(scores: &[f64], temperature: f64) -> Vec<f64> {
    let sum: f64 = scores.iter().map(|s| (s / temperature).exp()).sum();
    scores.iter().map(|s| s / temperature - sum.ln()).collect()
}

fn scores(model: &[f64], x: &[f32]) -> Vec<f64> {
    let score = |c: usize| x.iter().enumerate().map(|(i, x)| f64::from(*x) * model[i * CLASSES + c]).sum::<f64>();
    (0..CLASSES).map(|c| score(c) + model[16 * CLASSES + c]).collect()
}

/// The whole of a round in `f64`, for steps on all examples at once.
fn reference(config: &FedDfConfig, start: &[f64], teachers: &[Vec<f64>]) -> (Vec<f64>, f64) {
    let (rows, t) = (rows(), config.temperature);
    let (mut x, mut m, mut v) = (start.to_vec(), vec![0.0; start.len()], vec![0.0; start.len()]);
    let mut losses = 0.0;
    for step in 0..config.steps {
        let mut gradient = vec![0.0; x.len()];
        for row in &rows {
            let all: Vec<_> = teachers.iter().map(|teacher| scores(teacher, row)).collect();
            let mean: Vec<f64> =
                (0..CLASSES).map(|c| all.iter().map(|s| s[c]).sum::<f64>() / all.len() as f64).collect();
            let (log_p, log_q) = (log_probabilities(&mean, t), log_probabilities(&scores(&x, row), t));
            for c in 0..CLASSES {
                losses += log_p[c].exp() * (log_p[c] - log_q[c]) / rows.len() as f64;
                let slope = (log_q[c].exp() - log_p[c].exp()) / t / rows.len() as f64;
                row.iter().enumerate().for_each(|(i, value)| gradient[i * CLASSES + c] += slope * f64::from(*value));
                gradient[16 * CLASSES + c] += slope;
            }
        }
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let lr = config.lr * (1.0 + (std::f64::consts::PI * step as f64 / config.steps as f64).cos()) / 2.0;
        let n = step as i32 + 1;
        for (i, g) in gradient.iter().map(|g| g * (config.clip_norm / norm.max(config.clip_norm))).enumerate() {
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            x[i] -= lr * (m[i] / (1.0 - 0.9f64.powi(n))) / ((v[i] / (1.0 - 0.999f64.powi(n))).sqrt() + 1e-8);
        }
    }
    (x, losses / config.steps as f64)
}

#[test]
fn a_round_is_that_of_the_definition() {
    fn check<B: Kernels>() {
        let family = zoo("kind = 'softmax'");
        let (global, updates) = (params::<B>(&family, 7), cohort::<B>(&family, 1));
        let wide = |p: &ParamVector<B>| p.to_host().into_iter().map(f64::from).collect::<Vec<_>>();
        let teachers: Vec<_> = updates.iter().map(|u| wide(&u.local.params)).collect();
        let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global;
        for (temperature, clip_norm) in [(1.0, 5.0), (2.5, 0.01)] {
            let config = FedDfConfig { batch_size: 64, temperature, clip_norm, steps: 8, ..small() };
            let found = round(&mut feddf::<B>(config.clone(), family.clone()), 1, &global, &updates);
            let (expected, loss) = reference(&config, &wide(&plain), &teachers);
            assert!(found.global.to_host() != plain.to_host() && skipped(&found) == 0.0);
            for (found, expected) in wide(&found.global).iter().zip(expected) {
                assert!((found - expected).abs() < 2e-4, "{found}, expected {expected}");
            }
            let found = found.metrics.get("feddf_loss").unwrap();
            assert!((found - loss).abs() < 1e-5 * (1.0 + loss), "loss {found}, expected {loss}");
        }
    }
    on_both!(check);
}

#[test]
fn the_loss_falls_from_round_to_round_of_the_same_teachers() {
    fn check<B: Kernels>() {
        let family = zoo("kind = 'two_nn'\nhidden = 8");
        let updates = cohort::<B>(&family, 1);
        let global = params(&family, 7);
        let loss = |steps| {
            let config = FedDfConfig { steps, ..small() };
            round(&mut feddf::<B>(config, family.clone()), 1, &global, &updates).metrics.get("feddf_loss").unwrap()
        };
        let (first, long) = (loss(1), loss(200));
        assert!(long < 0.5 * first, "{first} at the first step, {long} on average of 200");
    }
    on_both!(check);
}

#[test]
fn resuming_changes_no_bit_and_every_setting_shows() {
    let family = zoo("kind = 'two_nn'\nhidden = 4");
    let run = |config: &FedDfConfig, resume_after: Option<u64>| {
        let mut strategy = feddf::<Flex>(config.clone(), family.clone());
        let mut global = params(&family, 100);
        for r in 1..=3 {
            global = round(&mut strategy, r, &global, &cohort(&family, r)).global;
            if resume_after == Some(r) {
                let state = strategy.state();
                strategy = feddf(config.clone(), family.clone());
                strategy.restore(state, &global).unwrap();
            }
        }
        global.to_host()
    };
    let base = Box::new(toml::from_str("kind = 'fedavgm'").unwrap());
    let variants = [
        small(),
        FedDfConfig { base, ..small() },
        FedDfConfig { steps: 5, ..small() },
        FedDfConfig { batch_size: 5, ..small() },
        FedDfConfig { lr: 0.01, ..small() },
        FedDfConfig { temperature: 2.0, ..small() },
        FedDfConfig { clip_norm: 1e-3, ..small() },
    ];
    let results: Vec<_> = variants.iter().map(|config| run(config, None)).collect();
    for (i, (config, result)) in variants.iter().zip(&results).enumerate() {
        assert_eq!(run(config, Some(2)), *result, "{config:?}");
        assert!(results[..i].iter().all(|other| other != result), "a setting without effect: {config:?}");
    }
}

#[test]
fn without_steps_or_where_a_number_is_not_finite_the_round_is_the_bases() {
    let family = zoo("kind = 'softmax'");
    let (global, updates) = (params::<Flex>(&family, 3), cohort(&family, 1));
    let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global.to_host();
    let idle = round(&mut feddf(FedDfConfig { steps: 0, ..small() }, family.clone()), 1, &global, &updates);
    assert_eq!((idle.global.to_host(), skipped(&idle)), (plain.clone(), 0.0));

    let mut updates = updates;
    let params = &mut updates[0].local.params;
    *params = params.with_values(params.values().clone() * 1e30 * 1e9).unwrap();
    let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global.to_host();
    let wild = round(&mut feddf(small(), family), 1, &global, &updates);
    assert!(plain.iter().all(|value| value.is_finite()));
    assert_eq!((wild.global.to_host(), skipped(&wild)), (plain, 1.0));
    assert_eq!(wild.metrics.get("feddf_loss"), None);
}

#[test]
fn teachers_keep_every_bit_and_the_servers_examples_move_running_statistics() {
    let family = zoo("kind = 'resnet'\ndepth = 8\nnorm = 'batch'");
    let (global, updates) = (params::<Flex>(&family, 3), cohort(&family, 1));
    let before: Vec<_> = updates.iter().map(|u| u.local.params.to_host()).collect();
    let fused = round(&mut feddf(FedDfConfig { steps: 2, ..small() }, family.clone()), 1, &global, &updates).global;
    for (update, before) in updates.iter().zip(before) {
        assert_eq!(update.local.params.to_host(), before);
    }
    let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global;
    let buffers = |p: &ParamVector<Flex>| p.with_values(p.values().zeros_like()).unwrap().with_buffers_of(p).unwrap();
    assert_ne!(buffers(&fused).to_host(), buffers(&plain).to_host());
}

#[test]
fn the_base_is_any_strategy() {
    let family = zoo("kind = 'softmax'");
    let global = params::<Flex>(&family, 3);
    let updates = cohort(&family, 1).map(fedburn_testkit::answer_all);
    for base in
        ["kind = 'median'", "kind = 'scaffold'", "kind = 'fedavgm'", "kind = 'fednova'", "kind = 'swa'\nstart = 1"]
    {
        let config = FedDfConfig { base: Box::new(toml::from_str(base).unwrap()), ..small() };
        let base: Strategy<Flex> = config.base.clone().build().unwrap();
        let mut strategy = feddf::<Flex>(config, family.clone());
        assert_eq!(strategy.reports(), base.reports());
        let first = round(&mut strategy, 1, &global, &updates);
        let second = round(&mut strategy, 2, &first.global, &updates);
        assert!(skipped(&second) == 0.0 && second.global.is_finite());
    }
}

#[test]
fn another_model_is_refused_before_the_base_moves() {
    let (own, other) = (zoo("kind = 'softmax'"), zoo("kind = 'two_nn'\nhidden = 4"));
    let config = FedDfConfig { base: Box::new(toml::from_str("kind = 'fedavgm'").unwrap()), ..small() };
    let mut strategy = feddf::<Flex>(config, own);
    let (global, updates) = (params(&other, 3), cohort(&other, 1));
    let before = strategy.state();
    assert!(Rounds::new(10).combine(&mut strategy, RoundIndex(1), &global, &updates).is_err());
    assert_eq!(strategy.state(), before);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |config: FedDfConfig, inputs: TensorData| {
        let base = StrategyConfig::default().build::<Flex>().unwrap();
        FedDf::new(config, base, zoo("kind = 'softmax'"), inputs).err().unwrap().to_string()
    };
    for (config, words) in [
        (FedDfConfig { batch_size: 0, ..small() }, "batch_size = 0"),
        (FedDfConfig { lr: 0.0, ..small() }, "lr = 0"),
        (FedDfConfig { temperature: -1.0, ..small() }, "temperature = -1"),
        (FedDfConfig { clip_norm: f64::NAN, ..small() }, "clip_norm = NaN"),
    ] {
        assert!(refused(config, inputs()).contains(words), "{words}");
    }
    let nothing = refused(small(), TensorData::new(Vec::<f32>::new(), [0, 1, 4, 4]));
    assert!(nothing.contains("one example at least"), "{nothing}");
    let alone = StrategyConfig::FedDf(small()).build::<Flex>().err().unwrap().to_string();
    assert!(alone.contains("strategy `feddf`: it runs models on the server"), "{alone}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn finite_in_finite_out_in_any_order(counts in prop::collection::vec(1u64..50, 1..5)) {
        let family = zoo("kind = 'softmax'");
        let global = params::<Flex>(&family, 0);
        let each = counts.iter().enumerate().map(|(i, n)| client(&family, i as u64 + 1, *n));
        let mut updates: Vec<_> = each.collect();
        let first = round(&mut feddf::<Flex>(small(), family.clone()), 1, &global, &updates);
        prop_assert!(first.global.is_finite());
        prop_assert_eq!(first.global.schema(), global.schema());
        updates.reverse();
        let second = round(&mut feddf::<Flex>(small(), family), 1, &global, &updates);
        prop_assert_eq!(first.global.to_host(), second.global.to_host());
    }
}
