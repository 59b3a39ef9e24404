//! The one registry of strategies: `kind = "…"` in a config selects a variant, `build` makes the strategy.

use burn::tensor::backend::Backend;
use fedburn_core::Strategy;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    BulyanConfig, EwwaConfig, FedAdagradConfig, FedAmsConfig, FedAvgConfig, FedAvgMConfig, FedDfConfig, FedDynConfig,
    FedFtgConfig, FedGenConfig, FedNovaConfig, FedOptConfig, FedOptRule, GeometricMedianConfig, InclusiveFlConfig,
    KrumConfig, MedianConfig, MultiKrumConfig, NormClippingConfig, OptimalAveragingConfig, ScaffoldConfig, SwaConfig,
    TrimmedMeanConfig, WeightErosionConfig,
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
    /// Server momentum.
    #[serde(rename = "fedavgm")]
    FedAvgM(FedAvgMConfig),
    /// Server Adagrad.
    #[serde(rename = "fedadagrad")]
    FedAdagrad(FedAdagradConfig),
    /// Server Adam.
    #[serde(rename = "fedadam")]
    FedAdam(FedOptConfig),
    /// Server Yogi.
    #[serde(rename = "fedyogi")]
    FedYogi(FedOptConfig),
    /// Server AMSGrad.
    #[serde(rename = "fedams")]
    FedAms(FedAmsConfig),
    /// Updates normalised by the clients' steps.
    #[serde(rename = "fednova")]
    FedNova(FedNovaConfig),
    /// Control variates.
    Scaffold(ScaffoldConfig),
    /// Dynamic regularisation.
    #[serde(rename = "feddyn")]
    FedDyn(FedDynConfig),
    /// Fine-tuning of another strategy's model by distillation without data.
    #[serde(rename = "fedftg")]
    FedFtg(FedFtgConfig),
    /// A generator of features that clients learn from, beside another strategy.
    #[serde(rename = "fedgen")]
    FedGen(FedGenConfig),
    /// Fusion of the clients' models by distillation on the server's examples without labels.
    #[serde(rename = "feddf")]
    FedDf(FedDfConfig),
    /// A model for each size of client, which share layers.
    InclusiveFl(InclusiveFlConfig),
    /// Stochastic weight averaging around another strategy.
    Swa(SwaConfig),
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
        "fedavgm",
        "fedadagrad",
        "fedadam",
        "fedyogi",
        "fedams",
        "fednova",
        "scaffold",
        "feddyn",
        "fedftg",
        "fedgen",
        "feddf",
        "inclusive_fl",
        "swa",
    ];

    /// The strategy that this one wraps, where it is a wrapper.
    pub fn base(&self) -> Option<&Self> {
        match self {
            Self::Swa(config) => Some(&config.base),
            Self::NormClipping(config) => Some(&config.base),
            Self::FedFtg(config) => Some(&config.base),
            Self::FedGen(config) => Some(&config.base),
            Self::FedDf(config) => Some(&config.base),
            _ => None,
        }
    }

    /// This strategy and all that it wraps, from the outermost in.
    pub fn layers(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |config| config.base())
    }

    /// Checks the settings and makes the strategy, one that works on vectors alone.
    ///
    /// # Errors
    /// [`StrategyConfigError`] with the kind, the field, its value and what was expected;
    /// [`StrategyConfigError::Models`] where it needs models.
    pub fn build<B: Backend>(self) -> Result<Strategy<B>, StrategyConfigError> {
        self.build_with(&NoModels)
    }

    /// Checks the settings and makes the strategy; `models` makes those that run models on the server.
    ///
    /// # Errors
    /// [`StrategyConfigError`].
    pub fn build_with<B: Backend>(self, models: &dyn ServerModels<B>) -> Result<Strategy<B>, StrategyConfigError> {
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
            Self::NormClipping(config) => Strategy::PerClient(Box::new(config.build_with(models)?)),
            Self::WeightErosion(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::FedAvgM(config) => Strategy::Mean(Box::new(config.build()?)),
            Self::FedAdagrad(config) => Strategy::Mean(Box::new(config.build()?)),
            Self::FedAdam(config) => Strategy::Mean(Box::new(config.build(FedOptRule::Adam)?)),
            Self::FedYogi(config) => Strategy::Mean(Box::new(config.build(FedOptRule::Yogi)?)),
            Self::FedAms(config) => Strategy::Mean(Box::new(config.build()?)),
            Self::FedNova(config) => Strategy::PerClient(Box::new(config.build()?)),
            Self::Scaffold(config) => Strategy::Mean(Box::new(config.build()?)),
            Self::FedDyn(config) => Strategy::Mean(Box::new(config.build()?)),
            Self::FedFtg(mut config) => {
                let base = std::mem::take(&mut config.base).build_with(models)?;
                models.fedftg(config, base)?
            }
            Self::FedGen(mut config) => {
                let base = std::mem::take(&mut config.base).build_with(models)?;
                models.fedgen(config, base)?
            }
            Self::FedDf(mut config) => {
                let base = std::mem::take(&mut config.base).build_with(models)?;
                models.feddf(config, base)?
            }
            Self::InclusiveFl(config) => models.inclusive_fl(config)?,
            Self::Swa(config) => config.build_with(models)?,
        })
    }
}

