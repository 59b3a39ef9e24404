//! FedGen: its generator learns what the clients' heads say, leaves the base's aggregate alone, goes on where it stopped,
//! does without what it is not told.

use burn::tensor::{Tensor, backend::Backend};
use burn_flex::Flex;
use fedburn_core::{
    Aggregate, Classifier, ClientId, ClientUpdate, Generator, GeneratorFamily, Mode, ModelFamily, ParamVector,
    RoundIndex, Seed, SideInfo, Strategy, flatten, load,
};
use fedburn_models::{FeatureGeneratorFamily, Zoo};
use fedburn_ops::Kernels;
use fedburn_strategies::{FedGen, FedGenConfig, StrategyConfig};
use fedburn_testkit::{Rounds, update};
use proptest::prelude::*;

use crate::support::models::{CLASSES, params, round, told, zoo};
use crate::support::on_both;

const HIDDEN: usize = 4;

fn small() -> FedGenConfig {
    FedGenConfig { iterations: 3, batch_size: 6, lr: 0.01, noise: 5, hidden: 8, ..FedGenConfig::default() }
}

fn family() -> Zoo {
    zoo(&format!("kind = 'two_nn'\nhidden = {HIDDEN}"))
}

fn generator() -> FeatureGeneratorFamily {
    FeatureGeneratorFamily::new(HIDDEN, CLASSES, 5, 8).unwrap()
}

fn fedgen<B: Kernels>(config: FedGenConfig) -> Strategy<B> {
    let base = config.base.clone().build().unwrap();
    Strategy::PerClient(Box::new(FedGen::new(config, base, family(), generator()).unwrap()))
}

/// One that has every class, one that lacks the last, one that says nothing of its data.
fn cohort<B: Kernels>(seed: u64) -> [ClientUpdate<B>; 3] {
    let family = family();
    let counts = [Some([2, 2, 2]), Some([1, 4, 0]), None];
    [0, 1, 2].map(|k| told(&family, seed + k as u64, counts[k]))
}

/// What the clients of the next round get besides the base's.
fn sent<B: Backend>(strategy: &Strategy<B>) -> Option<ParamVector<B>> {
    strategy.side_info(RoundIndex(2), ClientId(0)).vectors.remove(SideInfo::<B>::GENERATOR)
}

fn skipped<B: Backend>(aggregate: &Aggregate<B>) -> f64 {
    aggregate.metrics.get("fedgen_skipped").unwrap()
}

/// How much of what `made` makes of each class the head of `model` takes for that class.
fn recognised<B: Kernels>(made: &ParamVector<B>, model: &ParamVector<B>) -> f64 {
    let (device, batch) = (B::Device::default(), 20 * CLASSES);
    let z = Tensor::<B, 1, burn::tensor::Int>::arange(0..5 * batch as i64, &device).float().sin().reshape([batch, 5]);
    let y = Tensor::<B, 2>::eye(CLASSES, &device).repeat_dim(0, 20);
    let network = load(GeneratorFamily::<B>::init(&generator(), Seed::new(0), &device), made).unwrap();
    let model = load(ModelFamily::<B>::init(&family(), Seed::new(0), &device), model).unwrap();
    let features = network.forward(z, y.clone(), Mode::Evaluate).flatten::<2>(1, 3);
    let scores = model.split().unwrap().head(features);
    let share = (burn::tensor::activation::softmax(scores, 1) * y).sum() / batch as f64;
    burn::tensor::ElementConversion::elem(share.into_scalar())
}

#[test]
fn the_generator_makes_what_heads_take_for_its_class_and_the_base_keeps_its_bits() {
    fn check<B: Kernels>() {
        let (global, updates) = (params::<B>(&family(), 3), cohort::<B>(1));
        let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates);
        let trained = |iterations: usize| {
            let mut strategy = fedgen::<B>(FedGenConfig { iterations, ..small() });
            assert!(sent(&strategy).is_none(), "there is nothing to send before the first round");
            let aggregate = round(&mut strategy, 1, &global, &updates);
            assert_eq!(aggregate.global.to_host(), plain.global.to_host());
            assert_eq!((skipped(&aggregate), aggregate.metrics.get("fedgen_silent")), (0.0, Some(1.0)));
            recognised(&sent(&strategy).unwrap(), &updates[0].local.params)
        };
        let (first, long) = (trained(1), trained(200));
        assert!(long > 0.8 && long > first + 0.2, "{first} after a step, {long} after 200");
    }
    on_both!(check);
}

