//! Coordinate-wise trimmed mean.
//!
//! D. Yin, Y. Chen, K. Ramchandran, P. Bartlett: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
//! Rates", ICML 2018, arXiv 1803.01498, Algorithm 1 (option II).
//!
//! ```text
//! x_{t+1}[i] = mean of x_k[i] without its q largest and q smallest values,    q = floor(beta m)
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_k`, `m` | client k's vector after local training, number of updates | the updates |
//! | `beta` | share of values dropped at either end | [`TrimmedMeanConfig::beta`] |
//!
//! State between rounds: none. Memory: a piece of the flat axis of every update at a time, sorted on the host. Example
//! counts are not used. At most `q` clients may be broken.
//!
//! Departures: a round in which `q` is zero, `m < 1 / beta`, would be a plain mean that resists nothing; it has too few
//! updates ([`IfTooFew`]). Running statistics are coordinate medians. The paper leaves `beta` to the user; 0.2 is what
//! libraries use.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, AggregateError, PerClientStrategy, Round, UpdateSet};
use serde::{Deserialize, Serialize};

use crate::host::{mean_rows, sort_columns};
use crate::robust::{combine_rows, with_median_buffers};
use crate::{IfTooFew, StrategyConfigError};

/// Settings of [`TrimmedMean`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrimmedMeanConfig {
    /// Share of values dropped at either end, above 0 and below 0.5.
    pub beta: f64,
    /// What to do where `floor(beta m)` is zero.
    pub if_too_few: IfTooFew,
}

impl Default for TrimmedMeanConfig {
    fn default() -> Self {
        Self { beta: 0.2, if_too_few: IfTooFew::Refuse }
    }
}

impl TrimmedMeanConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where `beta` is out of its range.
    pub fn build(self) -> Result<TrimmedMean, StrategyConfigError> {
        if !(self.beta > 0.0 && self.beta < 0.5) {
            return Err(StrategyConfigError::Value {
                kind: NAME,
                field: "beta",
                value: self.beta.to_string(),
                expected: "a number above 0 and below 0.5",
            });
        }
        Ok(TrimmedMean { config: self })
    }
}

/// The coordinate-wise trimmed mean.
#[derive(Clone, Debug)]
pub struct TrimmedMean {
    config: TrimmedMeanConfig,
}

impl<B: Backend> PerClientStrategy<B> for TrimmedMean {
    fn name(&self) -> &'static str {
        NAME
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let TrimmedMeanConfig { beta, if_too_few } = self.config;
        // A product such as 0.29 * 100 lies a rounding below the whole number that is meant.
        let dropped = (beta * updates.len() as f64 * (1.0 + f64::EPSILON)).floor() as usize;
        let dropped = dropped.min((updates.len() - 1) / 2);
        if dropped == 0 {
            let needs = format!("beta = {beta} drops nobody from fewer than {} updates", (1.0 / beta).ceil());
            return if_too_few.answer(NAME, round, updates, &needs);
        }
        let mean = combine_rows(round, updates, |rows, len| {
            sort_columns(rows, len);
            mean_rows(&rows[dropped * len..rows.len() - dropped * len], len)
        })?;
        Ok(with_median_buffers(mean, round, updates)?.into())
    }
}

const NAME: &str = "trimmed_mean";
