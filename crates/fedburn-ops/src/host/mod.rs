//! Kernels for backends whose tensors lie in host memory: one implementation over slices of `f32`.
//!
//! Single-threaded, as one client trains on one thread. The same inputs give the same bits on every run of a machine;
//! machines with other vector widths differ in the last bits, since sums are then taken in another order.

mod conv2d;
mod group_norm;
mod linear;
mod max_pool2d;
mod planes;
mod simd;
mod tiles;

use std::borrow::Cow;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{TensorData, TensorMetadata, backend::Backend};

use crate::{ConvOptions, GroupNormOptions, OwnKernels, PoolOptions};

/// A backend with tensors in host memory.
pub(crate) trait HostBackend: Backend {
    /// The values of a tensor of `f32` by rows, copied only where they are not so already.
    fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]>;
}

/// The kernels of this module, for tensors of `f32`.
#[derive(Debug)]
pub(crate) struct HostKernels;

fn dims<const D: usize>(tensor: &impl TensorMetadata) -> [usize; D] {
    tensor.shape().dims()
}

/// A tensor of the values, where `like` lies.
fn tensor<B: Backend>(
    values: Vec<f32>,
    shape: impl Into<burn::tensor::Shape>,
    like: &FloatTensor<B>,
) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(values, shape), &B::float_device(like))
}

impl<B: HostBackend> OwnKernels<B> for HostKernels {
    fn conv2d(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        bias: Option<&FloatTensor<B>>,
        options: &ConvOptions<2>,
    ) -> FloatTensor<B> {
        let geometry = conv2d::Geometry::new(dims(x), dims(weight), options);
        let bias = bias.map(B::values);
        let y = conv2d::forward(&geometry, &B::values(x), &B::values(weight), bias.as_deref());
        tensor::<B>(y, geometry.output(), x)
    }

    fn conv2d_workspace(&self, x: [usize; 4], weight: [usize; 4], options: &ConvOptions<2>) -> usize {
        conv2d::workspace(&conv2d::Geometry::new(x, weight, options))
    }

    fn conv2d_backward(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        dy: &FloatTensor<B>,
        options: &ConvOptions<2>,
        needs: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let geometry = conv2d::Geometry::new(dims(x), dims(weight), options);
        let [dx, dw, db] = conv2d::backward(&geometry, &B::values(x), &B::values(weight), &B::values(dy), needs);
        [
            dx.map(|dx| tensor::<B>(dx, x.shape(), x)),
            dw.map(|dw| tensor::<B>(dw, weight.shape(), x)),
            db.map(|db| tensor::<B>(db, [geometry.output()[1]], x)),
        ]
    }

    fn group_norm(
        &self,
        x: &FloatTensor<B>,
        gamma: &FloatTensor<B>,
        beta: &FloatTensor<B>,
        options: GroupNormOptions,
    ) -> FloatTensor<B> {
        let [_, _, height, width] = dims(x);
        let (values, gamma, beta) = (B::values(x), B::values(gamma), B::values(beta));
        let input = group_norm::Input { x: &values, gamma: &gamma, beta: &beta, positions: height * width, options };
        tensor::<B>(group_norm::forward(input), x.shape(), x)
    }

    fn group_norm_backward(
        &self,
        [x, gamma, beta]: [&FloatTensor<B>; 3],
        dy: &FloatTensor<B>,
        options: GroupNormOptions,
    ) -> [FloatTensor<B>; 3] {
        let [_, _, height, width] = dims(x);
        let (values, scale, shift) = (B::values(x), B::values(gamma), B::values(beta));
        let input = group_norm::Input { x: &values, gamma: &scale, beta: &shift, positions: height * width, options };
        let [dx, dgamma, dbeta] = group_norm::backward(input, &B::values(dy));
        [tensor::<B>(dx, x.shape(), x), tensor::<B>(dgamma, gamma.shape(), x), tensor::<B>(dbeta, beta.shape(), x)]
    }

    fn max_pool2d(&self, x: &FloatTensor<B>, options: &PoolOptions) -> (FloatTensor<B>, Vec<u8>) {
        let shape @ [batch, channels, height, width] = dims(x);
        let (y, places) = max_pool2d::forward(&B::values(x), shape, options);
        let [rows, columns] = options.output([height, width]);
        (tensor::<B>(y, [batch, channels, rows, columns], x), places)
    }

    fn max_pool2d_backward(
        &self,
        dy: &FloatTensor<B>,
        places: &[u8],
        shape: [usize; 4],
        options: &PoolOptions,
    ) -> FloatTensor<B> {
        tensor::<B>(max_pool2d::backward(&B::values(dy), places, shape, options), shape, dy)
    }

    fn linear(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        bias: Option<&FloatTensor<B>>,
        relu: bool,
    ) -> FloatTensor<B> {
        let ([batch, inputs], [_, outputs]) = (dims(x), dims(weight));
        let bias = bias.map(B::values);
        let y = linear::forward(&B::values(x), &B::values(weight), inputs, bias.as_deref(), relu);
        tensor::<B>(y, [batch, outputs], x)
    }

    fn linear_workspace(&self, batch: usize, [inputs, outputs]: [usize; 2]) -> usize {
        linear::workspace(batch, inputs, outputs)
    }

    fn linear_backward(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        dy: &FloatTensor<B>,
        needs: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let [_, outputs] = dims(weight);
        let [dx, dw, db] = linear::backward(&B::values(x), &B::values(weight), &B::values(dy), outputs, needs);
        [
            dx.map(|dx| tensor::<B>(dx, x.shape(), x)),
            dw.map(|dw| tensor::<B>(dw, weight.shape(), x)),
            db.map(|db| tensor::<B>(db, [outputs], x)),
        ]
    }

    fn add_relu(&self, x: &FloatTensor<B>, y: &FloatTensor<B>) -> FloatTensor<B> {
        tensor::<B>(linear::add_relu(&B::values(x), &B::values(y)), x.shape(), x)
    }

    fn relu_backward(&self, y: &FloatTensor<B>, dy: &FloatTensor<B>) -> FloatTensor<B> {
        tensor::<B>(linear::relu_backward(&B::values(y), &B::values(dy)), y.shape(), y)
    }
}
