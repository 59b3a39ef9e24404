//! FedFTG: learns from teachers, harms none of them, goes on where it stopped, does without what it is not told.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_flex::Flex;
use fedburn_core::{
    Aggregate, Classifier, ClientUpdate, Mode, ModelFamily, ParamVector, RoundIndex, Seed, Strategy, load,
};
use fedburn_models::{ConditionalGeneratorFamily, GeneratorConfig, Zoo};
use fedburn_ops::Kernels;
use fedburn_strategies::{Ensemble, FedFtg, FedFtgConfig, FedFtgForm, LabelSampling, StrategyConfig};
use fedburn_testkit::Rounds;
use proptest::prelude::*;

use crate::support::models::{CLASSES, INPUT, params, round, told, zoo};
use crate::support::on_both;

fn small() -> FedFtgConfig {
    FedFtgConfig { iterations: 2, student_steps: 2, batch_size: 6, noise: 5, width: 2, ..FedFtgConfig::default() }
}

fn generator() -> ConditionalGeneratorFamily {
    GeneratorConfig { noise: 5, width: 2 }.build(INPUT, CLASSES).unwrap()
}

fn fedftg<B: Kernels>(config: FedFtgConfig, family: Zoo) -> Strategy<B> {
    let base = config.base.clone().build().unwrap();
    Strategy::PerClient(Box::new(FedFtg::new(config, base, family, generator()).unwrap()))
}

fn skipped<B: Backend>(aggregate: &Aggregate<B>) -> f64 {
    aggregate.metrics.get("fedftg_skipped").unwrap()
}

/// The mean over inputs of `KL(student || teacher)`.
fn distance<B: Kernels>(family: &Zoo, student: &ParamVector<B>, teacher: &ParamVector<B>) -> f64 {
    let device = Default::default();
    let model = |p| load(ModelFamily::<B>::init(family, Seed::new(0), &device), p).unwrap();
    let x = Tensor::<B, 1, burn::tensor::Int>::arange(0..64 * 16, &device).float().sin().reshape([64, 1, 4, 4]);
    let log = |p| burn::tensor::activation::log_softmax(model(p).forward(x.clone(), Mode::Evaluate), 1);
    let (d, t) = (log(student), log(teacher));
    let sum = (d.clone().exp() * (d - t)).sum().into_scalar();
    burn::tensor::ElementConversion::elem::<f64>(sum) / 64.0
}

/// A client that has every class, and one that teaches nothing because it says nothing of its data.
fn told_and_silent<B: Kernels>(family: &Zoo) -> [ClientUpdate<B>; 2] {
    [told(family, 1, Some([2, 2, 2])), told(family, 2, None)]
}

#[test]
fn the_student_comes_closer_to_its_teacher() {
    fn check<B: Kernels>(form: FedFtgForm) {
        let family = zoo("kind = 'softmax'");
        let (global, updates) = (params(&family, 3), told_and_silent::<B>(&family));
        let teacher = &updates[0].local.params;
        let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global;
        let config = FedFtgConfig { form, iterations: 40, batch_size: 30, ..small() };
        let tuned = round(&mut fedftg::<B>(config, family.clone()), 1, &global, &updates);
        assert_eq!(skipped(&tuned), 0.0);
        assert_eq!(tuned.metrics.get("fedftg_silent"), Some(1.0));
        let (before, after) = (distance(&family, &plain, teacher), distance(&family, &tuned.global, teacher));
        assert!(after < 0.75 * before, "{form:?}: {before} before, {after} after");
    }
    on_both!(check, FedFtgForm::Paper);
    on_both!(check, FedFtgForm::Code);
}

#[test]
fn a_round_without_counts_or_iterations_is_the_bases() {
    fn check<B: Kernels>() {
        let family = zoo("kind = 'softmax'");
        let global = params(&family, 3);
        let updates = [told::<B>(&family, 1, None), told(&family, 2, None)];
        let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global.to_host();
        let mut strategy = fedftg::<B>(small(), family.clone());
        let tuned = round(&mut strategy, 1, &global, &updates);
        assert_eq!((tuned.global.to_host(), skipped(&tuned)), (plain.clone(), 1.0));
        assert!(strategy.state().is_empty(), "no generator was made");
        let idle = FedFtgConfig { iterations: 0, ..small() };
        let updates = [told::<B>(&family, 1, Some([1, 2, 3])), told(&family, 2, Some([0, 5, 0]))];
        let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global.to_host();
        assert_eq!(round(&mut fedftg::<B>(idle, family), 1, &global, &updates).global.to_host(), plain);
    }
    on_both!(check);
}

