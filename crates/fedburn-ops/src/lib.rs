//! Training kernels: convolution, group norm and pooling for burn backends.
//!
//! Model code calls the functions of this crate instead of burn's layers' own `forward`, so that a backend may bring
//! faster kernels of its own ([`Kernels`]) and models need not know. Any backend whose feature is on can be used:
//! `flex`, `ndarray`, `cuda`, `wgpu`, `tch`, each also inside [`Autodiff`](burn::backend::Autodiff).
//!
//! `flex` and `ndarray` share kernels of their own for single precision, forward and backward: convolution without a
//! matrix of patches, group norm, max pooling and linear layers, each fused with the ReLU that follows it. They run on
//! the calling thread, choose AVX-512, AVX2 or plain code at run time, and give the same bits on every run of a machine.
//! Everything else, other precisions included, runs burn's operations.
//!
//! # Examples
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flex::{Flex, FlexDevice};
//! use fedburn_ops::{ConvOptions, conv2d, group_norm, max_pool2d};
//!
//! let images = Tensor::<Flex, 4>::ones([2, 3, 8, 8], &FlexDevice);
//! let weight = Tensor::<Flex, 4>::ones([4, 3, 3, 3], &FlexDevice);
//! let features = conv2d(images, weight, None, ConvOptions::new([1, 1], [1, 1], [1, 1], 1));
//! let (gamma, beta) = (Tensor::ones([4], &FlexDevice), Tensor::zeros([4], &FlexDevice));
//! let features = group_norm(features, gamma, beta, 2, 1e-5);
//! assert_eq!(max_pool2d(features, [2, 2], [2, 2], [0, 0]).dims(), [2, 4, 4, 4]);
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod autodiff;
mod backends;
mod composed;
mod functions;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
mod kernels;
mod options;
mod own;

pub use burn::tensor::ops::ConvOptions;
pub use functions::{
    add_relu, conv2d, conv2d_workspace, group_norm, group_norm_relu, linear, linear_relu, linear_workspace, max_pool2d,
    relu_max_pool2d,
};
pub use kernels::Kernels;
pub use options::{GroupNormOptions, PoolOptions};
pub use own::OwnKernels;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
