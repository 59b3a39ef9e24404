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

mod catalogue;
mod ewwa;
mod fedavg;
mod host;
mod optimal_averaging;

pub use catalogue::{StrategyConfig, StrategyConfigError};
pub use ewwa::{Ewwa, EwwaConfig, EwwaForm, EwwaOptimizer};
pub use fedavg::{FedAvg, FedAvgConfig};
pub use optimal_averaging::{
    Averaging, BiasEstimate, Mixed, Mixing, MixingClient, OptimalAveraging, OptimalAveragingConfig, SourceWeights,
    source_weights,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
