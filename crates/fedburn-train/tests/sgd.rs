//! Local SGD against plain loops in `f64`, written from the definitions and sharing no code with the crate.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use common::{CLASSES, FEATURES, Softmax, initial, softmax_initial, task, toy_data, training};
use fedburn_core::{Client, ClientId, LocalUpdate, Metrics, ParamVector, TrainError};
use fedburn_data::{Batch, ClientData};
use fedburn_train::{
    BatchGradients, CrossEntropy, GradientRule, LocalRule, LocalRun, LocalTraining, ResidentModel, SupervisedClient,
    TrainModel, Trained, cross_entropy, global_norm,
};
use proptest::prelude::*;

/// Mean cross-entropy of softmax regression over all examples, and its gradient: for one example with probabilities `p`,
/// `dL/dW[i][j] = x_i (p_j - [j = y])` and `dL/db[j] = p_j - [j = y]`. Parameters are `W` by rows, then `b`.
fn loss_and_gradient(params: &[f64], data: &ClientData) -> (f64, Vec<f64>) {
    let (mut loss, mut gradient) = (0.0, vec![0.0; params.len()]);
    for position in 0..data.len() {
        let x: Vec<f64> = data.batch::<Flex>(&[position], &FlexDevice).inputs.into_data().iter().collect();
        let y = data.examples().labels()[data.indices()[position]].0 as usize;
        let bias = FEATURES * CLASSES;
        let score = |j: usize| params[bias + j] + (0..FEATURES).map(|i| x[i] * params[i * CLASSES + j]).sum::<f64>();
        let scores: Vec<f64> = (0..CLASSES).map(score).collect();
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        loss += sum.ln() - scores[y];
        for j in 0..CLASSES {
            let error = scores[j].exp() / sum - f64::from(u8::from(j == y));
            gradient[bias + j] += error;
            (0..FEATURES).for_each(|i| gradient[i * CLASSES + j] += error * x[i]);
        }
    }
    let n = data.len() as f64;
    gradient.iter_mut().for_each(|g| *g /= n);
    (loss / n, gradient)
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

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

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    let worst = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
    assert!(found.len() == expected.len() && worst < tolerance, "off by {worst}:\n{found:?}\n{expected:?}");
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

/// The shape that a proximal rule takes on the one loop: it edits another rule's gradients.
struct Proximal<B: Backend> {
    mu: f64,
    anchor: ParamVector<B>,
}

impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for Proximal<B> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let mut step = CrossEntropy.gradients(model, batch);
        let mut entries = self.anchor.schema().entries().iter();
        let mut pull = Pull { rule: self, next: || entries.next().unwrap().range(), gradients: &mut step.gradients };
        step.model.visit(&mut pull);
        step
    }
}

struct Pull<'a, B: Backend, N: FnMut() -> std::ops::Range<usize>> {
    rule: &'a Proximal<B>,
    next: N,
    gradients: &'a mut GradientsParams,
}

impl<B: Backend, N: FnMut() -> std::ops::Range<usize>> ModuleVisitor<Autodiff<B>> for Pull<'_, B, N> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let anchor = self.rule.anchor.values().clone().slice([(self.next)()]).reshape(param.lazy_shape());
        let Some(gradient) = self.gradients.remove::<B, D>(param.id) else { return };
        let pulled = gradient + (param.val().inner() - anchor).mul_scalar(self.rule.mu);
        self.gradients.register(param.id, pulled);
    }
}

/// And the local rule around it.
struct LocalProximal {
    mu: f64,
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalProximal {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let mut rule = Proximal { mu: self.mu, anchor: run.task.global.clone() };
        run.descend(model, &mut rule)
    }
}

#[test]
fn a_rule_that_edits_gradients_fits_the_one_loop() {
    let (mu, epochs, lr) = (0.7, 4, 0.3);
    let (global, data) = (softmax_initial(4), toy_data(8, 4));
    let settings = Arc::new(training(|c| (c.epochs, c.batch_size, c.lr) = (Some(epochs), 8, lr)));
    let train = |mu| {
        let resident = ResidentModel::new(Softmax, FlexDevice);
        let client =
            SupervisedClient::<Flex, Softmax>::new(ClientId(0), data.clone().into(), settings.clone(), resident);
        client.with_rule(Box::new(LocalProximal { mu })).train(&task(&global, 1)).unwrap().params.to_host()
    };
    let start: Vec<f64> = global.to_host().into_iter().map(f64::from).collect();
    let mut expected = start.clone();
    for _ in 0..epochs {
        let (_, gradient) = loss_and_gradient(&expected, &data);
        expected.iter_mut().zip(gradient).zip(&start).for_each(|((w, g), w0)| *w -= lr * (g + mu * (*w - w0)));
    }
    assert_close(&train(mu), &expected, 1e-5);
    assert_eq!(train(0.0), train_on(&global, &data, &settings, &FlexDevice).params.to_host());
}
