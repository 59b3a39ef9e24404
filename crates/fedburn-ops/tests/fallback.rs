//! Where a backend has no kernel of its own, burn's operations run, and are right.
#![allow(clippy::unwrap_used)]

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_ops::{ConvOptions, Kernels, add_relu, conv2d, group_norm, linear_relu, relu_max_pool2d};

fn has_own<B: Kernels>(tensor: Tensor<B, 4>) -> bool {
    B::own(&tensor.into_primitive().tensor()).is_some()
}

/// The precision is named, since a process has one default for all of a backend's float types.
fn zeros<B: Backend>(dtype: DType) -> Tensor<B, 4> {
    Tensor::zeros([1, 1, 1, 1], (&B::Device::default(), dtype))
}

#[test]
fn own_kernels_are_for_single_precision_in_host_memory() {
    assert!(has_own(zeros::<Flex>(DType::F32)) && has_own(zeros::<NdArray>(DType::F32)));
    assert!(!has_own(zeros::<Flex>(DType::F64)) && !has_own(zeros::<NdArray>(DType::F64)));
    assert!(!has_own(zeros::<NdArray<f64>>(DType::F64)));
    // Second-order gradients go through burn's operations.
    assert!(!has_own(zeros::<Autodiff<Flex>>(DType::F32)));
}

/// Every kernel in one small net: the loss and its gradient by the first convolution's weights.
fn net<B: Kernels>(dtype: DType, window: usize) -> (f64, Vec<f64>) {
    type Train<B> = Autodiff<B>;
    fn fixed<B: Backend, const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<B, D> {
        let len = shape.iter().product();
        let values: Vec<f64> = (0..len).map(|i: usize| ((i * 37 + 11) % 101) as f64 / 50.0 - 1.0).collect();
        Tensor::<B, D>::from_data(TensorData::new(values, shape).convert_dtype(dtype), (&B::Device::default(), dtype))
    }
    let weight = fixed::<Train<B>, 4>([4, 2, 3, 3], dtype).require_grad();
    let x = fixed([3, 2, window + 4, window + 3], dtype);
    let y = conv2d(x, weight.clone(), Some(fixed([4], dtype)), ConvOptions::new([1, 1], [1, 1], [1, 1], 1));
    let y = group_norm(y, fixed([4], dtype), fixed([4], dtype), 2, 1e-5);
    let y = add_relu(y.clone(), y * 0.5);
    let y = relu_max_pool2d(y, [window, window], [2, 2], [0, 0]).flatten::<2>(1, 3);
    let [_, inputs] = y.dims();
    let y = linear_relu(y, fixed([inputs, 3], dtype), Some(fixed([3], dtype)));
    let loss = (y.clone() * y).sum();
    let gradient = weight.grad(&loss.backward()).unwrap();
    (loss.into_data().iter::<f64>().next().unwrap(), gradient.into_data().iter::<f64>().collect())
}

#[test]
fn burns_operations_and_own_kernels_agree() {
    // A window of 16 by 16 has more places than a byte can tell apart: pooling falls back in single precision too.
    for window in [2, 3, 16] {
        let (loss, gradient) = net::<NdArray>(DType::F64, window);
        assert!(loss > 0.0 && gradient.iter().any(|g| *g != 0.0));
        let double = [net::<Flex>(DType::F64, window)];
        let single = [net::<Flex>(DType::F32, window), net::<NdArray>(DType::F32, window)];
        for (found, tolerance) in double.iter().map(|f| (f, 1e-9)).chain(single.iter().map(|f| (f, 1e-4))) {
            let scale = gradient.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
            assert!(
                (found.0 - loss).abs() <= tolerance * loss,
                "window {window}: {} where {loss} was expected",
                found.0
            );
            for (a, b) in found.1.iter().zip(&gradient) {
                assert!((a - b).abs() <= tolerance * scale, "window {window}: {a} where {b} was expected");
            }
        }
    }
}

#[test]
fn an_untracked_graph_gives_values_alone() {
    let x = Tensor::<Autodiff<Flex>, 4>::ones([1, 1, 4, 4], &FlexDevice);
    let weight = Tensor::ones([1, 1, 3, 3], &FlexDevice);
    let y = conv2d(x, weight, None, ConvOptions::new([1, 1], [0, 0], [1, 1], 1));
    assert!(!y.is_require_grad());
    assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [9.0; 4]);
}
