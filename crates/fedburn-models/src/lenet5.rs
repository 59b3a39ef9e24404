//! LeNet-5.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, Split};
use fedburn_ops::Kernels;

use crate::error::check_shape;
use crate::family::impl_family;
use crate::projection::{Features, project};
use crate::{InitScheme, ModelError, Projection, conv2d, linear, linear_relu, relu_max_pool2d};

/// Two 5x5 convolutions of 6 and 16 channels, each followed by 2x2 pooling, then layers of 120, 84 and `classes` units.
///
/// Yann LeCun, Léon Bottou, Yoshua Bengio, Patrick Haffner: Gradient-Based Learning Applied to Document Recognition,
/// Proceedings of the IEEE 86(11), 1998. The sizes are the paper's for 32x32 inputs; a side shorter than 32 is padded by
/// two on each end in the first convolution, as the paper embeds 28x28 digits in 32x32. Both make 61,706 parameters
/// with one channel and ten classes.
///
/// As is usual today, and unlike the paper: ReLU for the scaled hyperbolic tangent, maximum for trained subsampling, a
/// second convolution that sees all channels, and a linear output for radial basis functions.
#[derive(Module, Debug)]
pub struct LeNet5<B: Backend> {
    /// `[6, channels, 5, 5]`.
    pub conv1: Conv2d<B>,
    /// `[16, 6, 5, 5]`.
    pub conv2: Conv2d<B>,
    /// `[features, 120]`.
    pub hidden1: Linear<B>,
    /// `[120, 84]`.
    pub hidden2: Linear<B>,
    /// Between features and head, where asked for.
    pub projection: Option<Projection<B>>,
    /// `[84, classes]`.
    pub head: Linear<B>,
}

/// Recipe of [`LeNet5`].
#[derive(Clone, Debug)]
pub struct LeNet5Family {
    input: [usize; 3],
    pub(crate) features: Features,
    classes: usize,
}

impl LeNet5Family {
    /// For inputs `[channels, height, width]` of at least 12 on either side, below which the second pooling would have
    /// nothing left to pool.
    ///
    /// # Errors
    /// [`ModelError`] where a side is shorter, or a size is zero or absurd.
    pub fn new(input: [usize; 3], classes: usize) -> Result<Self, ModelError> {
        check_shape("lenet5", input, 12, classes)?;
        Ok(Self { input, features: Features::new(84), classes })
    }

    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> LeNet5<B> {
        let [channels, height, width] = self.input;
        let padding = |side: usize| if side < 32 { 2 } else { 0 };
        let pooled = |side: usize| ((side + 2 * padding(side) - 4) / 2 - 4) / 2;
        let (y, x) = (padding(height), padding(width));
        LeNet5 {
            conv1: Conv2dConfig::new([channels, 6], [5, 5])
                .with_padding(PaddingConfig2d::Explicit(y, x, y, x))
                .init(device),
            conv2: Conv2dConfig::new([6, 16], [5, 5]).init(device),
            hidden1: LinearConfig::new(16 * pooled(height) * pooled(width), 120).init(device),
            hidden2: LinearConfig::new(120, 84).init(device),
            projection: self.features.build(device),
            head: LinearConfig::new(self.features.len(), self.classes).init(device),
        }
    }
}

impl_family!(LeNet5Family, LeNet5, InitScheme::PyTorch);

impl<B: Kernels> Split<B> for LeNet5<B> {
    fn features(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        let x = relu_max_pool2d(conv2d(&self.conv1, inputs));
        let x = relu_max_pool2d(conv2d(&self.conv2, x));
        let x = linear_relu(&self.hidden1, x.flatten::<2>(1, 3));
        project(&self.projection, linear_relu(&self.hidden2, x))
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(&self.head, features)
    }
}

impl<B: Kernels> Classifier<B> for LeNet5<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.features(inputs, mode))
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        Some(self)
    }
}
