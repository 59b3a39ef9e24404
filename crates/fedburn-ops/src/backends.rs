//! Which backends have [`Kernels`], by feature.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;

use crate::Kernels;

/// Gradients come from burn's own operations, of which the default bodies are made.
impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {}

#[cfg(feature = "flex")]
impl Kernels for burn_flex::Flex {}

#[cfg(feature = "ndarray")]
impl Kernels for burn_ndarray::NdArray<f32> {}
#[cfg(feature = "ndarray")]
impl Kernels for burn_ndarray::NdArray<f64> {}

#[cfg(feature = "cuda")]
impl Kernels for burn_cuda::Cuda {}

#[cfg(feature = "wgpu")]
impl Kernels for burn_wgpu::Wgpu {}

#[cfg(feature = "tch")]
impl Kernels for burn_tch::LibTorch {}
