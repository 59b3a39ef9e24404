//! The kernels as functions of tensors.

use burn::tensor::{Tensor, TensorPrimitive};

use crate::{ConvOptions, GroupNormOptions, Kernels, PoolOptions};

/// Two-dimensional cross-correlation, as PyTorch's `conv2d`.
///
/// # Shapes
/// `x` `[batch, channels_in, height, width]`, `weight` `[channels_out, channels_in / groups, kernel_height,
/// kernel_width]`, `bias` `[channels_out]`; the result `[batch, channels_out, height_out, width_out]` with
/// `height_out = (height + 2 padding - dilation (kernel_height - 1) - 1) / stride + 1`, rounded down.
///
/// # Panics
/// Where the shapes do not fit each other, as burn's own operations do.
pub fn conv2d<B: Kernels>(
    x: Tensor<B, 4>,
    weight: Tensor<B, 4>,
    bias: Option<Tensor<B, 1>>,
    options: ConvOptions<2>,
) -> Tensor<B, 4> {
    let ([_, inputs, height, width], [outputs, inputs_per_group, rows, columns]) = (x.dims(), weight.dims());
    let ConvOptions { padding, dilation, groups, .. } = &options;
    let fits = |size: usize, padding: usize, dilation: usize, kernel: usize| {
        kernel > 0 && size + 2 * padding > dilation * (kernel - 1)
    };
    assert!(
        inputs == inputs_per_group * groups
            && outputs.is_multiple_of(*groups)
            && bias.as_ref().is_none_or(|b| b.dims() == [outputs])
            && fits(height, padding[0], dilation[0], rows)
            && fits(width, padding[1], dilation[1], columns),
        "conv2d: x {:?}, weight {:?}, bias {:?} and {options:?} do not fit",
        x.dims(),
        weight.dims(),
        bias.as_ref().map(Tensor::dims),
    );
    let bias = bias.map(|b| b.into_primitive().tensor());
    wrap(<B as Kernels>::conv2d(x.into_primitive().tensor(), weight.into_primitive().tensor(), bias, options))
}

/// Numbers that the backend works on for itself in [`conv2d`] and its gradients, besides what it is given and makes, and
/// may keep from call to call: for `x` of this shape and this `weight`. As far as is known: 0 where the backend has no
/// kernels of its own.
///
/// # Panics
/// As [`conv2d`] does where the sizes do not fit each other.
pub fn conv2d_workspace<B: Kernels>(x: [usize; 4], weight: &Tensor<B, 4>, options: &ConvOptions<2>) -> usize {
    <B as Kernels>::conv2d_workspace(x, &weight.clone().into_primitive().tensor(), options)
}

/// Group normalisation with a scale and a shift per channel: over each group of `channels / groups` neighbouring
/// channels of each example, `y = gamma (x - mean) / sqrt(variance + epsilon) + beta`, the variance biased.
///
/// Yuxin Wu, Kaiming He: Group Normalization, ECCV 2018, arXiv:1803.08494.
///
/// # Shapes
/// `x` and the result `[batch, channels, height, width]`, `gamma` and `beta` `[channels]`.
///
/// # Panics
/// Where `groups` does not divide the channels or the shapes do not fit each other.
pub fn group_norm<B: Kernels>(
    x: Tensor<B, 4>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    groups: usize,
    epsilon: f64,
) -> Tensor<B, 4> {
    normalise(x, gamma, beta, GroupNormOptions { groups, epsilon, relu: false })
}

/// ReLU of [`group_norm`], in one pass. Panics as it does.
pub fn group_norm_relu<B: Kernels>(
    x: Tensor<B, 4>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    groups: usize,
    epsilon: f64,
) -> Tensor<B, 4> {
    normalise(x, gamma, beta, GroupNormOptions { groups, epsilon, relu: true })
}