#[test]
fn resuming_changes_no_bit_and_every_setting_shows() {
    let run = |config: &FedGenConfig, resume_after: Option<u64>| {
        let mut strategy = fedgen::<Flex>(config.clone());
        let mut global = params(&family(), 100);
        for r in 1..=3 {
            global = round(&mut strategy, r, &global, &cohort(r)).global;
            if resume_after == Some(r) {
                let state = strategy.state();
                strategy = fedgen(config.clone());
                strategy.restore(state, &global).unwrap();
            }
        }
        (global.to_host(), sent(&strategy).unwrap().to_host())
    };
    let variants = [
        small(),
        FedGenConfig { base: Box::new(toml::from_str("kind = 'fedavgm'").unwrap()), ..small() },
        FedGenConfig { iterations: 4, ..small() },
        FedGenConfig { batch_size: 5, ..small() },
        FedGenConfig { lr: 0.02, ..small() },
        FedGenConfig { lr_decay: 0.5, ..small() },
        FedGenConfig { weight_decay: 0.1, ..small() },
        FedGenConfig { alpha: 0.5, ..small() },
        FedGenConfig { beta: 1.0, ..small() },
        FedGenConfig { eta: 0.0, ..small() },
    ];
    let results: Vec<_> = variants.iter().map(|config| run(config, None)).collect();
    for (i, (config, result)) in variants.iter().zip(&results).enumerate() {
        assert_eq!(run(config, Some(2)), *result, "{config:?}");
        assert!(results[..i].iter().all(|other| other != result), "a setting without effect: {config:?}");
    }
    let all = FedGenConfig { teachers_resident: 3, ..small() };
    assert_eq!(run(&all, None), results[0], "how many networks are in memory does not show");
}

#[test]
fn weight_decay_leaves_running_statistics_alone() {
    let (global, updates) = (params::<Flex>(&family(), 3), cohort(1));
    let statistics = |weight_decay: f64| {
        let mut strategy = fedgen(FedGenConfig { iterations: 1, weight_decay, ..small() });
        round(&mut strategy, 1, &global, &updates);
        let made = sent(&strategy).unwrap();
        made.with_values(made.values().zeros_like()).unwrap().with_buffers_of(&made).unwrap().to_host()
    };
    assert_eq!(statistics(0.0), statistics(100.0));
}

#[test]
fn a_round_without_counts_or_with_a_number_that_is_not_finite_keeps_the_generator() {
    let global = params::<Flex>(&family(), 3);
    let mut strategy = fedgen::<Flex>(small());
    let silent = [told(&family(), 1, None), told(&family(), 2, Some([0; CLASSES]))];
    assert_eq!(skipped(&round(&mut strategy, 1, &global, &silent)), 1.0);
    assert!(strategy.state().is_empty() && sent(&strategy).is_none());
    round(&mut strategy, 2, &global, &cohort(1));
    let before = strategy.state();
    assert_eq!(skipped(&round(&mut strategy, 3, &global, &silent)), 1.0);
    let mut wild = cohort(1);
    wild[0].local.params = wild[0].local.params.with_values(wild[0].local.params.values().clone() * 1e30).unwrap();
    wild[0].local.params = wild[0].local.params.with_values(wild[0].local.params.values().clone() * 1e9).unwrap();
    assert_eq!(skipped(&round(&mut strategy, 4, &global, &wild)), 1.0);
    assert_eq!(strategy.state(), before);
}

#[test]
fn the_base_is_any_strategy_and_sends_what_it_sends() {
    let (global, updates) = (params::<Flex>(&family(), 3), cohort(1).map(fedburn_testkit::answer_all));
    for base in ["kind = 'median'", "kind = 'scaffold'", "kind = 'fednova'", "kind = 'swa'\nstart = 1"] {
        let config = FedGenConfig { base: Box::new(toml::from_str(base).unwrap()), ..small() };
        let base: Strategy<Flex> = config.base.clone().build().unwrap();
        let mut strategy = fedgen::<Flex>(config);
        assert!(strategy.reports().class_counts);
        assert_eq!(strategy.reports().accumulation, base.reports().accumulation);
        let first = round(&mut strategy, 1, &global, &updates);
        let second = round(&mut strategy, 2, &first.global, &updates);
        assert!(skipped(&second) == 0.0 && second.global.is_finite());
        let mut again = fedgen::<Flex>(small());
        assert!(base.state().is_empty() || again.restore(strategy.state(), &global).is_err(), "another base's state");
    }
    let config = FedGenConfig { base: Box::new(toml::from_str("kind = 'scaffold'").unwrap()), ..small() };
    let mut strategy = fedgen::<Flex>(config);
    round(&mut strategy, 1, &global, &updates);
    let side = strategy.side_info(RoundIndex(2), ClientId(0)).vectors;
    assert_eq!(side.keys().map(|name| &**name).collect::<Vec<_>>(), ["control", "generator"]);
    let schema = flatten::<Flex, _>(&GeneratorFamily::<Flex>::init(&generator(), Seed::new(0), &Default::default()));
    assert_eq!(side["generator"].schema(), schema.unwrap().schema());
}

