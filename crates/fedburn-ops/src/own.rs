//! What a backend with kernels of its own provides.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::{ConvOptions, GroupNormOptions, PoolOptions};

/// A backend's own kernels, forward and backward: what [`Kernels::own`](crate::Kernels::own) offers. Shapes are as in
/// this crate's functions of the same names and have been checked.
///
/// A gradient that depends on the output's is called `dy`. `needs` says which of the gradients of input, weight and bias
/// are asked for; the others are `None`.
pub trait OwnKernels<B: Backend>: Sync {
    /// See [`conv2d`](crate::conv2d).
    fn conv2d(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        bias: Option<&FloatTensor<B>>,
        options: &ConvOptions<2>,
    ) -> FloatTensor<B>;

    /// See [`conv2d_workspace`](crate::conv2d_workspace).
    fn conv2d_workspace(&self, x: [usize; 4], weight: [usize; 4], options: &ConvOptions<2>) -> usize;

    /// Gradients of input, weight and bias of [`conv2d`](Self::conv2d).
    fn conv2d_backward(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        dy: &FloatTensor<B>,
        options: &ConvOptions<2>,
        needs: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3];

    /// See [`group_norm`](crate::group_norm) and [`group_norm_relu`](crate::group_norm_relu).
    fn group_norm(
        &self,
        x: &FloatTensor<B>,
        gamma: &FloatTensor<B>,
        beta: &FloatTensor<B>,
        options: GroupNormOptions,
    ) -> FloatTensor<B>;

    /// Gradients of the inputs `x`, `gamma` and `beta` of [`group_norm`](Self::group_norm).
    fn group_norm_backward(
        &self,
        inputs: [&FloatTensor<B>; 3],
        dy: &FloatTensor<B>,
        options: GroupNormOptions,
    ) -> [FloatTensor<B>; 3];

    /// See [`max_pool2d`](crate::max_pool2d) and [`relu_max_pool2d`](crate::relu_max_pool2d). Also a byte per window
    /// that tells [`max_pool2d_backward`](Self::max_pool2d_backward) where its largest value was. Windows have at most
    /// 254 places.
    fn max_pool2d(&self, x: &FloatTensor<B>, options: &PoolOptions) -> (FloatTensor<B>, Vec<u8>);

    /// Gradient of the input, which was of shape `shape`.
    fn max_pool2d_backward(
        &self,
        dy: &FloatTensor<B>,
        places: &[u8],
        shape: [usize; 4],
        options: &PoolOptions,
    ) -> FloatTensor<B>;

    /// See [`linear`](crate::linear) and [`linear_relu`](crate::linear_relu).
    fn linear(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        bias: Option<&FloatTensor<B>>,
        relu: bool,
    ) -> FloatTensor<B>;

    /// See [`linear_workspace`](crate::linear_workspace).
    fn linear_workspace(&self, batch: usize, weight: [usize; 2]) -> usize;

    /// Gradients of input, weight and bias of [`linear`](Self::linear) without ReLU.
    fn linear_backward(
        &self,
        x: &FloatTensor<B>,
        weight: &FloatTensor<B>,
        dy: &FloatTensor<B>,
        needs: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3];

    /// See [`add_relu`](crate::add_relu).
    fn add_relu(&self, x: &FloatTensor<B>, y: &FloatTensor<B>) -> FloatTensor<B>;

    /// `dy` where the ReLU's output `y` is positive, zero elsewhere.
    fn relu_backward(&self, y: &FloatTensor<B>, dy: &FloatTensor<B>) -> FloatTensor<B>;
}
