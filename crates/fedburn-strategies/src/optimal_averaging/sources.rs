//! Several sources: how much each client's model counts for one target.

use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, ClientId, Mean, Metrics, MixingConfig, MixingWeights, ParamKind, PerClientStrategy,
    Round, UpdateSet, Weighting,
};
use serde::{Deserialize, Serialize};

use super::theory::{SourceWeights, least_risk};
use crate::StrategyConfigError;

/// Settings of [`OptimalAveraging`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimalAveragingConfig {
    /// The client that the model is for; its rounds must include it (a fixed or full sampler). Where absent, the model
    /// is for the cohort as a whole.
    pub target: Option<u64>,
    /// Variance of the parameters of a client with the cohort's mean number of examples, above 0, mean over weights;
    /// other clients have it in inverse proportion to their examples. Where absent, clients must report theirs (clients
    /// that mix, with `report_variance`).
    pub variance: Option<f64>,
    /// How biases follow from distances.
    pub biases: BiasEstimate,
    /// Sets negative weights to 0 and scales the others to sum to 1.
    pub clip: bool,
}

/// What the distance of two models says about the bias of one for the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasEstimate {
    /// Squared lengths less what the variances explain, not below 0; directions as measured.
    #[default]
    Corrected,
    /// The distance as it is, which holds noise besides bias.
    Plain,
}

impl OptimalAveragingConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where `variance` is not a positive number.
    pub fn build(self) -> Result<OptimalAveraging, StrategyConfigError> {
        match self.variance.filter(|v| !(*v > 0.0 && v.is_finite())) {
            Some(variance) => Err(StrategyConfigError::Value {
                kind: KIND,
                field: "variance",
                value: variance.to_string(),
                expected: "a number above 0, or nothing where clients report it",
            }),
            None => Ok(OptimalAveraging { config: self }),
        }
    }
}

/// Weighted averaging with the weights of least risk for one target.
///
/// ```text
/// x_{t+1} = sum_k w_k x_k        w = A^-1 1 / (1^T A^-1 1)        A = diag(V) + Delta
/// ```
///
/// | symbol | meaning | what the server takes for it |
/// |---|---|---|
/// | `V_k` | variance of client k's parameters, mean over weights | reported, or [`OptimalAveragingConfig::variance`] |
/// | `Delta_ij` | inner product of the biases of i and j, mean over weights | that of `x_i - r` and `x_j - r` |
/// | `r` | the target's model | `x_target`, or the mean by examples |
///
/// Assumed: clients' errors are independent and alike in all weights; the target's own model is without bias; distances
/// show bias and noise. An inner product measured in one round expects `Delta_ij` plus noise; the diagonal's share,
/// `V_i (1 - 2 r_i) + sum_j r_j^2 V_j` with `r_j` the weight of j in the reference, is taken off by
/// [`BiasEstimate::Corrected`], and rows and columns are scaled with the diagonal, so that `A` stays positive definite.
///
/// Running statistics are averaged by examples: a negative weight could make a variance negative. A round without the
/// target leaves the global vector as it is. Without bias the weights are `1 / V_k`, which is federated averaging.
#[derive(Clone, Debug)]
pub struct OptimalAveraging {
    config: OptimalAveragingConfig,
}

const KIND: &str = "optimal_averaging";

impl<B: Backend> PerClientStrategy<B> for OptimalAveraging {
    fn name(&self) -> &'static str {
        KIND
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let unusable = |reason: String| AggregateError::Unusable { round: round.index, strategy: KIND, reason };
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let examples = updates.weights(Weighting::Examples);
        let reference = match self.config.target {
            None => examples.clone(),
            Some(target) => updates.iter().map(|u| f64::from(u8::from(u.client == ClientId(target)))).collect(),
        };
        if reference.iter().all(|r| *r == 0.0) {
            return Ok(round.global.clone().into());
        }
        let variances = self.variances(updates, &examples).map_err(unusable)?;
        let found = self.weights(&variances, &inner_products(updates, &reference), &reference, &examples);
        let found = found.ok_or_else(|| unusable("the distances between updates are too large to compare".into()))?;
        let column = Tensor::<B, 1>::from_floats(
            found.weights.iter().map(|w| *w as f32).collect::<Vec<_>>().as_slice(),
            &round.global.device(),
        );
        let column = column.reshape([updates.len(), 1]);
        let mut global = updates
            .combine_chunks(|rows, range| (rows * column.clone()).sum_dim(0).reshape([range.len()]))
            .map_err(schema)?;
        if global.schema().entries().iter().any(|e| e.kind == ParamKind::Buffer) {
            let mean = updates.mean(Weighting::Examples).map_err(unusable)?;
            global = global.with_buffers_of(&mean.params).map_err(schema)?;
        }
        let mixing = MixingWeights::whole(updates.iter().map(|u| u.client).collect(), found.weights);
        let metrics = Metrics::new().with("expected_risk", Mean::new(found.risk, 1.0));
        Ok(Aggregate { metrics, mixing: Some(mixing), ..global.into() })
    }
}

