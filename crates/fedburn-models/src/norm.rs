//! Normalisation layers with an explicit mode.

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, GroupNorm, GroupNormConfig};
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
}

/// A normalisation layer.
#[derive(Module, Debug)]
pub enum Norm<B: Backend> {
    /// By groups of channels of one example.
    Group(GroupNorm<B>),
    /// By channel over the batch.
    Batch(BatchNorm<B>),
}

impl NormChoice {
    /// The layer for `channels` channels, epsilon 1e-5; `groups` must divide `channels`.
    pub(crate) fn build<B: Backend>(self, channels: usize, device: &B::Device) -> Norm<B> {
        match self {
            NormChoice::Group { groups } => Norm::Group(GroupNormConfig::new(groups, channels).init(device)),
            NormChoice::Batch => Norm::Batch(BatchNormConfig::new(channels).init(device)),
        }
    }
}

impl<B: Kernels> Norm<B> {
    /// Normalises `x` `[batch, channels, height, width]`; `mode` matters to batch norm alone.
    pub fn forward(&self, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
        match self {
            Norm::Group(layer) => {
                let (channels, device) = ([layer.num_channels], x.device());
                let gamma = layer.gamma.as_ref().map_or_else(|| Tensor::ones(channels, &device), |p| p.val());
                let beta = layer.beta.as_ref().map_or_else(|| Tensor::zeros(channels, &device), |p| p.val());
                fedburn_ops::group_norm(x, gamma, beta, layer.num_groups, layer.epsilon)
            }
            Norm::Batch(layer) => batch_norm(layer, x, mode),
        }
    }
}

/// Batch normalisation, as PyTorch has it: the batch is normalised by its biased variance, the running variance follows
/// the unbiased one. (burn's own layer follows the biased one, and takes its mode from the backend's type.)
///
/// Sergey Ioffe, Christian Szegedy: Batch Normalization, ICML 2015, arXiv:1502.03167.
fn batch_norm<B: Backend>(layer: &BatchNorm<B>, x: Tensor<B, 4>, mode: Mode) -> Tensor<B, 4> {
    let [batch, channels, height, width] = x.dims();
    let per_channel = [1, channels, 1, 1];
    let (centred, variance) = match mode {
        Mode::Evaluate => {
            let mean = layer.running_mean.value_sync().reshape(per_channel);
            (x - mean, layer.running_var.value_sync().reshape(per_channel))
        }
        Mode::Train => {
            let over_examples = |t: Tensor<B, 4>| t.mean_dim(0).mean_dim(2).mean_dim(3);
            let mean = over_examples(x.clone());
            let centred = x - mean.clone();
            let variance = over_examples(centred.clone().square());
            let count = (batch * height * width) as f64;
            let unbiased = variance.clone() * (count / (count - 1.0).max(1.0));
            for (running, new) in [(&layer.running_mean, mean), (&layer.running_var, unbiased)] {
                let new = new.detach().reshape([channels]) * layer.momentum;
                running.update((running.value_sync() * (1.0 - layer.momentum) + new).detach());
                // burn keeps an update pending, unseen by visitors, until the next one.
                running.value_sync();
            }
            (centred, variance)
        }
    };
    let y = centred / (variance + layer.epsilon).sqrt();
    y * layer.gamma.val().reshape(per_channel) + layer.beta.val().reshape(per_channel)
}
