//! 2NN, the multilayer perceptron of the FedAvg paper.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, Split};
use fedburn_ops::Kernels;

use crate::error::{at_least, check_shape};
use crate::family::{impl_family, scaled, share_of};
use crate::projection::{Features, project};
use crate::{InitScheme, ModelError, Projection, linear, linear_relu};

/// Two hidden layers with ReLU.
///
/// Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Agüera y Arcas: Communication-Efficient Learning of
/// Deep Networks from Decentralized Data, AISTATS 2017, arXiv:1602.05629, section 3: 784-200-200-10, 199,210 parameters.
#[derive(Module, Debug)]
pub struct TwoNn<B: Backend> {
    /// `[inputs, hidden]`.
    pub hidden1: Linear<B>,
    /// `[hidden, hidden]`.
    pub hidden2: Linear<B>,
    /// Between features and head, where asked for.
    pub projection: Option<Projection<B>>,
    /// `[hidden, classes]`.
    pub head: Linear<B>,
    /// Share of the whole net's units.
    share: f64,
}

/// Recipe of [`TwoNn`].
#[derive(Clone, Debug)]
pub struct TwoNnFamily {
    inputs: usize,
    hidden: usize,
    pub(crate) features: Features,
    classes: usize,
    share: f64,
}

impl TwoNnFamily {
    /// For inputs `[channels, height, width]` with `hidden` units in either layer, the paper's 200.
    ///
    /// # Errors
    /// [`ModelError`] where a size is zero or absurd.
    pub fn new(input: [usize; 3], classes: usize, hidden: usize) -> Result<Self, ModelError> {
        check_shape("two_nn", input, 1, classes)?;
        at_least("two_nn", "hidden", hidden, 1)?;
        Ok(Self { inputs: input.iter().product(), hidden, features: Features::new(hidden), classes, share: 1.0 })
    }

    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> TwoNn<B> {
        TwoNn {
            hidden1: LinearConfig::new(self.inputs, self.hidden).init(device),
            hidden2: LinearConfig::new(self.hidden, self.hidden).init(device),
            projection: self.features.build(device),
            head: LinearConfig::new(self.features.len(), self.classes).init(device),
            share: self.share,
        }
    }

    fn slimmed(&self, share: f64) -> Option<Self> {
        let hidden = share_of(self.hidden, share);
        Some(Self { hidden, features: self.features.of(hidden), share: self.share * share, ..*self })
    }
}

impl_family!(TwoNnFamily, TwoNn, InitScheme::PyTorch, slim);

impl<B: Kernels> Split<B> for TwoNn<B> {
    fn features(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let x = scaled(linear_relu(&self.hidden1, inputs.flatten::<2>(1, 3)), self.share, mode);
        project(&self.projection, scaled(linear_relu(&self.hidden2, x), self.share, mode))
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(&self.head, features)
    }
}

impl<B: Kernels> Classifier<B> for TwoNn<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.features(inputs, mode))
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        Some(self)
    }
}
