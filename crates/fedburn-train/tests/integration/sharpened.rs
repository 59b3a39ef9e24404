//! SAM and ASAM against hand-made steps and a plain loop in `f64`.

use std::sync::Arc;

use crate::common::quadratic::{Quadratic, on_run, task_at};
use crate::common::reference::{assert_close, loss_and_gradient, norm, wide};
use crate::common::{
    CLASSES, FEATURES, Normed, Softmax, bits, initial, normed_initial, softmax_initial, task, toy_data, training,
};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{ClassId, Client, ClientId, ModelFamily, ParamKind, ParamVector};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_models::{NormKind, Zoo, ZooConfig};
use fedburn_train::{
    LocalTraining, LocalTrainingConfig, ResidentModel, RuleConfig, Sharpened, SharpnessAwareConfig, SupervisedClient,
};
use proptest::prelude::*;

const SAM: SharpnessAwareConfig = SharpnessAwareConfig::Sam { rho: 0.1 };
const ASAM: SharpnessAwareConfig = SharpnessAwareConfig::Asam { rho: 0.7, eta: 0.2 };

/// `f = x^T diag(2, 1, 4) x / 2` at weight `[1, -2]`, bias `[0.5]`.
fn one_step<B: Backend>(sharpness: SharpnessAwareConfig, device: &B::Device) -> Vec<f32> {
    let training = training(|c| (c.epochs, c.steps, c.lr, c.weight_decay) = (None, Some(1), 0.01, 4e-4));
    let rule = Quadratic { curvature: [2.0, 1.0, 4.0], centre: [0.0; 3] };
    on_run::<B, _>(&task_at([1.0, -2.0, 0.5], device), &training, |model, run| {
        let trained = run.descend(model, &mut Sharpened::new(rule, Some(sharpness))).unwrap();
        assert!((trained.loss.value().unwrap() - 3.5).abs() < 1e-6, "the loss of the unperturbed model");
        trained.model.host()
    })
}

#[test]
fn golden_steps() {
    let sam = [0.978_841_3, -1.979_414_65, 0.477_688_6];
    let asam = [0.972_524_21, -1.967_435_24, 0.469_620_51];
    for (sharpness, expected) in [(SAM, sam), (ASAM, asam)] {
        assert_close(&one_step::<Flex>(sharpness, &FlexDevice), &expected, 1e-6);
        assert_close(&one_step::<NdArray>(sharpness, &NdArrayDevice::Cpu), &expected, 1e-6);
    }
}

#[test]
fn at_a_minimum_nothing_moves() {
    let training = training(|c| (c.epochs, c.steps, c.lr) = (None, Some(3), 0.1));
    let rule = Quadratic { curvature: [2.0, 1.0, 4.0], centre: [1.0, -2.0, 0.0] };
    for sharpness in [SAM, ASAM, SharpnessAwareConfig::Asam { rho: 0.7, eta: 0.0 }] {
        let found = on_run::<Flex, _>(&task_at([1.0, -2.0, 0.0], &FlexDevice), &training, |model, run| {
            run.descend(model, &mut Sharpened::new(rule, Some(sharpness))).unwrap().model.host()
        });
        assert_eq!(found, [1.0, -2.0, 0.0], "{sharpness:?}");
    }
}

fn update<B: Backend, F: ModelFamily<B>>(
    family: F,
    global: &ParamVector<B>,
    data: &ClientData,
    settings: LocalTraining,
) -> ParamVector<B> {
    let resident = ResidentModel::new(family, global.device());
    let mut client = SupervisedClient::<B, F>::new(ClientId(0), data.clone().into(), Arc::new(settings), resident);
    client.train(&task(global, 1)).unwrap().params
}

#[test]
fn without_radius_the_bits_are_those_of_the_rule_alone() {
    let (global, data) = (normed_initial(3), toy_data(17, 3));
    for rule in ["rule = \"sgd\"", "rule = { proximal = { mu = 0.3 } }", "rule = { ntd = { beta = 0.5 } }"] {
        let settings = |sharpness: &str| {
            let text = format!(
                "epochs = 3\nbatch_size = 5\nlr = 0.1\nmomentum = 0.9\nweight_decay = 0.01\n{rule}\n{sharpness}"
            );
            toml::from_str::<LocalTrainingConfig>(&text).unwrap().build().unwrap()
        };
        let plain = bits(&update(Normed, &global, &data, settings("")));
        for zero in ["{ kind = \"sam\", rho = 0.0 }", "{ kind = \"asam\", rho = 0.0, eta = 0.2 }"] {
            let found = update(Normed, &global, &data, settings(&format!("sharpness = {zero}")));
            assert_eq!(bits(&found), plain, "{rule}, {zero}");
        }
        let sharp = update(Normed, &global, &data, settings("sharpness = { kind = \"sam\" }"));
        assert_ne!(bits(&sharp), plain, "{rule} takes its gradient where it is told to");
    }
}

