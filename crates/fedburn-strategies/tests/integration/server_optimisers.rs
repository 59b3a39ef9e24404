//! FedAvgM, FedAdagrad, FedAdam, FedYogi and FedAMS: golden vectors, references, laws.

use std::sync::Arc;

use crate::support::{Course, assert_near, build, on_both, refusal};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{ParamEntry, ParamKind, ParamSchema, ParamVector};
use fedburn_testkit::reference::server::{AdaptiveMoment, ServerOptimiser};
use fedburn_testkit::{Convexity, schema, strategy_laws, update, vector};
use proptest::prelude::*;

/// Sections B5, B6 and B7: the vectors after rounds 1 and 2 of the BASE case.
const GOLDEN: &[(&str, [[f64; 3]; 2])] = &[
    ("kind = 'fedavgm'", [[0.75, 2.25, 3.45], [0.625, 2.375, 4.055]]),
    ("kind = 'fedavgm'\ndamped = true", [[0.975, 2.025, 3.045], [0.9625, 2.0375, 3.1055]]),
    ("kind = 'fedadagrad'", [[0.99003992, 2.00996008, 3.0099778], [0.98541475, 2.01458525, 3.02223857]]),
    ("kind = 'fedadam'", [[0.90391929, 2.09608071, 3.0978027], [0.85900016, 2.14099984, 3.21868607]]),
    ("kind = 'fedyogi'", [[0.90392003, 2.09607997, 3.09780247], [0.85918833, 2.14081167, 3.21818984]]),
    (
        "kind = 'fedadam'\nv0 = 0\nbias_correction = true",
        [[0.90384615, 2.09615385, 3.09782609], [0.87047359, 2.12952641, 3.18759505]],
    ),
    // By hand: rounds 1 and 2 have vmax = (1e-3, 1e-3, 0.002025) and (1e-3, 1e-3, 0.00240475), and the rates
    // 0.1 / 0.1 and sqrt(0.0199) / 0.19.
    ("kind = 'fedams'", [[0.20943058, 2.79056942, 4.00000000], [-0.08405242, 3.08405242, 4.91599551]]),
    (
        "kind = 'fedams'\nbias_correction = false",
        [[0.20943058, 2.79056942, 4.00000000], [-0.18585412, 3.18585412, 5.23373080]],
    ),
];

fn golden<B: Backend>() {
    for (table, [first, second]) in GOLDEN {
        let (mut course, found) = Course::<B>::base(table);
        assert_near(&format!("{table}, round 1"), &found, first, 1e-6);
        assert_near(&format!("{table}, round 2"), &course.moved(&[0.1, -0.1, 0.2]), second, 2e-6);
    }
}

#[test]
fn the_base_case_on_both_backends() {
    on_both!(golden);
}

fn laws<B: Backend>() {
    for (table, _) in GOLDEN {
        strategy_laws::<B>(|| build(table), Convexity::Free, &Default::default());
    }
}

#[test]
fn laws_on_both_backends() {
    on_both!(laws);
}

/// A start and the means of some rounds, of one length, from small to large.
fn rounds() -> impl Strategy<Value = (Vec<f32>, Vec<Vec<f32>>)> {
    let value = || (-1.0f32..1.0, -4i32..4).prop_map(|(v, exponent)| v * 10f32.powi(exponent));
    (1usize..5).prop_flat_map(move |len| {
        (prop::collection::vec(value(), len), prop::collection::vec(prop::collection::vec(value(), len), 1..6))
    })
}

