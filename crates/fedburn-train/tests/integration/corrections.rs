//! FedProx, SCAFFOLD and FedDyn on clients: hand-made steps, plain loops in `f64`, and state that survives.

use std::sync::Arc;

use crate::common::quadratic::{Quadratic, on_run, task_at, vector};
use crate::common::reference::{assert_close, loss_and_gradient, wide};
use crate::common::{Normed, Softmax, bits, initial, normed_initial, softmax_initial, task, toy_data, training};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    Client, ClientId, LocalUpdate, ModelFamily, ParamKind, ParamVector, Reports, SideInfo, StateData, StateDict,
    StateError, StateTensor, TrainError, TrainTask,
};
use fedburn_data::ClientData;
use fedburn_train::{
    ControlOption, FedDynRuleConfig, LocalFedDyn, LocalRule, LocalScaffold, LocalTraining, Proximal, ProximalConfig,
    ResidentModel, RuleConfig, ScaffoldRuleConfig, SupervisedClient,
};
use proptest::prelude::*;

type FlexClient<F> = SupervisedClient<Flex, F>;

fn steps(count: usize) -> LocalTraining {
    training(|c| (c.epochs, c.steps, c.batch_size, c.lr) = (None, Some(count), usize::MAX, 0.1))
}

fn bowl(centre: [f32; 3]) -> Quadratic {
    Quadratic { curvature: [1.0; 3], centre }
}

fn flat<B: Backend>(values: [f32; 3], state: &StateDict, name: &str, device: &B::Device) -> Vec<f32> {
    let schema = vector::<B>(values, device).schema().clone();
    state.clone().take_params::<B>(name, &schema, device).unwrap().to_host()
}

#[test]
fn golden_proximal_steps() {
    fn check<B: Backend>(device: &B::Device) {
        let task = task_at::<B>([1.0, 2.0, 3.0], device);
        for (count, expected) in [(1, [0.9, 1.8, 2.7]), (2, [0.815, 1.63, 2.445])] {
            let found = on_run(&task, &steps(count), |model, run| {
                let mut rule = Proximal::new(bowl([0.0; 3]), 0.5, run.task.global.clone());
                run.descend(model, &mut rule).unwrap().model.host()
            });
            assert_close(&found, &expected, 1e-6);
        }
    }
    check::<Flex>(&FlexDevice);
    check::<NdArray>(&NdArrayDevice::Cpu);
}

#[test]
fn golden_scaffold_steps() {
    fn check<B: Backend>(device: &B::Device) {
        let mut task = task_at::<B>([1.0, 2.0, 3.0], device);
        task.side.vectors.insert(SideInfo::<B>::CONTROL.into(), vector([0.1, 0.0, -0.1], device));
        let cases = [
            (ControlOption::Two, [0.945, 1.91, 1.905], [0.945, 1.71, 1.905]),
            (ControlOption::One, [1.0, 2.0, 2.0], [1.0, 1.8, 2.0]),
        ];
        for (option, control, delta) in cases {
            let mut rule = LocalScaffold::<B>::new(ScaffoldRuleConfig { option });
            let mut state = StateDict::new();
            state.insert_params("control", &vector::<B>([0.0, 0.2, 0.0], device));
            on_run(&task, &steps(2), |model, run| {
                LocalRule::<B, crate::common::quadratic::TrainPoint<B>>::restore(&mut rule, state).unwrap();
                let trained = rule.train_with(model, run, bowl([0.0, 0.0, 1.0])).unwrap();
                assert_close(&trained.model.host(), &[0.791, 1.658, 2.639], 1e-6);
                let sent = &trained.side.vectors[SideInfo::<B>::CONTROL_DELTA];
                assert_close(&sent.to_host(), &delta, 2e-6);
            });
            let state = LocalRule::<B, crate::common::quadratic::TrainPoint<B>>::state(&rule);
            assert_close(&flat::<B>([0.0; 3], &state, "control", device), &control, 2e-6);
        }
    }
    check::<Flex>(&FlexDevice);
    check::<NdArray>(&NdArrayDevice::Cpu);
}