impl OptimalAveraging {
    fn variances<B: Backend>(&self, updates: &UpdateSet<B>, examples: &[f64]) -> Result<Vec<f64>, String> {
        if let Some(variance) = self.config.variance {
            return Ok(examples.iter().map(|share| variance / (share * examples.len() as f64)).collect());
        }
        let reported = |u: &fedburn_core::ClientUpdate<B>| {
            let variance = u.local.side.scalars.get(MixingConfig::VARIANCE).copied();
            variance.filter(|v| *v >= 0.0 && v.is_finite()).ok_or_else(|| {
                format!("client {} reported no usable `{}`; set `variance`", u.client, MixingConfig::VARIANCE)
            })
        };
        updates.iter().map(reported).collect()
    }

    /// The weights of least risk; those of examples where all updates are equal and without variance.
    fn weights(
        &self,
        variances: &[f64],
        products: &[Vec<f64>],
        reference: &[f64],
        examples: &[f64],
    ) -> Option<SourceWeights> {
        let common: f64 = reference.iter().zip(variances).map(|(r, v)| r * r * v).sum();
        let kept = |i: usize| {
            let noise = variances[i] * (1.0 - 2.0 * reference[i]) + common;
            match (self.config.biases, products[i][i]) {
                (_, 0.0) => 0.0,
                (BiasEstimate::Plain, _) => 1.0,
                (BiasEstimate::Corrected, square) => (1.0 - noise / square).clamp(0.0, 1.0).sqrt(),
            }
        };
        let kept: Vec<f64> = (0..variances.len()).map(kept).collect();
        let largest = (0..variances.len()).map(|i| variances[i] + products[i][i]).fold(0.0, f64::max);
        if largest == 0.0 {
            return Some(SourceWeights { weights: examples.to_vec(), risk: 0.0 });
        }
        let entry = |i: usize, j: usize| {
            let noise = if i == j { variances[i].max(1e-9 * largest) } else { 0.0 };
            kept[i] * kept[j] * products[i][j] + noise
        };
        let m = variances.len();
        let risks: Vec<Vec<f64>> = (0..m).map(|i| (0..m).map(|j| entry(i, j)).collect()).collect();
        let mut found = least_risk(risks.clone())?;
        if self.config.clip && found.weights.iter().any(|w| *w < 0.0) {
            let total: f64 = found.weights.iter().map(|w| w.max(0.0)).sum();
            found.weights.iter_mut().for_each(|w| *w = w.max(0.0) / total);
            let of = |row: &Vec<f64>| row.iter().zip(&found.weights).map(|(a, w)| a * w).sum::<f64>();
            found.risk = risks.iter().zip(&found.weights).map(|(row, w)| w * of(row)).sum();
        }
        Some(found)
    }
}

/// Inner products of the updates' differences from the reference, over weights and divided by their number.
fn inner_products<B: Backend>(updates: &UpdateSet<B>, reference: &[f64]) -> Vec<Vec<f64>> {
    let (m, schema) = (updates.len(), updates.iter().next().map(|u| u.local.params.schema().clone()));
    let mut products = vec![vec![0.0; m]; m];
    let Some(schema) = schema else { return products };
    let weights = Tensor::<B, 1>::from_floats(
        reference.iter().map(|r| *r as f32).collect::<Vec<_>>().as_slice(),
        &updates.iter().next().map(|u| u.local.params.device()).unwrap_or_default(),
    );
    for range in schema.weight_ranges() {
        for start in range.clone().step_by(PIECE) {
            let rows = updates.chunk(start..range.end.min(start + PIECE));
            let centre = (rows.clone() * weights.clone().reshape([m, 1])).sum_dim(0);
            let differences = rows - centre;
            let product = differences.clone().matmul(differences.transpose()).into_data();
            for (index, value) in product.iter::<f64>().enumerate() {
                products[index / m][index % m] += value;
            }
        }
    }
    let count = schema.num_weights().max(1) as f64;
    products.iter_mut().flatten().for_each(|value| *value /= count);
    products
}

/// Values of the flat axis that are compared at a time.
const PIECE: usize = 1 << 14;
