//! Weight erosion: one client's personal model from a federation, peers that differ from it fade out.
//!
//! F. Grimberg, M.-A. Hartley, M. Jaggi, S. P. Karimireddy: "Weight Erosion: An Update Aggregation Scheme for
//! Personalized Collaborative Machine Learning", workshop on Distributed and Collaborative Learning (DCL) at MICCAI
//! 2020. Code and report: `EPFLiGHT/coML-Personalized-v2`.
//!
//! ```text
//! d_i     = norm(g_i - g_0) / norm(g_0)
//! alpha_i <- max(0, alpha_i - (1 + p_s floor((r - 1) b / n_i)) p_d d_i)        from alpha_i = 1
//! x_{t+1} = x_t - sum_i alpha_i g_i / sum_i alpha_i
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `g_i`, `g_0` | pseudo-gradients `x_t - x_i` of client i and of the client whose model this is | the updates |
//! | `alpha_i` | weight of client i; 1 for client 0 | state |
//! | `r` | number of the round, from 1, failed rounds not counted | state |
//! | `p_d`, `p_s` | penalties for distance, and for data used again | [`WeightErosionConfig`] |
//! | `b`, `n_i` | examples used per round, example count of client i | [`WeightErosionConfig::batch`], the updates |
//!
//! State between rounds: one number for each client seen. Memory: a piece of the flat axis of every update at a time.
//! The target must take part in every round.
//!
//! Departures: the paper aggregates mini-batch gradients, here local updates. A client that comes later starts from the
//! median of the other peers' weights. Where the target's step is zero its distances are undefined: nothing erodes and
//! its own vector is taken. Distances are taken of weights alone; running statistics follow `alpha` as the weights do,
//! since the model is the target's.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientId, MixingWeights, ParamVector, PerClientStrategy, Round, StateData, StateDict,
    StateError, StateTensor, UpdateSet,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::host::weighted_rows;
use crate::robust::{combine_rows, distances_to, median, step_norms};

/// Settings of [`WeightErosion`]. The defaults are those of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightErosionConfig {
    /// The client whose model this is.
    pub target: ClientId,
    /// Penalty for distance, `p_d`, at least 0.
    pub distance_penalty: f64,
    /// Penalty for each pass over a client's data, `p_s`, at least 0.
    pub size_penalty: f64,
    /// Examples that a client uses per round, `b`, from 1; matters with a size penalty alone.
    pub batch: u64,
}

impl Default for WeightErosionConfig {
    fn default() -> Self {
        Self { target: ClientId(0), distance_penalty: 0.05, size_penalty: 0.0, batch: 1 }
    }
}

impl WeightErosionConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn build(self) -> Result<WeightErosion, StrategyConfigError> {
        let penalty = |v: f64| v >= 0.0 && v.is_finite();
        let refused = if !penalty(self.distance_penalty) {
            Some(("distance_penalty", self.distance_penalty.to_string(), "a number from 0"))
        } else if !penalty(self.size_penalty) {
            Some(("size_penalty", self.size_penalty.to_string(), "a number from 0"))
        } else if self.batch == 0 {
            Some(("batch", self.batch.to_string(), "a number from 1"))
        } else {
            None
        };
        match refused {
            None => Ok(WeightErosion { config: self, alphas: BTreeMap::new(), rounds: 0 }),
            Some((field, value, expected)) => Err(StrategyConfigError::Value { kind: NAME, field, value, expected }),
        }
    }
}

/// A weighted mean around one client, whose weights fade with distance.
#[derive(Clone, Debug)]
pub struct WeightErosion {
    config: WeightErosionConfig,
    /// Of every peer seen.
    alphas: BTreeMap<ClientId, f64>,
    rounds: u64,
}

impl<B: Backend> PerClientStrategy<B> for WeightErosion {
    fn name(&self) -> &'static str {
        NAME
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let WeightErosionConfig { target, distance_penalty, size_penalty, batch } = self.config;
        let Some(own) = updates.iter().position(|u| u.client == target) else {
            let reason =
                format!("the target, client {target}, is not in the cohort: sample all clients in every round");
            return Err(AggregateError::Unusable { round: round.index, strategy: NAME, reason });
        };
        let norm = step_norms(round, updates)[own];
        let distances = distances_to(round, updates, |rows, range| {
            rows[own * range.len()..][..range.len()].iter().copied().map(f64::from).collect()
        });
        let newcomer =
            if self.alphas.is_empty() { 1.0 } else { median(&self.alphas.values().copied().collect::<Vec<_>>()) };
        let mut alphas = self.alphas.clone();
        let mut weights = Vec::with_capacity(updates.len());
        for (place, (update, distance)) in updates.iter().zip(distances).enumerate() {
            if place == own {
                weights.push(1.0);
                continue;
            }
            let alpha = alphas.entry(update.client).or_insert(newcomer);
            if norm > 0.0 {
                let used = u128::from(self.rounds) * u128::from(batch) / u128::from(update.local.num_examples.max(1));
                *alpha = (*alpha - (1.0 + size_penalty * used as f64) * distance_penalty * distance / norm).max(0.0);
            }
            weights.push(if norm > 0.0 { *alpha } else { 0.0 });
        }
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= total);
        let global = combine_rows(round, updates, |rows, len| {
            weighted_rows(&weights, rows, len).into_iter().map(|v| v as f32).collect()
        })?;
        (self.alphas, self.rounds) = (alphas, self.rounds + 1);
        let clients = updates.iter().map(|u| u.client).collect();
        Ok(Aggregate { mixing: Some(MixingWeights::whole(clients, weights)), ..global.into() })
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        let (clients, alphas): (Vec<u64>, Vec<f64>) = self.alphas.iter().map(|(k, alpha)| (k.0, *alpha)).unzip();
        let shape = vec![clients.len()];
        state.insert("clients", StateTensor { shape: shape.clone(), data: StateData::U64(clients) });
        state.insert("alphas", StateTensor { shape, data: StateData::F64(alphas) });
        state.insert_u64("rounds", self.rounds);
        state
    }

    fn restore(&mut self, mut state: StateDict, _like: &ParamVector<B>) -> Result<(), StateError> {
        let rounds = state.take_u64("rounds")?;
        let alphas = match (state.take("clients")?.data, state.take("alphas")?.data) {
            (StateData::U64(clients), StateData::F64(alphas)) if clients.len() == alphas.len() => {
                clients.into_iter().map(ClientId).zip(alphas).collect()
            }
            _ => {
                return Err(StateError::Shape {
                    name: "alphas".to_owned(),
                    expected: "as many f64 as there are u64 clients".to_owned(),
                    found: "entries of other types or lengths".to_owned(),
                });
            }
        };
        state.expect_empty()?;
        (self.alphas, self.rounds) = (alphas, rounds);
        Ok(())
    }
}

const NAME: &str = "weight_erosion";