#[test]
fn golden_feddyn_steps() {
    fn check<B: Backend>(device: &B::Device) {
        let clients = [
            ([0.0, 0.0, 1.0], [0.0; 3], [0.811, 1.622, 2.622], [0.0189, 0.0378, 0.0378]),
            ([2.0, 2.0, 2.0], [0.05, 0.0, -0.05], [1.198_45, 2.0, 2.801_55], [0.030_155, 0.0, -0.030_155]),
        ];
        for (sent, configured) in [(None, 0.1), (Some(0.1), 7.0)] {
            for (centre, before, expected, after) in clients {
                let mut task = task_at::<B>([1.0, 2.0, 3.0], device);
                task.side.scalars.extend(sent.map(|alpha| (SideInfo::<B>::ALPHA.into(), alpha)));
                let mut rule = LocalFedDyn::<B>::new(FedDynRuleConfig { alpha: configured });
                let mut state = StateDict::new();
                state.insert_params("dynamic", &vector::<B>(before, device));
                on_run(&task, &steps(2), |model, run| {
                    LocalRule::<B, crate::common::quadratic::TrainPoint<B>>::restore(&mut rule, state).unwrap();
                    let trained = rule.train_with(model, run, bowl(centre)).unwrap();
                    assert_close(&trained.model.host(), &expected, 1e-6);
                });
                let state = LocalRule::<B, crate::common::quadratic::TrainPoint<B>>::state(&rule);
                assert_close(&flat::<B>([0.0; 3], &state, "dynamic", device), &after, 1e-7);
            }
        }
    }
    check::<Flex>(&FlexDevice);
    check::<NdArray>(&NdArrayDevice::Cpu);
}

fn client<B: Backend, F: ModelFamily<B>>(
    family: F,
    data: &ClientData,
    settings: LocalTraining,
    device: B::Device,
) -> SupervisedClient<B, F> {
    SupervisedClient::new(ClientId(3), data.clone().into(), Arc::new(settings), ResidentModel::new(family, device))
}

fn ruled(rule: RuleConfig) -> LocalTraining {
    training(|c| (c.rule, c.epochs, c.batch_size, c.lr) = (rule, Some(2), 5, 0.1))
}

fn with_control<B: Backend>(global: &ParamVector<B>, control: &ParamVector<B>, seed: u64) -> TrainTask<B> {
    let mut task = task(global, seed);
    task.side.vectors.insert(SideInfo::<B>::CONTROL.into(), control.clone());
    task
}

#[test]
fn without_a_pull_the_bits_are_those_of_plain_descent() {
    let (global, data) = (normed_initial(4), toy_data(13, 4));
    let train = |rule| client(Normed, &data, ruled(rule), FlexDevice).train(&task(&global, 1)).unwrap();
    let plain = bits(&train(RuleConfig::Sgd).params);
    assert_eq!(bits(&train(RuleConfig::Proximal(ProximalConfig { mu: 0.0 })).params), plain);
    assert_ne!(bits(&train(RuleConfig::Proximal(ProximalConfig { mu: 0.1 })).params), plain);
}

#[test]
fn a_proximal_client_tells_what_its_steps_add_up_to() {
    let (global, data) = (softmax_initial(4), toy_data(8, 4));
    let settings = |count| {
        training(|c| {
            (c.epochs, c.steps, c.lr) = (None, Some(count), 0.1);
            c.rule = RuleConfig::Proximal(ProximalConfig { mu: 0.5 });
        })
    };
    let asked = TrainTask { reports: Reports { accumulation: true, ..Default::default() }, ..task(&global, 1) };
    for (count, expected) in [(2, 1.95), (4, 3.709_875)] {
        let update = client(Softmax, &data, settings(count), FlexDevice).train(&asked).unwrap();
        assert!((update.report.accumulation.unwrap() - expected).abs() < 1e-9);
    }
}

#[test]
fn equal_control_variates_leave_the_steps_alone() {
    let (global, data) = (softmax_initial(2), toy_data(11, 2));
    let zero = ParamVector::zeros(global.schema().clone(), &FlexDevice);
    let scaffold = client(Softmax, &data, ruled(RuleConfig::Scaffold(ScaffoldRuleConfig::default())), FlexDevice)
        .train(&with_control(&global, &zero, 1))
        .unwrap();
    let plain = client(Softmax, &data, ruled(RuleConfig::Sgd), FlexDevice).train(&task(&global, 1)).unwrap();
    assert_close(&scaffold.params.to_host(), &wide(&plain.params.to_host()), 1e-7);
}

#[test]
fn before_the_first_control_variate_it_is_zero() {
    let (global, settings) = (softmax_initial(7), ruled(RuleConfig::Scaffold(ScaffoldRuleConfig::default())));
    let zero = ParamVector::zeros(global.schema().clone(), &FlexDevice);
    let sent = common_client(settings.clone()).train(&with_control(&global, &zero, 1)).unwrap();
    let none = common_client(settings).train(&task(&global, 1)).unwrap();
    assert_eq!(bits(&sent.params), bits(&none.params));
    assert_eq!(sent.side.vectors.len(), 1);
}

