//! Normalisation layers with an explicit mode.

use burn::module::{Initializer, Module, Param, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig, GroupNorm, GroupNormConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::Mode;
use fedburn_ops::Kernels;

/// Which normalisation a residual net uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormChoice {
    /// Group norm: no running statistics, so nothing that heterogeneous clients could disagree about.
    Group {
        /// Number of groups; divides every channel count of the net.
        groups: usize,
    },
    /// Batch norm, as in the original nets.
    Batch,
    /// Batch norm without running statistics: always by the batch at hand, also when a model is evaluated.
    BatchAtHand,
}

/// A normalisation layer.
#[derive(Module, Debug)]
pub enum Norm<B: Backend> {
    /// By groups of channels of one example.
    Group(GroupNorm<B>),
    /// By channel over the batch.
    Batch(BatchNorm<B>),
    /// The same in either mode.
    BatchAtHand(ScaleShift<B>),
}

/// Batch norm without running statistics.
#[derive(Module, Debug)]
pub struct ScaleShift<B: Backend> {
    /// `[channels]`.
    pub gamma: Param<Tensor<B, 1>>,
    /// `[channels]`.
    pub beta: Param<Tensor<B, 1>>,
}

impl NormChoice {
    /// The layer for `channels` channels, epsilon 1e-5; `groups` must divide `channels`.
    pub(crate) fn build<B: Backend>(self, channels: usize, device: &B::Device) -> Norm<B> {
        match self {
            NormChoice::Group { groups } => Norm::Group(GroupNormConfig::new(groups, channels).init(device)),
            NormChoice::Batch => Norm::Batch(BatchNormConfig::new(channels).init(device)),
            NormChoice::BatchAtHand => Norm::BatchAtHand(ScaleShift {
                gamma: Initializer::Ones.init([channels], device),
                beta: Initializer::Zeros.init([channels], device),
            }),
        }
    }
}

impl<B: Kernels> Norm<B> {
    /// Normalises `x` `[batch, channels, height, width]`; `mode` matters to batch norm alone.
    pub fn forward(&self, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        match self {
            Norm::Group(layer) => {
                let (gamma, beta) = scale_and_shift(layer, &x.device());
                fedburn_ops::group_norm(x, gamma, beta, layer.num_groups, layer.epsilon)
            }
            Norm::Batch(layer) => batch_norm(layer, x, mode),
            Norm::BatchAtHand(layer) => over_batch(x, |x, channels| {
                fedburn_ops::group_norm(x, layer.gamma.val(), layer.beta.val(), channels, EPSILON)
            }),
        }
    }

    /// ReLU of [`forward`](Self::forward).
    pub fn forward_relu(&self, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        match self {
            Norm::Group(layer) => {
                let (gamma, beta) = scale_and_shift(layer, &x.device());
                fedburn_ops::group_norm_relu(x, gamma, beta, layer.num_groups, layer.epsilon)
            }
            Norm::Batch(layer) => relu(batch_norm(layer, x, mode)),
            Norm::BatchAtHand(layer) => over_batch(x, |x, channels| {
                fedburn_ops::group_norm_relu(x, layer.gamma.val(), layer.beta.val(), channels, EPSILON)
            }),
        }
    }
}

/// `normalise` of `x` `[batch, channels, height, width]` as one image, whose groups are its channels.
fn over_batch<B: Backend>(
    x: Tensor<B, 4>,
    normalise: impl FnOnce(Tensor<B, 4>, usize) -> Tensor<B, 4>,
) -> Tensor<B, 4> {
    let [batch, channels, height, width] = x.dims();
    let one = x.swap_dims(0, 1).reshape([1, channels, batch * height, width]);
    // The last change of shape makes a copy in order, which is all that is left: who comes next would make one besides.
    let turned = normalise(one, channels).reshape([channels, batch, height * width]).swap_dims(0, 1);
    turned.reshape([batch, channels, height, width])
}

/// Gamma and beta `[channels]`, one and zero where the layer has none.
fn scale_and_shift<B: Backend>(layer: &GroupNorm<B>, device: &B::Device) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let channels = [layer.num_channels];
    (
        layer.gamma.as_ref().map_or_else(|| Tensor::ones(channels, device), |p| p.val()),
        layer.beta.as_ref().map_or_else(|| Tensor::zeros(channels, device), |p| p.val()),
    )
}

/// Batch normalisation, as PyTorch has it: the batch is normalised by its biased variance, the running variance follows
/// the unbiased one. (burn's own layer follows the biased one, and takes its mode from the backend's type.)
///
/// Sergey Ioffe, Christian Szegedy: Batch Normalization, ICML 2015, arXiv:1502.03167.
pub(crate) fn batch_norm<B: Backend>(layer: &BatchNorm<B>, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
    let [_, channels, ..] = x.dims();
    let per_channel = [1, channels, 1, 1];
    let y = standardise(x, [&layer.running_mean, &layer.running_var], layer.momentum, layer.epsilon, mode);
    y * layer.gamma.val().reshape(per_channel) + layer.beta.val().reshape(per_channel)
}

/// Batch normalisation without scale and shift.
#[derive(Module, Debug)]
pub(crate) struct Standardised<B: Backend> {
    running_mean: RunningState<Tensor<B, 1>>,
    running_var: RunningState<Tensor<B, 1>>,
}

