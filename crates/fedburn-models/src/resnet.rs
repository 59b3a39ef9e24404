//! Residual nets for small images.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, Split};
use fedburn_ops::{Kernels, add_relu};

use crate::error::{check_shape, refuse};
use crate::family::impl_family;
use crate::projection::{Features, project};
use crate::{InitScheme, ModelError, Norm, NormChoice, Projection, conv2d, linear};

/// A 3x3 convolution, stages of residual blocks of which each but the first halves the image, the mean over the image,
/// and a linear layer.
///
/// Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: Deep Residual Learning for Image Recognition, CVPR 2016,
/// arXiv:1512.03385. Group norm in two groups replaces batch norm where asked, as in Sashank Reddi, Zachary Charles,
/// Manzil Zaheer and others: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295, after Kevin Hsieh, Amar
/// Phanishayee, Onur Mutlu, Phillip Gibbons: The Non-IID Data Quagmire of Decentralized Machine Learning, ICML 2020,
/// arXiv:1910.00189.
///
/// Where a block changes size, its shortcut is a normalised 1x1 convolution (the first paper's option B), which unlike
/// strided padding is fast on every backend; ResNet-20 for ten classes then has 272,474 trained parameters.
#[derive(Module, Debug)]
pub struct ResNet<B: Backend> {
    /// `[width, channels, 3, 3]`.
    pub stem: Conv2d<B>,
    /// Normalises the stem's output.
    pub norm: Norm<B>,
    /// All stages' blocks, one after another.
    pub blocks: Vec<ResidualBlock<B>>,
    /// Between features and head, where asked for.
    pub projection: Option<Projection<B>>,
    /// `[last width, classes]`.
    pub head: Linear<B>,
}

/// Two 3x3 convolutions, each normalised, around which the input is added.
#[derive(Module, Debug)]
pub struct ResidualBlock<B: Backend> {
    /// `[outputs, inputs, 3, 3]`, strided where the stage halves the image.
    pub conv1: Conv2d<B>,
    /// After the first convolution.
    pub norm1: Norm<B>,
    /// `[outputs, outputs, 3, 3]`.
    pub conv2: Conv2d<B>,
    /// After the second convolution.
    pub norm2: Norm<B>,
    /// Where input and output differ in shape.
    pub shortcut: Option<Shortcut<B>>,
}

/// Brings a block's input to the shape of its output.
#[derive(Module, Debug)]
pub struct Shortcut<B: Backend> {
    /// `[outputs, inputs, 1, 1]`.
    pub conv: Conv2d<B>,
    /// After the convolution.
    pub norm: Norm<B>,
}

/// Recipe of [`ResNet`].
#[derive(Clone, Debug)]
pub struct ResNetFamily {
    channels: usize,
    classes: usize,
    norm: NormChoice,
    widths: &'static [usize],
    blocks_per_stage: usize,
    pub(crate) features: Features,
}

impl ResNetFamily {
    /// ResNet-8, 20, 32 or 56 for inputs `[channels, height, width]`: three stages of 16, 32 and 64 channels, the first
    /// paper's section 4.2. Sides of at least 4, since the last stage sees a quarter of them.
    ///
    /// # Errors
    /// [`ModelError`] for another depth, groups that do not divide the channels, a side shorter than 4, or a size that is
    /// zero or absurd.
    pub fn small(input: [usize; 3], classes: usize, depth: usize, norm: NormChoice) -> Result<Self, ModelError> {
        check_shape("resnet", input, 4, classes)?;
        if ![8, 20, 32, 56].contains(&depth) {
            return refuse("resnet", "depth", depth, "8, 20, 32 or 56");
        }
        Self::checked("resnet", input, classes, norm, &[16, 32, 64], (depth - 2) / 6)
    }

