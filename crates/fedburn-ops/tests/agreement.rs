//! The kernels of the CPU backends against burn's own operations, over random shapes and settings.
#![allow(clippy::unwrap_used)]

use burn::backend::Autodiff;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::module;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use fedburn_ops::{
    ConvOptions, Kernels, add_relu, conv2d, group_norm, group_norm_relu, linear, linear_relu, max_pool2d,
    relu_max_pool2d,
};
use proptest::prelude::*;

/// Values in [-1, 1], no two alike in one tensor.
fn values(len: usize, salt: u64) -> Vec<f32> {
    let mix = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt << 40) >> 11;
    (0..len).map(|i| (mix(i) as f64 / (1u64 << 53) as f64).mul_add(2.0, -1.0) as f32).collect()
}

fn tensor<B: Backend, const D: usize>(shape: [usize; D], salt: u64) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values(shape.iter().product(), salt), shape), &B::Device::default())
}

/// The output and the gradients of its weighted sum, as one list of lists.
type Results = Vec<Vec<f32>>;

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

/// The function's value on `B`, and with gradients on `Autodiff<B>`, of inputs flattened to one dimension; a flag says
/// which inputs require gradients.
fn evaluate<B: Kernels, const D: usize>(
    inputs: &[(usize, bool)],
    f: impl Fn(&[Tensor<Autodiff<B>, 1>]) -> Tensor<Autodiff<B>, D>,
) -> Results {
    let inputs: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(salt, (len, tracked))| {
            let input = tensor::<Autodiff<B>, 1>([*len], salt as u64);
            if *tracked { input.require_grad() } else { input }
        })
        .collect();
    let y = f(&inputs);
    let weights = tensor(y.dims(), 77);
    let gradients = (y.clone() * weights).sum().backward();
    let mut results = vec![host(y)];
    results.extend(inputs.iter().filter_map(|input| input.grad(&gradients)).map(host));
    results
}

