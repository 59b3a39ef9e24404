//! The conditional generator of FedFTG: images of a class from noise.

use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Generator, GeneratorFamily, Mode, Seed};
use fedburn_ops::Kernels;
use serde::{Deserialize, Serialize};

use crate::error::{at_least, check_shape};
use crate::norm::{Standardised, batch_norm};
use crate::{InitScheme, ModelError, conv2d, linear, seeded};

/// Noise and class, each by a linear layer of its own, as a picture of a quarter of the size, which two convolutions
/// with upsampling before them make larger.
///
/// ```text
/// l1: noise -> width x h x w      l2: classes -> width x h x w      h, w = height / 4, width / 4, rounded up
/// concatenate -> BN -> up x2 -> conv 3x3 -> BN -> LeakyReLU 0.2
///                   -> up x2 -> conv 3x3 to `width` channels -> BN -> LeakyReLU 0.2
///                   -> conv 3x3 to the image's channels -> tanh -> the image's size -> BN without scale and shift
/// ```
///
/// Pictures have mean 0 and variance 1 in each channel over the batch. A size that is no multiple of four is cut out of
/// the middle of a larger one. Published code of Lin Zhang, Li Shen, Liang Ding, Dacheng Tao, Ling-Yu Duan: Fine-tuning
/// Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning, CVPR 2022, arXiv:2203.09249 (32 by
/// 32 pixels, `width` 64; noise 100 for ten classes, 256 for a hundred).
#[derive(Module, Debug)]
pub struct ConditionalGenerator<B: Backend> {
    from_noise: Linear<B>,
    from_label: Linear<B>,
    norm1: BatchNorm<B>,
    conv1: Conv2d<B>,
    norm2: BatchNorm<B>,
    conv2: Conv2d<B>,
    norm3: BatchNorm<B>,
    conv3: Conv2d<B>,
    output: Standardised<B>,
    height: usize,
    width: usize,
}

/// Sizes of a [`ConditionalGenerator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorConfig {
    /// Length of the noise, 100 in the paper's experiments with ten classes.
    pub noise: usize,
    /// Channels of the last hidden layer, 64 in the paper's; the time of a step grows with its square.
    pub width: usize,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self { noise: 100, width: 64 }
    }
}

impl GeneratorConfig {
    /// Checks the sizes against the data: inputs `[channels, height, width]` of so many classes.
    ///
    /// # Errors
    /// [`ModelError`] where a size is zero or absurd.
    pub fn build(self, input: [usize; 3], classes: usize) -> Result<ConditionalGeneratorFamily, ModelError> {
        check_shape(NAME, input, 1, classes)?;
        at_least(NAME, "noise", self.noise, 1)?;
        at_least(NAME, "width", self.width, 1)?;
        Ok(ConditionalGeneratorFamily { config: self, input, classes })
    }
}

/// Recipe of [`ConditionalGenerator`].
#[derive(Clone, Debug)]
pub struct ConditionalGeneratorFamily {
    config: GeneratorConfig,
    input: [usize; 3],
    classes: usize,
}

impl ConditionalGeneratorFamily {
    fn build<B: Backend>(&self, device: &B::Device) -> ConditionalGenerator<B> {
        let ([channels, height, width], GeneratorConfig { noise, width: hidden }) = (self.input, self.config);
        let small = hidden * height.div_ceil(4) * width.div_ceil(4);
        let norm = |channels| BatchNormConfig::new(channels).init(device);
        let conv = |from, to| {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            Conv2dConfig::new([from, to], [3, 3]).with_padding(padding).init(device)
        };
        ConditionalGenerator {
            from_noise: LinearConfig::new(noise, small).init(device),
            from_label: LinearConfig::new(self.classes, small).init(device),
            norm1: norm(2 * hidden),
            conv1: conv(2 * hidden, 2 * hidden),
            norm2: norm(2 * hidden),
            conv2: conv(2 * hidden, hidden),
            norm3: norm(hidden),
            conv3: conv(hidden, channels),
            output: Standardised::new(channels, device),
            height,
            width,
        }
    }
}

