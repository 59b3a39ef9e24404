//! The one registry of strategies: `kind = "…"` in a config selects a variant, `build` makes the strategy.

use burn::tensor::backend::Backend;
use fedburn_core::Strategy;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    BulyanConfig, EwwaConfig, FedAvgConfig, GeometricMedianConfig, KrumConfig, MedianConfig, MultiKrumConfig,
    NormClippingConfig, OptimalAveragingConfig, TrimmedMeanConfig, WeightErosionConfig,
};

/// Settings of any strategy, as an experiment's `[strategy]` table holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StrategyConfig {
    /// Federated averaging.
    #[serde(rename = "fedavg")]
    FedAvg(FedAvgConfig),
    /// Element-wise weights aggregation.
    Ewwa(EwwaConfig),
    /// Weights of least risk for several sources.
    OptimalAveraging(OptimalAveragingConfig),
    /// Coordinate-wise median.
    Median(MedianConfig),
    /// Coordinate-wise trimmed mean.
    TrimmedMean(TrimmedMeanConfig),
    /// The vector with the closest neighbours.
    Krum(KrumConfig),
    /// The mean of the vectors with the closest neighbours.
    MultiKrum(MultiKrumConfig),
    /// Selection by Krum, then a mean around the median.
    Bulyan(BulyanConfig),
    /// Geometric median.
    GeometricMedian(GeometricMedianConfig),
    /// Bounded steps in front of another strategy.
    NormClipping(NormClippingConfig),
    /// One client's model, from which differing peers fade out.
    WeightErosion(WeightErosionConfig),
}

impl Default for StrategyConfig {
    fn default() -> Self {
        Self::FedAvg(FedAvgConfig::default())
    }
}

impl StrategyConfig {
    /// Every `kind`, for lists and error messages.
    pub const KINDS: &'static [&'static str] = &[
        "fedavg",
        "ewwa",
        "optimal_averaging",
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "bulyan",
        "geometric_median",
        "norm_clipping",
        "weight_erosion",
    ];

    /// Checks the settings and makes the strategy.
    ///
    /// # Errors
    /// [`StrategyConfigError`] with the kind, the field, its value and what was expected.
    pub fn build<B: Backend>(self) -> Result<Strategy<B>, StrategyConfigError> {
        Ok(match self {
            Self::FedAvg(config) => Strategy::Mean(Box::new(config.build()?)),
            Self::Ewwa(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::OptimalAveraging(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::Median(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::TrimmedMean(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::Krum(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::MultiKrum(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::Bulyan(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::GeometricMedian(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::NormClipping(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::WeightErosion(config) => Strategy::PerClient(Box::new(config.build()?)),
        })
    }
}

/// A setting that no strategy can work with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StrategyConfigError {
    /// A field's value is out of range.
    #[error("strategy `{kind}`: {field} = {value}, expected {expected}")]
    Value {
        /// The strategy's kind.
        kind: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
}
