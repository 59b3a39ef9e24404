//! Geometric median: robust federated aggregation (RFA).
//!
//! K. Pillutla, S. M. Kakade, Z. Harchaoui: "Robust Aggregation for Federated Learning", IEEE Transactions on Signal
//! Processing 70, 2022, arXiv 1912.13445. Code: `krishnap25/RFA`.
//!
//! The smoothed Weiszfeld algorithm, from the weighted mean:
//!
//! ```text
//! z <- sum_k a_k x_k
//! w_k = a_k / max(nu, norm(z - x_k)), divided by their sum;   z <- sum_k w_k x_k      up to T times
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_k` | client k's vector after local training | the updates |
//! | `a_k` | client k's weight in the objective `sum_k a_k norm(z - x_k)` | [`GeometricMedianConfig::weighting`] |
//! | `nu` | smallest distance, against division by zero | [`GeometricMedianConfig::smoothing`] |
//! | `T` | number of iterations | [`GeometricMedianConfig::iterations`] |
//!
//! State between rounds: none. Memory: a piece of the flat axis of every update at a time; `z` is kept as the weights
//! `w`. Passes over the updates: one for each iteration, one to mix. It stops early where the objective changes by less
//! than a part of [`GeometricMedianConfig::tolerance`].
//!
//! Departures: the paper weighs clients by examples; here they count alike by default, since a client may lie about its
//! examples. Distances are taken of weights alone, running statistics are coordinate medians.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, AggregateError, MixingWeights, PerClientStrategy, Round, UpdateSet, Weighting};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::host::weighted_rows;
use crate::robust::{combine_rows, distances_to, with_median_buffers};

/// Settings of [`GeometricMedian`]. The defaults are the published code's, but for the weighting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeometricMedianConfig {
    /// How clients count in the objective.
    pub weighting: Weighting,
    /// Number of Weiszfeld iterations, from 1.
    pub iterations: usize,
    /// Distances below this count as this, `nu`, above 0.
    pub smoothing: f64,
    /// Relative change of the objective that ends the iterations, at least 0.
    pub tolerance: f64,
}

impl Default for GeometricMedianConfig {
    fn default() -> Self {
        Self { weighting: Weighting::Uniform, iterations: 4, smoothing: 1e-5, tolerance: 1e-6 }
    }
}

impl GeometricMedianConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build(self) -> Result<GeometricMedian, StrategyConfigError> {
        let positive = |v: f64| v > 0.0 && v.is_finite();
        let refused = if self.iterations == 0 {
            Some(("iterations", self.iterations.to_string(), "a number from 1"))
        } else if !positive(self.smoothing) {
            Some(("smoothing", self.smoothing.to_string(), "a number above 0"))
        } else if !(self.tolerance == 0.0 || positive(self.tolerance)) {
            Some(("tolerance", self.tolerance.to_string(), "a number from 0"))
        } else {
            None
        };
        match refused {
            None => Ok(GeometricMedian { config: self }),
            Some((field, value, expected)) => {
                Err(StrategyConfigError::Value { kind: "geometric_median", field, value, expected })
            }
        }
    }
}

/// The point with the least sum of distances to the updates.
#[derive(Clone, Debug)]
pub struct GeometricMedian {
    config: GeometricMedianConfig,
}

impl<B: Backend> PerClientStrategy<B> for GeometricMedian {
    fn name(&self) -> &'static str {
        "geometric_median"
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let GeometricMedianConfig { weighting, iterations, smoothing, tolerance } = self.config;
        let importance = updates.weights(weighting);
        let mut weights = importance.clone();
        let mut last = f64::INFINITY;
        for _ in 0..iterations {
            let distances = distances_to(round, updates, |rows, range| weighted_rows(&weights, rows, range.len()));
            let objective: f64 = importance.iter().zip(&distances).map(|(a, d)| a * d).sum();
            // The objective of the starting point has nothing to be compared with.
            if last.is_finite() && (last - objective).abs() <= tolerance * last {
                break;
            }
            last = objective;
            weights = importance.iter().zip(&distances).map(|(a, d)| a / d.max(smoothing)).collect();
            let total: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= total);
        }
        let mixed = combine_rows(round, updates, |rows, len| {
            weighted_rows(&weights, rows, len).into_iter().map(|v| v as f32).collect()
        })?;
        let global = with_median_buffers(mixed, round, updates)?;
        let clients = updates.iter().map(|u| u.client).collect();
        Ok(Aggregate { mixing: Some(MixingWeights::whole(clients, weights)), ..global.into() })
    }
}