/// Runs `table` over `means` and compares each round with the reference, which takes every round's start from us, so
/// that what is compared is one round's arithmetic and all rounds' moments.
fn follow(
    table: &str,
    (start, means): &(Vec<f32>, Vec<Vec<f32>>),
    (v0, vmax0): (f64, f64),
    rate: f64,
    step: impl Fn(&mut ServerOptimiser, &[f64]),
) -> Result<(), TestCaseError> {
    let (device, schema) = (FlexDevice, schema(&[start.len()]));
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let mut course = Course::<Flex>::new(table, vector(start, &schema, &device), 3);
    let mut reference = ServerOptimiser::new(wide(start), v0, vmax0);
    let mut largest = means.iter().flatten().fold(0.0, |largest: f64, v| largest.max(f64::from(v.abs())));
    for mean in means {
        reference.x = wide(&course.global.to_host());
        largest = reference.x.iter().fold(largest, |largest, v| largest.max(v.abs()));
        step(&mut reference, &wide(mean));
        let found = course.round(&[update(0, 1, vector(mean, &schema, &device))]).global.to_host();
        for (found, expected) in found.iter().zip(&reference.x) {
            let tolerance = 2e-6 * (largest + rate);
            prop_assert!((f64::from(*found) - expected).abs() <= tolerance, "{table}: {found}, expected {expected}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn momentum_is_the_references(case in rounds(), beta in 0.0..0.99f64, lr in 0.01..2.0f64, damped: bool) {
        let table = format!("kind = 'fedavgm'\nbeta = {beta:?}\nserver_lr = {lr:?}\ndamped = {damped}");
        let gain = if damped { 1.0 - beta } else { 1.0 };
        follow(&table, &case, (0.0, 0.0), 0.0, |r, mean| r.momentum(mean, beta, gain, lr))?;
    }

    #[test]
    fn adaptive_rules_are_the_references(
        case in rounds(), rule in 0usize..4, beta1 in 0.0..0.95f64, beta2 in 0.9..0.999f64, tau in 1e-4..1.0f64,
        lr in 0.01..2.0f64, correct: bool,
    ) {
        let second = format!("\nbeta2 = {beta2:?}");
        let (kind, moment, own, start) = [
            ("fedadagrad", AdaptiveMoment::Adagrad, format!("\ntau = {tau:?}"), (tau * tau, 0.0)),
            ("fedadam", AdaptiveMoment::Adam { beta2 }, format!("{second}\ntau = {tau:?}"), (tau * tau, 0.0)),
            ("fedyogi", AdaptiveMoment::Yogi { beta2 }, format!("{second}\ntau = {tau:?}\nv0 = 0.5"), (0.5, 0.0)),
            ("fedams", AdaptiveMoment::Ams { beta2 }, format!("{second}\nvmax0 = {tau:?}"), (0.0, tau)),
        ][rule].clone();
        let table = format!("kind = '{kind}'\nserver_lr = {lr:?}\nbeta1 = {beta1:?}\nbias_correction = {correct}{own}");
        // A step is at most this many times the rate: first moments outlive second ones.
        let steps = lr * 30.0 / (1.0 - beta1);
        follow(&table, &case, start, steps, |r, mean| r.adaptive(mean, moment, beta1, tau, lr, correct))?;
    }

    /// Without momentum the rule is FedAvg's, up to the last bits of `x - (x - mean)`.
    #[test]
    fn no_momentum_is_averaging((start, means) in rounds()) {
        let schema = schema(&[start.len()]);
        let mut course = Course::<Flex>::new("kind = 'fedavgm'\nbeta = 0", vector(&start, &schema, &FlexDevice), 1);
        for mean in means {
            let largest = course.global.to_host().iter().chain(&mean).fold(0.0, |l: f32, v| l.max(v.abs()));
            let found = course.round(&[update(0, 1, vector(&mean, &schema, &FlexDevice))]).global.to_host();
            prop_assert!(found.iter().zip(&mean).all(|(x, y)| (x - y).abs() <= 2e-7 * largest));
        }
    }
}

/// A model of one weight and one running statistic: the statistic is the mean, whatever the server's step.
#[test]
fn running_statistics_are_the_mean() {
    let entries = [("w", ParamKind::Weight), ("norm.running_mean", ParamKind::Buffer)];
    let entries = entries.map(|(path, kind)| ParamEntry::new(path, vec![1], kind)).to_vec();
    let schema = Arc::new(ParamSchema::new(entries).unwrap());
    let vector =
        |values: [f32; 2]| ParamVector::<Flex>::from_host(values.to_vec(), schema.clone(), &FlexDevice).unwrap();
    for (table, _) in GOLDEN {
        let mut course = Course::new(table, vector([1.0, 1.0]), 1);
        course.round(&[update(0, 1, vector([1.5, 2.0]))]);
        let found = course.round(&[update(0, 1, vector([3.0, 5.0]))]).global.to_host();
        assert_eq!(found[1], 5.0, "{table}");
        assert_ne!(found[0], 3.0, "{table}: the weight is no mean");
    }
}

/// Squares beyond 32-bit floats would make the moments infinite for good.
#[test]
fn extreme_updates_leave_finite_vectors_and_moments() {
    let schema = schema(&[3]);
    for (table, _) in GOLDEN {
        let mut course = Course::new(table, vector::<Flex>(&[0.0, -1e30, 1.0], &schema, &FlexDevice), 1);
        for values in [[1e30, 1e-40, 1.0], [-1e30, 0.0, 1.0], [0.0, 0.0, 0.0]] {
            let aggregate = course.round(&[update(0, 1, vector(&values, &schema, &FlexDevice))]);
            assert!(aggregate.global.is_finite(), "{table}: {:?}", aggregate.global.to_host());
            for (name, tensor) in course.strategy.state().iter() {
                if let fedburn_core::StateData::F32(values) = &tensor.data {
                    assert!(values.iter().all(|v| v.is_finite()), "{table}: {name} = {values:?}");
                }
            }
        }
    }
}

#[test]
fn the_norm_of_the_mean_update_is_reported() {
    for (table, _) in GOLDEN {
        let (global, updates) = fedburn_testkit::base_case::<Flex>(&FlexDevice);
        let metrics = Course::new(table, global, 2).round(&updates).metrics;
        // |(-0.25, 0.25, 0.45)|.
        assert!((metrics.get("update_norm").unwrap() - 0.3275f64.sqrt()).abs() < 1e-6, "{table}");
    }
}

#[test]
fn what_makes_no_rule_is_refused_by_field_and_value() {
    for (table, words) in [
        ("kind = 'fedavgm'\nbeta = 1", ["`fedavgm`", "beta = 1"]),
        ("kind = 'fedavgm'\nserver_lr = 0", ["`fedavgm`", "server_lr = 0"]),
        ("kind = 'fedadagrad'\nbeta2 = 0.9", ["unknown field", "`beta2`"]),
        ("kind = 'fedadam'\nbeta1 = -0.1", ["`fedadam`", "beta1 = -0.1"]),
        ("kind = 'fedadam'\nbeta2 = nan", ["`fedadam`", "beta2 = NaN"]),
        ("kind = 'fedyogi'\ntau = 0", ["`fedyogi`", "tau = 0"]),
        ("kind = 'fedyogi'\nv0 = -1", ["`fedyogi`", "v0 = -1"]),
        ("kind = 'fedams'\nvmax0 = 0", ["`fedams`", "vmax0 = 0"]),
        ("kind = 'fedams'\nserver_lr = inf", ["`fedams`", "server_lr = inf"]),
    ] {
        let reason = refusal(table);
        assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
    }
}
