//! Measured sharpness against softmax regression, whose Hessian is known.

use crate::common::reference::{loss_and_gradient, norm, rows, scores, wide};
use crate::common::{CLASSES, FEATURES, Normed, Softmax, initial, normed_initial, softmax_initial, toy_data};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{EvaluateError, Evaluator, Metrics, ModelFamily, ParamVector, Seed};
use fedburn_data::ClientData;
use fedburn_train::{ClassifierEvaluator, Sharpness, SharpnessConfig, SharpnessEvaluator};
use proptest::prelude::*;

/// The Hessian of mean cross-entropy times `v`: with probabilities `p` and `a = v . x` by class, an example adds
/// `x_i p_j (a_j - sum p a)`.
fn times_hessian(params: &[f64], data: &ClientData, v: &[f64]) -> Vec<f64> {
    let (bias, mut product) = (FEATURES * CLASSES, vec![0.0; v.len()]);
    for (x, _) in rows(data) {
        let e: Vec<f64> = scores(params, &x).iter().map(|s| s.exp()).collect();
        let total: f64 = e.iter().sum();
        let a = scores(v, &x);
        let mean: f64 = e.iter().zip(&a).map(|(e, a)| e / total * a).sum();
        for j in 0..CLASSES {
            let h = e[j] / total * (a[j] - mean) / data.len() as f64;
            product[bias + j] += h;
            (0..FEATURES).for_each(|i| product[i * CLASSES + j] += x[i] * h);
        }
    }
    product
}

fn top_eigenvalue(params: &[f64], data: &ClientData) -> f64 {
    let mut v: Vec<f64> = (0..params.len()).map(|i| (i as f64 + 0.5).sin()).collect();
    let mut value = 0.0;
    for _ in 0..300 {
        let length = norm(&v);
        v.iter_mut().for_each(|v| *v /= length);
        let product = times_hessian(params, data, &v);
        value = product.iter().zip(&v).map(|(p, v)| p * v).sum();
        v = product;
    }
    value
}

fn measure<B: Backend, F: ModelFamily<B>>(
    family: F,
    config: SharpnessConfig,
    data: &ClientData,
    params: &ParamVector<B>,
) -> Sharpness {
    let mut evaluator = SharpnessEvaluator::new(family, config.build().unwrap(), data, params.device());
    evaluator.measure(params, Seed::new(5)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..Default::default() })]

    #[test]
    fn the_eigenvalue_is_that_of_the_known_hessian(seed in 0u64..100) {
        let data = toy_data(40, seed);
        let expected = top_eigenvalue(&wide(&softmax_initial(seed).to_host()), &data);
        let config = SharpnessConfig { iterations: 200, ..Default::default() };
        let flex = measure::<Flex, _>(Softmax, config, &data, &softmax_initial(seed));
        let ndarray = initial::<NdArray, _>(&Softmax, seed, &NdArrayDevice::Cpu);
        let ndarray = measure::<NdArray, _>(Softmax, config, &data, &ndarray);
        for found in [flex, ndarray] {
            prop_assert!((found.top_eigenvalue.unwrap() - expected).abs() < 0.03 * expected, "{found:?}, expected {expected}");
            prop_assert!(found.converged && found.examples == 40);
        }
    }

    #[test]
    fn the_curve_bends_as_the_loss_does(seed in 0u64..100) {
        let (data, params) = (toy_data(30, seed), softmax_initial(seed));
        let config = SharpnessConfig { points: 5, radius: 1.0, ..Default::default() };
        let curve = measure::<Flex, _>(Softmax, config, &data, &params).curve;
        prop_assert_eq!(curve.iter().map(|p| p.distance).collect::<Vec<_>>(), [-1.0, -0.5, 0.0, 0.5, 1.0]);
        let (loss, gradient) = loss_and_gradient(&wide(&params.to_host()), &data);
        let losses: Vec<f64> = curve.iter().map(|p| p.loss.unwrap()).collect();
        prop_assert!((losses[2] - loss).abs() < 1e-5, "the model itself is in the middle");
        prop_assert!(losses.windows(3).all(|w| w[0] + w[2] >= 2.0 * w[1] - 1e-6), "a convex loss: {losses:?}");
        // No direction is steeper than the gradient.
        let slope = (losses[3] - losses[1]) / norm(&wide(&params.to_host()));
        prop_assert!(slope.abs() <= norm(&gradient) + 0.5, "{slope}");
    }
}

#[test]
fn measuring_changes_nothing_and_repeats() {
    let (data, params) = (toy_data(25, 1), normed_initial(1));
    let before = params.to_host();
    let config = SharpnessConfig { examples: 10, points: 3, ..Default::default() };
    let mut evaluator = SharpnessEvaluator::<Flex, _>::new(Normed, config, &data, FlexDevice);
    let first = evaluator.measure(&params, Seed::new(1)).unwrap();
    assert_eq!(first.examples, 10);
    evaluator.measure(&normed_initial(2), Seed::new(1)).unwrap();
    assert_eq!(evaluator.measure(&params, Seed::new(1)).unwrap(), first);
    assert_eq!(params.to_host(), before);
    assert_ne!(evaluator.measure(&params, Seed::new(2)).unwrap().curve, first.curve, "the seed draws the direction");
}

#[test]
fn the_middle_of_the_curve_is_the_measured_loss() {
    let (data, params) = (toy_data(25, 1), normed_initial(3));
    let found = measure::<Flex, _>(Normed, SharpnessConfig::default(), &data, &params);
    let mut evaluator = ClassifierEvaluator::<Flex, _>::new(Normed, data, FlexDevice);
    let loss = evaluator.evaluate(&params).unwrap().get(Metrics::LOSS);
    assert_eq!(found.curve[10].loss, loss);
}

#[test]
fn no_examples_and_foreign_vectors_are_refused() {
    let (data, params) = (toy_data(5, 1), softmax_initial(1));
    let empty = ClientData::new(data.examples().clone(), Vec::new()).unwrap();
    let measure = |data: &ClientData, params: &ParamVector<Flex>| {
        let config = SharpnessConfig::default();
        SharpnessEvaluator::<Flex, _>::new(Softmax, config, data, FlexDevice).measure(params, Seed::new(0))
    };
    assert!(matches!(measure(&empty, &params), Err(EvaluateError::NoData)));
    assert!(matches!(measure(&data, &normed_initial(1)), Err(EvaluateError::Schema { .. })));
}