#[test]
fn what_stops_being_finite_is_not_taken() {
    let family = zoo("kind = 'softmax'");
    let (global, updates) = (params::<Flex>(&family, 3), told_and_silent(&family));
    let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global.to_host();
    let mut strategy = fedftg(FedFtgConfig { student_lr: 1e30, ..small() }, family);
    let tuned = round(&mut strategy, 1, &global, &updates);
    assert_eq!((tuned.global.to_host(), skipped(&tuned)), (plain, 1.0));
    assert!(strategy.state().is_empty());
}

/// Every switch of the ablation, and both forms.
fn variants() -> Vec<FedFtgConfig> {
    let with = |change: &dyn Fn(&mut FedFtgConfig)| {
        let mut config = small();
        change(&mut config);
        config
    };
    vec![
        small(),
        with(&|c| c.form = FedFtgForm::Code),
        with(&|c| c.hard_mining = false),
        with(&|c| c.label_sampling = LabelSampling::Uniform),
        with(&|c| c.ensemble = Ensemble::Uniform),
        with(&|c| c.lambda_cls = 0.0),
        with(&|c| c.lambda_dis = 0.0),
        with(&|c| c.keep_moments = true),
    ]
}

#[test]
fn every_switch_shows_and_resuming_changes_no_bit() {
    let family = zoo("kind = 'two_nn'\nhidden = 4");
    let cohort = |r: u64| {
        [told::<Flex>(&family, r, Some([7, 0, 2])), told(&family, r + 1, Some([1, 4, 0])), told(&family, r + 2, None)]
    };
    let run = |config: &FedFtgConfig, resume_after: Option<u64>| {
        let mut strategy = fedftg::<Flex>(config.clone(), family.clone());
        let mut global = params(&family, 100);
        for r in 1..=3 {
            global = round(&mut strategy, r, &global, &cohort(r)).global;
            if resume_after == Some(r) {
                let state = strategy.state();
                strategy = fedftg(config.clone(), family.clone());
                strategy.restore(state, &global).unwrap();
            }
        }
        global.to_host()
    };
    let results: Vec<_> = variants().iter().map(|config| run(config, None)).collect();
    for (i, (config, result)) in variants().iter().zip(&results).enumerate() {
        assert!(result.iter().all(|v| v.is_finite()));
        assert_eq!(run(config, Some(2)), *result, "{config:?}");
        assert!(results[..i].iter().all(|other| other != result), "a switch without effect: {config:?}");
    }
    let all = FedFtgConfig { teachers_resident: 3, ..small() };
    assert_eq!(run(&all, None), results[0], "how many networks are in memory does not show");
}

#[test]
fn generated_examples_move_the_students_running_statistics() {
    let family = zoo("kind = 'resnet'\ndepth = 8\nnorm = 'batch'");
    let updates = [told::<Flex>(&family, 1, Some([3, 3, 0])), told(&family, 2, Some([0, 1, 4]))];
    let global = params(&family, 3);
    let mut strategy = fedftg(FedFtgConfig { iterations: 1, student_steps: 1, ..small() }, family.clone());
    let tuned = round(&mut strategy, 1, &global, &updates).global;
    let plain = round(&mut StrategyConfig::default().build().unwrap(), 1, &global, &updates).global;
    let buffers = |p: &ParamVector<Flex>| p.with_values(p.values().zeros_like()).unwrap().with_buffers_of(p).unwrap();
    assert_ne!(buffers(&tuned).to_host(), buffers(&plain).to_host());
}

/// Whatever it sends: scores that are not numbers would take every loss with them.
#[test]
fn a_client_that_tells_of_no_example_changes_nothing_but_the_bases_aggregate() {
    fn check<B: Kernels>(form: FedFtgForm, ensemble: Ensemble) {
        let family = zoo("kind = 'softmax'");
        let global = params::<B>(&family, 3);
        let tuned = |silent: Option<[u64; CLASSES]>, factor: f32| {
            let mut updates = told_and_silent::<B>(&family);
            updates[1] = told(&family, 2, silent);
            // Without a weight in the base's aggregate either.
            updates[1].local.num_examples = 0;
            let values = updates[1].local.params.values().clone() * factor;
            updates[1].local.params = updates[1].local.params.with_values(values).unwrap();
            round(&mut fedftg::<B>(FedFtgConfig { form, ensemble, ..small() }, family.clone()), 1, &global, &updates)
        };
        let reference = tuned(None, 1.0);
        assert_eq!(skipped(&reference), 0.0);
        for (silent, factor) in [(Some([0; CLASSES]), 1.0), (None, 1e38), (Some([0; CLASSES]), 1e38)] {
            let found = tuned(silent, factor);
            assert_eq!((found.global.to_host(), skipped(&found)), (reference.global.to_host(), 0.0));
        }
    }
    for form in [FedFtgForm::Paper, FedFtgForm::Code] {
        on_both!(check, form, Ensemble::ClassLevel);
        on_both!(check, form, Ensemble::Uniform);
    }
}

