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
impl<F, I> Kernels for burn_cuda::Cuda<F, I> where Self: burn::tensor::backend::Backend {}

#[cfg(feature = "wgpu")]
impl<F, I, T> Kernels for burn_wgpu::Wgpu<F, I, T> where Self: burn::tensor::backend::Backend {}

#[cfg(feature = "tch")]
impl<E> Kernels for burn_tch::LibTorch<E> where Self: burn::tensor::backend::Backend {}
