//! Norm clipping: bounds how far one client can pull, in front of any strategy.
//!
//! Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan: "Can You Really Backdoor Federated Learning?", 2019, arXiv
//! 1911.07963.
//!
//! ```text
//! D_k = x_k - x_t
//! x_k <- x_t + D_k * min(1, C / norm(D_k))        C fixed, or the median of the cohort's norms
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t`, `x_k` | global vector, client k's after local training | `round.global`, the updates |
//! | `C` | largest norm | [`NormClippingConfig::threshold`] |
//!
//! State between rounds: the base's. Memory: one more vector for each clipped update. Updates within the bound pass
//! unchanged, bit for bit. Norms are taken of weights alone; running statistics, side information and reports pass as
//! they are. A base that sees the round's mean sees the mean of the clipped updates, so the server needs single
//! updates: with a fixed bound clients could clip themselves and keep secure aggregation.
//!
//! Departures: the paper fixes `C`; the median of norms adapts it and needs no tuning. Rejection of updates far beyond
//! the median ([`NormClippingConfig::reject_above`]) is an addition, off by default.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientId, ClientUpdate, Mean, ParamVector, PerClientStrategy, Reports, Round,
    RoundIndex, SideInfo, StateDict, StateError, Strategy, UpdateSet,
};
use serde::{Deserialize, Serialize};

use crate::robust::{median, schema, step_norms};
use crate::{ServerModels, StrategyConfig, StrategyConfigError};

/// Settings of [`NormClipping`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NormClippingConfig {
    /// Largest norm of a client's step, `C`, above 0; the median of the cohort's norms where it is left out.
    pub threshold: Option<f64>,
    /// Updates whose norm is more than so many times the cohort's median are left out, at least 1; none where it is
    /// left out. 3 is a common choice.
    pub reject_above: Option<f64>,
    /// The strategy that gets the clipped updates.
    pub base: Box<StrategyConfig>,
}

impl NormClippingConfig {
    /// Checks the settings and makes the base.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range, or the base's.
    pub fn build_with<B: Backend>(self, models: &dyn ServerModels<B>) -> Result<NormClipping<B>, StrategyConfigError> {
        let refuse = |field, value: f64, expected| {
            Err(StrategyConfigError::Value { kind: NAME, field, value: value.to_string(), expected })
        };
        match (self.threshold, self.reject_above) {
            (Some(c), _) if !(c > 0.0 && c.is_finite()) => refuse("threshold", c, "a number above 0"),
            (_, Some(r)) if !(r >= 1.0 && r.is_finite()) => refuse("reject_above", r, "a number from 1"),
            (threshold, reject_above) => {
                Ok(NormClipping { threshold, reject_above, base: self.base.build_with(models)? })
            }
        }
    }
}

/// Shortens long steps before the base strategy sees them.
pub struct NormClipping<B: Backend> {
    threshold: Option<f64>,
    reject_above: Option<f64>,
    base: Strategy<B>,
}

impl<B: Backend> PerClientStrategy<B> for NormClipping<B> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reports(&self) -> Reports {
        self.base.reports()
    }

    fn remembers_clients(&self) -> bool {
        self.base.remembers_clients()
    }

    fn side_info(&self, round: RoundIndex, client: ClientId) -> SideInfo<B> {
        self.base.side_info(round, client)
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let norms = step_norms(round, updates);
        let median = median(&norms);
        let bound = self.threshold.unwrap_or(median);
        let limit = self.reject_above.map_or(f64::INFINITY, |factor| factor * median);
        let kept = updates.iter().zip(&norms).filter(|(_, norm)| **norm <= limit);
        let shortened: Result<Vec<_>, _> =
            kept.clone().map(|(update, norm)| shorten(round, update, *norm, bound)).collect();
        let unusable = |reason| AggregateError::Unusable { round: round.index, strategy: NAME, reason };
        let set = UpdateSet::new(shortened?).ok_or_else(|| unusable("every update was rejected".to_owned()))?;
        let set = set.with_threads(updates.threads());
        let cohort: Vec<ClientId> = set.iter().map(|u| u.client).collect();
        let inner = Round { cohort: &cohort, ..*round };
        let mut aggregate = self.base.aggregate(&inner, &set)?;
        let count = updates.len() as f64;
        let clipped = kept.filter(|(_, norm)| **norm > bound).count() as f64;
        aggregate.metrics.add("clipped", Mean::from_sum(clipped, count));
        aggregate.metrics.add("rejected", Mean::from_sum(count - set.len() as f64, count));
        aggregate.metrics.add("norm_bound", Mean::new(bound, 1.0));
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.nest("base", self.base.state());
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        let base = state.split_off("base");
        state.expect_empty()?;
        self.base.restore(base, like)
    }
}

fn shorten<B: Backend>(
    round: &Round<'_, B>,
    update: &ClientUpdate<B>,
    norm: f64,
    bound: f64,
) -> Result<ClientUpdate<B>, AggregateError> {
    let mut update = update.clone();
    if norm > bound {
        let params = &update.local.params;
        let (start, share) = (round.global.values().clone(), bound / norm);
        // As two products, because the step itself may exceed what the number type holds.
        let values = start * (1.0 - share) + params.values().clone() * share;
        let clipped = params.with_values(values).and_then(|v| v.with_buffers_of(params));
        update.local.params = clipped.map_err(schema(round))?;
    }
    Ok(update)
}

const NAME: &str = "norm_clipping";