#[test]
fn pictures_of_every_class_come_after_the_first_round_and_after_every_so_many() {
    let family = zoo("kind = 'softmax'");
    let (global, updates) = (params::<Flex>(&family, 3), told_and_silent(&family));
    let shown = |pictures_every: u64| {
        let mut strategy = fedftg(FedFtgConfig { pictures_every, ..small() }, family.clone());
        let rounds = (1..=7).filter(|r| match round(&mut strategy, *r, &global, &updates).pictures {
            Some(pictures) => {
                assert_eq!(pictures.classes.len(), CLASSES);
                true
            }
            None => false,
        });
        rounds.collect::<Vec<u64>>()
    };
    assert!(shown(0).is_empty());
    assert_eq!(shown(3), [1, 3, 6]);
}

#[test]
fn the_base_is_any_strategy() {
    let family = zoo("kind = 'softmax'");
    let global = params::<Flex>(&family, 3);
    let updates = told_and_silent(&family).map(fedburn_testkit::answer_all);
    for base in
        ["kind = 'median'", "kind = 'scaffold'", "kind = 'fedavgm'", "kind = 'fednova'", "kind = 'feddyn'\nalpha = 0.1"]
    {
        let config = FedFtgConfig { base: Box::new(toml::from_str(base).unwrap()), ..small() };
        let base: Strategy<Flex> = config.base.clone().build().unwrap();
        let mut strategy = fedftg::<Flex>(config, family.clone());
        assert!(strategy.reports().class_counts);
        assert_eq!(strategy.reports().accumulation, base.reports().accumulation);
        let first = round(&mut strategy, 1, &global, &updates);
        let second = round(&mut strategy, 2, &first.global, &updates);
        assert!(skipped(&second) == 0.0 && second.global.is_finite());
        let mut again = fedftg::<Flex>(small(), family.clone());
        assert!(base.state().is_empty() || again.restore(strategy.state(), &global).is_err(), "another base's state");
    }
}

#[test]
fn another_model_is_refused_before_the_base_moves() {
    let (own, other) = (zoo("kind = 'softmax'"), zoo("kind = 'two_nn'\nhidden = 4"));
    let config = FedFtgConfig { base: Box::new(toml::from_str("kind = 'fedavgm'").unwrap()), ..small() };
    let mut strategy = fedftg::<Flex>(config, own);
    let (global, updates) = (params(&other, 3), [told(&other, 1, Some([1, 1, 1]))]);
    let before = strategy.state();
    assert!(Rounds::new(10).combine(&mut strategy, RoundIndex(1), &global, &updates).is_err());
    assert_eq!(strategy.state(), before);
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let refused = |config: FedFtgConfig| {
        let base = StrategyConfig::default().build::<Flex>().unwrap();
        FedFtg::new(config, base, zoo("kind = 'softmax'"), generator()).err().unwrap().to_string()
    };
    for batch_size in [1, 513] {
        let expected = format!("batch_size = {batch_size}, expected 2 to 512 examples");
        assert!(refused(FedFtgConfig { batch_size, ..small() }).contains(&expected), "{expected}");
    }
    assert!(
        refused(FedFtgConfig { teachers_resident: 0, ..small() })
            .contains("teachers_resident = 0, expected at least 1")
    );
    assert!(refused(FedFtgConfig { iterations: usize::MAX, ..small() }).contains("at most 16,777,216 examples"));
    assert!(refused(FedFtgConfig { student_lr: 0.0, ..small() }).contains("student_lr = 0"));
    assert!(refused(FedFtgConfig { lr_decay: 1.5, ..small() }).contains("lr_decay = 1.5"));
    assert!(refused(FedFtgConfig { lambda_cls: -1.0, ..small() }).contains("lambda_cls = -1"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn finite_in_finite_out_in_any_order(
        clients in prop::collection::vec((1u64..50, prop::option::of(prop::array::uniform3(0u64..9))), 1..5),
    ) {
        let family = zoo("kind = 'softmax'");
        let global = params::<Flex>(&family, 0);
        let mut updates: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(i, (n, counts))| {
                let mut update = told(&family, i as u64 + 1, *counts);
                update.local.num_examples = *n;
                update
            })
            .collect();
        let first = round(&mut fedftg::<Flex>(small(), family.clone()), 1, &global, &updates);
        prop_assert!(first.global.is_finite());
        prop_assert_eq!(first.global.schema(), global.schema());
        updates.reverse();
        let second = round(&mut fedftg::<Flex>(small(), family), 1, &global, &updates);
        prop_assert_eq!(first.global.to_host(), second.global.to_host());
    }
}