    /// ResNet-18 with group norm for inputs `[channels, height, width]` of at least 8 on either side: four stages of two
    /// blocks, 64 to 512 channels. Its stem is the 3x3 convolution usual for small images, without the pooling and the
    /// 7x7 kernel of the ImageNet net that Reddi et al. kept.
    ///
    /// # Errors
    /// [`ModelError`] where `groups` does not divide the channels, a side is shorter than 8, or a size is zero or absurd.
    pub fn resnet18(input: [usize; 3], classes: usize, groups: usize) -> Result<Self, ModelError> {
        check_shape("resnet18", input, 8, classes)?;
        Self::checked("resnet18", input, classes, NormChoice::Group { groups }, &[64, 128, 256, 512], 2)
    }

    fn checked(
        model: &'static str,
        input: [usize; 3],
        classes: usize,
        norm: NormChoice,
        widths: &'static [usize],
        blocks_per_stage: usize,
    ) -> Result<Self, ModelError> {
        // Widths double from stage to stage: what divides the first divides them all.
        if let NormChoice::Group { groups } = norm
            && (groups == 0 || !widths[0].is_multiple_of(groups))
        {
            return refuse(model, "groups", groups, format!("a divisor of {}, the smallest channel count", widths[0]));
        }
        let features = Features::new(widths[widths.len() - 1]);
        Ok(Self { channels: input[0], classes, norm, widths, blocks_per_stage, features })
    }

    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> ResNet<B> {
        let first = self.widths[0];
        let mut inputs = first;
        let mut blocks = Vec::new();
        for (stage, &outputs) in self.widths.iter().enumerate() {
            for block in 0..self.blocks_per_stage {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                blocks.push(self.block(inputs, outputs, stride, device));
                inputs = outputs;
            }
        }
        ResNet {
            stem: conv(self.channels, first, 3, 1, device),
            norm: self.norm.build(first, device),
            blocks,
            projection: self.features.build(device),
            head: LinearConfig::new(self.features.len(), self.classes).init(device),
        }
    }

    fn block<B: Backend>(&self, inputs: usize, outputs: usize, stride: usize, device: &B::Device) -> ResidualBlock<B> {
        ResidualBlock {
            conv1: conv(inputs, outputs, 3, stride, device),
            norm1: self.norm.build(outputs, device),
            conv2: conv(outputs, outputs, 3, 1, device),
            norm2: self.norm.build(outputs, device),
            shortcut: (inputs != outputs).then(|| Shortcut {
                conv: conv(inputs, outputs, 1, stride, device),
                norm: self.norm.build(outputs, device),
            }),
        }
    }
}

impl_family!(ResNetFamily, ResNet, InitScheme::HeNormal);

impl<B: Kernels> Split<B> for ResNet<B> {
    fn features(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        let stem = self.norm.forward_relu(conv2d(&self.stem, inputs), mode);
        let maps = self.blocks.iter().fold(stem, |x, block| block.forward(x, mode));
        project(&self.projection, maps.mean_dim(3).mean_dim(2).flatten::<2>(1, 3))
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        linear(&self.head, features)
    }
}

impl<B: Kernels> Classifier<B> for ResNet<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.features(inputs, mode))
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        Some(self)
    }
}

impl<B: Kernels> ResidualBlock<B> {
    /// `[batch, inputs, height, width]` to `[batch, outputs, height / stride, width / stride]`, rounded up.
    pub fn forward(&self, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        let y = self.norm1.forward_relu(conv2d(&self.conv1, x.clone()), mode);
        let y = self.norm2.forward(conv2d(&self.conv2, y), mode);
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.norm.forward(conv2d(&shortcut.conv, x), mode),
            None => x,
        };
        add_relu(x, y)
    }
}

/// A convolution without bias (the norm after it has one) that keeps the size at stride 1.
pub(crate) fn conv<B: Backend>(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    device: &B::Device,
) -> Conv2d<B> {
    let padding = kernel / 2;
    Conv2dConfig::new([inputs, outputs], [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
        .with_bias(false)
        .init(device)
}
