//! What all families of this crate share: build lazily, then draw the weights from the seed.

use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::Mode;

/// Implements [`ModelFamily`](fedburn_core::ModelFamily) for a recipe with `fn build<B>(&self, device) -> Model<B>`.
/// Where it is `slim`, the recipe has a `fn slimmed(&self, share) -> Option<Self>` besides, for shares in `(0, 1]`.
macro_rules! impl_family {
    ($family:ty, $model:ident, $scheme:expr $(, $slim:ident)?) => {
        impl<B: fedburn_ops::Kernels> fedburn_core::ModelFamily<B> for $family {
            type Model = $model<B>;
            type TrainModel = $model<burn::backend::Autodiff<B>>;

            fn init(&self, seed: fedburn_core::Seed, device: &B::Device) -> $model<B> {
                $crate::seeded::<B, _>(self.build(device), seed, $scheme)
            }

            $(fn $slim(&self, share: f64) -> Option<Self> {
                if share > 0.0 && share <= 1.0 { self.slimmed(share) } else { None }
            })?
        }
    };
}

/// How many of so many channels a `share` in `(0, 1]` of them is, rounded up: at least one, at most all.
pub(crate) fn share_of(channels: usize, share: f64) -> usize {
    // What rounding leaves over is no channel. Casts of floats saturate.
    ((channels as f64 * share - 1e-9).ceil() as usize).clamp(1, channels)
}

/// What a layer of a slim net makes, as large as in the whole net: divided by `share` in training.
pub(crate) fn scaled<B: Backend, const D: usize>(x: Tensor<B, D>, share: f64, mode: Mode) -> Tensor<B, D> {
    if mode == Mode::Train && share < 1.0 { x.div_scalar(share) } else { x }
}

/// The mean of the scores of an ensemble's members; of none, there are none.
pub(crate) fn mean<B: Backend>(first: Tensor<B, 2>, others: impl Iterator<Item = Tensor<B, 2>>) -> Tensor<B, 2> {
    let (sum, count) = others.fold((first, 1), |(sum, count), logits| (sum + logits, count + 1));
    sum.div_scalar(f64::from(count))
}

pub(crate) use impl_family;

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    #[test]
    fn scores_are_mixed_alike() {
        let [a, b] = [[1.0f32, 0.0], [3.0, 2.0]].map(|row| Tensor::<Flex, 2>::from_floats([row], &FlexDevice));
        assert_eq!(mean(a, [b].into_iter()).into_data().to_vec::<f32>().unwrap(), [2.0, 1.0]);
    }

    #[test]
    fn shares_are_rounded_up_but_not_by_what_rounding_leaves() {
        let shares = [(8, 0.375, 3), (8, 1.0 / 6.0, 2), (100, 0.07, 7), (3, 1e-9, 1), (5, 1.0, 5)];
        for (channels, share, expected) in shares {
            assert_eq!(share_of(channels, share), expected, "{share} of {channels}");
        }
    }
}
