//! What a backend may bring of its own.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{ConvOptions, FloatTensor};

use crate::{GroupNormOptions, OwnKernels, PoolOptions, composed};

/// A backend with training kernels.
///
/// Every method has a default body: the backend's [`own`](Self::own) kernels where it has some, else burn's operations,
/// which are right for any backend: `impl Kernels for Mine {}` is complete. A backend with its own kernels may differ
/// from burn's results in the last bits.
///
/// The methods work on burn's tensor primitives, without checks of shape; call the functions of the same names in this
/// crate, which take tensors and check.
pub trait Kernels: Backend {
    /// The backend's own kernels for tensors like `x`: forward, and backward for use inside
    /// [`Autodiff`](burn::backend::Autodiff). `None`, the default, means burn's operations in both directions.
    fn own(x: &FloatTensor<Self>) -> Option<&'static dyn OwnKernels<Self>> {
        let _ = x;
        None
    }

    /// Two-dimensional cross-correlation, see [`conv2d`](crate::conv2d).
    fn conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        match Self::own(&x) {
            Some(own) => own.conv2d(&x, &weight, bias.as_ref(), &options),
            None => composed::conv2d::<Self>(x, weight, bias, options),
        }
    }

    /// What two-dimensional convolution works on for itself, see [`conv2d_workspace`](crate::conv2d_workspace).
    fn conv2d_workspace(x: [usize; 4], weight: &FloatTensor<Self>, options: &ConvOptions<2>) -> usize {
        Self::own(weight).map_or(0, |own| own.conv2d_workspace(x, weight.shape().dims(), options))
    }

    /// Normalisation by groups of channels, see [`group_norm`](crate::group_norm).
    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: GroupNormOptions,
    ) -> FloatTensor<Self> {
        match Self::own(&x) {
            Some(own) => own.group_norm(&x, &gamma, &beta, options),
            None => composed::group_norm::<Self>(x, gamma, beta, options),
        }
    }

    /// Largest value of each window, see [`max_pool2d`](crate::max_pool2d).
    fn max_pool2d(x: FloatTensor<Self>, options: PoolOptions) -> FloatTensor<Self> {
        match Self::own(&x) {
            Some(own) if options.is_small() => own.max_pool2d(&x, &options).0,
            _ => composed::max_pool2d::<Self>(x, options),
        }
    }

    /// A linear layer, see [`linear`](crate::linear); with ReLU where `relu`.
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        relu: bool,
    ) -> FloatTensor<Self> {
        match Self::own(&x) {
            Some(own) => own.linear(&x, &weight, bias.as_ref(), relu),
            None => composed::linear::<Self>(x, weight, bias, relu),
        }
    }

    /// What a linear layer works on for itself, see [`linear_workspace`](crate::linear_workspace).
    fn linear_workspace(batch: usize, weight: &FloatTensor<Self>) -> usize {
        Self::own(weight).map_or(0, |own| own.linear_workspace(batch, weight.shape().dims()))
    }

    /// ReLU of a sum, see [`add_relu`](crate::add_relu).
    fn add_relu(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        match Self::own(&x) {
            Some(own) => own.add_relu(&x, &y),
            None => composed::add_relu::<Self>(x, y),
        }
    }
}
