//! Local SGD against plain loops in `f64`, written from the definitions and sharing no code with the crate.

use std::sync::Arc;

use crate::common::reference::{assert_close, loss_and_gradient, norm};
use crate::common::{Softmax, initial, softmax_initial, task, toy_data, training};
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{Client, ClientId, LocalUpdate, Metrics, ParamVector};
use fedburn_data::ClientData;
use fedburn_train::{LocalTraining, ResidentModel, SupervisedClient, cross_entropy, global_norm};
use proptest::prelude::*;

/// Full-batch steps as PyTorch's documentation of `torch.optim.SGD` and `clip_grad_norm_` states them.
fn reference(start: &[f32], data: &ClientData, settings: &LocalTraining) -> Vec<f64> {
    let config = settings.config();
    let mut params: Vec<f64> = start.iter().copied().map(f64::from).collect();
    let mut velocity = vec![0.0; params.len()];
    for _ in 0..config.epochs.unwrap() {
        let (_, gradient) = loss_and_gradient(&params, data);
        let shrink = config.clip_norm.map_or(1.0, |limit| (limit / norm(&gradient)).min(1.0));
        for ((w, v), g) in params.iter_mut().zip(&mut velocity).zip(gradient) {
            let g = g * shrink + config.weight_decay * *w;
            *v = config.momentum * *v + g;
            *w -= config.lr * if config.nesterov { g + config.momentum * *v } else { *v };
        }
    }
    params
}

fn train_on<B: Backend>(
    global: &ParamVector<B>,
    data: &ClientData,
    settings: &LocalTraining,
    device: &B::Device,
) -> LocalUpdate<B> {
    let resident = ResidentModel::new(Softmax, device.clone());
    let settings = Arc::new(settings.clone());
    let mut client = SupervisedClient::<B, Softmax>::new(ClientId(0), data.clone().into(), settings, resident);
    client.train(&task(global, 1)).unwrap()
}

#[test]
fn one_step_follows_the_hand_made_gradient() {
    let (global, data) = (softmax_initial(3), toy_data(12, 5));
    let settings = training(|c| (c.epochs, c.batch_size, c.lr) = (Some(1), 12, 0.5));
    let update = train_on(&global, &data, &settings, &FlexDevice);
    assert_close(&update.params.to_host(), &reference(&global.to_host(), &data, &settings), 1e-6);
    let start: Vec<f64> = global.to_host().into_iter().map(f64::from).collect();
    let (loss, _) = loss_and_gradient(&start, &data);
    assert!((update.metrics.get(Metrics::TRAIN_LOSS).unwrap() - loss).abs() < 1e-6);
    assert_eq!(update.metrics.iter().next().unwrap().1.weight(), 12.0);
    assert_eq!(update.num_examples, 12);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn many_steps_follow_the_definition(
        momentum in prop_oneof![Just(0.0), 0.1..0.95f64],
        nesterov: bool,
        weight_decay in prop_oneof![Just(0.0), 0.0..0.2f64],
        clip_norm in prop::option::of(0.05..2.0f64),
        lr in 0.01..0.4f64,
        epochs in 1usize..7,
        seed in 0u64..100,
    ) {
        let (global, data) = (softmax_initial(seed), toy_data(9, seed + 1));
        let settings = training(|c| {
            (c.epochs, c.batch_size, c.lr) = (Some(epochs), usize::MAX, lr);
            (c.momentum, c.nesterov) = (momentum, nesterov && momentum > 0.0);
            (c.weight_decay, c.clip_norm) = (weight_decay, clip_norm);
        });
        let expected = reference(&global.to_host(), &data, &settings);
        assert_close(&train_on(&global, &data, &settings, &FlexDevice).params.to_host(), &expected, 3e-5);
        let ndarray = initial::<NdArray, _>(&Softmax, seed, &NdArrayDevice::Cpu);
        assert_close(&train_on(&ndarray, &data, &settings, &NdArrayDevice::Cpu).params.to_host(), &expected, 3e-5);
    }

    #[test]
    fn clipping_bounds_the_whole_gradient_and_keeps_its_direction(limit in 0.01..2.0f64, seed in 0u64..100) {
        let (global, data) = (softmax_initial(seed), toy_data(6, seed));
        let one_step = |clip_norm| {
            let settings = training(|c| (c.epochs, c.batch_size, c.lr, c.clip_norm) = (Some(1), 6, 1.0, clip_norm));
            let moved = global.minus(&train_on(&global, &data, &settings, &FlexDevice).params).unwrap();
            moved.to_host().into_iter().map(f64::from).collect::<Vec<_>>()
        };
        let (clipped, free) = (one_step(Some(limit)), one_step(None));
        prop_assert!((norm(&clipped) - norm(&free).min(limit)).abs() < 1e-5);
        let dot: f64 = clipped.iter().zip(&free).map(|(a, b)| a * b).sum();
        prop_assert!((dot - norm(&clipped) * norm(&free)).abs() < 1e-5);
    }
}

#[test]
fn a_limit_above_the_norm_changes_no_bit() {
    let (global, data) = (softmax_initial(0), toy_data(20, 0));
    let free = train_on(&global, &data, &training(|_| {}), &FlexDevice);
    let loose = train_on(&global, &data, &training(|c| c.clip_norm = Some(1e6)), &FlexDevice);
    assert_eq!(free.params.to_host(), loose.params.to_host());
}

#[test]
fn the_norm_is_that_of_all_gradients_together() {
    let (global, data) = (softmax_initial(2), toy_data(7, 2));
    let model = ResidentModel::<Flex, _>::new(Softmax, FlexDevice).load(&global).unwrap();
    let loss = cross_entropy::<Flex, _>(&model, data.batch(&[0, 1, 2, 3, 4, 5, 6], &FlexDevice));
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let found: f32 = global_norm::<Flex, _>(&model, &gradients).unwrap().into_scalar();
    let start: Vec<f64> = global.to_host().into_iter().map(f64::from).collect();
    assert!((f64::from(found) - norm(&loss_and_gradient(&start, &data).1)).abs() < 1e-6);
    assert!(global_norm::<Flex, _>(&model, &GradientsParams::new()).is_none());
}

#[test]
fn momentum_starts_at_zero_in_every_local_run() {
    let (global, data) = (softmax_initial(1), toy_data(10, 1));
    let settings = Arc::new(training(|c| c.momentum = 0.9));
    let resident = ResidentModel::new(Softmax, FlexDevice);
    let mut client = SupervisedClient::<Flex, Softmax>::new(ClientId(0), data.into(), settings, resident);
    let first = client.train(&task(&global, 1)).unwrap();
    let again = client.train(&task(&global, 1)).unwrap();
    assert_eq!(first.params.to_host(), again.params.to_host());
}
