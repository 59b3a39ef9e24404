//! EWWA: golden vectors, the independent reference on random rounds, laws, memory, mixing weights.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_core::{
    Aggregate, AggregateError, ClientId, ClientUpdate, MixingWeights, ParamEntry, ParamKind, ParamSchema, ParamVector,
    RoundIndex, StateStore, Strategy,
};
use fedburn_strategies::{EwwaConfig, EwwaForm, EwwaOptimizer, StrategyConfig};
use fedburn_testkit::reference::ewwa::{self, Mixed};
use fedburn_testkit::{Convexity, Rounds, base_case, schema, strategy_laws, update, vector};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use EwwaForm::{LogShare, Softmax};
use EwwaOptimizer::{Adagrad, Adam, Yogi};

fn make<B: Backend>(form: EwwaForm, optimizer: EwwaOptimizer) -> Strategy<B> {
    StrategyConfig::Ewwa(EwwaConfig { form, optimizer, ..Default::default() }).build().unwrap()
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    let close = found.iter().zip(expected).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-5);
    assert!(close && found.len() == expected.len(), "{what}: {found:?}, expected {expected:?}");
}

/// Two rounds of the BASE case; in the second, `g_A = [-0.1, 0.1, 0.2]` and `g_B = [0.3, -0.1, -0.2]` from wherever
/// the first one led, or from `[1, 2, 3]` again.
fn two_rounds<B: Backend>(strategy: &mut Strategy<B>) -> [Aggregate<B>; 2] {
    let (global, updates) = base_case::<B>(&Default::default());
    let rounds = Rounds::new(2);
    let first = rounds.combine(strategy, RoundIndex(1), &global, &updates).unwrap();
    let steps = [[-0.1, 0.1, 0.2], [0.3, -0.1, -0.2]];
    let local = |g: [f32; 3]| {
        let values: Vec<_> = first.global.to_host().into_iter().zip(g).map(|(x, g)| x - g).collect();
        vector(&values, global.schema(), &Default::default())
    };
    let updates = [update(0, 1, local(steps[0])), update(1, 3, local(steps[1]))];
    let second = rounds.combine(strategy, RoundIndex(2), &first.global, &updates).unwrap();
    [first, second]
}

fn check_golden<B: Backend>() {
    let golden = [
        (Softmax, Adam, [0.67152176, 1.87152176, 3.16136485], [0.42290081, 1.80081033, 3.02771198]),
        (LogShare, Adam, [0.6000007, 1.96329388, 3.00000001], [0.46993592, 1.94533419, 2.80000003]),
        (LogShare, Adagrad, [0.60000014, 1.92377228, 3.00000019], [0.46011713, 1.90329707, 2.80000095]),
        (LogShare, Yogi, [0.6000007, 1.96330332, 3.00000001], [0.46993157, 1.9453541, 2.80000003]),
    ];
    for (form, optimizer, first, second) in golden {
        let what = format!("{form:?} {optimizer:?}");
        let found = two_rounds::<B>(&mut make(form, optimizer));
        assert_close(&found[0].global.to_host(), &first, &what);
        assert_close(&found[1].global.to_host(), &second, &what);
    }
}

/// Section A1.4: every vector of results.
#[test]
fn golden_vectors() {
    check_golden::<Flex>();
    check_golden::<NdArray>();
}