/// Largest value of each window `kernel`, the windows `stride` apart; `padding` on every side counts as minus infinity.
///
/// # Shapes
/// `x` `[batch, channels, height, width]`; the result `[batch, channels, height_out, width_out]` with
/// `height_out = (height + 2 padding - kernel) / stride + 1`, rounded down.
///
/// # Panics
/// Where the window is empty or larger than the padded image, a stride is zero, or the padding is more than half the
/// window.
pub fn max_pool2d<B: Kernels>(
    x: Tensor<B, 4>,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<B, 4> {
    pool(x, PoolOptions { kernel, stride, padding, relu: false })
}

/// [`max_pool2d`] of the ReLU of `x`, in one pass. Panics as it does.
pub fn relu_max_pool2d<B: Kernels>(
    x: Tensor<B, 4>,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<B, 4> {
    pool(x, PoolOptions { kernel, stride, padding, relu: true })
}

/// `x weight + bias`.
///
/// # Shapes
/// `x` `[batch, inputs]`, `weight` `[inputs, outputs]` as burn has it, `bias` `[outputs]`; the result `[batch, outputs]`.
///
/// # Panics
/// Where the shapes do not fit each other.
pub fn linear<B: Kernels>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    affine(x, weight, bias, false)
}

/// As [`conv2d_workspace`] for [`linear`] of so many rows. Where a library underneath works by the processor's caches, an
/// estimate.
pub fn linear_workspace<B: Kernels>(batch: usize, weight: &Tensor<B, 2>) -> usize {
    <B as Kernels>::linear_workspace(batch, &weight.clone().into_primitive().tensor())
}

/// ReLU of [`linear`], in one pass. Panics as it does.
pub fn linear_relu<B: Kernels>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    affine(x, weight, bias, true)
}

/// ReLU of `x + y`, in one pass: the end of a residual block.
///
/// # Shapes
/// `x`, `y` and the result are of one shape.
///
/// # Panics
/// Where the shapes differ.
pub fn add_relu<B: Kernels>(x: Tensor<B, 4>, y: Tensor<B, 4>) -> Tensor<B, 4> {
    assert!(x.dims() == y.dims(), "add_relu: {:?} and {:?} differ", x.dims(), y.dims());
    wrap(B::add_relu(x.into_primitive().tensor(), y.into_primitive().tensor()))
}

fn normalise<B: Kernels>(
    x: Tensor<B, 4>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    options: GroupNormOptions,
) -> Tensor<B, 4> {
    let ([_, channels, ..], groups) = (x.dims(), options.groups);
    assert!(
        groups > 0 && channels.is_multiple_of(groups) && gamma.dims() == [channels] && beta.dims() == [channels],
        "group_norm: x {:?}, gamma {:?}, beta {:?} and {groups} groups do not fit",
        x.dims(),
        gamma.dims(),
        beta.dims(),
    );
    let [x, gamma, beta] = [x.into_primitive(), gamma.into_primitive(), beta.into_primitive()].map(|t| t.tensor());
    wrap(B::group_norm(x, gamma, beta, options))
}

fn pool<B: Kernels>(x: Tensor<B, 4>, options: PoolOptions) -> Tensor<B, 4> {
    let [_, _, height, width] = x.dims();
    let PoolOptions { kernel, stride, padding, .. } = options;
    let fits = |axis: usize, size: usize| {
        kernel[axis] > 0
            && stride[axis] > 0
            && 2 * padding[axis] <= kernel[axis]
            && size + 2 * padding[axis] >= kernel[axis]
    };
    assert!(
        fits(0, height) && fits(1, width),
        "max_pool2d: x {:?}, kernel {kernel:?}, stride {stride:?} and padding {padding:?} do not fit",
        x.dims(),
    );
    wrap(<B as Kernels>::max_pool2d(x.into_primitive().tensor(), options))
}

fn affine<B: Kernels>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, relu: bool) -> Tensor<B, 2> {
    let ([_, inputs], [rows, outputs]) = (x.dims(), weight.dims());
    assert!(
        inputs == rows && bias.as_ref().is_none_or(|b| b.dims() == [outputs]),
        "linear: x {:?}, weight {:?} and bias {:?} do not fit",
        x.dims(),
        weight.dims(),
        bias.as_ref().map(Tensor::dims),
    );
    let bias = bias.map(|b| b.into_primitive().tensor());
    wrap(<B as Kernels>::linear(x.into_primitive().tensor(), weight.into_primitive().tensor(), bias, relu))
}

fn wrap<B: Kernels, const D: usize>(primitive: B::FloatTensorPrimitive) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
