//! The convolutional net of the FedAvg paper.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, Split};
use fedburn_ops::Kernels;

use crate::error::check_shape;
use crate::family::{impl_family, scaled, share_of};
use crate::projection::{Features, project};
use crate::{InitScheme, ModelError, Projection, conv2d, linear, linear_relu, relu_max_pool2d};

/// Two 5x5 convolutions of 32 and 64 channels that keep the size, each followed by ReLU and 2x2 max pooling, then 512
/// units with ReLU.
///
/// Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Agüera y Arcas: Communication-Efficient Learning of
/// Deep Networks from Decentralized Data, AISTATS 2017, arXiv:1602.05629, section 3: 1,663,370 parameters for 28x28 grey
/// images and ten classes, which fixes the padding the text leaves open.
#[derive(Module, Debug)]
pub struct FedAvgCnn<B: Backend> {
    /// `[32, channels, 5, 5]`.
    pub conv1: Conv2d<B>,
    /// `[64, 32, 5, 5]`.
    pub conv2: Conv2d<B>,
    /// `[features, 512]`.
    pub hidden: Linear<B>,
    /// Between features and head, where asked for.
    pub projection: Option<Projection<B>>,
    /// `[512, classes]`.
    pub head: Linear<B>,
    /// Share of the whole net's channels.
    share: f64,
}

/// Recipe of [`FedAvgCnn`].
#[derive(Clone, Debug)]
pub struct FedAvgCnnFamily {
    input: [usize; 3],
    pub(crate) features: Features,
    classes: usize,
    share: f64,
}

/// Channels of the convolutions, and units.
const SIZES: [usize; 3] = [32, 64, 512];

impl FedAvgCnnFamily {
    /// For inputs `[channels, height, width]` of at least 4 on either side, so that both poolings have something to pool.
    ///
    /// # Errors
    /// [`ModelError`] where a side is shorter, or a size is zero or absurd.
    pub fn new(input: [usize; 3], classes: usize) -> Result<Self, ModelError> {
        check_shape("fedavg_cnn", input, 4, classes)?;
        Ok(Self { input, features: Features::new(SIZES[2]), classes, share: 1.0 })
    }

    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> FedAvgCnn<B> {
        let [channels, height, width] = self.input;
        let [first, second, units] = SIZES.map(|size| share_of(size, self.share));
        let conv = |from, to| {
            Conv2dConfig::new([from, to], [5, 5]).with_padding(PaddingConfig2d::Explicit(2, 2, 2, 2)).init(device)
        };
        FedAvgCnn {
            conv1: conv(channels, first),
            conv2: conv(first, second),
            hidden: LinearConfig::new(second * (height / 4) * (width / 4), units).init(device),
            projection: self.features.build(device),
            head: LinearConfig::new(self.features.len(), self.classes).init(device),
            share: self.share,
        }
    }

    fn slimmed(&self, share: f64) -> Option<Self> {
        let share = self.share * share;
        Some(Self { features: self.features.of(share_of(SIZES[2], share)), share, ..*self })
    }
}

impl_family!(FedAvgCnnFamily, FedAvgCnn, InitScheme::PyTorch, slim);

impl<B: Kernels> Split<B> for FedAvgCnn<B> {
    fn features(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let x = scaled(relu_max_pool2d(conv2d(&self.conv1, inputs)), self.share, mode);
        let x = scaled(relu_max_pool2d(conv2d(&self.conv2, x)), self.share, mode);
        let units = scaled(linear_relu(&self.hidden, x.flatten::<2>(1, 3)), self.share, mode);
        project(&self.projection, units)
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(&self.head, features)
    }
}

impl<B: Kernels> Classifier<B> for FedAvgCnn<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.features(inputs, mode))
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        Some(self)
    }
}
