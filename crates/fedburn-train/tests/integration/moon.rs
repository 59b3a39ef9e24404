//! Model contrast against its definition in `f64`, and what a client keeps for it.

use std::sync::Arc;

use crate::common::quadratic::{Point, train_model, vector};
use crate::common::reference::{assert_close, wide};
use crate::common::{CLASSES, FEATURES, Softmax, bits, initial, softmax_initial, task, toy_data, training};
use burn::tensor::{Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    Classifier, Client, ClientId, Mode, ModelFamily, ParamVector, Seed, TrainError, flat_gradients, load,
};
use fedburn_data::Batch;
use fedburn_models::{Zoo, ZooConfig};
use fedburn_ops::Kernels;
use fedburn_train::{GradientRule, ModelContrast, MoonConfig, ResidentModel, RuleConfig, SupervisedClient};
use proptest::prelude::*;

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

fn contrast(r: &[f64], global: &[f64], previous: &[f64], temperature: f64) -> f64 {
    let (near, far) = (cosine(r, global) / temperature, cosine(r, previous) / temperature);
    -(near.exp() / (near.exp() + far.exp())).ln()
}

/// The loss of one example whose logits are `s`, of which the first two are the features.
fn loss(s: &[f64], global: &[f64], previous: &[f64], y: usize, MoonConfig { mu, temperature }: MoonConfig) -> f64 {
    let sum: f64 = s.iter().map(|s| s.exp()).sum();
    sum.ln() - s[y] + mu * contrast(&s[..2], &global[..2], &previous[..2], temperature)
}

/// The rule's loss and gradient on one example of class `y`, for models whose logits are these.
fn step<B: Backend>(models: [[f32; 3]; 3], y: i32, config: MoonConfig, device: &B::Device) -> (f64, Vec<f32>) {
    let [local, global, previous] = models;
    let batch = Batch::<B> { inputs: Tensor::zeros([1, 1, 1, 1], device), labels: Tensor::from_ints([y], device) };
    let frozen = |values| Point::<B>::at(values, device);
    let mut rule = ModelContrast::new(config, frozen(global), Some(frozen(previous)));
    let found = rule.gradients(train_model(&vector::<B>(local, device)), batch);
    let gradient = flat_gradients::<B, _>(&found.model, &found.gradients);
    (found.loss.into_data().iter::<f64>().next().unwrap(), gradient.into_data().iter().collect())
}

#[test]
fn golden_contrast() {
    let (local, global, previous) = ([1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 1.0, 0.0]);
    assert!((contrast(&[1.0, 0.0], &[0.6, 0.8], &[0.0, 1.0], 0.5) - 0.263_282_47).abs() < 1e-8);
    let config = MoonConfig { mu: 1.0, temperature: 0.5 };
    let entropy = (1f64.exp() + 2.0).ln() - 1.0;
    for found in [
        step::<Flex>([local, global, previous], 0, config, &FlexDevice).0,
        step::<NdArray>([local, global, previous], 0, config, &NdArrayDevice::Cpu).0,
    ] {
        assert!((found - entropy - 0.263_282_47).abs() < 1e-6, "{found}");
    }
}

#[test]
fn features_without_a_direction_are_not_pushed() {
    let (somewhere, config) = ([0.6, 0.8, 0.0], MoonConfig::default());
    let (found, gradient) = step::<Flex>([[0.0; 3], somewhere, somewhere], 0, config, &FlexDevice);
    assert!((found - 3f64.ln() - config.mu * 2f64.ln()).abs() < 1e-5, "{found}");
    assert_close(&gradient, &[-2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0], 1e-6);
    let frozen = step::<Flex>([somewhere, [0.0; 3], [0.0; 3]], 0, config, &FlexDevice).1;
    assert!(frozen.iter().all(|slope| slope.abs() < 1.0), "{frozen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn losses_and_gradients_follow_the_definition(
        s: [i8; 3], g: [i8; 3], p: [i8; 3], y in 0usize..3, mu in 0.1..3.0f64, temperature in 0.3..4.0f64,
    ) {
        let [s, g, p] = [s, g, p].map(|model| model.map(|v| f32::from(v) / 32.0));
        prop_assume!([s, g, p].iter().all(|model| model[0].hypot(model[1]) > 0.25));
        let config = MoonConfig { mu, temperature };
        let at = |s: &[f64]| loss(s, &wide(&g), &wide(&p), y, config);
        let slope = |i: usize| {
            let moved = |by: f64| {
                let mut s = wide(&s);
                s[i] += by;
                at(&s)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        };
        let gradient: Vec<f64> = (0..3).map(slope).collect();
        for (found, slopes) in [
            step::<Flex>([s, g, p], y as i32, config, &FlexDevice),
            step::<NdArray>([s, g, p], y as i32, config, &NdArrayDevice::Cpu),
        ] {
            let expected = at(&wide(&s));
            prop_assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} {expected}");
            assert_close(&slopes, &gradient, 3e-4);
        }
    }
}

