//! The server half of federated learning: aggregation strategies, one file each, and a catalogue that builds them from
//! configs.
//!
//! # Examples
//!
//! ```
//! use fedburn_strategies::StrategyConfig;
//! use burn_flex::Flex;
//!
//! let strategy = StrategyConfig::default().build::<Flex>()?;
//! assert_eq!(strategy.name(), "fedavg");
//! # Ok::<(), fedburn_strategies::StrategyConfigError>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adam;
mod bulyan;
mod catalogue;
mod class_counts;
mod ewwa;
mod fedams;
mod fedavg;
mod fedavgm;
mod feddf;
mod feddyn;
mod fedftg;
mod fedgen;
mod fednova;
mod fedopt;
mod generated;
mod geometric_median;
mod host;
mod inclusive_fl;
mod krum;
mod median;
mod network;
mod norm_clipping;
mod optimal_averaging;
mod robust;
mod scaffold;
mod server_step;
mod swa;
mod teachers;
mod trimmed_mean;
mod weight_erosion;

pub use bulyan::{Bulyan, BulyanConfig};
pub use catalogue::{ServerModels, StrategyConfig, StrategyConfigError};
pub use ewwa::{Ewwa, EwwaConfig, EwwaForm, EwwaOptimizer};
pub use fedams::{FedAms, FedAmsConfig};
pub use fedavg::{FedAvg, FedAvgConfig};
pub use fedavgm::{FedAvgM, FedAvgMConfig};
pub use feddf::{FedDf, FedDfConfig};
pub use feddyn::{FedDyn, FedDynConfig};
pub use fedftg::{Ensemble, FedFtg, FedFtgConfig, FedFtgForm, LabelSampling};
pub use fedgen::{FedGen, FedGenConfig};
pub use fednova::{EffectiveSteps, FedNova, FedNovaConfig};
pub use fedopt::{FedAdagradConfig, FedOpt, FedOptConfig, FedOptRule};
pub use geometric_median::{GeometricMedian, GeometricMedianConfig};
pub use inclusive_fl::{InclusiveFl, InclusiveFlConfig};
pub use krum::{Krum, KrumConfig, MultiKrum, MultiKrumConfig};
pub use median::{Median, MedianConfig};
pub use norm_clipping::{NormClipping, NormClippingConfig};
pub use optimal_averaging::{
    Averaging, BiasEstimate, Mixed, Mixing, MixingClient, OptimalAveraging, OptimalAveragingConfig, SourceWeights,
    source_weights,
};
pub use robust::IfTooFew;
pub use scaffold::{Scaffold, ScaffoldConfig};
pub use swa::{Swa, SwaCollect, SwaConfig};
pub use trimmed_mean::{TrimmedMean, TrimmedMeanConfig};
pub use weight_erosion::{WeightErosion, WeightErosionConfig};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
