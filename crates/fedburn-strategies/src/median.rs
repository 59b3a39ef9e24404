//! Coordinate-wise median.
//!
//! D. Yin, Y. Chen, K. Ramchandran, P. Bartlett: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
//! Rates", ICML 2018, arXiv 1803.01498, Algorithm 1 (option I).
//!
//! ```text
//! x_{t+1}[i] = median_k x_k[i]        for an even number of clients the mean of the two middle values
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_k` | client k's vector after local training | the updates |
//!
//! State between rounds: none. Memory: a piece of the flat axis of every update at a time, sorted on the host. Example
//! counts are not used: a number that the client itself tells is a number that it may lie about.
//!
//! Departures: the paper takes medians of gradients; medians of parameters are the same up to the shift by `x_t`.
//! Running statistics are medians too.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, AggregateError, PerClientStrategy, Round, UpdateSet};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::robust::coordinate_median;

/// Settings of [`Median`]; there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MedianConfig {}

impl MedianConfig {
    /// Makes the rule.
    ///
    /// # Errors
    /// None; as every strategy's.
    pub fn build(self) -> Result<Median, StrategyConfigError> {
        Ok(Median)
    }
}

/// The coordinate-wise median; works with any number of updates.
#[derive(Clone, Debug)]
pub struct Median;

impl<B: Backend> PerClientStrategy<B> for Median {
    fn name(&self) -> &'static str {
        "median"
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        Ok(coordinate_median(round, updates)?.into())
    }
}
