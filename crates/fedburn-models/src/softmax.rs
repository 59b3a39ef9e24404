//! Softmax regression: one linear layer.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode};
use fedburn_ops::Kernels;

use crate::error::check_shape;
use crate::family::impl_family;
use crate::{InitScheme, ModelError, linear};

/// Multinomial logistic regression on the flattened input: a convex problem, the usual first check of an algorithm.
#[derive(Module, Debug)]
pub struct Softmax<B: Backend> {
    /// `[inputs, classes]`.
    pub head: Linear<B>,
}

/// Recipe of [`Softmax`].
#[derive(Clone, Debug)]
pub struct SoftmaxFamily {
    inputs: usize,
    classes: usize,
}

impl SoftmaxFamily {
    /// For inputs `[channels, height, width]`; 7,850 parameters for 28x28 grey images and ten classes.
    ///
    /// # Errors
    /// [`ModelError`] where a size is zero or absurd.
    pub fn new(input: [usize; 3], classes: usize) -> Result<Self, ModelError> {
        check_shape("softmax", input, 1, classes)?;
        Ok(Self { inputs: input.iter().product(), classes })
    }

    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> Softmax<B> {
        Softmax { head: LinearConfig::new(self.inputs, self.classes).init(device) }
    }
}

impl_family!(SoftmaxFamily, Softmax, InitScheme::PyTorch);

impl<B: Kernels> Classifier<B> for Softmax<B> {
    fn forward(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        linear(&self.head, inputs.flatten::<2>(1, 3))
    }
}
