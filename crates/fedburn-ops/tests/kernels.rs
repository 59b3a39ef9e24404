//! The kernels against plain loops in `f64`, against finite differences, and backend against backend.
#![allow(clippy::unwrap_used)]

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use fedburn_ops::{ConvOptions, Kernels, conv2d, group_norm, max_pool2d};

/// Distinct values in [-1, 1] without a pattern that a kernel could share.
fn values(len: usize, salt: u64) -> Vec<f64> {
    let mix = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt) >> 11;
    (0..len).map(|i| (mix(i) as f64 / (1u64 << 53) as f64).mul_add(2.0, -1.0)).collect()
}

/// The precision is named, since a process has one default for all of a backend's float types.
fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D], dtype: DType) -> Tensor<B, D> {
    let data = TensorData::new(values.to_vec(), shape).convert_dtype(dtype);
    Tensor::from_data(data, (&B::Device::default(), dtype))
}

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "value {i}: {a} where {b} was expected");
    }
}

/// A kernel as a function of flat inputs, so that one test can call it on any backend.
#[derive(Clone, Copy)]
enum Case {
    Conv { x: [usize; 4], weight: [usize; 4], stride: usize, padding: usize, groups: usize, bias: bool },
    GroupNorm { x: [usize; 4], groups: usize },
    MaxPool { x: [usize; 4], kernel: usize, stride: usize, padding: usize },
}

const CASES: [Case; 9] = [
    Case::Conv { x: [2, 3, 6, 5], weight: [4, 3, 3, 3], stride: 1, padding: 1, groups: 1, bias: true },
    Case::Conv { x: [2, 2, 7, 7], weight: [3, 2, 3, 3], stride: 2, padding: 1, groups: 1, bias: false },
    Case::Conv { x: [1, 1, 6, 6], weight: [2, 1, 5, 5], stride: 1, padding: 0, groups: 1, bias: true },
    Case::Conv { x: [2, 4, 4, 4], weight: [6, 4, 1, 1], stride: 2, padding: 0, groups: 1, bias: false },
    Case::Conv { x: [1, 4, 4, 4], weight: [4, 2, 3, 3], stride: 1, padding: 1, groups: 2, bias: true },
    Case::GroupNorm { x: [2, 6, 3, 4], groups: 2 },
    Case::GroupNorm { x: [3, 4, 2, 2], groups: 4 },
    Case::MaxPool { x: [2, 3, 6, 7], kernel: 2, stride: 2, padding: 0 },
    Case::MaxPool { x: [1, 2, 5, 5], kernel: 3, stride: 2, padding: 1 },
];

impl Case {
    fn inputs(self) -> Vec<Vec<f64>> {
        let product = |shape: [usize; 4]| shape.iter().product();
        match self {
            Case::Conv { x, weight, bias, .. } => {
                let mut inputs = vec![values(product(x), 1), values(product(weight), 2)];
                inputs.extend(bias.then(|| values(weight[0], 3)));
                inputs
            }
            Case::GroupNorm { x, .. } => vec![values(product(x), 1), values(x[1], 2), values(x[1], 3)],
            Case::MaxPool { x, .. } => vec![values(product(x), 1)],
        }
    }

    /// The kernel's result and, where `B` tracks gradients, the tensors to ask for them, flattened to one dimension.
    fn run<B: Kernels>(self, inputs: &[Tensor<B, 1>]) -> Tensor<B, 4> {
        match self {
            Case::Conv { x, weight, stride, padding, groups, .. } => conv2d(
                inputs[0].clone().reshape(x),
                inputs[1].clone().reshape(weight),
                inputs.get(2).cloned(),
                ConvOptions::new([stride; 2], [padding; 2], [1, 1], groups),
            ),
            Case::GroupNorm { x, groups } => {
                group_norm(inputs[0].clone().reshape(x), inputs[1].clone(), inputs[2].clone(), groups, 1e-5)
            }
            Case::MaxPool { x, kernel, stride, padding } => {
                max_pool2d(inputs[0].clone().reshape(x), [kernel; 2], [stride; 2], [padding; 2])
            }
        }
    }

    fn forward<B: Kernels>(self, inputs: &[Vec<f64>], dtype: DType) -> Vec<f64> {
        let inputs: Vec<Tensor<B, 1>> = inputs.iter().map(|v| tensor(v, [v.len()], dtype)).collect();
        host(self.run(&inputs))
    }

    /// Gradients of `sum(weights * output)` with fixed random weights, one vector per input.
    fn gradients<B: Kernels>(self, inputs: &[Vec<f64>], dtype: DType) -> Vec<Vec<f64>> {
        let inputs: Vec<Tensor<Autodiff<B>, 1>> =
            inputs.iter().map(|v| tensor(v, [v.len()], dtype).require_grad()).collect();
        let output = self.run(&inputs);
        let shape = output.dims();
        let loss = (output * tensor(&values(shape.iter().product(), 9), shape, dtype)).sum();
        let gradients = loss.backward();
        inputs.iter().map(|t| host(t.grad(&gradients).unwrap())).collect()
    }

