//! FedAdagrad, FedAdam and FedYogi: adaptive server optimisers on the mean update.
//!
//! S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan: "Adaptive Federated
//! Optimization", ICLR 2021, arXiv 2003.00295.
//!
//! ```text
//! m <- beta1 m + (1 - beta1) Dbar                      Dbar = sum_k p_k (x_k - x_t)
//! FedAdagrad   v <- v + Dbar^2
//! FedAdam      v <- beta2 v + (1 - beta2) Dbar^2
//! FedYogi      v <- v - (1 - beta2) Dbar^2 sign(v - Dbar^2)
//! x_{t+1} = x_t + eta_g m / (sqrt(v) + tau)
//! bias_correction: eta_g * sqrt(1 - beta2^s) / (1 - beta1^s) in place of eta_g
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t` | global vector at the start of the round | `round.global` |
//! | `Dbar` | mean update of the round | `mean.params - round.global` |
//! | `m`, `v` | running means of updates and of their squares, element by element | [`FedOpt`] |
//! | `s` | rounds that entered the moments, this one included | [`FedOpt`] |
//! | `tau` | degree of adaptivity: the larger, the more like plain averaging with momentum | [`FedOptConfig::tau`] |
//! | `beta1`, `beta2`, `eta_g` | decay rates, server learning rate | [`FedOptConfig`] |
//!
//! State between rounds: `m` (from zeros), `v` (from `v0`), `s`. Memory: four vectors besides the mean; one pass.
//! Running statistics are the mean. A round that is abandoned enters nothing, so `s` counts used rounds.
//!
//! Departures: none by default; the paper has no bias correction and starts from `v >= tau^2`. With
//! `bias_correction = true` and `v0 = 0` the rule is the Adam of widely used libraries (for FedAdagrad, where `v` is a
//! sum, only `m` is corrected). The paper's own runs of FedAdagrad take `beta1 = 0`. Mean updates are limited to 1e18
//! in size, so that squares stay finite.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, MeanStrategy, ParamVector, Round, RoundMean, StateDict, StateError, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::server_step::{LARGEST_STEP, answer, in_pieces};

/// How the second moment follows squared updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FedOptRule {
    /// Their sum.
    Adagrad,
    /// Their exponential mean.
    Adam,
    /// Moves towards each of them by a step that does not depend on the distance.
    Yogi,
}

impl FedOptRule {
    fn kind(self) -> &'static str {
        match self {
            Self::Adagrad => "fedadagrad",
            Self::Adam => "fedadam",
            Self::Yogi => "fedyogi",
        }
    }
}

/// Settings of FedAdam and FedYogi.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedOptConfig {
    /// How clients count in the mean.
    pub weighting: Weighting,
    /// Server learning rate `eta_g`, positive; to be tuned.
    pub server_lr: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root of the second moment, positive.
    pub tau: f64,
    /// Second moment before the first round, from 0; `tau^2` where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v0: Option<f64>,
    /// Whether the step makes up for moments that start from zero.
    pub bias_correction: bool,
}

impl Default for FedOptConfig {
    fn default() -> Self {
        Self {
            weighting: Weighting::Examples,
            server_lr: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            tau: 1e-3,
            v0: None,
            bias_correction: false,
        }
    }
}

impl FedOptConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build<B: Backend>(self, rule: FedOptRule) -> Result<FedOpt<B>, StrategyConfigError> {
        let kind = rule.kind();
        StrategyConfigError::positive(kind, "server_lr", self.server_lr)?;
        StrategyConfigError::share(kind, "beta1", self.beta1)?;
        StrategyConfigError::share(kind, "beta2", self.beta2)?;
        StrategyConfigError::positive(kind, "tau", self.tau)?;
        let v0 = self.v0.unwrap_or(self.tau * self.tau);
        StrategyConfigError::not_negative(kind, "v0", v0)?;
        Ok(FedOpt { config: self, v0, rule, moments: None })
    }
}

/// Settings of FedAdagrad: those of [`FedOptConfig`] without the decay of a second moment that is a sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedAdagradConfig {
    /// How clients count in the mean.
    pub weighting: Weighting,
    /// Server learning rate `eta_g`, positive; to be tuned.
    pub server_lr: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Added to the root of the second moment, positive.
    pub tau: f64,
    /// Second moment before the first round, from 0; `tau^2` where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v0: Option<f64>,
    /// Whether the step makes up for a first moment that starts from zero.
    pub bias_correction: bool,
}

impl Default for FedAdagradConfig {
    fn default() -> Self {
        let FedOptConfig { weighting, server_lr, beta1, tau, v0, bias_correction, .. } = FedOptConfig::default();
        Self { weighting, server_lr, beta1, tau, v0, bias_correction }
    }
}

impl FedAdagradConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build<B: Backend>(self) -> Result<FedOpt<B>, StrategyConfigError> {
        let Self { weighting, server_lr, beta1, tau, v0, bias_correction } = self;
        let config = FedOptConfig { weighting, server_lr, beta1, beta2: 0.0, tau, v0, bias_correction };
        config.build(FedOptRule::Adagrad)
    }
}

/// An adaptive server optimiser.
#[derive(Clone, Debug)]
pub struct FedOpt<B: Backend> {
    config: FedOptConfig,
    v0: f64,
    rule: FedOptRule,
    /// From the first round on.
    moments: Option<Moments<B>>,
}

#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    first: ParamVector<B>,
    second: ParamVector<B>,
    rounds: u64,
}

impl<B: Backend> FedOpt<B> {
    /// `eta_g`, or what makes up for moments that began `rounds` ago.
    fn rate(&self, rounds: u64) -> f64 {
        let FedOptConfig { server_lr, beta1, beta2, bias_correction, .. } = self.config;
        let missing = |beta: f64| 1.0 - beta.powf(rounds as f64);
        match (bias_correction, self.rule) {
            (false, _) => server_lr,
            (true, FedOptRule::Adagrad) => server_lr / missing(beta1),
            (true, FedOptRule::Adam | FedOptRule::Yogi) => server_lr * missing(beta2).sqrt() / missing(beta1),
        }
    }
}

impl<B: Backend> MeanStrategy<B> for FedOpt<B> {
    fn name(&self) -> &'static str {
        self.rule.kind()
    }

    fn weighting(&self) -> Weighting {
        self.config.weighting
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        let FedOptConfig { beta1, beta2, tau, .. } = self.config;
        let x = round.global.values();
        let (first, second, rounds) = match &self.moments {
            Some(old) => (old.first.values().clone(), old.second.values().clone(), old.rounds + 1),
            None => (x.zeros_like(), x.full_like(self.v0), 1),
        };
        let (rule, rate) = (self.rule, self.rate(rounds));
        let [next, first, second] = in_pieces([x, mean.params.values(), &first, &second], |[x, mean, m, v]| {
            let delta = (mean - x.clone()).clamp(-LARGEST_STEP, LARGEST_STEP);
            let square = delta.clone() * delta.clone();
            let m = m * beta1 + delta * (1.0 - beta1);
            let v = match rule {
                FedOptRule::Adagrad => v + square,
                FedOptRule::Adam => v * beta2 + square * (1.0 - beta2),
                FedOptRule::Yogi => v.clone() - square.clone() * (v - square).sign() * (1.0 - beta2),
            };
            [x + m.clone() / (v.clone().sqrt() + tau) * rate, m, v]
        });
        let aggregate = answer(round, mean, next)?;
        let vector = |values| {
            let vector = mean.params.with_values(values);
            vector.map_err(|source| AggregateError::Schema { round: round.index, source })
        };
        self.moments = Some(Moments { first: vector(first)?, second: vector(second)?, rounds });
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        if let Some(moments) = &self.moments {
            state.insert_params("first", &moments.first);
            state.insert_params("second", &moments.second);
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
                rounds: state.take_u64("rounds")?,
            }),
        };
        state.expect_empty()
    }
}
