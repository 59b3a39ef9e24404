//! Which backends have [`Kernels`], by feature.

#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host {
    use std::borrow::Cow;

    use burn::tensor::ops::FloatTensor;
    use burn::tensor::{DType, TensorMetadata};

    use crate::host::{HostBackend, HostKernels};
    use crate::{Kernels, OwnKernels};

    #[cfg(feature = "flex")]
    impl HostBackend for burn_flex::Flex {
        fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
            match tensor.as_slice() {
                Some(values) => Cow::Borrowed(values),
                None => Cow::Owned(tensor.to_contiguous().storage().to_vec()),
            }
        }
    }

    #[cfg(feature = "flex")]
    impl Kernels for burn_flex::Flex {
        fn own(x: &FloatTensor<Self>) -> Option<&'static dyn OwnKernels<Self>> {
            (TensorMetadata::dtype(x) == DType::F32).then_some(&HostKernels)
        }
    }

    #[cfg(feature = "ndarray")]
    impl HostBackend for burn_ndarray::NdArray<f32> {
        fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
            let burn_ndarray::NdArrayTensor::F32(storage) = tensor else {
                panic!("a tensor of {:?} among tensors of f32", TensorMetadata::dtype(tensor))
            };
            let view = storage.view();
            match view.to_slice() {
                Some(values) => Cow::Borrowed(values),
                None => Cow::Owned(view.iter().copied().collect()),
            }
        }
    }

    #[cfg(feature = "ndarray")]
    impl Kernels for burn_ndarray::NdArray<f32> {
        fn own(x: &FloatTensor<Self>) -> Option<&'static dyn OwnKernels<Self>> {
            (TensorMetadata::dtype(x) == DType::F32).then_some(&HostKernels)
        }
    }
}

#[cfg(feature = "ndarray")]
impl crate::Kernels for burn_ndarray::NdArray<f64> {}

#[cfg(feature = "cuda")]
impl crate::Kernels for burn_cuda::Cuda {}

#[cfg(feature = "wgpu")]
impl crate::Kernels for burn_wgpu::Wgpu {}

#[cfg(feature = "tch")]
impl crate::Kernels for burn_tch::LibTorch {}
