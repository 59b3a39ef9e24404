//! FedAvgM: server momentum.
//!
//! T.-M. H. Hsu, H. Qi, M. Brown: "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
//! Classification", 2019, arXiv 1909.06335.
//!
//! ```text
//! v <- beta v - Dbar                    damped: v <- beta v - (1 - beta) Dbar
//! x_{t+1} = x_t - eta_g v               Dbar = sum_k p_k (x_k - x_t)
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t` | global vector at the start of the round | `round.global` |
//! | `Dbar` | mean update of the round | `mean.params - round.global` |
//! | `v` | velocity, zeros before the first round | [`FedAvgM`] |
//! | `beta` | momentum | [`FedAvgMConfig::beta`] |
//! | `eta_g` | server learning rate | [`FedAvgMConfig::server_lr`] |
//!
//! State between rounds: `v`. Memory: two vectors besides the mean; one pass. Running statistics are the mean.
//!
//! Departures: none. The paper's form is the plain one; some later papers call the damped one by the same name, whose
//! steps are shorter by `1 - beta` at first and equal in the long run.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, MeanStrategy, ParamVector, Round, RoundMean, StateDict, StateError, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::server_step::{answer, in_pieces};

const KIND: &str = "fedavgm";

/// Settings of [`FedAvgM`]. The default is the paper's form with its usual momentum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedAvgMConfig {
    /// How clients count in the mean.
    pub weighting: Weighting,
    /// Momentum `beta`, in `[0, 1)`.
    pub beta: f64,
    /// Server learning rate `eta_g`, positive.
    pub server_lr: f64,
    /// Whether the new update enters the velocity with `1 - beta` instead of 1.
    pub damped: bool,
}

impl Default for FedAvgMConfig {
    fn default() -> Self {
        Self { weighting: Weighting::Examples, beta: 0.9, server_lr: 1.0, damped: false }
    }
}

impl FedAvgMConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build<B: Backend>(self) -> Result<FedAvgM<B>, StrategyConfigError> {
        StrategyConfigError::share(KIND, "beta", self.beta)?;
        StrategyConfigError::positive(KIND, "server_lr", self.server_lr)?;
        Ok(FedAvgM { config: self, velocity: None })
    }
}

/// Federated averaging with server momentum.
#[derive(Clone, Debug)]
pub struct FedAvgM<B: Backend> {
    config: FedAvgMConfig,
    /// `v`, from the first round on.
    velocity: Option<ParamVector<B>>,
}

impl<B: Backend> MeanStrategy<B> for FedAvgM<B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn weighting(&self) -> Weighting {
        self.config.weighting
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        let FedAvgMConfig { beta, server_lr, damped, .. } = self.config;
        let gain = if damped { 1.0 - beta } else { 1.0 };
        let old = match &self.velocity {
            Some(velocity) => velocity.values().clone(),
            None => round.global.values().zeros_like(),
        };
        let [next, velocity] = in_pieces([round.global.values(), mean.params.values(), &old], |[x, mean, v]| {
            let v = v * beta - (mean - x.clone()) * gain;
            [x - v.clone() * server_lr, v]
        });
        let aggregate = answer(round, mean, next)?;
        let velocity = mean.params.with_values(velocity);
        self.velocity = Some(velocity.map_err(|source| AggregateError::Schema { round: round.index, source })?);
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        self.velocity.iter().for_each(|v| state.insert_params("velocity", v));
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        self.velocity = match state.is_empty() {
            true => None,
            false => Some(state.take_params("velocity", like.schema(), &like.device())?),
        };
        state.expect_empty()
    }
}
