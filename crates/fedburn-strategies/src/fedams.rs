//! FedAMS: FedAdam whose denominator never shrinks.
//!
//! Y. Wang, L. Lin, J. Chen: "Communication-Efficient Adaptive Federated Learning", ICML 2022, arXiv 2205.02719.
//!
//! ```text
//! m    <- beta1 m + (1 - beta1) Dbar                   Dbar = sum_k p_k (x_k - x_t)
//! v    <- beta2 v + (1 - beta2) Dbar^2
//! vmax <- max(vmax, v)
//! x_{t+1} = x_t + eta_g m / sqrt(vmax)
//! bias_correction: eta_g * sqrt(1 - beta2^s) / (1 - beta1^s) in place of eta_g
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t` | global vector at the start of the round | `round.global` |
//! | `Dbar` | mean update of the round | `mean.params - round.global` |
//! | `m`, `v`, `vmax` | running means of updates and of their squares, and the largest of these | [`FedAms`] |
//! | `s` | rounds that entered the moments, this one included | [`FedAms`] |
//! | `beta1`, `beta2`, `eta_g` | decay rates, server learning rate | [`FedAmsConfig`] |
//!
//! State between rounds: `m` and `v` (from zeros), `vmax` (from `vmax0`), `s`. Memory: five vectors besides the mean;
//! one pass. Running statistics are the mean. Clients that compress what they send make FedCAMS of it; nothing changes
//! on the server.
//!
//! Departures. The paper's maximum is over `(vmax, v, epsilon)`, which is `vmax0 = epsilon`; it has no bias correction
//! (`bias_correction = false`). The published code, and the default here, divides `sqrt(vmax)` by `sqrt(1 - beta2^s)`
//! and the step by `1 - beta1^s`. Mean updates are limited to 1e18 in size, so that squares stay finite.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, MeanStrategy, ParamVector, Round, RoundMean, StateDict, StateError, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::server_step::{LARGEST_STEP, answer, in_pieces};

const KIND: &str = "fedams";

/// Settings of [`FedAms`]. The defaults are the published code's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedAmsConfig {
    /// How clients count in the mean.
    pub weighting: Weighting,
    /// Server learning rate `eta_g`, positive.
    pub server_lr: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// The largest second moment before the first round, positive: the least square that a step is divided by.
    pub vmax0: f64,
    /// Whether the step makes up for moments that start from zero.
    pub bias_correction: bool,
}

impl Default for FedAmsConfig {
    fn default() -> Self {
        Self {
            weighting: Weighting::Examples,
            server_lr: 1.0,
            beta1: 0.9,
            beta2: 0.99,
            vmax0: 1e-3,
            bias_correction: true,
        }
    }
}

impl FedAmsConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build<B: Backend>(self) -> Result<FedAms<B>, StrategyConfigError> {
        StrategyConfigError::positive(KIND, "server_lr", self.server_lr)?;
        StrategyConfigError::share(KIND, "beta1", self.beta1)?;
        StrategyConfigError::share(KIND, "beta2", self.beta2)?;
        StrategyConfigError::positive(KIND, "vmax0", self.vmax0)?;
        Ok(FedAms { config: self, moments: None })
    }
}

/// FedAdam with the largest second moment so far.
#[derive(Clone, Debug)]
pub struct FedAms<B: Backend> {
    config: FedAmsConfig,
    /// From the first round on.
    moments: Option<Moments<B>>,
}

#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    first: ParamVector<B>,
    second: ParamVector<B>,
    largest: ParamVector<B>,
    rounds: u64,
}

impl<B: Backend> MeanStrategy<B> for FedAms<B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn weighting(&self) -> Weighting {
        self.config.weighting
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        let FedAmsConfig { server_lr, beta1, beta2, vmax0, bias_correction, .. } = self.config;
        let x = round.global.values();
        let ([first, second, largest], rounds) = match &self.moments {
            Some(old) => ([&old.first, &old.second, &old.largest].map(|v| v.values().clone()), old.rounds + 1),
            None => ([x.zeros_like(), x.zeros_like(), x.full_like(vmax0)], 1),
        };
        let missing = |beta: f64| 1.0 - beta.powf(rounds as f64);
        let rate = if bias_correction { server_lr * missing(beta2).sqrt() / missing(beta1) } else { server_lr };
        let inputs = [x, mean.params.values(), &first, &second, &largest];
        let [next, first, second, largest] = in_pieces(inputs, |[x, mean, m, v, largest]| {
            let delta = (mean - x.clone()).clamp(-LARGEST_STEP, LARGEST_STEP);
            let v = v * beta2 + delta.clone() * delta.clone() * (1.0 - beta2);
            let m = m * beta1 + delta * (1.0 - beta1);
            let largest = largest.max_pair(v.clone());
            [x + m.clone() / largest.clone().sqrt() * rate, m, v, largest]
        });
        let aggregate = answer(round, mean, next)?;
        let vector = |values| {
            let vector = mean.params.with_values(values);
            vector.map_err(|source| AggregateError::Schema { round: round.index, source })
        };
        self.moments =
            Some(Moments { first: vector(first)?, second: vector(second)?, largest: vector(largest)?, rounds });
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        if let Some(moments) = &self.moments {
            state.insert_params("first", &moments.first);
            state.insert_params("second", &moments.second);
            state.insert_params("largest", &moments.largest);
            state.insert_u64("rounds", moments.rounds);
        }
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        self.moments = match state.is_empty() {
            true => None,
            false => Some(Moments {
                first: state.take_params("first", like.schema(), &like.device())?,
                second: state.take_params("second", like.schema(), &like.device())?,
                largest: state.take_params("largest", like.schema(), &like.device())?,
                rounds: state.take_u64("rounds")?,
            }),
        };
        state.expect_empty()
    }
}