impl<B: Kernels> GeneratorFamily<B> for ConditionalGeneratorFamily {
    type Model = ConditionalGenerator<B>;
    type TrainModel = ConditionalGenerator<Autodiff<B>>;

    fn init(&self, seed: Seed, device: &B::Device) -> ConditionalGenerator<B> {
        seeded::<B, _>(self.build(device), seed, InitScheme::PyTorch)
    }

    fn noise(&self) -> usize {
        self.config.noise
    }

    fn classes(&self) -> usize {
        self.classes
    }
}

impl<B: Kernels> Generator<B> for ConditionalGenerator<B> {
    fn forward(&self, noise: Tensor<B, 2>, labels: Tensor<B, 2>, mode: Mode) -> Tensor<B, 4> {
        let [batch, _] = noise.dims();
        let (height, width) = (self.height.div_ceil(4), self.width.div_ceil(4));
        let picture = |x: Tensor<B, 2>| x.reshape([batch as i32, -1, height as i32, width as i32]);
        let parts = vec![picture(linear(&self.from_noise, noise)), picture(linear(&self.from_label, labels))];
        let x = doubled(batch_norm(&self.norm1, Tensor::cat(parts, 1), mode));
        let x = leaky_relu(batch_norm(&self.norm2, conv2d(&self.conv1, x), mode), SLOPE);
        let x = leaky_relu(batch_norm(&self.norm3, conv2d(&self.conv2, doubled(x)), mode), SLOPE);
        let x = conv2d(&self.conv3, x).tanh();
        let (top, left) = ((4 * height - self.height) / 2, (4 * width - self.width) / 2);
        let [_, channels, ..] = x.dims();
        let x = x.slice([0..batch, 0..channels, top..top + self.height, left..left + self.width]);
        self.output.forward(x, mode)
    }
}

/// Every pixel as two by two.
fn doubled<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height, 1, width, 1]).expand([batch, channels, height, 2, width, 2]).reshape([
        batch,
        channels,
        2 * height,
        2 * width,
    ])
}

const NAME: &str = "generator";
/// Slope of LeakyReLU below zero.
const SLOPE: f64 = 0.2;

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::schema_of;

    use super::*;

    fn generator(input: [usize; 3], config: GeneratorConfig) -> ConditionalGenerator<Flex> {
        config.build(input, 10).unwrap().init(Seed::new(1), &FlexDevice)
    }

    #[test]
    fn the_papers_generator_has_its_parameters() {
        let schema = schema_of::<Flex, _>(&generator([3, 32, 32], GeneratorConfig::default())).unwrap();
        let linear = 101 * 4096 + 11 * 4096;
        let conv = (128 * 128 * 9 + 128) + (128 * 64 * 9 + 64) + (64 * 3 * 9 + 3);
        assert_eq!(schema.num_weights(), linear + conv + 2 * (128 + 128 + 64));
    }

    #[test]
    fn pictures_of_any_size_are_standardised() {
        for input in [[1, 8, 8], [1, 28, 28], [3, 30, 33], [1, 1, 1]] {
            let model = generator(input, GeneratorConfig { noise: 7, width: 3 });
            let noise = Tensor::<Flex, 1, burn::tensor::Int>::arange(0..35, &FlexDevice).float().reshape([5, 7]).sin();
            let labels = Tensor::<Flex, 2>::eye(10, &FlexDevice).slice([0..5, 0..10]);
            let x = model.forward(noise, labels, Mode::Train);
            assert_eq!(x.dims(), [5, input[0], input[1], input[2]]);
            let mean: f32 = x.clone().slice([0..5, 0..1]).mean().into_scalar();
            let square: f32 = x.slice([0..5, 0..1]).square().mean().into_scalar();
            assert!(mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-2, "{input:?}: {mean}, {square}");
        }
    }

    #[test]
    fn doubling_repeats_pixels() {
        let x = Tensor::<Flex, 4>::from_data([[[[1.0, 2.0], [3.0, 4.0]]]], &FlexDevice);
        let expected = [1.0f32, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 3.0, 3.0, 4.0, 4.0];
        assert_eq!(doubled(x).into_data().to_vec::<f32>().unwrap(), expected);
    }
}