impl<B: Backend> Standardised<B> {
    pub(crate) fn new(channels: usize, device: &B::Device) -> Self {
        Self {
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_var: RunningState::new(Tensor::ones([channels], device)),
        }
    }

    /// `x` `[batch, channels, height, width]` with mean 0 and variance 1 in each channel.
    pub(crate) fn forward(&self, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        standardise(x, [&self.running_mean, &self.running_var], MOMENTUM, EPSILON, mode)
    }
}

/// Share of the newest batch in running statistics.
const MOMENTUM: f64 = 0.1;
const EPSILON: f64 = 1e-5;

fn standardise<B: Backend>(
    x: Tensor<B, 4>,
    running: [&RunningState<Tensor<B, 1>>; 2],
    momentum: f64,
    epsilon: f64,
    mode: Mode,
) -> Tensor<B, 4> {
    let [batch, channels, height, width] = x.dims();
    let (centred, variance) = match mode {
        Mode::Evaluate => {
            let [mean, variance] = running.map(|state| state.value_sync().reshape([1, channels, 1, 1]));
            (x - mean, variance)
        }
        Mode::Train => {
            let over_examples = |t: Tensor<B, 4>| t.mean_dim(0).mean_dim(2).mean_dim(3);
            let mean = over_examples(x.clone());
            let centred = x - mean.clone();
            let variance = over_examples(centred.clone().square());
            let count = (batch * height * width) as f64;
            let unbiased = variance.clone() * (count / (count - 1.0).max(1.0));
            for (running, new) in running.into_iter().zip([mean, unbiased]) {
                let new = new.detach().reshape([channels]) * momentum;
                running.update((running.value_sync() * (1.0 - momentum) + new).detach());
                // burn keeps an update pending, unseen by visitors, until the next one.
                running.value_sync();
            }
            (centred, variance)
        }
    };
    centred / (variance + epsilon).sqrt()
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    const X: [f32; 8] = [1.0, 2.0, 4.0, 9.0, -3.0, 0.5, 0.25, -1.0];

    /// Two examples of two channels of two values: mean and biased variance of each channel over the examples.
    fn statistics() -> [(f64, f64); 2] {
        [[0, 1, 4, 5], [2, 3, 6, 7]].map(|indices| {
            let values = indices.map(|i| f64::from(X[i]));
            let mean = values.iter().sum::<f64>() / 4.0;
            (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 4.0)
        })
    }

    fn run(norm: &Norm<Flex>, mode: Mode) -> Vec<f32> {
        let x = Tensor::<Flex, 1>::from_floats(X, &FlexDevice).reshape([2, 2, 1, 2]);
        norm.forward(x, mode).into_data().to_vec().unwrap()
    }

    fn host(tensor: Tensor<Flex, 1>) -> Vec<f32> {
        tensor.into_data().to_vec().unwrap()
    }

    #[test]
    fn batch_norm_follows_its_definition_in_both_modes() {
        let norm = NormChoice::Batch.build::<Flex>(2, &FlexDevice);
        let channel = |i: usize| i / 2 % 2;
        for (i, y) in run(&norm, Mode::Train).into_iter().enumerate() {
            let (mean, variance) = statistics()[channel(i)];
            let expected = (f64::from(X[i]) - mean) / (variance + 1e-5).sqrt();
            assert!((f64::from(y) - expected).abs() < 1e-5, "value {i}: {y}, expected {expected}");
        }
        let Norm::Batch(layer) = &norm else { panic!("asked for batch norm") };
        let (means, variances) = (host(layer.running_mean.value()), host(layer.running_var.value()));
        for (c, (mean, variance)) in statistics().into_iter().enumerate() {
            assert!((f64::from(means[c]) - 0.1 * mean).abs() < 1e-6);
            assert!((f64::from(variances[c]) - (0.9 + 0.1 * variance * 4.0 / 3.0)).abs() < 1e-5);
        }
        for (i, y) in run(&norm, Mode::Evaluate).into_iter().enumerate() {
            let expected = (X[i] - means[channel(i)]) / (variances[channel(i)] + 1e-5).sqrt();
            assert!((y - expected).abs() < 1e-5, "value {i}: {y}, expected {expected}");
        }
    }

    #[test]
    fn batch_norm_without_running_statistics_is_that_of_training_in_both_modes() {
        let (batch, at_hand) =
            (NormChoice::Batch.build::<Flex>(2, &FlexDevice), NormChoice::BatchAtHand.build::<Flex>(2, &FlexDevice));
        let expected = run(&batch, Mode::Train);
        for mode in [Mode::Train, Mode::Evaluate] {
            for (found, expected) in run(&at_hand, mode).into_iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{mode:?}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn group_norm_takes_each_example_alone() {
        let norm = NormChoice::Group { groups: 1 }.build::<Flex>(2, &FlexDevice);
        let y = run(&norm, Mode::Train);
        for example in y.chunks(4) {
            let mean = example.iter().sum::<f32>() / 4.0;
            let variance = example.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 4.0;
            assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-3, "mean {mean}, variance {variance}");
        }
    }
}
