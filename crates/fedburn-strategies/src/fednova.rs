//! FedNova: updates normalised by how many gradients they add up to.
//!
//! J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor: "Tackling the Objective Inconsistency Problem in Heterogeneous
//! Federated Optimization", NeurIPS 2020, arXiv 2007.07481. Code: `JYWa/FedNova`.
//!
//! ```text
//! x_{t+1} = x_t + tau_eff * sum_k p_k (x_k - x_t) / a_k
//! tau_eff = sum_k p_k a_k   (effective_steps = "accumulated")   or   sum_k p_k tau_k   ("steps")
//! with server momentum:  v <- gmf v + tau_eff * sum_k p_k (x_k - x_t) / a_k ;   x_{t+1} = x_t + v
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t`, `x_k` | global vector, client k's after local training | `round.global`, the updates |
//! | `p_k` | client k's weight | [`FedNovaConfig::weighting`] |
//! | `tau_k` | its number of local steps | `ClientReport::steps` |
//! | `a_k` | 1-norm of its accumulation vector: `tau_k` for plain SGD, more with momentum, less with a proximal term | `ClientReport::accumulation` |
//! | `tau_eff` | effective number of steps of the round | [`FedNovaConfig::effective_steps`] |
//! | `gmf` | server momentum | [`FedNovaConfig::server_momentum`] |
//!
//! State between rounds: none without server momentum, else `v`. Memory: cohort times a piece of the flat axis, and one
//! vector; one pass. Running statistics are the mean by `p_k`.
//!
//! What clients report: `a_k`, and `tau_k` where asked for. A client that took no step (`a_k = 0`) is left out, its
//! weight spread over the others; where nobody took one, nothing changes. Clients must start the round with empty
//! momentum buffers, and Adam has no accumulation vector.
//!
//! Departures: none. The published code takes `sum_k p_k tau_k` with a proximal term and `sum_k p_k a_k` otherwise;
//! here that is the option `effective_steps`, since the server does not know the clients' rule.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, ClientUpdate, Mean, Metrics, MixingWeights, ParamVector, PerClientStrategy, Reports,
    Round, SchemaError, StateDict, StateError, UpdateSet, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::server_step::{UPDATE_NORM, norm};

const KIND: &str = "fednova";

/// What the normalised mean is multiplied by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectiveSteps {
    /// The mean of the accumulations, `sum_k p_k a_k`: plain SGD and momentum.
    #[default]
    Accumulated,
    /// The mean of the numbers of steps, `sum_k p_k tau_k`: clients with a proximal term.
    Steps,
}

/// Settings of [`FedNova`]. The default is the paper's for plain SGD and momentum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedNovaConfig {
    /// How clients count.
    pub weighting: Weighting,
    /// What the normalised mean is multiplied by.
    pub effective_steps: EffectiveSteps,
    /// Momentum `gmf` of the server, in `[0, 1)`.
    pub server_momentum: f64,
}

impl FedNovaConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build<B: Backend>(self) -> Result<FedNova<B>, StrategyConfigError> {
        StrategyConfigError::share(KIND, "server_momentum", self.server_momentum)?;
        Ok(FedNova { config: self, velocity: None })
    }
}

/// Normalised averaging.
#[derive(Clone, Debug)]
pub struct FedNova<B: Backend> {
    config: FedNovaConfig,
    /// `v`, from the first round with server momentum on.
    velocity: Option<ParamVector<B>>,
}

impl<B: Backend> PerClientStrategy<B> for FedNova<B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn reports(&self) -> Reports {
        let steps = self.config.effective_steps == EffectiveSteps::Steps;
        Reports { accumulation: true, steps, ..Reports::default() }
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let unusable = |reason| AggregateError::Unusable { round: round.index, strategy: KIND, reason };
        let Some(Normalised { p, weights, effective }) = self.normalise(updates).map_err(unusable)? else {
            return Ok(round.global.clone().into());
        };
        let x = round.global.values();
        let mut step = weighted_step(round.global, updates, &weights).map_err(schema)?;
        let gmf = self.config.server_momentum;
        if let Some(old) = self.velocity.as_ref().filter(|_| gmf > 0.0) {
            step = step.with_values(old.values().clone() * gmf + step.values().clone()).map_err(schema)?;
        }
        let mut next = round.global.with_values(x.clone() + step.values().clone()).map_err(schema)?;
        if next.schema().num_weights() < next.num_values() {
            let mean = x.clone() + weighted_step(round.global, updates, &p).map_err(schema)?.into_values();
            next = round.global.with_values(mean).and_then(|mean| next.with_buffers_of(&mean)).map_err(schema)?;
        }
        let metrics = Metrics::new().with(UPDATE_NORM, norm(&step)).with("effective_steps", Mean::new(effective, 1.0));
        let clients = updates.iter().map(|u| u.client).collect();
        self.velocity = (gmf > 0.0).then_some(step);
        Ok(Aggregate { metrics, mixing: Some(MixingWeights::whole(clients, weights)), ..next.into() })
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

/// Weights of the round, in cohort order; zeros for clients that took no step.
struct Normalised {
    /// `p_k` over the others.
    p: Vec<f64>,
    /// `tau_eff p_k / a_k`.
    weights: Vec<f64>,
    /// `tau_eff`.
    effective: f64,
}

impl<B: Backend> FedNova<B> {
    /// `None` where nobody took a step.
    fn normalise(&self, updates: &UpdateSet<B>) -> Result<Option<Normalised>, String> {
        let missing = |u: &ClientUpdate<B>, what: &str| format!("client {} did not report its {what}", u.client);
        let accumulation = |u: &ClientUpdate<B>| u.local.report.accumulation.ok_or_else(|| missing(u, "accumulation"));
        let a = updates.iter().map(accumulation).collect::<Result<Vec<_>, _>>()?;
        let steps = match self.config.effective_steps {
            EffectiveSteps::Accumulated => a.clone(),
            EffectiveSteps::Steps => {
                let steps = |u: &ClientUpdate<B>| u.local.report.steps.ok_or_else(|| missing(u, "number of steps"));
                updates.iter().map(|u| Ok(steps(u)? as f64)).collect::<Result<_, String>>()?
            }
        };
        let mut p = updates.weights(self.config.weighting);
        p.iter_mut().zip(&a).filter(|(_, a)| **a <= 0.0).for_each(|(p, _)| *p = 0.0);
        let total: f64 = p.iter().sum();
        if total <= 0.0 {
            return Ok(None);
        }
        p.iter_mut().for_each(|p| *p /= total);
        let effective: f64 = p.iter().zip(&steps).map(|(p, steps)| p * steps).sum();
        let weight = |(p, a): (&f64, &f64)| if *p > 0.0 { p * effective / a } else { 0.0 };
        let weights = p.iter().zip(&a).map(weight).collect();
        Ok(Some(Normalised { p, weights, effective }))
    }
}

/// `sum_k weights[k] (x_k - x_t)`.
fn weighted_step<B: Backend>(
    global: &ParamVector<B>,
    updates: &UpdateSet<B>,
    weights: &[f64],
) -> Result<ParamVector<B>, SchemaError> {
    let column = TensorData::new(weights.iter().map(|w| *w as f32).collect(), [weights.len(), 1]);
    let weights = Tensor::<B, 2>::from_data(column, &global.device());
    updates.combine_chunks(|rows, range| {
        let x = global.values().clone().slice([range]).unsqueeze::<2>();
        ((rows - x) * weights.clone()).sum_dim(0).squeeze_dim(0)
    })
}