#[test]
fn models_that_it_cannot_work_with_are_refused_before_the_base_moves() {
    let config = FedGenConfig { base: Box::new(toml::from_str("kind = 'fedavgm'").unwrap()), ..small() };
    let refused = |own: Zoo, sent: Zoo| {
        let base = config.base.clone().build().unwrap();
        let strategy = FedGen::<Flex, _, _>::new(config.clone(), base, own, generator()).unwrap();
        let mut strategy = Strategy::PerClient(Box::new(strategy));
        let (global, updates) = (params(&sent, 3), [told(&sent, 1, Some([1, 1, 1]))]);
        let before = strategy.state();
        let error = Rounds::new(10).combine(&mut strategy, RoundIndex(1), &global, &updates).unwrap_err();
        assert_eq!(strategy.state(), before);
        error.to_string()
    };
    let softmax = || zoo("kind = 'softmax'");
    refused(family(), softmax());
    let error = refused(softmax(), softmax());
    assert!(error.contains("fedgen") && error.contains("features and a head"), "{error}");
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let refused = |config: FedGenConfig| {
        let base = StrategyConfig::default().build::<Flex>().unwrap();
        FedGen::new(config, base, family(), generator()).err().unwrap().to_string()
    };
    for (config, words) in [
        (FedGenConfig { batch_size: 1, ..small() }, "batch_size = 1, expected 2 to 512 examples"),
        (FedGenConfig { iterations: usize::MAX, ..small() }, "at most 16,777,216 examples"),
        (FedGenConfig { teachers_resident: 0, ..small() }, "teachers_resident = 0"),
        (FedGenConfig { lr: 0.0, ..small() }, "lr = 0"),
        (FedGenConfig { lr_decay: 0.0, ..small() }, "lr_decay = 0"),
        (FedGenConfig { weight_decay: -1.0, ..small() }, "weight_decay = -1"),
        (FedGenConfig { beta: f64::NAN, ..small() }, "beta = NaN"),
    ] {
        assert!(refused(config).contains(words), "{words}");
    }
    let alone = StrategyConfig::FedGen(small()).build::<Flex>().err().unwrap().to_string();
    assert!(alone.contains("strategy `fedgen`: it runs models on the server"), "{alone}");
}

/// Scores that are not numbers would take every loss with them.
#[test]
fn a_client_that_tells_of_no_example_teaches_nothing() {
    let trained = |silent: Option<[u64; CLASSES]>, factor: f32| {
        let mut updates = cohort::<Flex>(1);
        updates[2] = told(&family(), 9, silent);
        updates[2].local.params =
            updates[2].local.params.with_values(updates[2].local.params.values().clone() * factor).unwrap();
        let mut strategy = fedgen(small());
        round(&mut strategy, 1, &params(&family(), 3), &updates);
        sent(&strategy).unwrap().to_host()
    };
    let reference = trained(None, 1.0);
    for (silent, factor) in [(None, 1e30), (Some([0; CLASSES]), 1e30)] {
        assert_eq!(trained(silent, factor), reference);
    }
    let mut other = cohort::<Flex>(1);
    other[0] = update(1, 6, params(&family(), 77));
    other[0].local.report.class_counts = Some(vec![2, 2, 2]);
    let mut strategy = fedgen(small());
    round(&mut strategy, 1, &params(&family(), 3), &other);
    assert_ne!(sent(&strategy).unwrap().to_host(), reference, "who tells, teaches");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn finite_in_finite_out_in_any_order(
        clients in prop::collection::vec(prop::option::of(prop::array::uniform3(0u64..9)), 1..5),
    ) {
        let global = params::<Flex>(&family(), 0);
        let each = clients.iter().enumerate().map(|(i, counts)| told(&family(), i as u64 + 1, *counts));
        // One that has no example has no weight in the base's mean; the coordinator drops it.
        let mut updates: Vec<_> = each.filter(|update: &ClientUpdate<Flex>| update.local.num_examples > 0).collect();
        prop_assume!(!updates.is_empty());
        let made = |updates: &[ClientUpdate<Flex>]| {
            let mut strategy = fedgen(small());
            let global = round(&mut strategy, 1, &global, updates).global;
            (global.to_host(), sent(&strategy).map(|made| made.to_host()))
        };
        let first = made(&updates);
        prop_assert!(first.0.iter().chain(first.1.iter().flatten()).all(|value| value.is_finite()));
        updates.reverse();
        prop_assert_eq!(made(&updates), first);
    }
}
