//! Not-true distillation against its definition in `f64`.

use std::sync::Arc;

use crate::common::quadratic::{Point, train_model, vector};
use crate::common::reference::{assert_close, rows, scores, wide};
use crate::common::{Softmax, bits, initial, softmax_initial, task, toy_data, training};
use burn::tensor::{Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{Client, ClientId, flat_gradients};
use fedburn_data::Batch;
use fedburn_train::{GradientRule, NotTrueDistillation, NtdConfig, ResidentModel, RuleConfig, SupervisedClient};
use proptest::prelude::*;

/// `log softmax(scores)[i]` over the entries other than `skip`.
fn log_softmax(scores: &[f64], i: usize, skip: Option<usize>) -> f64 {
    let kept = scores.iter().enumerate().filter(|(j, _)| Some(*j) != skip);
    scores[i] - kept.map(|(_, s)| s.exp()).sum::<f64>().ln()
}

/// The loss of one example.
fn loss(s: &[f64], u: &[f64], y: usize, NtdConfig { beta, tau }: NtdConfig) -> f64 {
    let soft = |logits: &[f64]| logits.iter().map(|l| l / tau).collect::<Vec<_>>();
    let (soft_s, soft_u) = (soft(s), soft(u));
    let divergence: f64 = (0..s.len())
        .filter(|&c| c != y)
        .map(|c| {
            let (log_p, log_q) = (log_softmax(&soft_u, c, Some(y)), log_softmax(&soft_s, c, Some(y)));
            log_p.exp() * (log_p - log_q)
        })
        .sum();
    beta * tau * tau * divergence - log_softmax(s, y, None)
}

/// The rule's loss and gradient with local logits `s` and global logits `u` on one example of class `y`.
fn step<B: Backend>(s: [f32; 3], u: [f32; 3], y: i32, config: NtdConfig, device: &B::Device) -> (f64, Vec<f32>) {
    let batch = Batch::<B> { inputs: Tensor::zeros([1, 1, 1, 1], device), labels: Tensor::from_ints([y], device) };
    let mut rule = NotTrueDistillation::new(config, Point::<B>::at(u, device));
    let found = rule.gradients(train_model(&vector::<B>(s, device)), batch);
    let gradient = flat_gradients::<B, _>(&found.model, &found.gradients);
    (found.loss.into_data().iter::<f64>().next().unwrap(), gradient.into_data().iter().collect())
}

#[test]
fn golden_losses() {
    for (tau, expected) in [(1.0, 0.428_241_61), (3.0, 0.437_352_28)] {
        let config = NtdConfig { beta: 1.0, tau };
        let flex = step::<Flex>([2.0, 1.0, 0.0], [1.0, 2.0, 0.5], 0, config, &FlexDevice).0;
        let ndarray = step::<NdArray>([2.0, 1.0, 0.0], [1.0, 2.0, 0.5], 0, config, &NdArrayDevice::Cpu).0;
        assert!((flex - expected).abs() < 1e-6 && (ndarray - expected).abs() < 1e-6, "{flex} {ndarray}");
        assert!((loss(&[2.0, 1.0, 0.0], &[1.0, 2.0, 0.5], 0, config) - expected).abs() < 1e-8);
    }
}

#[test]
fn without_weight_it_is_plain_descent() {
    let (global, data) = (softmax_initial(2), toy_data(14, 2));
    let train = |rule| {
        let settings = Arc::new(training(|c| (c.rule, c.epochs) = (rule, Some(3))));
        let resident = ResidentModel::new(Softmax, FlexDevice);
        let mut client = SupervisedClient::<Flex, _>::new(ClientId(0), data.clone().into(), settings, resident);
        bits(&client.train(&task(&global, 1)).unwrap().params)
    };
    let plain = train(RuleConfig::Sgd);
    assert_eq!(train(RuleConfig::Ntd(NtdConfig { beta: 0.0, tau: 2.0 })), plain);
    assert_ne!(train(RuleConfig::Ntd(NtdConfig::default())), plain);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn losses_and_gradients_follow_the_definition(
        s: [i8; 3], u: [i8; 3], y in 0usize..3, beta in 0.0..3.0f64, tau in 0.3..4.0f64,
    ) {
        let (s, u) = (s.map(|v| f32::from(v) / 32.0), u.map(|v| f32::from(v) / 32.0));
        let config = NtdConfig { beta, tau };
        let (wide_s, wide_u) = (wide(&s), wide(&u));
        let slope = |i: usize| {
            let moved = |by: f64| {
                let mut s = wide_s.clone();
                s[i] += by;
                loss(&s, &wide_u, y, config)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        };
        let gradient: Vec<f64> = (0..3).map(slope).collect();
        for (found, slopes) in [
            step::<Flex>(s, u, y as i32, config, &FlexDevice),
            step::<NdArray>(s, u, y as i32, config, &NdArrayDevice::Cpu),
        ] {
            let expected = loss(&wide_s, &wide_u, y, config);
            prop_assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} {expected}");
            assert_close(&slopes, &gradient, 1e-4);
        }
    }

    /// From TOML to the client: the teacher stays the global model while the local one moves away.
    #[test]
    fn runs_distil_from_the_global_model(beta in 0.1..2.0f64, tau in 0.5..3.0f64, seed in 0u64..50) {
        let (data, lr, epochs) = (toy_data(7, seed), 0.5, 3);
        let config = NtdConfig { beta, tau };
        let text = format!(
            "rule = {{ ntd = {{ beta = {beta}, tau = {tau} }} }}\nepochs = {epochs}\nbatch_size = 7\nlr = {lr}"
        );
        let settings: fedburn_train::LocalTrainingConfig = toml::from_str(&text).unwrap();
        let settings = Arc::new(settings.build().unwrap());
        let global = wide(&softmax_initial(seed).to_host());
        let mean = |x: &[f64]| {
            let losses = rows(&data).into_iter().map(|(row, y)| loss(&scores(x, &row), &scores(&global, &row), y, config));
            losses.sum::<f64>() / data.len() as f64
        };
        let mut x = global.clone();
        for _ in 0..epochs {
            let slope = |i: usize| {
                let moved = |by: f64| {
                    let mut x = x.clone();
                    x[i] += by;
                    mean(&x)
                };
                (moved(1e-5) - moved(-1e-5)) / 2e-5
            };
            let gradient: Vec<f64> = (0..x.len()).map(slope).collect();
            x.iter_mut().zip(gradient).for_each(|(x, g)| *x -= lr * g);
        }
        let flex = ResidentModel::new(Softmax, FlexDevice);
        let mut client = SupervisedClient::<Flex, _>::new(ClientId(0), data.clone().into(), settings.clone(), flex);
        assert_close(&client.train(&task(&softmax_initial(seed), 1)).unwrap().params.to_host(), &x, 3e-5);
        let ndarray = initial::<NdArray, _>(&Softmax, seed, &NdArrayDevice::Cpu);
        let resident = ResidentModel::new(Softmax, NdArrayDevice::Cpu);
        let mut client = SupervisedClient::<NdArray, _>::new(ClientId(0), data.clone().into(), settings, resident);
        assert_close(&client.train(&task(&ndarray, 1)).unwrap().params.to_host(), &x, 3e-5);
    }
}
