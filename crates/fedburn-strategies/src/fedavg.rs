//! FedAvg.
//!
//! H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: "Communication-Efficient Learning of Deep
//! Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629.
//!
//! ```text
//! x_{t+1} = x_t + eta_g * sum_k p_k (x_k - x_t)        p_k = n_k / sum_j n_j over the round's cohort
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t` | global vector at the start of the round | `round.global` |
//! | `x_k` | client k's vector after local training | in `mean.params` |
//! | `p_k` | client k's weight | [`FedAvgConfig::weighting`] |
//! | `eta_g` | server learning rate | [`FedAvgConfig::server_lr`] |
//!
//! State between rounds: none. Memory: one vector. With `eta_g = 1` the mean itself is the answer, bit for bit; the
//! formula is evaluated only for other rates, and then on weights alone: running statistics are always the mean.
//!
//! Departures: none from the paper, whose `p_k` are normalised over the sampled clients; `weighting = "uniform"` and
//! `server_lr` are common extensions.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, AggregateError, MeanStrategy, Round, RoundMean, Weighting};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;

/// Settings of [`FedAvg`]. The default is the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedAvgConfig {
    /// How clients count: by number of examples (Algorithm 1 of the paper), or all alike.
    pub weighting: Weighting,
    /// Server learning rate `eta_g`, positive; 1 in the paper.
    pub server_lr: f64,
}

impl Default for FedAvgConfig {
    fn default() -> Self {
        Self { weighting: Weighting::Examples, server_lr: 1.0 }
    }
}

impl FedAvgConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where `server_lr` is not a positive number.
    pub fn build(self) -> Result<FedAvg, StrategyConfigError> {
        if !(self.server_lr > 0.0 && self.server_lr.is_finite()) {
            return Err(StrategyConfigError::Value {
                kind: "fedavg",
                field: "server_lr",
                value: self.server_lr.to_string(),
                expected: "a number above 0",
            });
        }
        Ok(FedAvg { config: self })
    }
}

/// Federated averaging.
#[derive(Clone, Debug)]
pub struct FedAvg {
    config: FedAvgConfig,
}

impl<B: Backend> MeanStrategy<B> for FedAvg {
    fn name(&self) -> &'static str {
        "fedavg"
    }

    fn weighting(&self) -> Weighting {
        self.config.weighting
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        if self.config.server_lr == 1.0 {
            return Ok(mean.params.clone().into());
        }
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let delta = mean.params.minus(round.global).map_err(schema)?.into_values();
        let stepped = round.global.values().clone() + delta * self.config.server_lr;
        let stepped = mean.params.with_values(stepped).and_then(|next| next.with_buffers_of(&mean.params));
        Ok(stepped.map_err(schema)?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::{MemoryStore, ParamEntry, ParamKind, ParamSchema, ParamVector, RoundIndex, Seed, SideInfo};

    use super::*;

    #[test]
    fn the_server_rate_moves_weights_and_leaves_running_statistics_the_mean() {
        let entries = vec![
            ParamEntry::new("w", vec![1], ParamKind::Weight),
            ParamEntry::new("norm.running_mean", vec![1], ParamKind::Buffer),
        ];
        let schema = Arc::new(ParamSchema::new(entries).unwrap());
        let vector =
            |values: [f32; 2]| ParamVector::<Flex>::from_host(values.to_vec(), schema.clone(), &FlexDevice).unwrap();
        let global = vector([1.0, 1.0]);
        let (seed, memory) = (Seed::new(0), &MemoryStore::new());
        let round = Round { index: RoundIndex(1), global: &global, cohort: &[], population: 1, seed, memory };
        let (params, side) = (vector([3.0, 3.0]), SideInfo::default());
        let mean = RoundMean { params, side, num_examples: 1, num_updates: 1, holders: None };
        let mut half = FedAvgConfig { server_lr: 0.5, ..FedAvgConfig::default() }.build().unwrap();
        assert_eq!(half.step(&round, &mean).unwrap().global.to_host(), [2.0, 3.0]);
    }

    #[test]
    fn a_useless_rate_is_refused_with_its_name_and_value() {
        for server_lr in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = FedAvgConfig { server_lr, ..FedAvgConfig::default() }.build().unwrap_err().to_string();
            assert!(error.contains("server_lr") && error.contains(&server_lr.to_string()), "{error}");
        }
    }
}
