//! What this workspace relies on, or guards against, in the pinned burn: an upgrade that changes any of it shows here.
#![allow(clippy::unwrap_used)]

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::nn::{BatchNormConfig, Linear, LinearConfig};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_core::{Seed, flatten};
use fedburn_models::{InitScheme, seeded};

type Train = Autodiff<Flex>;

/// ndarray's vectorised unary operations read a shared, permuted tensor in memory order; its `simd` feature is off here.
#[test]
fn unary_operations_of_permuted_tensors_keep_the_order() {
    fn check<B: Backend>() {
        let device = B::Device::default();
        let (rows, columns) = (8, 16);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32 - 63.5).collect();
        let tensor = Tensor::<B, 2>::from_data(TensorData::new(values.clone(), [rows, columns]), &device);
        // A second handle keeps the operations from working in place.
        let transposed = tensor.clone().transpose();
        let at = |i: usize| values[i % rows * columns + i / rows];
        let len = rows * columns;
        let found = transposed.clone().abs().into_data().to_vec::<f32>().unwrap();
        assert_eq!(found, (0..len).map(|i| at(i).abs()).collect::<Vec<_>>());
        let found = transposed.clone().recip().into_data().to_vec::<f32>().unwrap();
        for (i, found) in found.into_iter().enumerate() {
            assert!((found * at(i) - 1.0).abs() < 1e-6, "1/{} came out as {found}", at(i));
        }
        assert_eq!(transposed.into_data().to_vec::<f32>().unwrap(), (0..len).map(at).collect::<Vec<_>>());
        assert_eq!(tensor.into_data().to_vec::<f32>().unwrap(), values);
    }
    check::<NdArray>();
    check::<Flex>();
}

/// Gradients of quotients and logarithms go through `recip`.
#[test]
fn gradients_through_permuted_quotients_keep_the_order() {
    fn check<B: Backend>() {
        let device = B::Device::default();
        let values: Vec<f32> = (1..=128).map(|i| i as f32).collect();
        let x = Tensor::<Autodiff<B>, 2>::from_data(TensorData::new(values.clone(), [8, 16]), &device).require_grad();
        let gradients = x.clone().transpose().log().sum().backward();
        let found = x.grad(&gradients).unwrap().into_data().to_vec::<f32>().unwrap();
        for (found, value) in found.iter().zip(values) {
            assert!((found * value - 1.0).abs() < 1e-6, "the slope of log at {value} came out as {found}");
        }
    }
    check::<NdArray>();
    check::<Flex>();
}

/// Clones of a module that was never used draw weights of their own. The reason why `seeded` forces every parameter.
#[test]
fn clones_of_lazy_parameters_draw_apart_and_clones_of_seeded_ones_do_not() {
    let weights = |layer: &Linear<Flex>| layer.weight.val().into_data().to_vec::<f32>().unwrap();
    let lazy: Linear<Flex> = LinearConfig::new(4, 4).init(&FlexDevice);
    let clone = lazy.clone();
    assert_ne!(weights(&lazy), weights(&clone), "lazy clones now agree: `seeded` may be simplified");

    let layer = seeded(LinearConfig::new(4, 4).init::<Flex>(&FlexDevice), Seed::new(1), InitScheme::PyTorch);
    assert_eq!(weights(&layer), weights(&layer.clone()));
}

/// Off autodiff a clone of a used parameter forgets that it is trained. The reason why a training model must be made
/// from the module that was built, not from a clone.
#[test]
fn clones_off_autodiff_forget_that_they_are_trained() {
    let layer = seeded(LinearConfig::new(4, 4).init::<Flex>(&FlexDevice), Seed::new(1), InitScheme::PyTorch);
    let clone = layer.clone();
    assert!(Linear::<Train>::from_inner(layer).weight.val().is_require_grad());
    assert!(!Linear::<Train>::from_inner(clone).weight.val().is_require_grad(), "clones now remember");
}

struct Fill(f32);

impl<B: Backend> ModuleMapper<B> for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let fill = self.0;
        param.map(|tensor| tensor.full_like(fill))
    }
}

/// Clones of a batch norm share their running statistics, and loading into one writes to all: never clone per client.
#[test]
fn clones_of_batch_norm_share_their_running_statistics() {
    let layer = BatchNormConfig::new(2).init::<Flex>(&FlexDevice);
    let clone = layer.clone();
    let loaded = layer.map(&mut Fill(7.0));
    assert_eq!(loaded.running_mean.value().into_data().to_vec::<f32>().unwrap(), [7.0, 7.0]);
    let shared = clone.running_mean.value().into_data().to_vec::<f32>().unwrap();
    assert_eq!(shared, [7.0, 7.0], "clones no longer share: loading into clones has become safe");
    assert_eq!(clone.gamma.val().into_data().to_vec::<f32>().unwrap(), [1.0, 1.0]);
}

/// burn's own batch norm keeps its last update pending where visitors cannot see it; `valid()` applies it.
#[test]
fn running_statistics_are_current_after_valid() {
    let layer = BatchNormConfig::new(2).init::<Train>(&FlexDevice);
    let host = |params: Vec<f32>| params[4..6].to_vec();
    let x = Tensor::<Train, 2>::from_data([[5.0, 6.0], [7.0, 5.5]], &FlexDevice);
    layer.forward(x);
    assert_eq!(host(flatten::<Train, _>(&layer).unwrap().to_host()), [0.0, 0.0], "visitors now see pending updates");
    assert!(host(flatten(&layer.valid()).unwrap().to_host()).iter().all(|m| *m > 0.4));
}

/// burn's batch norm takes its mode from the backend's type: the reason for `Mode`.
#[test]
fn burns_batch_norm_trains_whenever_autodiff_is_on() {
    let layer = BatchNormConfig::new(1).init::<Train>(&FlexDevice);
    let x = Tensor::<Train, 2>::from_data([[1.0], [3.0]], &FlexDevice);
    let tracked = layer.forward(x.clone()).into_data().to_vec::<f32>().unwrap();
    assert!((tracked[0] + 1.0).abs() < 1e-4, "{tracked:?}");
    let fresh = BatchNormConfig::new(1).init::<Flex>(&FlexDevice);
    let plain = fresh.forward(x.inner()).into_data().to_vec::<f32>().unwrap();
    assert!((plain[0] - 1.0).abs() < 1e-4, "{plain:?}");
}

/// The generator is global to the process: the reason why nothing that must reproduce asks it.
#[test]
fn burns_generator_repeats_after_seeding() {
    let draw = || {
        NdArray::<f32>::seed(&Default::default(), 3);
        Tensor::<NdArray, 1>::random([4], Distribution::Default, &Default::default()).into_data()
    };
    assert_eq!(draw(), draw());
}
