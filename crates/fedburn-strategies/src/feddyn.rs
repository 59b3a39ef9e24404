//! FedDyn, the server half: dynamic regularisation.
//!
//! D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama: "Federated Learning Based on
//! Dynamic Regularization", ICLR 2021, arXiv 2111.04263. Code: `alpemreacar/FedDyn`.
//!
//! ```text
//! client   x_k = argmin f_k(x) - <g_k, x> + (alpha / 2) |x - x_t|^2;   g_k <- g_k - alpha (x_k - x_t)
//! server   h <- h - (alpha / N) * sum_k (x_k - x_t)
//!          x_{t+1} = mean_k x_k - h / alpha
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t`, `x_k` | global vector, client k's after local training | `round.global`, in `mean.params` |
//! | `h` | mean of all clients' gradient corrections, `h = -(alpha / N) * drift` | [`FedDyn`] keeps `drift` |
//! | `N` | most clients known in any round so far | `round.population` |
//! | `alpha` | strength of the regulariser, sent to every client | [`FedDynConfig::alpha`], `SideInfo::ALPHA` |
//!
//! State between rounds: `drift = sum over rounds and clients of (x_k - x_t)`, zeros before the first, and `N`. It is
//! free of `alpha`, and stays right when clients join: `x_{t+1} = mean_k x_k + drift / N`. Memory: two vectors besides
//! the mean; down one vector and a number, up one vector. Clients count alike. Running statistics are the (uniform)
//! mean.
//!
//! Watch the metric `drift_norm`, which is `|h| / alpha`: with many clients that are seen rarely, `h` is stale and grows.
//!
//! Where clients hold parts of the model, as in DepthFL, the sum and the mean of each value are over those who hold it, and
//! what nobody holds stays as it is, drift and all.
//!
//! Departures: none in the equations. The published code keeps `-h / alpha` also; it scales `alpha` by each client's
//! number of examples, which is the client's affair. The client half is the local rule `feddyn`.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, ClientId, Mean, MeanStrategy, ParamVector, Round, RoundIndex, RoundMean, SideInfo,
    StateDict, StateError, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::server_step::{answer, in_pieces, norm};

const KIND: &str = "feddyn";

/// Settings of [`FedDyn`]. The default is the published code's for CIFAR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedDynConfig {
    /// Strength of the regulariser, positive; clients use this value.
    pub alpha: f64,
}

impl Default for FedDynConfig {
    fn default() -> Self {
        Self { alpha: 0.01 }
    }
}

impl FedDynConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where `alpha` is not a positive number.
    pub fn build<B: Backend>(self) -> Result<FedDyn<B>, StrategyConfigError> {
        StrategyConfigError::positive(KIND, "alpha", self.alpha)?;
        Ok(FedDyn { config: self, history: None })
    }
}

/// Averaging with dynamic regularisation.
#[derive(Clone, Debug)]
pub struct FedDyn<B: Backend> {
    config: FedDynConfig,
    /// From the first round on.
    history: Option<History<B>>,
}

#[derive(Clone, Debug)]
struct History<B: Backend> {
    drift: ParamVector<B>,
    /// `N`.
    population: u64,
}

/// How many clients hold each value, `[num_values]`, on the device of `like`.
fn counts<B: Backend>(stretches: &[(Range<usize>, u64)], like: &Tensor<B, 1>) -> Tensor<B, 1> {
    let counts = stretches.iter().flat_map(|(range, count)| std::iter::repeat_n(*count as f32, range.len()));
    let counts: Vec<f32> = counts.collect();
    Tensor::from_data(TensorData::from(counts.as_slice()), &like.device())
}

impl<B: Backend> MeanStrategy<B> for FedDyn<B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn weighting(&self) -> Weighting {
        Weighting::Uniform
    }

    fn side_info(&self, _round: RoundIndex, _client: ClientId) -> SideInfo<B> {
        SideInfo { scalars: [(SideInfo::<B>::ALPHA.into(), self.config.alpha)].into(), ..SideInfo::default() }
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let x = round.global.values();
        let (old, known) = match &self.history {
            Some(old) => (old.drift.values().clone(), old.population),
            None => (x.zeros_like(), 0),
        };
        let (population, updates) = (known.max(round.population), mean.num_updates as f64);
        let (share, averaged) = (1.0 / population as f64, mean.params.values());
        let [next, drift] = match mean.holders.as_deref().map(|stretches| counts(stretches, x)) {
            None => in_pieces([x, averaged, &old], |[x, mean, drift]| {
                let drift = drift + (mean.clone() - x) * updates;
                [mean + drift.clone() * share, drift]
            }),
            Some(counts) => in_pieces([x, averaged, &old, &counts], |[x, mean, drift, counts]| {
                let nobody = counts.clone().equal_elem(0.0);
                let drift = drift + (mean.clone() - x) * counts;
                // The mean is `x_t` there.
                [(mean.clone() + drift.clone() * share).mask_where(nobody, mean), drift]
            }),
        };
        let mut aggregate = answer(round, mean, next)?;
        let zeros = ParamVector::zeros(mean.params.schema().clone(), &mean.params.device());
        let drift = mean.params.with_values(drift).and_then(|drift| drift.with_buffers_of(&zeros)).map_err(schema)?;
        let size = norm(&drift).value().unwrap_or_default() * share;
        aggregate.metrics.add("drift_norm", Mean::new(size, 1.0));
        self.history = Some(History { drift, population });
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        if let Some(history) = &self.history {
            state.insert_params("drift", &history.drift);
            state.insert_u64("population", history.population);
        }
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        self.history = match state.is_empty() {
            true => None,
            false => Some(History {
                drift: state.take_params("drift", like.schema(), &like.device())?,
                population: state.take_u64("population")?,
            }),
        };
        state.expect_empty()
    }
}