#[test]
fn a_strength_that_cannot_be_is_refused() {
    for alpha in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        let mut sent = task(&softmax_initial(0), 1);
        sent.side.scalars.insert(SideInfo::<Flex>::ALPHA.into(), alpha);
        let mut client = common_client(ruled(RuleConfig::FedDyn(FedDynRuleConfig::default())));
        assert!(matches!(client.train(&sent), Err(TrainError::Unusable { .. })), "{alpha}");
    }
}

fn common_client(settings: LocalTraining) -> FlexClient<Softmax> {
    client(Softmax, &toy_data(9, 7), settings, FlexDevice)
}

/// Rules with state, and the name of what they keep.
fn stateful() -> [(RuleConfig, &'static str); 3] {
    let scaffold = |option| RuleConfig::Scaffold(ScaffoldRuleConfig { option });
    [
        (scaffold(ControlOption::One), "control"),
        (scaffold(ControlOption::Two), "control"),
        (RuleConfig::FedDyn(FedDynRuleConfig::default()), "dynamic"),
    ]
}

#[test]
fn restoring_equals_not_stopping() {
    let global = softmax_initial(7);
    let control = softmax_initial(8);
    for (rule, name) in stateful() {
        let mut lasting = common_client(ruled(rule.clone()));
        assert!(lasting.state().is_empty(), "a client that has not taken part keeps nothing");
        lasting.train(&with_control(&global, &control, 1)).unwrap();
        let saved = StateDict::from_bytes(&lasting.state().to_bytes().unwrap()).unwrap();
        assert_eq!(saved.iter().map(|(name, _)| name).collect::<Vec<_>>(), [name]);
        let mut restored = common_client(ruled(rule.clone()));
        restored.restore(saved.clone()).unwrap();
        assert_eq!(restored.state(), saved);
        let sent = |client: &mut FlexClient<Softmax>| -> LocalUpdate<Flex> {
            client.train(&with_control(&softmax_initial(9), &control, 2)).unwrap()
        };
        let (a, b) = (sent(&mut lasting), sent(&mut restored));
        assert_eq!(bits(&a.params), bits(&b.params), "{rule:?}");
        let deltas = |update: &LocalUpdate<Flex>| update.side.vectors.values().map(bits).collect::<Vec<_>>();
        assert_eq!(deltas(&a), deltas(&b));
        assert_eq!(lasting.state(), restored.state());
        assert_ne!(lasting.state(), saved);
    }
}

#[test]
fn a_failed_run_leaves_the_state_and_a_foreign_state_is_refused() {
    let (global, control) = (softmax_initial(7), softmax_initial(8));
    for (rule, name) in stateful() {
        let mut client = common_client(ruled(rule.clone()));
        client.train(&with_control(&global, &control, 1)).unwrap();
        let saved = client.state();
        let broken = global.with_values(global.values().clone() * f32::INFINITY).unwrap();
        assert!(client.train(&with_control(&broken, &control, 2)).is_err());
        assert_eq!(client.state(), saved, "{rule:?}");

        let short = StateTensor { shape: vec![2], data: StateData::F32(vec![0.0; 2]) };
        let mut foreign = StateDict::new();
        foreign.insert(name, short);
        client.restore(foreign).unwrap();
        let refused = client.train(&with_control(&global, &control, 3));
        assert!(matches!(refused, Err(TrainError::State { source: StateError::Shape { .. }, .. })));
        let mut unknown = saved.clone();
        unknown.insert_f64("other", 1.0);
        assert!(matches!(client.restore(unknown), Err(StateError::Unexpected { .. })));
        let mut missing = StateDict::new();
        missing.insert_f64("other", 1.0);
        assert!(matches!(client.restore(missing), Err(StateError::Missing { .. })));
    }
}

#[test]
fn running_statistics_take_no_part_in_corrections() {
    let (global, data) = (normed_initial(6), toy_data(10, 6));
    let zero = ParamVector::zeros(global.schema().clone(), &FlexDevice);
    let statistics = |values: Vec<f32>| {
        let entries = global.schema().entries().iter().filter(|e| e.kind == ParamKind::Buffer);
        entries.flat_map(|e| values[e.range()].to_vec()).collect::<Vec<_>>()
    };
    let plain = client(Normed, &data, ruled(RuleConfig::Sgd), FlexDevice).train(&task(&global, 1)).unwrap();
    for (rule, name) in stateful() {
        let mut client = client(Normed, &data, ruled(rule.clone()), FlexDevice);
        let update = client.train(&with_control(&global, &zero, 1)).unwrap();
        let kept = client.state().take_params::<Flex>(name, global.schema(), &FlexDevice).unwrap();
        assert!(statistics(kept.to_host()).iter().all(|v| *v == 0.0), "{rule:?}");
        assert!(kept.to_host().iter().any(|v| *v != 0.0));
        if name == "control" {
            // The same steps, so the same statistics; option one's extra pass over the data leaves none.
            assert_close(&statistics(update.params.to_host()), &wide(&statistics(plain.params.to_host())), 1e-6);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..Default::default() })]

    /// Rounds of one client, the server's part played by given vectors.
    #[test]
    fn rounds_follow_the_definition(
        kind in 0usize..4,
        strength in 0.01..1.0f64,
        weight_decay in prop_oneof![Just(0.0), 0.0..0.1f64],
        count in 1usize..5,
        seed in 0u64..100,
    ) {
        let (data, lr) = (toy_data(9, seed), 0.2);
        let rule = match kind {
            0 => RuleConfig::Proximal(ProximalConfig { mu: strength }),
            1 => RuleConfig::Scaffold(ScaffoldRuleConfig { option: ControlOption::One }),
            2 => RuleConfig::Scaffold(ScaffoldRuleConfig { option: ControlOption::Two }),
            _ => RuleConfig::FedDyn(FedDynRuleConfig { alpha: strength }),
        };
        let settings = || training(|c| {
            (c.epochs, c.steps, c.batch_size, c.lr) = (None, Some(count), usize::MAX, lr);
            (c.rule, c.weight_decay) = (rule.clone(), weight_decay);
        });
        let (flex, ndarray) = (softmax_initial(seed), initial::<NdArray, _>(&Softmax, seed, &NdArrayDevice::Cpu));
        let mut kept = vec![0.0; flex.num_values()];
        let mut on_flex = client(Softmax, &data, settings(), FlexDevice);
        let mut on_ndarray = client(Softmax, &data, settings(), NdArrayDevice::Cpu);
        for round in 0..3 {
            let global = softmax_initial(seed + round);
            let server = softmax_initial(seed + 10 + round);
            let (start, c) = (wide(&global.to_host()), wide(&server.to_host()));
            let gradient = |x: &[f64]| -> Vec<f64> {
                loss_and_gradient(x, &data).1.iter().zip(x).map(|(g, x)| g + weight_decay * x).collect()
            };
            let mut x = start.clone();
            for _ in 0..count {
                let g = gradient(&x);
                for i in 0..x.len() {
                    x[i] -= lr * match kind {
                        0 => g[i] + strength * (x[i] - start[i]),
                        1 | 2 => g[i] - kept[i] + c[i],
                        _ => g[i] - kept[i] + strength * (x[i] - start[i]),
                    };
                }
            }
            let at_start = gradient(&start);
            let renewed: Vec<f64> = (0..x.len()).map(|i| match kind {
                0 => 0.0,
                1 => at_start[i],
                2 => kept[i] - c[i] + (start[i] - x[i]) / (count as f64 * lr),
                _ => kept[i] - strength * (x[i] - start[i]),
            }).collect();
            let delta: Vec<f64> = renewed.iter().zip(&kept).map(|(new, old)| new - old).collect();
            kept = renewed;

            let there = |p: &ParamVector<Flex>| {
                ParamVector::<NdArray>::from_host(p.to_host(), ndarray.schema().clone(), &NdArrayDevice::Cpu).unwrap()
            };
            let a = on_flex.train(&with_control(&global, &server, round)).unwrap();
            let b = on_ndarray.train(&with_control(&there(&global), &there(&server), round)).unwrap();
            assert_close(&a.params.to_host(), &x, 3e-5);
            assert_close(&b.params.to_host(), &x, 3e-5);
            if matches!(kind, 1 | 2) {
                assert_close(&a.side.vectors[SideInfo::<Flex>::CONTROL_DELTA].to_host(), &delta, 2e-4);
                assert_close(&b.side.vectors[SideInfo::<Flex>::CONTROL_DELTA].to_host(), &delta, 2e-4);
            } else {
                prop_assert!(a.side.vectors.is_empty());
            }
        }
    }
}
