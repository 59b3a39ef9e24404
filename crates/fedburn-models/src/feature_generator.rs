//! The generator of FedGen: what the head of a model sees, of a class, from noise.

use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Generator, GeneratorFamily, Mode, Seed};
use fedburn_ops::Kernels;

use crate::error::at_least;
use crate::norm::batch_norm;
use crate::{InitScheme, ModelError, linear, seeded};

/// One hidden layer between noise and class on the one side and features on the other.
///
/// ```text
/// concatenate noise and class -> hidden -> BN -> ReLU -> output
/// ```
///
/// Published code of Zhuangdi Zhu, Junyuan Hong, Jiayu Zhou: Data-Free Knowledge Distillation for Heterogeneous
/// Federated Learning, ICML 2021, arXiv:2105.10056 (for MNIST 32 numbers of noise, 256 hidden units).
#[derive(Module, Debug)]
pub struct FeatureGenerator<B: Backend> {
    /// `[noise + classes, hidden]`.
    pub hidden: Linear<B>,
    norm: BatchNorm<B>,
    /// `[hidden, features]`.
    pub output: Linear<B>,
}

/// Recipe of [`FeatureGenerator`].
#[derive(Clone, Debug)]
pub struct FeatureGeneratorFamily {
    features: usize,
    classes: usize,
    noise: usize,
    hidden: usize,
}

impl FeatureGeneratorFamily {
    /// For a head that sees so many `features` ([`Zoo::features`](crate::Zoo::features)) and tells so many `classes`
    /// apart, with `noise` numbers of noise and `hidden` units.
    ///
    /// # Errors
    /// [`ModelError`] where a size is zero or absurd.
    pub fn new(features: usize, classes: usize, noise: usize, hidden: usize) -> Result<Self, ModelError> {
        for (field, found) in [("features", features), ("classes", classes), ("noise", noise), ("hidden", hidden)] {
            at_least("generator", field, found, 1)?;
        }
        Ok(Self { features, classes, noise, hidden })
    }
}

impl<B: Kernels> GeneratorFamily<B> for FeatureGeneratorFamily {
    type Model = FeatureGenerator<B>;
    type TrainModel = FeatureGenerator<Autodiff<B>>;

    fn init(&self, seed: Seed, device: &B::Device) -> FeatureGenerator<B> {
        let model = FeatureGenerator {
            hidden: LinearConfig::new(self.noise + self.classes, self.hidden).init(device),
            norm: BatchNormConfig::new(self.hidden).init(device),
            output: LinearConfig::new(self.hidden, self.features).init(device),
        };
        seeded::<B, _>(model, seed, InitScheme::PyTorch)
    }

    fn noise(&self) -> usize {
        self.noise
    }

    fn classes(&self) -> usize {
        self.classes
    }
}

impl<B: Kernels> Generator<B> for FeatureGenerator<B> {
    fn forward(&self, noise: Tensor<B, 2>, labels: Tensor<B, 2>, mode: Mode) -> Tensor<B, 4> {
        let x = linear(&self.hidden, Tensor::cat(vec![noise, labels], 1));
        let [batch, hidden] = x.dims();
        let x = relu(batch_norm(&self.norm, x.reshape([batch, hidden, 1, 1]), mode));
        let x = linear(&self.output, x.reshape([batch, hidden]));
        let [batch, features] = x.dims();
        x.reshape([batch, features, 1, 1])
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::schema_of;

    use super::*;

    #[test]
    fn the_published_generator_has_its_parameters() {
        let family = FeatureGeneratorFamily::new(32, 10, 32, 256).unwrap();
        let schema = schema_of::<Flex, _>(&family.init(Seed::new(1), &FlexDevice)).unwrap();
        assert_eq!(schema.num_weights(), (42 + 1) * 256 + 2 * 256 + (256 + 1) * 32);
        assert_eq!(schema.num_values(), schema.num_weights() + 2 * 256);
    }

    #[test]
    fn features_follow_noise_and_class() {
        let family = FeatureGeneratorFamily::new(5, 3, 2, 8).unwrap();
        let model = GeneratorFamily::<Flex>::init(&family, Seed::new(1), &FlexDevice);
        let make = |noise: [f32; 2], class: usize| {
            let mut label = [0.0f32; 3];
            label[class] = 1.0;
            let (noise, label) = (Tensor::from_data([noise], &FlexDevice), Tensor::from_data([label], &FlexDevice));
            let features = model.forward(noise, label, Mode::Evaluate);
            assert_eq!(features.dims(), [1, 5, 1, 1]);
            features.into_data()
        };
        assert_eq!(make([0.5, -1.0], 1), make([0.5, -1.0], 1));
        assert_ne!(make([0.5, -1.0], 1), make([0.5, -1.0], 2));
        assert_ne!(make([0.5, -1.0], 1), make([0.5, 1.0], 1));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_by_name() {
        for (sizes, field) in [([0, 3, 2, 8], "features"), ([5, 3, 0, 8], "noise"), ([5, 3, 2, usize::MAX], "hidden")] {
            let [features, classes, noise, hidden] = sizes;
            let error = FeatureGeneratorFamily::new(features, classes, noise, hidden).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
