//! Krum and Multi-Krum.
//!
//! P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer: "Machine Learning with Adversaries: Byzantine Tolerant
//! Gradient Descent", NeurIPS 2017, arXiv 1703.02757.
//!
//! ```text
//! score(i) = sum of the m - f - 2 smallest norm(x_i - x_j)^2, j != i
//! krum         x_{t+1} = x_i with the lowest score
//! multi_krum   x_{t+1} = mean of the q vectors with the lowest scores
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_i`, `m` | client i's vector after local training, number of updates | the updates |
//! | `f` | number of broken clients to resist, `m >= 2 f + 3` | `attackers` |
//! | `q` | number of vectors averaged, at most `m - f` | [`MultiKrumConfig::select`] |
//!
//! State between rounds: none. Memory: a piece of the flat axis of every update at a time. Time grows with the square
//! of the cohort. Ties go to the lowest id. Example counts are not used.
//!
//! Departures: the paper scores gradients; distances of parameters are the same. Distances are taken of weights alone,
//! running statistics are coordinate medians over the cohort.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, AggregateError, PerClientStrategy, Round, UpdateSet};
use serde::{Deserialize, Serialize};

use crate::robust::{mean_of, shares, squared_distances, with_median_buffers};
use crate::{IfTooFew, StrategyConfigError};

/// Settings of [`Krum`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KrumConfig {
    /// Number of broken clients to resist, `f`; a round needs `2 f + 3` updates.
    pub attackers: usize,
    /// What to do with fewer.
    pub if_too_few: IfTooFew,
}

impl Default for KrumConfig {
    fn default() -> Self {
        Self { attackers: 1, if_too_few: IfTooFew::Refuse }
    }
}

impl KrumConfig {
    /// Makes the rule.
    ///
    /// # Errors
    /// None; as every strategy's.
    pub fn build(self) -> Result<Krum, StrategyConfigError> {
        Ok(Krum { config: self })
    }
}

/// Takes the vector of the client whose neighbours are closest.
#[derive(Clone, Debug)]
pub struct Krum {
    config: KrumConfig,
}

impl<B: Backend> PerClientStrategy<B> for Krum {
    fn name(&self) -> &'static str {
        "krum"
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let KrumConfig { attackers, if_too_few } = self.config;
        if let Some(needs) = too_few(attackers, updates.len()) {
            return if_too_few.answer("krum", round, updates, &needs);
        }
        let distances = squared_distances(round.global.schema(), updates);
        let clients: Vec<usize> = (0..updates.len()).collect();
        let best = ranked(&distances, &clients, updates.len() - attackers - 2)[0];
        let winner = updates.iter().nth(best).map_or(round.global, |u| &u.local.params).clone();
        let global = with_median_buffers(winner, round, updates)?;
        Ok(Aggregate { mixing: Some(shares(&[best], updates)), ..global.into() })
    }
}

/// Settings of [`MultiKrum`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiKrumConfig {
    /// Number of broken clients to resist, `f`; a round needs `2 f + 3` updates.
    pub attackers: usize,
    /// Number of vectors averaged, `q`, at least 1 and at most `m - f`; `m - f` where it is left out.
    pub select: Option<usize>,
    /// What to do with fewer updates.
    pub if_too_few: IfTooFew,
}

impl Default for MultiKrumConfig {
    fn default() -> Self {
        Self { attackers: 1, select: None, if_too_few: IfTooFew::Refuse }
    }
}

impl MultiKrumConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where `select` is zero.
    pub fn build(self) -> Result<MultiKrum, StrategyConfigError> {
        if self.select == Some(0) {
            return Err(StrategyConfigError::Value {
                kind: "multi_krum",
                field: "select",
                value: "0".to_owned(),
                expected: "a number of clients from 1",
            });
        }
        Ok(MultiKrum { config: self })
    }
}

/// Averages the vectors of the clients whose neighbours are closest.
#[derive(Clone, Debug)]
pub struct MultiKrum {
    config: MultiKrumConfig,
}

impl<B: Backend> PerClientStrategy<B> for MultiKrum {
    fn name(&self) -> &'static str {
        "multi_krum"
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let MultiKrumConfig { attackers, select, if_too_few } = self.config;
        let len = updates.len();
        let too_many = |select: usize| {
            (select.saturating_add(attackers) > len)
                .then(|| format!("select = {select} with attackers = {attackers} needs their sum of updates"))
        };
        if let Some(needs) = too_few(attackers, len).or_else(|| select.and_then(too_many)) {
            return if_too_few.answer("multi_krum", round, updates, &needs);
        }
        let distances = squared_distances(round.global.schema(), updates);
        let mut order = ranked(&distances, &(0..len).collect::<Vec<_>>(), len - attackers - 2);
        order.truncate(select.unwrap_or(len - attackers));
        mean_of(&order, round, updates)
    }
}

/// The clients by score, the lowest first: each one's sum of its `neighbours` smallest squared distances to the others.
pub(crate) fn ranked(distances: &[Vec<f64>], clients: &[usize], neighbours: usize) -> Vec<usize> {
    let score = |i: &usize| -> f64 {
        let mut others: Vec<f64> = clients.iter().filter(|j| *j != i).map(|j| distances[*i][*j]).collect();
        others.sort_unstable_by(f64::total_cmp);
        others.iter().take(neighbours).sum()
    };
    let mut scored: Vec<(f64, usize)> = clients.iter().map(|i| (score(i), *i)).collect();
    scored.sort_by(|(a, i), (b, j)| a.total_cmp(b).then(i.cmp(j)));
    scored.into_iter().map(|(_, i)| i).collect()
}

fn too_few(attackers: usize, updates: usize) -> Option<String> {
    let needed = attackers.saturating_mul(2).saturating_add(3);
    (updates < needed).then(|| format!("attackers = {attackers} needs {needed} updates (2 attackers + 3)"))
}
