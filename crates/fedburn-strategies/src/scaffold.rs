//! SCAFFOLD, the server half: control variates against client drift.
//!
//! S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh: "SCAFFOLD: Stochastic Controlled
//! Averaging for Federated Learning", ICML 2020, arXiv 1910.06378.
//!
//! ```text
//! client   y <- x_t;  K times: y <- y - eta_l (grad f_k(y) - c_k + c);  dy_k = y - x_t;  dc_k = c_k+ - c_k
//! server   x_{t+1} = x_t + eta_g * mean_k dy_k
//!          c <- c + (m / N) * mean_k dc_k
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t` | global vector at the start of the round | `round.global` |
//! | `y` | client k's vector after local training | in `mean.params` |
//! | `c` | the server's control variate, sent to every client | `SideInfo::CONTROL`; not sent before the first round: zeros |
//! | `dc_k` | how client k's control variate changed | `SideInfo::CONTROL_DELTA` |
//! | `m`, `N` | clients of the round, clients known | `mean.num_updates`, `round.population` |
//! | `eta_g` | server learning rate | [`ScaffoldConfig::server_lr`] |
//!
//! State between rounds: `c`, zeros before the first. Memory: two vectors besides both means; down and up are two
//! vectors each. Clients count alike. Running statistics are the (uniform) mean, and have no control variate.
//!
//! Departures: none. The client half is the local rule `scaffold`.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientId, MeanStrategy, ParamVector, Round, RoundIndex, RoundMean, SideInfo, StateDict,
    StateError, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::server_step::{answer, norm, relaxed};

const KIND: &str = "scaffold";

/// Settings of [`Scaffold`]. The default is the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScaffoldConfig {
    /// Server learning rate `eta_g`, positive.
    pub server_lr: f64,
}

impl Default for ScaffoldConfig {
    fn default() -> Self {
        Self { server_lr: 1.0 }
    }
}

impl ScaffoldConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where `server_lr` is not a positive number.
    pub fn build<B: Backend>(self) -> Result<Scaffold<B>, StrategyConfigError> {
        StrategyConfigError::positive(KIND, "server_lr", self.server_lr)?;
        Ok(Scaffold { config: self, control: None })
    }
}

/// Averaging with control variates.
#[derive(Clone, Debug)]
pub struct Scaffold<B: Backend> {
    config: ScaffoldConfig,
    /// `c`, from the first round on.
    control: Option<ParamVector<B>>,
}

impl<B: Backend> MeanStrategy<B> for Scaffold<B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn weighting(&self) -> Weighting {
        Weighting::Uniform
    }

    fn side_info(&self, _round: RoundIndex, _client: ClientId) -> SideInfo<B> {
        let control = self.control.iter().map(|c| (SideInfo::<B>::CONTROL.into(), c.clone()));
        SideInfo { vectors: control.collect(), ..SideInfo::default() }
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let name = SideInfo::<B>::CONTROL_DELTA;
        let delta = mean.side.vectors.get(name).ok_or_else(|| AggregateError::Unusable {
            round: round.index,
            strategy: KIND,
            reason: format!("clients did not send `{name}`; train them with the local rule `scaffold`"),
        })?;
        let share = mean.num_updates as f64 / round.population as f64;
        let change = delta.values().clone() * share;
        let zeros = ParamVector::zeros(delta.schema().clone(), &delta.device());
        let control = match &self.control {
            Some(control) => control.values().clone() + change,
            None => change,
        };
        let control = delta.with_values(control).and_then(|control| control.with_buffers_of(&zeros)).map_err(schema)?;

        let mut aggregate = answer(round, mean, relaxed(round, mean, self.config.server_lr))?;
        aggregate.metrics.add("control_norm", norm(&control));
        self.control = Some(control);
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        self.control.iter().for_each(|c| state.insert_params("control", c));
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        self.control = match state.is_empty() {
            true => None,
            false => Some(state.take_params("control", like.schema(), &like.device())?),
        };
        state.expect_empty()
    }
}