fn zoo() -> Zoo {
    let body = Box::new(ZooConfig::TwoNn { hidden: 8 });
    ZooConfig::Projected { body, width: 5 }.build([1, 1, FEATURES], CLASSES).unwrap()
}

fn client<B: Kernels>(rule: RuleConfig) -> SupervisedClient<B, Zoo> {
    let settings = Arc::new(training(|c| (c.rule, c.epochs, c.lr) = (rule, Some(4), 0.3)));
    let resident = ResidentModel::new(zoo(), B::Device::default());
    SupervisedClient::new(ClientId(0), toy_data(14, 2).into(), settings, resident)
}

fn moon(mu: f64) -> RuleConfig {
    RuleConfig::Moon(MoonConfig { mu, temperature: 0.5 })
}

fn drawn<B: Kernels>(seed: u64) -> ParamVector<B> {
    initial(&zoo(), seed, &B::Device::default())
}

/// What two rounds of one client send, the second from another global model than the first.
fn two_rounds<B: Kernels>(rule: RuleConfig) -> [ParamVector<B>; 2] {
    let mut client = client::<B>(rule);
    [1, 2].map(|round| client.train(&task(&drawn(round), round)).unwrap().params)
}

#[test]
fn the_first_round_and_a_weight_of_zero_are_plain_descent() {
    let [plain, none, strong] = [RuleConfig::Sgd, moon(0.0), moon(2.0)].map(two_rounds::<Flex>);
    assert_eq!(bits(&none[0]), bits(&plain[0]));
    assert_eq!(bits(&none[1]), bits(&plain[1]));
    assert_eq!(bits(&strong[0]), bits(&plain[0]), "there is no earlier model to stay away from");
    assert_ne!(bits(&strong[1]), bits(&plain[1]));
    let other = two_rounds::<NdArray>(moon(2.0));
    assert_close(&other[1].to_host(), &wide(&strong[1].to_host()), 1e-4);
}

#[test]
fn features_turn_to_the_global_model_and_away_from_the_last_own() {
    fn check<B: Kernels>() {
        let [plain, strong] = [RuleConfig::Sgd, moon(2.0)].map(two_rounds::<B>);
        let device = B::Device::default();
        let batch = toy_data(14, 2).batch::<B>(&(0..14).collect::<Vec<_>>(), &device).inputs;
        let mean = |params: &ParamVector<B>| {
            let features = |params| -> Vec<f64> {
                let model = load(ModelFamily::<B>::init(&zoo(), Seed::new(0), &device), params).unwrap();
                model.split().unwrap().features(batch.clone(), Mode::Evaluate).into_data().iter().collect()
            };
            let (own, global, previous) = (features(params), features(&drawn(2)), features(&plain[0]));
            let rows = own.chunks(5).zip(global.chunks(5)).zip(previous.chunks(5));
            rows.map(|((own, global), previous)| contrast(own, global, previous, 0.5)).sum::<f64>() / 14.0
        };
        let (without, with) = (mean(&plain[1]), mean(&strong[1]));
        assert!(with < 0.9 * without, "contrast {with}, {without} without the rule");
    }
    check::<Flex>();
    check::<NdArray>();
}

#[test]
fn a_client_that_was_put_away_goes_on_with_its_last_model() {
    let going_on = two_rounds::<Flex>(moon(2.0));
    let mut first = client::<Flex>(moon(2.0));
    assert!(first.state().is_empty());
    let sent = first.train(&task(&drawn(1), 1)).unwrap().params;
    let mut state = first.state();
    let mut second = client::<Flex>(moon(2.0));
    second.restore(state.clone()).unwrap();
    assert_eq!(bits(&second.train(&task(&drawn(2), 2)).unwrap().params), bits(&going_on[1]));
    let kept: ParamVector<Flex> = state.take_params("previous", sent.schema(), &FlexDevice).unwrap();
    assert_eq!(bits(&kept), bits(&sent), "what is kept is what was sent");

    let mut foreign = first.state();
    foreign.insert_params("own", &sent);
    assert!(client::<Flex>(moon(2.0)).restore(foreign).is_err());
    let mut other = fedburn_core::StateDict::new();
    other.insert_params("previous", &softmax_initial(1));
    let mut third = client::<Flex>(moon(2.0));
    third.restore(other).unwrap();
    assert!(matches!(third.train(&task(&drawn(1), 1)), Err(TrainError::State { .. })), "the state of another model");
}

#[test]
fn a_model_without_features_is_refused() {
    let settings = Arc::new(training(|c| c.rule = moon(1.0)));
    let resident = ResidentModel::new(Softmax, FlexDevice);
    let mut client = SupervisedClient::<Flex, _>::new(ClientId(0), toy_data(5, 1).into(), settings, resident);
    let error = client.train(&task(&softmax_initial(1), 1)).unwrap_err().to_string();
    assert!(error.contains("`moon`") && error.contains("features and a head"), "{error}");
}