    /// The definition, in plain loops.
    fn reference(self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let at = |shape: [usize; 4], [n, c, i, j]: [usize; 4]| ((n * shape[1] + c) * shape[2] + i) * shape[3] + j;
        let mut out = Vec::new();
        match self {
            Case::Conv { x, weight, stride, padding, groups, .. } => {
                let side = |axis: usize| (x[axis] + 2 * padding - weight[axis]) / stride + 1;
                for [n, o, i, j] in indices([x[0], weight[0], side(2), side(3)]) {
                    let mut sum = inputs.get(2).map_or(0.0, |bias| bias[o]);
                    for [_, c, k, l] in indices([1, weight[1], weight[2], weight[3]]) {
                        let (row, column) =
                            ((i * stride + k).wrapping_sub(padding), (j * stride + l).wrapping_sub(padding));
                        if row < x[2] && column < x[3] {
                            let channel = o / (weight[0] / groups) * weight[1] + c;
                            sum += inputs[0][at(x, [n, channel, row, column])] * inputs[1][at(weight, [o, c, k, l])];
                        }
                    }
                    out.push(sum);
                }
            }
            Case::GroupNorm { x, groups } => {
                let len = x[1] / groups * x[2] * x[3];
                for (index, value) in inputs[0].iter().enumerate() {
                    let group = &inputs[0][index / len * len..][..len];
                    let mean = group.iter().sum::<f64>() / len as f64;
                    let variance = group.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / len as f64;
                    let channel = index / (x[2] * x[3]) % x[1];
                    out.push(inputs[1][channel] * (value - mean) / (variance + 1e-5).sqrt() + inputs[2][channel]);
                }
            }
            Case::MaxPool { x, kernel, stride, padding } => {
                let side = |axis: usize| (x[axis] + 2 * padding - kernel) / stride + 1;
                for [n, c, i, j] in indices([x[0], x[1], side(2), side(3)]) {
                    let mut largest = f64::NEG_INFINITY;
                    for [_, _, k, l] in indices([1, 1, kernel, kernel]) {
                        let (row, column) =
                            ((i * stride + k).wrapping_sub(padding), (j * stride + l).wrapping_sub(padding));
                        if row < x[2] && column < x[3] {
                            largest = largest.max(inputs[0][at(x, [n, c, row, column])]);
                        }
                    }
                    out.push(largest);
                }
            }
        }
        out
    }
}

fn indices(shape: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    let [_, b, c, d] = shape;
    (0..shape.iter().product()).map(move |i: usize| [i / (b * c * d), i / (c * d) % b, i / d % c, i % d])
}

#[test]
fn every_backend_agrees_with_the_definition() {
    for case in CASES {
        let inputs = case.inputs();
        let expected = case.reference(&inputs);
        assert_close(&case.forward::<NdArray>(&inputs, DType::F64), &expected, 1e-12);
        assert_close(&case.forward::<Flex>(&inputs, DType::F32), &expected, 1e-5);
        assert_close(&case.forward::<NdArray>(&inputs, DType::F32), &expected, 1e-5);
        assert_close(&case.forward::<Autodiff<Flex>>(&inputs, DType::F32), &expected, 1e-5);
    }
}

#[test]
fn gradients_agree_with_finite_differences_of_the_definition() {
    let step = 1e-6;
    for case in CASES {
        let inputs = case.inputs();
        let weights = values(case.reference(&inputs).len(), 9);
        let loss =
            |inputs: &[Vec<f64>]| -> f64 { case.reference(inputs).iter().zip(&weights).map(|(a, b)| a * b).sum() };
        let expected: Vec<Vec<f64>> = (0..inputs.len())
            .map(|which| {
                let slope = |index: usize| {
                    let moved = |by: f64| {
                        let mut moved = inputs.clone();
                        moved[which][index] += by;
                        loss(&moved)
                    };
                    (moved(step) - moved(-step)) / (2.0 * step)
                };
                (0..inputs[which].len()).map(slope).collect()
            })
            .collect();
        for gradients in [
            case.gradients::<NdArray>(&inputs, DType::F64),
            case.gradients::<NdArray>(&inputs, DType::F32),
            case.gradients::<Flex>(&inputs, DType::F32),
        ] {
            for (found, expected) in gradients.iter().zip(&expected) {
                assert_close(found, expected, 1e-4);
            }
        }
    }
}

#[test]
#[should_panic(expected = "do not fit")]
fn a_window_larger_than_the_image_is_refused() {
    let device = Default::default();
    max_pool2d(Tensor::<Flex, 4>::zeros([1, 1, 2, 2], &device), [3, 3], [1, 1], [0, 0]);
}

#[test]
#[should_panic(expected = "do not fit")]
fn a_convolution_of_other_channels_is_refused() {
    let device = Default::default();
    let weight = Tensor::<Flex, 4>::zeros([1, 2, 1, 1], &device);
    conv2d(Tensor::zeros([1, 3, 2, 2], &device), weight, None, ConvOptions::new([1, 1], [0, 0], [1, 1], 1));
}