/// Section A1.4: `p_A`, seen element by element because each tensor has one value.
#[test]
fn golden_weights() {
    let golden = [
        (Softmax, Adam, [0.11920293, 0.88079707, 0.73105858], [0.12844764, 0.85355713, 0.83413218]),
        (LogShare, Adam, [0.00000117, 0.72784354, 0.99999999], [0.42483806, 0.58979845, 0.99999994]),
        (LogShare, Adagrad, [0.00000024, 0.79371287, 0.99999968], [0.40029248, 0.60237605, 0.99999811]),
        (LogShare, Yogi, [0.00000117, 0.72782781, 0.99999999], [0.42482717, 0.5897461, 0.99999994]),
    ];
    let schema = schema(&[1, 1, 1]);
    let vector = |values: [f32; 3]| vector::<Flex>(&values, &schema, &FlexDevice);
    for (form, optimizer, first, second) in golden {
        let (mut strategy, rounds) = (make(form, optimizer), Rounds::new(2));
        let global = vector([1.0, 2.0, 3.0]);
        let cases = [
            ([vector([1.2, 1.8, 3.0]), vector([0.6, 2.4, 3.6])], first),
            ([vector([1.1, 1.9, 2.8]), vector([0.7, 2.1, 3.2])], second),
        ];
        for (round, ([a, b], expected)) in (1..).zip(cases) {
            let updates = [update(0, 1, a), update(1, 3, b)];
            let mixing = rounds.combine(&mut strategy, RoundIndex(round), &global, &updates).unwrap().mixing.unwrap();
            assert_eq!(mixing.clients, [ClientId(0), ClientId(1)]);
            assert_eq!(mixing.tensors, ["t0", "t1", "t2"]);
            let found: Vec<_> = mixing.weights.iter().map(|w| w[0] as f32).collect();
            assert_close(&found, &expected, &format!("{form:?} {optimizer:?}, round {round}"));
            assert!(mixing.weights.iter().all(|w| (w.iter().sum::<f64>() - 1.0).abs() < 1e-6));
        }
    }
}

#[test]
fn laws() {
    for form in [Softmax, LogShare] {
        for optimizer in [Adam, Adagrad, Yogi] {
            strategy_laws::<Flex>(|| make(form, optimizer), Convexity::Convex, &FlexDevice);
        }
        strategy_laws::<NdArray>(|| make(form, Adam), Convexity::Convex, &Default::default());
    }
}

/// Global vector and, round after round, which of five clients take part with which values.
type Case = (Vec<f32>, Vec<Vec<(u64, Vec<f32>)>>);

fn case(scale: f32) -> impl proptest::strategy::Strategy<Value = Case> {
    (1usize..8).prop_flat_map(move |len| {
        let values = move || prop::collection::vec(-scale..scale, len);
        let round = prop::collection::btree_map(0u64..5, values(), 1..6);
        let rounds = prop::collection::vec(round.prop_map(|r| r.into_iter().collect::<Vec<_>>()), 1..4);
        (values(), rounds)
    })
}

