//! What a trainable model is.

use std::fmt;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::{Ensemble, Seed, Staged};

/// A class label, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassId(pub u32);

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How layers with two behaviours (batch normalisation) run. burn picks the behaviour from the backend type alone;
/// a frozen teacher through which gradients must flow needs evaluation mode under autodiff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, running statistics updated.
    Train,
    /// Running statistics, nothing updated.
    Evaluate,
}

/// A classifier with explicit mode.
pub trait Classifier<B: Backend>: Module<B> {
    /// Class scores (logits) `[batch, classes]` of `inputs` `[batch, channels, height, width]`.
    ///
    /// Sequences of tokens travel as inputs of shape `[batch, 1, 1, length]` that hold the token numbers.
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2>;

    /// The model's two parts, for algorithms that look at features; `None` where it has no such parts.
    fn split(&self) -> Option<&dyn Split<B>> {
        None
    }

    /// The model's parts from input to output, for algorithms that train a few of them at a time; `None` where it is not
    /// made so.
    fn staged(&self) -> Option<&dyn Staged<B>> {
        None
    }

    /// The classifiers that the model is made of, for algorithms that train some of them; `None` where it is one.
    fn ensemble(&self) -> Option<&dyn Ensemble<B>> {
        None
    }
}

/// A classifier that is features and a head.
///
/// # Laws
/// `head(features(x, mode))` is `forward(x, mode)`, bit for bit.
pub trait Split<B: Backend> {
    /// What the head sees, `[batch, features]`, of `inputs` `[batch, channels, height, width]`.
    fn features(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2>;

    /// Class scores (logits) `[batch, classes]` of `features` `[batch, features]`.
    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2>;
}

/// A recipe that builds the same architecture for inference on `B` and for training on `Autodiff<B>`.
///
/// Generic over the backend rather than over each method, so that a family may ask more of `B` than [`Backend`]
/// (`fedburn_models::Zoo` asks for fast kernels) without any caller knowing.
pub trait ModelFamily<B: Backend>: Clone + Send + Sync + 'static {
    /// The model for inference.
    type Model: Classifier<B> + 'static;
    /// The model for training: usually the same type with the backend exchanged.
    type TrainModel: Classifier<Autodiff<B>> + AutodiffModule<Autodiff<B>, InnerModule = Self::Model> + 'static;

    /// Builds the model with weights drawn from `seed` on the host: the same bits on every backend.
    fn init(&self, seed: Seed, device: &B::Device) -> Self::Model;

    /// The same architecture with a `share`, in `(0, 1]`, of the channels of each hidden layer, rounded up; `None` where
    /// the architecture or the share does not allow it.
    ///
    /// In [`Mode::Train`] its layers divide what they make by `share`, so that it is as large as in the whole net.
    ///
    /// # Laws
    /// Its tensors have the paths and the order of the whole's, each a leading corner of it. A share of 1 is the whole,
    /// bit for bit.
    fn slim(&self, _share: f64) -> Option<Self> {
        None
    }
}