/// Makes the strategies that run models on the server, which a config alone cannot: it knows no architecture and no data.
pub trait ServerModels<B: Backend> {
    /// [`FedFtg`](crate::FedFtg) around `base`; `config.base` is not looked at.
    ///
    /// # Errors
    /// [`StrategyConfigError`].
    fn fedftg(&self, config: FedFtgConfig, base: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError>;

    /// [`FedGen`](crate::FedGen) around `base`; `config.base` is not looked at.
    ///
    /// # Errors
    /// [`StrategyConfigError`].
    fn fedgen(&self, config: FedGenConfig, base: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError>;

    /// [`FedDf`](crate::FedDf) around `base`; `config.base` is not looked at.
    ///
    /// # Errors
    /// [`StrategyConfigError`].
    fn feddf(&self, config: FedDfConfig, base: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError>;

    /// [`InclusiveFl`](crate::InclusiveFl).
    ///
    /// # Errors
    /// [`StrategyConfigError`].
    fn inclusive_fl(&self, config: InclusiveFlConfig) -> Result<Strategy<B>, StrategyConfigError>;
}

/// For strategies on vectors alone.
struct NoModels;

impl<B: Backend> ServerModels<B> for NoModels {
    fn fedftg(&self, _: FedFtgConfig, _: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError> {
        Err(without_models("fedftg"))
    }

    fn fedgen(&self, _: FedGenConfig, _: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError> {
        Err(without_models("fedgen"))
    }

    fn feddf(&self, _: FedDfConfig, _: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError> {
        Err(without_models("feddf"))
    }

    fn inclusive_fl(&self, _: InclusiveFlConfig) -> Result<Strategy<B>, StrategyConfigError> {
        Err(without_models("inclusive_fl"))
    }
}

fn without_models(kind: &'static str) -> StrategyConfigError {
    let reason = "it runs models on the server, and there is none here; use it in an experiment".to_owned();
    StrategyConfigError::Models { kind, reason }
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
    /// A model that the strategy runs cannot be had.
    #[error("strategy `{kind}`: {reason}")]
    Models {
        /// The strategy's kind.
        kind: &'static str,
        /// Why.
        reason: String,
    },
}

impl StrategyConfigError {
    /// Refuses what is not a number above 0 that 32-bit floats can hold.
    pub(crate) fn positive(kind: &'static str, field: &'static str, value: f64) -> Result<(), Self> {
        Self::check(kind, field, value, (1e-30..=1e30).contains(&value), "a number above 0, from 1e-30 to 1e30")
    }

    /// Refuses what is not a number from 0 that 32-bit floats can hold.
    pub(crate) fn not_negative(kind: &'static str, field: &'static str, value: f64) -> Result<(), Self> {
        Self::check(kind, field, value, (0.0..=1e30).contains(&value), "a number from 0 to 1e30")
    }

    /// Refuses what is not a decay rate.
    pub(crate) fn share(kind: &'static str, field: &'static str, value: f64) -> Result<(), Self> {
        Self::check(kind, field, value, (0.0..1.0).contains(&value), "a number from 0 to below 1")
    }

    /// Refuses what is not a factor from round to round.
    pub(crate) fn decay(kind: &'static str, field: &'static str, value: f64) -> Result<(), Self> {
        Self::check(kind, field, value, value > 0.0 && value <= 1.0, "a number above 0, at most 1")
    }

    /// Refuses batches of a generator that are too small or too large, or too many of them in a round.
    pub(crate) fn generated(kind: &'static str, iterations: usize, batch_size: usize) -> Result<(), Self> {
        let in_batch = (2..=MOST_IN_BATCH).contains(&batch_size);
        Self::check(kind, "batch_size", batch_size, in_batch, "2 to 512 examples")?;
        let examples = iterations.checked_mul(batch_size).filter(|examples| *examples <= MOST_EXAMPLES);
        let expected = "at most 16,777,216 examples a round, iterations times batch_size";
        Self::check(kind, "iterations", iterations, examples.is_some(), expected)
    }

    /// Refuses no network of teachers in memory.
    pub(crate) fn resident(kind: &'static str, networks: usize) -> Result<(), Self> {
        Self::check(kind, "teachers_resident", networks, networks > 0, "at least 1")
    }

    pub(crate) fn check(
        kind: &'static str,
        field: &'static str,
        value: impl ToString,
        ok: bool,
        expected: &'static str,
    ) -> Result<(), Self> {
        if ok { Ok(()) } else { Err(Self::Value { kind, field, value: value.to_string(), expected }) }
    }
}

/// Examples that a generator may make in a round.
const MOST_EXAMPLES: usize = 1 << 24;
/// Examples of a batch, whose pairs are compared.
const MOST_IN_BATCH: usize = 512;
