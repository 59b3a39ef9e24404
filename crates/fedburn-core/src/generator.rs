//! What a generator of examples is, for strategies that make their own and clients that learn from them.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::{ClassId, Mode, Seed};

/// A network that makes inputs of a classifier, or of its head, from noise and a class.
pub trait Generator<B: Backend>: Module<B> {
    /// Inputs `[batch, channels, height, width]`, features as `[batch, features, 1, 1]`, from `noise` `[batch, noise]` and
    /// `labels` `[batch, classes]`, one at each example's class and zero elsewhere.
    fn forward(&self, noise: Tensor<B, 2>, labels: Tensor<B, 2>, mode: Mode) -> Tensor<B, 4>;
}

/// A recipe that builds the same generator for inference on `B` and for training on `Autodiff<B>`, as
/// [`ModelFamily`](crate::ModelFamily) does for classifiers.
pub trait GeneratorFamily<B: Backend>: Clone + Send + Sync + 'static {
    /// The generator for inference.
    type Model: Generator<B> + 'static;
    /// The generator for training.
    type TrainModel: Generator<Autodiff<B>> + AutodiffModule<Autodiff<B>, InnerModule = Self::Model> + 'static;

    /// Builds the generator with weights drawn from `seed` on the host: the same bits on every backend.
    fn init(&self, seed: Seed, device: &B::Device) -> Self::Model;

    /// Length of the noise of one example.
    fn noise(&self) -> usize;

    /// Number of classes.
    fn classes(&self) -> usize;
}

/// Pictures that a generator made in a round, to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pictures {
    /// `[channels, height, width]` of each.
    pub shape: [usize; 3],
    /// The class that was asked for, of each.
    pub classes: Vec<ClassId>,
    /// One picture after the other, each from 0 at its smallest value to 255 at its largest.
    pub pixels: Vec<u8>,
}

impl Pictures {
    /// Pictures `[batch, channels, height, width]` of these classes, each stretched to the whole range.
    pub fn of<B: Backend>(pictures: Tensor<B, 4>, classes: Vec<ClassId>) -> Self {
        let [_, channels, height, width] = pictures.dims();
        let shape = [channels, height, width];
        let values: Vec<f32> = pictures.into_data().iter().collect();
        let stretch = |picture: &[f32]| -> Vec<u8> {
            let least = picture.iter().copied().fold(f32::INFINITY, f32::min);
            let most = picture.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let range = (most - least).max(f32::MIN_POSITIVE);
            // Casts of floats saturate, and a value that is no number becomes 0.
            picture.iter().map(|value| ((value - least) / range * 255.0).round() as u8).collect()
        };
        let size = shape.iter().product::<usize>().max(1);
        Self { shape, classes, pixels: values.chunks(size).flat_map(stretch).collect() }
    }

    /// Classes and pixels of each picture; nothing where they are not as many as the shape says.
    pub fn iter(&self) -> impl Iterator<Item = (ClassId, &[u8])> {
        let size = self.shape.iter().try_fold(1usize, |size, side| size.checked_mul(*side)).unwrap_or(0);
        let whole = size > 0 && self.classes.len().checked_mul(size) == Some(self.pixels.len());
        self.classes.iter().copied().zip(self.pixels.chunks(size.max(1))).take(if whole { usize::MAX } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    #[test]
    fn each_picture_uses_the_whole_range() {
        let values = [[[[-1.0, 0.0], [1.0, 3.0]]], [[[5.0, 5.0], [5.0, 5.0]]]];
        let pictures = Pictures::of(Tensor::<Flex, 4>::from_data(values, &FlexDevice), vec![ClassId(3), ClassId(0)]);
        assert_eq!(pictures.shape, [1, 2, 2]);
        let each: Vec<_> = pictures.iter().collect();
        assert_eq!(each, [(ClassId(3), &[0, 64, 128, 255][..]), (ClassId(0), &[0; 4])]);
        let torn = Pictures { pixels: vec![0; 7], ..pictures };
        assert_eq!(torn.iter().count(), 0);
    }
}
