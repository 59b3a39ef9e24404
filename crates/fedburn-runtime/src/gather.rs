//! What the coordinator keeps of the updates of an open round: exact sums, or the updates themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientFailure, ClientId, ClientUpdate, LocalUpdate, ParamSchema, ParamVector, RoundMean, SideInfo, SideName,
    Strategy, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::exact_sum::first_non_finite;
use crate::held::Held;
use crate::running_mean::{RunningMean, RunningMeanError};
use crate::{ExactSum, ExactSumError};

/// The accepted updates of a round, in the form that the strategy may see.
pub(crate) enum Gathered<B: Backend> {
    /// Folded as they arrive: memory does not depend on the cohort.
    Mean(Box<MeanSums>),
    /// Staged whole for a per-client strategy.
    Updates(Vec<ClientUpdate<B>>),
}

/// Exact means of parameters and side vectors. Scalars are kept per client and summed in client order at the end.
pub(crate) struct MeanSums {
    weighting: Weighting,
    threads: usize,
    staging: Option<Arc<Path>>,
    params: RunningMean,
    side: BTreeMap<SideName, RunningMean>,
    clients: BTreeMap<ClientId, ClientScalars>,
}

/// The sum of the parameters first, under no name, then those of the side vectors.
pub(crate) type Sums<'a> = Vec<(Option<SideName>, &'a ExactSum)>;

/// What a client sent besides vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientScalars {
    num_examples: u64,
    scalars: BTreeMap<SideName, f64>,
}

impl ClientScalars {
    pub(crate) fn num_examples(&self) -> u64 {
        self.num_examples
    }
}

impl<B: Backend> Gathered<B> {
    /// Nothing yet; vectors of `num_values` values are folded on up to `threads` threads. Long ones wait in the folder
    /// `staging`, where there is one.
    pub(crate) fn new(strategy: &Strategy<B>, num_values: usize, threads: usize, staging: Option<Arc<Path>>) -> Self {
        match strategy {
            Strategy::PerClient(_) => Self::Updates(Vec::new()),
            Strategy::Mean(strategy) => Self::Mean(Box::new(MeanSums {
                weighting: strategy.weighting(),
                threads,
                params: RunningMean::new(num_values, threads, staging.clone()),
                staging,
                side: BTreeMap::new(),
                clients: BTreeMap::new(),
            })),
        }
    }

    /// What was folded of each client's update; `None` where updates are kept whole.
    pub(crate) fn sums(&mut self) -> Option<&mut MeanSums> {
        match self {
            Self::Mean(sums) => Some(sums),
            Self::Updates(_) => None,
        }
    }

    /// Takes an update in, all of it or, on error, nothing. Where its client holds a part of the model, as `held` says, a
    /// strategy that sees single updates sees `x_t` in place of the rest.
    pub(crate) fn add(
        &mut self,
        mut update: ClientUpdate<B>,
        held: &Held<B>,
        global: &ParamVector<B>,
    ) -> Result<(), ClientFailure> {
        let part = held.part(update.client).map(|(slice, _)| slice);
        let malformed = |reason: String| ClientFailure::Malformed { reason };
        if let Some(name) = update.local.side.vectors.keys().next().filter(|_| part.is_some()) {
            return Err(malformed(format!("the side vector `{name}` beside a part of the model")));
        }
        match self {
            Self::Updates(updates) => {
                for vector in std::iter::once(&update.local.params).chain(update.local.side.vectors.values()) {
                    finite(vector)?;
                }
                if let Some(part) = part {
                    update.local.params =
                        part.put(&update.local.params, global).map_err(|e| malformed(e.to_string()))?;
                }
                updates.push(update);
                Ok(())
            }
            Self::Mean(sums) => sums.add(update, held),
        }
    }

    /// Whose updates were taken in, sorted.
    pub(crate) fn clients(&self) -> Vec<ClientId> {
        match self {
            Self::Mean(sums) => sums.clients.keys().copied().collect(),
            Self::Updates(updates) => {
                let mut clients: Vec<_> = updates.iter().map(|u| u.client).collect();
                clients.sort();
                clients
            }
        }
    }
}

impl MeanSums {
    /// Takes up where another process was: its sums, those of side vectors by name, and whose updates are in them.
    pub(crate) fn go_on(
        &mut self,
        params: ExactSum,
        side: BTreeMap<SideName, ExactSum>,
        clients: BTreeMap<ClientId, ClientScalars>,
    ) {
        let mean = |sum| RunningMean::of_sum(sum, self.threads, self.staging.clone());
        self.params = mean(params);
        self.side = side.into_iter().map(|(name, sum)| (name, mean(sum))).collect();
        self.clients = clients;
    }

    /// Whose updates are in the sums.
    pub(crate) fn folded(&self) -> &BTreeMap<ClientId, ClientScalars> {
        &self.clients
    }