fn agrees<B: Backend>((global, rounds): &Case) -> Result<(), TestCaseError> {
    let schema = schema(&[global.len()]);
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    for form in [Softmax, LogShare] {
        for (optimizer, second) in
            [(Adam, ewwa::adam as fn(_, _, _) -> _), (Adagrad, ewwa::adagrad), (Yogi, ewwa::yogi)]
        {
            let (mut reference, mut strategy, memory) =
                (ewwa::Ewwa::new(second), make::<B>(form, optimizer), Rounds::new(5));
            let start = vector(global, &schema, &Default::default());
            for (index, clients) in (1..).zip(rounds) {
                let updates: Vec<_> =
                    clients.iter().map(|(k, x)| update(*k, 1, vector(x, &schema, &Default::default()))).collect();
                let found = memory.combine(&mut strategy, RoundIndex(index), &start, &updates).unwrap().global;
                let clients: Vec<_> = clients.iter().map(|(k, x)| (*k, wide(x))).collect();
                let Mixed { values, totals, .. } = match form {
                    Softmax => reference.softmax(&wide(global), &clients),
                    LogShare => reference.log_share(&wide(global), &clients),
                };
                for (i, x) in found.to_host().into_iter().enumerate() {
                    let at = clients.iter().map(|(_, x)| x[i]);
                    let (low, high) = (at.clone().fold(f64::INFINITY, f64::min), at.fold(f64::NEG_INFINITY, f64::max));
                    // Where all shares are near zero, rounding of the scores decides: the result is then any mean.
                    let error = (high - low) * (1e-5 + 3e-6 / totals[i]).min(1.0) + 1e-6 * high.abs().max(low.abs());
                    prop_assert!(
                        (f64::from(x) - values[i]).abs() <= error,
                        "{form:?} {optimizer:?} round {index}: {x}, expected {} ± {error}",
                        values[i]
                    );
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_reference_when_clients_come_and_go(case in case(10.0)) {
        agrees::<Flex>(&case)?;
        agrees::<NdArray>(&case)?;
    }

    #[test]
    fn values_of_any_size_stay_within_those_of_the_clients(case in case(3e38), exponent in -45i32..1) {
        let scale = 10f32.powi(exponent);
        let (global, rounds) = case;
        let schema = schema(&[global.len()]);
        let vector = |values: &[f32]| {
            let values: Vec<_> = values.iter().map(|v| v * scale).collect();
            vector::<Flex>(&values, &schema, &FlexDevice)
        };
        for form in [Softmax, LogShare] {
            for optimizer in [Adam, Adagrad, Yogi] {
                let (mut strategy, memory) = (make(form, optimizer), Rounds::new(5));
                for (index, clients) in (1..).zip(&rounds) {
                    let updates: Vec<_> = clients.iter().map(|(k, x)| update(*k, 1, vector(x))).collect();
                    let next = memory.combine(&mut strategy, RoundIndex(index), &vector(&global), &updates).unwrap();
                    for (i, x) in next.global.to_host().into_iter().enumerate() {
                        let at = || clients.iter().map(|(_, x)| x[i] * scale);
                        let largest = at().map(f32::abs).fold(0.0, f32::max);
                        let (low, high) = (at().fold(f32::INFINITY, f32::min), at().fold(f32::NEG_INFINITY, f32::max));
                        let slack = 1e-6 * largest + f32::MIN_POSITIVE;
                        prop_assert!(x >= low - slack && x <= high + slack, "{form:?} {optimizer:?}: {x} of {low}..{high}");
                    }
                }
            }
        }
    }
}

/// A model of several tensors, one of them running statistics, longer than a piece.
fn long_round(clients: u64) -> (ParamVector<Flex>, Vec<ClientUpdate<Flex>>) {
    let entries = vec![
        ParamEntry::new("body", vec![300, 100], ParamKind::Weight),
        ParamEntry::new("none", vec![0], ParamKind::Weight),
        ParamEntry::new("norm.running_mean", vec![10_000], ParamKind::Buffer),
        ParamEntry::new("head", vec![7], ParamKind::Weight),
    ];
    let schema = Arc::new(ParamSchema::new(entries).unwrap());
    let values = |k: u64| (0..40_007).map(|i| ((i as u64 * (k + 3)) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
    let updates = (0..clients).map(|k| update(k, k + 1, vector(&values(k), &schema, &FlexDevice))).collect();
    (vector(&values(clients), &schema, &FlexDevice), updates)
}

#[test]
fn the_number_of_threads_changes_no_bit_and_pieces_do_not_show() {
    let (global, updates) = long_round(9);
    for form in [Softmax, LogShare] {
        let outcome = |threads: usize| {
            let Strategy::PerClient(mut strategy) = make::<Flex>(form, Adam) else { unreachable!() };
            let memory = fedburn_core::MemoryStore::new();
            let cohort: Vec<_> = updates.iter().map(|u| u.client).collect();
            let set = fedburn_core::UpdateSet::new(updates.clone()).unwrap().with_threads(threads);
            let (seed, index) = (fedburn_core::Seed::new(0), RoundIndex(1));
            let round =
                fedburn_core::Round { index, global: &global, cohort: &cohort, population: 9, seed, memory: &memory };
            let aggregate = strategy.aggregate(&round, &set).unwrap();
            memory.commit(index, &cohort).unwrap();
            (aggregate.global.to_host(), aggregate.mixing, memory.newest(), strategy.state())
        };
        assert_eq!(outcome(1), outcome(3), "{form:?}");
    }
    let mut reference = ewwa::Ewwa::new(ewwa::adam);
    let wide = |v: &ParamVector<Flex>| v.to_host().into_iter().map(f64::from).collect::<Vec<_>>();
    let clients: Vec<_> = updates.iter().map(|u| (u.client.0, wide(&u.local.params))).collect();
    let expected = reference.log_share(&wide(&global), &clients).values;
    let found = Rounds::new(9).combine(&mut make(LogShare, Adam), RoundIndex(1), &global, &updates).unwrap().global;
    assert_close(&found.to_host(), &expected, "log_share over several pieces");
}

#[test]
fn running_statistics_are_weighted_by_examples_and_the_weights_say_so() {
    let (global, updates) = long_round(3);
    let Aggregate { global: next, mixing, .. } =
        Rounds::new(3).combine(&mut make(Softmax, Adam), RoundIndex(1), &global, &updates).unwrap();
    let MixingWeights { tensors, weights, .. } = mixing.unwrap();
    assert_eq!(tensors, ["body", "norm.running_mean", "head"], "an empty tensor has no weights");
    for (found, expected) in weights[1].iter().zip([1.0 / 6.0, 2.0 / 6.0, 3.0 / 6.0]) {
        assert!((found - expected).abs() < 1e-6, "{weights:?}");
    }
    let locals: Vec<_> = updates.iter().map(|u| u.local.params.to_host()).collect();
    for (i, x) in next.to_host().into_iter().enumerate().skip(30_000).take(10_000) {
        let mean = (locals[0][i] + 2.0 * locals[1][i] + 3.0 * locals[2][i]) / 6.0;
        assert!((x - mean).abs() < 1e-6, "{i}: {x}, expected {mean}");
    }
}

/// Negating a coordinate swaps the weights of opposed clients instead of negating the result.
#[test]
fn the_sign_of_a_coordinate_matters() {
    let schema = schema(&[1]);
    let vector = |x: f32| vector::<Flex>(&[x], &schema, &FlexDevice);
    for form in [Softmax, LogShare] {
        let next = |sign: f32| {
            let updates = [update(0, 1, vector(sign)), update(1, 1, vector(-3.0 * sign))];
            let next = Rounds::new(2).combine(&mut make(form, Adam), RoundIndex(1), &vector(0.0), &updates).unwrap();
            next.global.to_host()[0]
        };
        assert!((next(1.0) + next(-1.0)).abs() > 0.1, "{form:?}: {} and {}", next(1.0), next(-1.0));
    }
}

/// Shared moments see the clients one after another: exchanging who did what changes the published code's result.
#[test]
fn log_share_depends_on_the_order_of_ids_and_softmax_does_not() {
    let (global, updates) = base_case::<Flex>(&FlexDevice);
    let [a, b] = [&updates[0].local.params, &updates[1].local.params];
    for (form, differs) in [(Softmax, false), (LogShare, true)] {
        let next = |x: &ParamVector<Flex>, y: &ParamVector<Flex>| {
            let updates = [update(0, 1, x.clone()), update(1, 1, y.clone())];
            Rounds::new(2).combine(&mut make(form, Adam), RoundIndex(1), &global, &updates).unwrap().global.to_host()
        };
        let (one, other) = (next(a, b), next(b, a));
        let apart = one.iter().zip(&other).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert_eq!(apart > 1e-3, differs, "{form:?}: {one:?} and {other:?}");
    }
}

#[test]
fn moments_of_another_model_are_refused_and_nothing_changes() {
    let (global, updates) = base_case::<Flex>(&FlexDevice);
    let (longer, more) = long_round(2);
    for form in [Softmax, LogShare] {
        let (mut strategy, rounds) = (make(form, Adam), Rounds::new(2));
        rounds.combine(&mut strategy, RoundIndex(1), &global, &updates).unwrap();
        let before = strategy.state();
        let error = rounds.combine(&mut strategy, RoundIndex(2), &longer, &more).unwrap_err();
        assert!(matches!(&error, AggregateError::Unusable { reason, .. } if reason.contains("[40007]")), "{error}");
        assert_eq!(strategy.state(), before);
        let Strategy::PerClient(inner) = &strategy else { unreachable!() };
        assert_eq!(inner.remembers_clients(), form == Softmax);
        assert_eq!(before.is_empty(), form == Softmax);
        assert_eq!(make::<Flex>(Softmax, Adam).restore(before.clone(), &global).is_ok(), form == Softmax);
        assert_eq!(make::<Flex>(LogShare, Adam).restore(before, &longer).is_ok(), form == Softmax);
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    for (text, field) in
        [("alpha = 0.0", "alpha"), ("beta1 = 1.0", "beta1"), ("beta2 = -0.1", "beta2"), ("eps = 0.0", "eps")]
    {
        let config: EwwaConfig = toml::from_str(text).unwrap();
        let error = config.build().unwrap_err().to_string();
        assert!(error.contains("`ewwa`") && error.contains(field), "{error}");
    }
    let config: StrategyConfig = toml::from_str("kind = \"ewwa\"\nform = \"log_share\"\noptimizer = \"yogi\"").unwrap();
    assert_eq!(config, StrategyConfig::Ewwa(EwwaConfig { form: LogShare, optimizer: Yogi, ..Default::default() }));
    assert!(toml::from_str::<StrategyConfig>("kind = \"ewwa\"\nlr = 1.0").is_err());
}
