//! The kernels made of burn's operations: right on every backend, gradients included.

use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{ConvOptions, FloatTensor, ModuleOps};
use burn::tensor::{Tensor, TensorPrimitive};

use crate::{GroupNormOptions, PoolOptions};

pub(crate) fn conv2d<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    <B as ModuleOps<B>>::conv2d(x, weight, bias, options)
}

pub(crate) fn group_norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    options: GroupNormOptions,
) -> FloatTensor<B> {
    let x = float::<B, 4>(x);
    let shape @ [batch, channels, height, width] = x.dims();
    let x = x.reshape([batch, options.groups, channels / options.groups * height * width]);
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    let y = (centred / (variance + options.epsilon).sqrt()).reshape(shape);
    let per_channel = [1, channels, 1, 1];
    let y = y * float::<B, 1>(gamma).reshape(per_channel) + float::<B, 1>(beta).reshape(per_channel);
    primitive(y, options.relu)
}

pub(crate) fn max_pool2d<B: Backend>(x: FloatTensor<B>, options: PoolOptions) -> FloatTensor<B> {
    let PoolOptions { kernel, stride, padding, relu } = options;
    // Before the pooling: a window of padding alone would be minus infinity, not zero.
    let x = primitive(float::<B, 4>(x), relu);
    <B as ModuleOps<B>>::max_pool2d(x, kernel, stride, padding, [1, 1], false)
}

pub(crate) fn linear<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    relu: bool,
) -> FloatTensor<B> {
    let y = float::<B, 2>(x).matmul(float(weight));
    let y = match bias {
        Some(bias) => y + float::<B, 1>(bias).unsqueeze(),
        None => y,
    };
    primitive(y, relu)
}

pub(crate) fn add_relu<B: Backend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
    primitive(float::<B, 4>(x) + float(y), true)
}

fn float<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>, cut: bool) -> FloatTensor<B> {
    let tensor = if cut { relu(tensor) } else { tensor };
    tensor.into_primitive().tensor()
}