fn close(found: &Results, expected: &Results) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.len(), expected.len());
    for (which, (found, expected)) in found.iter().zip(expected).enumerate() {
        prop_assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            prop_assert!((a - b).abs() <= 2e-4 * (1.0 + b.abs()), "list {which}, value {i}: {a} where burn has {b}");
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Conv {
    x: [usize; 4],
    weight: [usize; 4],
    bias: bool,
    tracked: [bool; 3],
    options: ConvOptions<2>,
}

prop_compose! {
    fn conv()(
        (batch, groups, inputs, outputs) in (1usize..4, 1usize..4, 1usize..5, 1usize..11),
        (height, width) in (1usize..21, 1usize..40),
        kernel in [1usize..6, 1usize..6],
        stride in [1usize..4, 1usize..4],
        padding in [0usize..5, 0usize..5],
        dilation in [1usize..4, 1usize..4],
        bias in any::<bool>(),
        tracked in any::<[bool; 3]>(),
    ) -> Conv {
        let fit = |size: usize, axis: usize| size.max((dilation[axis] * (kernel[axis] - 1) + 1).saturating_sub(2 * padding[axis]));
        Conv {
            x: [batch, groups * inputs, fit(height, 0), fit(width, 1)],
            weight: [groups * outputs, inputs, kernel[0], kernel[1]],
            bias,
            // At least one input needs a gradient.
            tracked: [tracked[0], tracked[1] || !tracked[0], tracked[2]],
            options: ConvOptions::new(stride, padding, dilation, groups),
        }
    }
}

impl Conv {
    fn results<B: Kernels>(&self, own: bool) -> Results {
        let inputs = [
            (self.x.iter().product(), self.tracked[0]),
            (self.weight.iter().product(), self.tracked[1]),
            (self.weight[0], self.bias && self.tracked[2]),
        ];
        evaluate::<B, 4>(&inputs, |inputs| {
            let (x, weight) = (inputs[0].clone().reshape(self.x), inputs[1].clone().reshape(self.weight));
            let bias = self.bias.then(|| inputs[2].clone());
            if own {
                conv2d(x, weight, bias, self.options.clone())
            } else {
                module::conv2d(x, weight, bias, self.options.clone())
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn convolution_is_burns(case in conv()) {
        let expected = case.results::<Flex>(false);
        close(&case.results::<Flex>(true), &expected)?;
        close(&case.results::<NdArray>(true), &expected)?;
    }

    #[test]
    fn group_norm_is_the_composed_one(
        (batch, groups, channels) in (1usize..4, 1usize..5, 1usize..5),
        (height, width) in (1usize..9, 2usize..12),
        cut in any::<bool>(),
    ) {
        let shape = [batch, groups * channels, height, width];
        let inputs = [(shape.iter().product(), true), (shape[1], true), (shape[1], true)];
        fn run<B: Kernels>(inputs: &[Tensor<B, 1>], shape: [usize; 4], groups: usize, cut: bool) -> Tensor<B, 4> {
            let (x, gamma, beta) = (inputs[0].clone().reshape(shape), inputs[1].clone(), inputs[2].clone());
            if cut { group_norm_relu(x, gamma, beta, groups, 1e-3) } else { group_norm(x, gamma, beta, groups, 1e-3) }
        }
        // In double precision: burn's operations.
        let expected = composed(&inputs, |inputs| run(inputs, shape, groups, cut));
        close(&evaluate::<Flex, 4>(&inputs, |inputs| run(inputs, shape, groups, cut)), &expected)?;
        close(&evaluate::<NdArray, 4>(&inputs, |inputs| run(inputs, shape, groups, cut)), &expected)?;
    }

    #[test]
    fn max_pooling_is_burns(
        (batch, channels) in (1usize..3, 1usize..4),
        (height, width) in (3usize..12, 3usize..20),
        kernel in [1usize..4, 1usize..4],
        stride in [1usize..4, 1usize..4],
        padded in any::<bool>(),
        cut in any::<bool>(),
    ) {
        let shape = [batch, channels, height, width];
        let padding = kernel.map(|size| if padded { size / 2 } else { 0 });
        let inputs = [(shape.iter().product(), true)];
        let own = |cut: bool| {
            let inputs = &inputs;
            move || {
                fn run<B: Kernels>(x: Tensor<B, 4>, [k, s, p]: [[usize; 2]; 3], cut: bool) -> Tensor<B, 4> {
                    if cut { relu_max_pool2d(x, k, s, p) } else { max_pool2d(x, k, s, p) }
                }
                let settings = [kernel, stride, padding];
                [
                    evaluate::<Flex, 4>(inputs, |i| run(i[0].clone().reshape(shape), settings, cut)),
                    evaluate::<NdArray, 4>(inputs, |i| run(i[0].clone().reshape(shape), settings, cut)),
                ]
            }
        };
        let expected = evaluate::<Flex, 4>(&inputs, |inputs| {
            let x = inputs[0].clone().reshape(shape);
            let x = if cut { relu(x) } else { x };
            module::max_pool2d(x, kernel, stride, padding, [1, 1], false)
        });
        for found in own(cut)() {
            close(&found, &expected)?;
        }
    }

    #[test]
    fn linear_layers_are_burns(
        (batch, inner, outputs) in (1usize..40, 1usize..40, 1usize..70),
        (bias, cut, tracked) in any::<(bool, bool, bool)>(),
    ) {
        let inputs = [(batch * inner, tracked), (inner * outputs, true), (outputs, true)];
        fn split<B: Backend>(i: &[Tensor<B, 1>], [n, k, m]: [usize; 3]) -> (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 1>) {
            (i[0].clone().reshape([n, k]), i[1].clone().reshape([k, m]), i[2].clone())
        }
        fn run<B: Kernels>(i: &[Tensor<B, 1>], shape: [usize; 3], bias: bool, cut: bool) -> Tensor<B, 2> {
            let (x, weight, b) = split(i, shape);
            let b = bias.then_some(b);
            if cut { linear_relu(x, weight, b) } else { linear(x, weight, b) }
        }
        let shape = [batch, inner, outputs];
        let expected = evaluate::<Flex, 2>(&inputs, |i| {
            let (x, weight, b) = split(i, shape);
            let y = x.matmul(weight);
            let y = if bias { y + b.unsqueeze() } else { y };
            if cut { relu(y) } else { y }
        });
        close(&evaluate::<Flex, 2>(&inputs, |i| run(i, shape, bias, cut)), &expected)?;
        close(&evaluate::<NdArray, 2>(&inputs, |i| run(i, shape, bias, cut)), &expected)?;
    }
}

/// [`evaluate`] in `f64`, for which the backend has no kernels of its own.
fn composed<const D: usize>(
    inputs: &[(usize, bool)],
    f: impl Fn(&[Tensor<Autodiff<Flex>, 1>]) -> Tensor<Autodiff<Flex>, D>,
) -> Results {
    let double = |len: usize, salt: u64| tensor::<Autodiff<Flex>, 1>([len], salt).cast(DType::F64);
    let inputs: Vec<_> = inputs.iter().enumerate().map(|(i, (len, _))| double(*len, i as u64).require_grad()).collect();
    let y = f(&inputs);
    let shape = y.dims();
    let gradients = (y.clone() * double(shape.iter().product(), 77).reshape(shape)).sum().backward();
    let list = |data: TensorData| data.iter::<f32>().collect();
    let mut results = vec![list(y.into_data())];
    results.extend(inputs.iter().map(|input| list(input.grad(&gradients).unwrap().into_data())));
    results
}

/// The end of a residual block, where one input is used twice: gradients add up.
#[test]
fn relu_of_a_sum_is_burns() {
    fn check<B: Kernels>() {
        let shape = [2, 3, 5, 7];
        let inputs = [(210, true), (210, true)];
        let take = |i: &[Tensor<Autodiff<B>, 1>]| (i[0].clone().reshape(shape), i[1].clone().reshape(shape));
        let found = evaluate::<B, 4>(&inputs, |i| {
            let (x, y) = take(i);
            add_relu(x.clone(), add_relu(x, y))
        });
        let expected = evaluate::<B, 4>(&inputs, |i| {
            let (x, y) = take(i);
            relu(x.clone() + relu(x + y))
        });
        close(&found, &expected).unwrap();
    }
    check::<Flex>();
    check::<NdArray>();
}

/// Permuted, sliced and repeated inputs are views of memory in another order.
#[test]
fn inputs_need_not_be_contiguous() {
    fn check<B: Kernels>() {
        let weight = tensor::<B, 4>([6, 4, 3, 3], 1);
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
        let wide = tensor::<B, 4>([5, 9, 8, 6], 2);
        // [9, 8, 6, 5] -> channels 2..6 of the second axis.
        let views = [
            wide.clone().permute([1, 2, 3, 0]).narrow(1, 2, 4),
            wide.clone().narrow(1, 3, 4),
            wide.clone().narrow(0, 1, 2).narrow(1, 5, 4),
            wide.clone().narrow(1, 0, 1).expand([5, 4, 8, 6]),
        ];
        for view in views {
            let copy = Tensor::<B, 4>::from_data(view.to_data(), &B::Device::default());
            let same = |a: Tensor<B, 4>, b: Tensor<B, 4>| assert_eq!(host(a), host(b));
            same(
                conv2d(view.clone(), weight.clone(), None, options.clone()),
                conv2d(copy.clone(), weight.clone(), None, options.clone()),
            );
            let (gamma, beta) = (tensor::<B, 2>([4, 2], 3).narrow(1, 1, 1).reshape([4]), tensor::<B, 1>([4], 4));
            same(
                group_norm(view.clone(), gamma.clone(), beta.clone(), 2, 1e-5),
                group_norm(copy.clone(), gamma, beta, 2, 1e-5),
            );
            same(max_pool2d(view, [2, 2], [2, 2], [0, 0]), max_pool2d(copy, [2, 2], [2, 2], [0, 0]));
        }
        let (x, weight) = (tensor::<B, 2>([12, 7], 5), tensor::<B, 2>([9, 12], 6));
        let rows = |t: Tensor<B, 2>| Tensor::<B, 2>::from_data(t.to_data(), &B::Device::default());
        let found = linear(x.clone().transpose(), weight.clone().transpose(), None);
        assert_eq!(host(found), host(linear(rows(x.transpose()), rows(weight.transpose()), None)));
    }
    check::<Flex>();
    check::<NdArray>();
}

/// The gradient that reaches a kernel may be a view too: of a sum, one number repeated.
#[test]
fn gradients_need_not_be_contiguous() {
    fn check<B: Kernels>() {
        let x = tensor::<Autodiff<B>, 4>([2, 3, 4, 6], 1).require_grad();
        let weight = tensor::<Autodiff<B>, 4>([2, 3, 3, 3], 2);
        let y = || conv2d(x.clone(), weight.clone(), None, ConvOptions::new([1, 1], [1, 1], [1, 1], 1));
        let gradient = |loss: Tensor<Autodiff<B>, 4>| host(x.grad(&loss.sum().backward()).unwrap());
        for axes in [[3, 1, 0, 2], [0, 1, 3, 2], [0, 1, 2, 3]] {
            // The mean's gradient is one number, expanded; the permutation's is permuted back.
            let views = gradient(y().permute(axes).mean_dim(2));
            let length = y().permute(axes).dims()[2];
            let flat = gradient(y() / length as f64);
            assert_close(&views, &flat);
            let rotated = gradient(y().permute(axes) * tensor(y().permute(axes).dims(), 3));
            let weights = tensor::<Autodiff<B>, 4>(y().permute(axes).dims(), 3);
            let back = (0..4).map(|axis| axes.iter().position(|a| *a == axis).unwrap() as isize).collect::<Vec<_>>();
            let back = weights.permute([back[0], back[1], back[2], back[3]]);
            assert_close(&rotated, &gradient(y() * back));
        }
    }
    check::<Flex>();
    check::<NdArray>();
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    close(&vec![found.to_vec()], &vec![expected.to_vec()]).unwrap();
}

/// What ran before on this thread, and which thread it is, does not show in the result.
#[test]
fn results_are_the_same_bits_every_time() {
    let run = || {
        let case = Conv {
            x: [5, 6, 13, 17],
            weight: [9, 6, 3, 3],
            bias: true,
            tracked: [true; 3],
            options: ConvOptions::new([2, 1], [1, 1], [1, 1], 1),
        };
        case.results::<Flex>(true).concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let first = run();
    conv2d(
        tensor::<Flex, 4>([1, 2, 40, 40], 1),
        tensor([3, 2, 5, 5], 2),
        None,
        ConvOptions::new([1; 2], [2; 2], [1; 2], 1),
    );
    assert_eq!(run(), first);
    assert_eq!(std::thread::spawn(run).join().unwrap(), first);
}
