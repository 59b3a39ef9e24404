//! Settings of optimal model averaging: part of a client's configuration, carried out by `fedburn-strategies`.

use serde::{Deserialize, Serialize};

/// How a client mixes its own model with the global one: `personal = { kind = "mixing", … }`.
///
/// Checked by `fedburn_strategies::Mixing`, which knows what the settings do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixingConfig {
    /// What gets a weight of its own.
    pub blocks: MixingBlocks,
    /// How a block's weight follows from what was measured.
    pub estimator: MixingEstimator,
    /// How the variance of the client's model is estimated.
    pub variance: VarianceConfig,
    /// The client's own weight in the global model, `w_0` in `[0, 1)`: `n_k / sum n_j` where the global model is an
    /// average that it takes part in, 0 where the average is of others or many.
    pub own_share: f64,
    /// Sends the mean variance over weights as the side scalar [`MixingConfig::VARIANCE`]. Otherwise nothing but the
    /// model leaves the client.
    pub report_variance: bool,
}

impl MixingConfig {
    /// Scalar from a client: the mean over weights of the variance of its parameters.
    pub const VARIANCE: &'static str = "variance";
}

/// Which parameters share one weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixingBlocks {
    /// All of them.
    PerModel,
    /// Those of a tensor; tensors with fewer than three elements join a larger one of their layer.
    #[default]
    PerTensor,
    /// None. Experimental: harmful even where the variance is known.
    PerElement,
}

/// The estimate of a block's weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixingEstimator {
    /// James and Stein's positive-part shrinkage; defined for three elements or more.
    #[default]
    Stein,
    /// Variance over squared distance, without correction.
    Plain,
}

/// The estimate of a model's variance, from models trained on parts of the client's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum VarianceConfig {
    /// Leave one shard out: `(M - 1) / M` times the sum of squared deviations of `M` models.
    Jackknife {
        /// Number of shards and models `M`, at least 2.
        parts: usize,
    },
    /// Disjoint shards: `1 / M` times the sample variance of `M` models. The cheapest.
    Split {
        /// Number of shards and models `M`, at least 2.
        parts: usize,
    },
    /// Samples with replacement: the sample variance of the models.
    Bootstrap {
        /// Number of samples and models, at least 2.
        samples: usize,
    },
}

impl VarianceConfig {
    /// Number of models to train.
    pub fn models(self) -> usize {
        match self {
            Self::Jackknife { parts } | Self::Split { parts } => parts,
            Self::Bootstrap { samples } => samples,
        }
    }
}

impl Default for VarianceConfig {
    fn default() -> Self {
        Self::Jackknife { parts: 5 }
    }
}
