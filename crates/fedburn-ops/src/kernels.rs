//! What a backend may bring of its own.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{ConvOptions, FloatTensor, ModuleOps};
use burn::tensor::{Tensor, TensorPrimitive};

/// A backend with training kernels.
///
/// Every method has a default body of burn's own operations, which is right for any backend: `impl Kernels for Mine {}`
/// is complete. A backend with faster kernels overrides a method; results may then differ in the last bits.
///
/// The methods work on burn's tensor primitives, without checks of shape; call the functions of the same names in this
/// crate, which take tensors and check.
pub trait Kernels: Backend {
    /// Two-dimensional cross-correlation, see [`conv2d`](crate::conv2d).
    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        <Self as ModuleOps<Self>>::conv2d(x, weight, bias, options)
    }

    /// Normalisation by groups of channels, see [`group_norm`](crate::group_norm).
    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        groups: usize,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let x = float::<Self, 4>(x);
        let shape @ [batch, channels, height, width] = x.dims();
        let x = x.reshape([batch, groups, channels / groups * height * width]);
        let centred = x.clone() - x.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        let y = (centred / (variance + epsilon).sqrt()).reshape(shape);
        let per_channel = [1, channels, 1, 1];
        let y = y * float::<Self, 1>(gamma).reshape(per_channel) + float::<Self, 1>(beta).reshape(per_channel);
        y.into_primitive().tensor()
    }

    /// Largest value of each window, see [`max_pool2d`](crate::max_pool2d).
    fn max_pool2d(
        x: FloatTensor<Self>,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> FloatTensor<Self> {
        <Self as ModuleOps<Self>>::max_pool2d(x, kernel, stride, padding, [1, 1], false)
    }
}

fn float<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