#[test]
fn running_statistics_are_those_of_the_first_pass() {
    fn statistics<F: ModelFamily<Flex>>(
        family: &F,
        sharpness: Option<SharpnessAwareConfig>,
        data: &ClientData,
    ) -> (Vec<u32>, Vec<u32>) {
        let global = initial::<Flex, _>(family, 1, &FlexDevice);
        let settings = training(|c| (c.epochs, c.steps, c.batch_size, c.sharpness) = (None, Some(1), 8, sharpness));
        let params = update(family.clone(), &global, data, settings);
        let host = params.to_host();
        let of = |kind| {
            let entries = params.schema().entries().iter().filter(move |e| e.kind == kind);
            entries.flat_map(|e| host[e.range()].iter().map(|v| v.to_bits())).collect::<Vec<_>>()
        };
        (of(ParamKind::Buffer), of(ParamKind::Weight))
    }
    let zoo: Zoo = ZooConfig::ResNet { depth: 8, norm: NormKind::Batch, groups: None }.build([1, 16, 16], 2).unwrap();
    let pixels = Inputs::F32((0..8 * 256).map(|i| ((i * 37) % 101) as f32 / 101.0).collect());
    let labels = (0..8).map(|i| ClassId(i % 2)).collect();
    let images = ClientData::all(Arc::new(Examples::new(pixels, [1, 16, 16], labels, 2).unwrap()));
    let data = toy_data(8, 1);
    for sharpness in [SAM, ASAM] {
        for (plain, sharp) in [
            (statistics(&Normed, None, &data), statistics(&Normed, Some(sharpness), &data)),
            (statistics(&zoo, None, &images), statistics(&zoo, Some(sharpness), &images)),
        ] {
            assert!(!plain.0.is_empty() && plain.0 == sharp.0, "statistics of one pass over the batch");
            assert_ne!(plain.1, sharp.1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..Default::default() })]

    #[test]
    fn many_steps_follow_the_definition(
        rho in 0.01..0.6f64,
        eta in prop::option::of(0.0..0.5f64),
        weight_decay in prop_oneof![Just(0.0), 0.0..0.1f64],
        mu in prop_oneof![Just(0.0), 0.0..1.0f64],
        epochs in 1usize..5,
        seed in 0u64..100,
    ) {
        let (data, lr) = (toy_data(9, seed), 0.2);
        let sharpness = match eta {
            Some(eta) => SharpnessAwareConfig::Asam { rho, eta },
            None => SharpnessAwareConfig::Sam { rho },
        };
        let settings = || training(|c| {
            (c.epochs, c.batch_size, c.lr, c.weight_decay) = (Some(epochs), usize::MAX, lr, weight_decay);
            c.sharpness = Some(sharpness);
            c.rule = RuleConfig::Proximal(fedburn_train::ProximalConfig { mu });
        });
        let start = wide(&softmax_initial(seed).to_host());
        let mut x = start.clone();
        for _ in 0..epochs {
            // Weights come first, then biases.
            let stretch = |i: usize, w: f64| match eta {
                Some(eta) if i < FEATURES * CLASSES => w.abs() + eta,
                _ => 1.0,
            };
            let (_, g) = loss_and_gradient(&x, &data);
            let t: Vec<f64> = x.iter().enumerate().map(|(i, &w)| stretch(i, w)).collect();
            let u: Vec<f64> = g.iter().zip(&t).map(|(g, t)| g * t).collect();
            let above: Vec<f64> = (0..x.len()).map(|i| x[i] + rho * t[i] * u[i] / norm(&u)).collect();
            let (_, gs) = loss_and_gradient(&above, &data);
            for i in 0..x.len() {
                x[i] -= lr * (gs[i] + weight_decay * x[i] + mu * (x[i] - start[i]));
            }
        }
        let flex = softmax_initial(seed);
        assert_close(&update(Softmax, &flex, &data, settings()).to_host(), &x, 3e-5);
        let ndarray = initial::<NdArray, _>(&Softmax, seed, &NdArrayDevice::Cpu);
        assert_close(&update(Softmax, &ndarray, &data, settings()).to_host(), &x, 3e-5);
    }
}