    /// The sums.
    pub(crate) fn by_name(&mut self) -> Result<Sums<'_>, RunningMeanError> {
        let params = std::iter::once(self.params.sum().map(|sum| (None, sum)));
        let side = self.side.iter_mut().map(|(name, mean)| mean.sum().map(|sum| (Some(name.clone()), sum)));
        params.chain(side).collect()
    }

    fn add<B: Backend>(&mut self, update: ClientUpdate<B>, held: &Held<B>) -> Result<(), ClientFailure> {
        let (part, uncounted) = (held.part(update.client).map(|(slice, _)| slice), held.uncounted(update.client));
        let LocalUpdate { params, num_examples, side, .. } = update.local;
        let weight = weight_of(self.weighting, num_examples, held.times(update.client));
        let (schema, len) = (params.schema().clone(), params.num_values());
        let malformed = |error| malformed(&schema, error);
        // All is checked before anything is taken in. What arrived is nobody else's, so that this copies nothing.
        let vectors: Vec<_> = side.vectors.into_iter().map(|(name, vector)| (name, vector.into_host())).collect();
        for (_, values) in &vectors {
            first_non_finite(values).map_or(Ok(()), |index| Err(malformed(ExactSumError::NonFinite { index })))?;
        }
        let mut values = params.into_host();
        if part.is_some() || !uncounted.is_empty() {
            first_non_finite(&values).map_or(Ok(()), |index| Err(malformed(ExactSumError::NonFinite { index })))?;
        }
        // What changes no sum, not even the sign of a zero.
        const NOTHING: f32 = -0.0;
        uncounted.iter().for_each(|range| values[range.clone()].fill(NOTHING));
        if let Some(part) = part {
            let own = std::mem::replace(&mut values, vec![NOTHING; part.whole().num_values()]);
            part.put_values(&own, &mut values);
        }
        self.params.add(values, weight).map_err(malformed)?;
        for (name, values) in vectors {
            // Cannot fail where the parameters went in: same length, same weight, finite.
            let new = || RunningMean::new(len, self.threads, self.staging.clone());
            let mean = self.side.entry(name).or_insert_with(new);
            mean.add(values, weight).map_err(malformed)?;
        }
        self.clients.insert(update.client, ClientScalars { num_examples, scalars: side.scalars });
        Ok(())
    }

    /// The round's mean, each value rounded once: that over those who hold it, and what was `sent` where nobody does.
    ///
    /// # Errors
    /// The reason, where clients sent different pieces of side information.
    pub(crate) fn mean<B: Backend>(self, sent: &ParamVector<B>, held: &Held<B>) -> Result<RoundMean<B>, String> {
        let weight = self.params.weight();
        let vector = |values: Result<Vec<f32>, RunningMeanError>| {
            let values = values.map_err(|e| e.to_string())?;
            ParamVector::from_host(values, sent.schema().clone(), &sent.device()).map_err(|e| e.to_string())
        };
        let weighting = self.weighting;
        let counts =
            |(client, of): (&ClientId, &ClientScalars)| weight_of(weighting, of.num_examples, held.times(*client));
        let weights = self.clients.iter().map(|each| (*each.0, counts(each)));
        let stretches = held.weights(sent.num_values(), weights);
        let holders = held.weights(sent.num_values(), self.clients.keys().map(|client| (*client, 1)));
        let mut side = SideInfo::default();
        for (name, mean) in self.side {
            if mean.weight() != weight {
                return Err(format!("some clients did not send the side vector `{name}`"));
            }
            side.vectors.insert(name, vector(mean.mean())?);
        }
        let mut scalars: BTreeMap<SideName, (f64, usize)> = BTreeMap::new();
        for client in &self.clients {
            let weight = counts(client) as f64;
            for (name, value) in &client.1.scalars {
                let sum = scalars.entry(name.clone()).or_default();
                *sum = (sum.0 + weight * value, sum.1 + 1);
            }
        }
        for (name, (sum, count)) in scalars {
            if count != self.clients.len() {
                return Err(format!("some clients did not send the side scalar `{name}`"));
            }
            side.scalars.insert(name, sum / weight as f64);
        }
        Ok(RoundMean {
            params: vector(match stretches {
                Some(stretches) => self.params.mean_of_held(&stretches, sent.to_host()),
                None => self.params.mean(),
            })?,
            side,
            num_examples: self.clients.values().map(|c| c.num_examples).sum(),
            num_updates: self.clients.len(),
            holders,
        })
    }
}

/// What a client of so many examples counts, so many times; more than any sum takes where that is no number.
fn weight_of(weighting: Weighting, num_examples: u64, times: u64) -> u64 {
    match weighting {
        Weighting::Examples => num_examples.saturating_mul(times),
        Weighting::Uniform => times,
    }
}

/// A refusal that names the tensor.
fn malformed(schema: &ParamSchema, error: ExactSumError) -> ClientFailure {
    let entry = match error {
        ExactSumError::NonFinite { index } => schema.entry_at(index),
        _ => None,
    };
    let reason = entry.map_or_else(|| error.to_string(), |e| format!("tensor `{}` holds a NaN or an infinity", e.path));
    ClientFailure::Malformed { reason }
}

fn finite<B: Backend>(vector: &ParamVector<B>) -> Result<(), ClientFailure> {
    match vector.first_non_finite() {
        Some(entry) => {
            Err(ClientFailure::Malformed { reason: format!("tensor `{}` holds a NaN or an infinity", entry.path) })
        }
        None => Ok(()),
    }
}
