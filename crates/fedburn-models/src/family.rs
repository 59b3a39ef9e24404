//! What all families of this crate share: build lazily, then draw the weights from the seed.

/// Implements [`ModelFamily`](fedburn_core::ModelFamily) for a recipe with `fn build<B>(&self, device) -> Model<B>`.
macro_rules! impl_family {
    ($family:ty, $model:ident, $scheme:expr) => {
        impl<B: fedburn_ops::Kernels> fedburn_core::ModelFamily<B> for $family {
            type Model = $model<B>;
            type TrainModel = $model<burn::backend::Autodiff<B>>;

            fn init(&self, seed: fedburn_core::Seed, device: &B::Device) -> $model<B> {
                $crate::seeded::<B, _>(self.build(device), seed, $scheme)
            }
        }
    };
}

pub(crate) use impl_family;
