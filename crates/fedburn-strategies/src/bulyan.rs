//! Bulyan, over Krum.
//!
//! E. M. El Mhamdi, R. Guerraoui, S. Rouault: "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML
//! 2018, arXiv 1802.07927.
//!
//! ```text
//! S = {}; theta = m - 2 f times: move the winner of Krum among the remaining clients to S
//! x_{t+1}[i] = mean of the theta - 2 f values x_k[i], k in S, that are closest to their median
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_k`, `m` | client k's vector after local training, number of updates | the updates |
//! | `f` | number of broken clients to resist, `m >= 4 f + 3` | [`BulyanConfig::attackers`] |
//!
//! State between rounds: none. Memory: a piece of the flat axis of every update at a time. Time grows with the square
//! of the cohort. Ties go to the lowest id; of two values at the same distance from the median the smaller is kept.
//! Example counts are not used.
//!
//! Departures: with `r` clients remaining Krum sums the `r - f - 2` smallest distances, which the last steps leave with
//! none; at least one is taken, so that an outlier never wins by its id. Distances are taken of weights alone, running
//! statistics are coordinate medians over the cohort.

use burn::tensor::backend::Backend;
use fedburn_core::{Aggregate, AggregateError, PerClientStrategy, Round, UpdateSet};
use serde::{Deserialize, Serialize};

use crate::host::{choose_rows, median_of_sorted, sort_columns};
use crate::krum::ranked;
use crate::robust::{combine_rows, shares, squared_distances, with_median_buffers};
use crate::{IfTooFew, StrategyConfigError};

/// Settings of [`Bulyan`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BulyanConfig {
    /// Number of broken clients to resist, `f`; a round needs `4 f + 3` updates.
    pub attackers: usize,
    /// What to do with fewer.
    pub if_too_few: IfTooFew,
}

impl Default for BulyanConfig {
    fn default() -> Self {
        Self { attackers: 1, if_too_few: IfTooFew::Refuse }
    }
}

impl BulyanConfig {
    /// Makes the rule.
    ///
    /// # Errors
    /// None; as every strategy's.
    pub fn build(self) -> Result<Bulyan, StrategyConfigError> {
        Ok(Bulyan { config: self })
    }
}

/// Selects by Krum, then trims around the median.
#[derive(Clone, Debug)]
pub struct Bulyan {
    config: BulyanConfig,
}

impl<B: Backend> PerClientStrategy<B> for Bulyan {
    fn name(&self) -> &'static str {
        NAME
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let BulyanConfig { attackers, if_too_few } = self.config;
        let needed = attackers.saturating_mul(4).saturating_add(3);
        if updates.len() < needed {
            let needs = format!("attackers = {attackers} needs {needed} updates (4 attackers + 3)");
            return if_too_few.answer(NAME, round, updates, &needs);
        }
        let distances = squared_distances(round.global.schema(), updates);
        let selected = select(&distances, attackers);
        let kept = selected.len() - 2 * attackers;
        let trimmed = combine_rows(round, updates, |rows, len| {
            mean_around_median(&mut choose_rows(rows, &selected, len), len, kept)
        })?;
        let global = with_median_buffers(trimmed, round, updates)?;
        Ok(Aggregate { mixing: Some(shares(&selected, updates)), ..global.into() })
    }
}

/// The winners of Krum one after another, `m - 2 f` of them.
fn select(distances: &[Vec<f64>], attackers: usize) -> Vec<usize> {
    let mut remaining: Vec<usize> = (0..distances.len()).collect();
    let mut selected = Vec::new();
    while selected.len() < distances.len() - 2 * attackers {
        let neighbours = remaining.len().saturating_sub(attackers + 2).max(1);
        let winner = ranked(distances, &remaining, neighbours)[0];
        remaining.retain(|k| *k != winner);
        selected.push(winner);
    }
    selected
}

/// The mean of the `kept` values of each column that are closest to the column's median: of the sorted values those
/// that are left when the farther end is dropped again and again.
fn mean_around_median(rows: &mut [f32], len: usize, kept: usize) -> Vec<f32> {
    sort_columns(rows, len);
    let count = rows.len() / len;
    let mut medians = median_of_sorted(rows, len);
    for (column, median) in medians.iter_mut().enumerate() {
        let value = |k: usize| f64::from(rows[k * len + column]);
        let middle = f64::from(*median);
        let (mut low, mut high) = (0, count);
        while high - low > kept {
            if middle - value(low) > value(high - 1) - middle {
                low += 1;
            } else {
                high -= 1;
            }
        }
        *median = ((low..high).map(value).sum::<f64>() / kept as f64) as f32;
    }
    medians
}

const NAME: &str = "bulyan";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::squared_distance;

    #[test]
    fn winners_come_in_the_order_of_the_example() {
        let rows = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.1], [1.05, 1.0], [0.95, 1.05], [1.0, 0.9], [10.0, -10.0]];
        let distances: Vec<Vec<f64>> =
            rows.iter().map(|a| rows.iter().map(|b| squared_distance(a, b)).collect()).collect();
        assert_eq!(select(&distances, 1), [0, 3, 4, 1, 2]);
    }

    #[test]
    fn what_is_far_from_the_median_is_dropped_on_either_side() {
        let mut rows = vec![0.0, 10.0, 5.0, 6.0, 100.0];
        assert_eq!(mean_around_median(&mut rows, 1, 3), [7.0]);
        let mut rows = vec![-100.0, 4.0, 5.0, 6.0, 9.0];
        assert_eq!(mean_around_median(&mut rows, 1, 4), [6.0]);
    }
}
