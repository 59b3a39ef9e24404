//! What the coordinator keeps of the updates of an open round: exact sums, or the updates themselves.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientFailure, ClientId, ClientUpdate, ParamVector, RoundMean, SideInfo, SideName, Strategy, Weighting,
};

use crate::ExactSum;

/// The accepted updates of a round, in the form that the strategy may see.
pub(crate) enum Gathered<B: Backend> {
    /// Folded on arrival: memory does not depend on the cohort.
    Mean(MeanSums),
    /// Staged whole for a per-client strategy.
    Updates(Vec<ClientUpdate<B>>),
}

/// Exact sums of parameters and side vectors. Scalars are kept per client and summed in client order at the end.
pub(crate) struct MeanSums {
    weighting: Weighting,
    params: ExactSum,
    side: BTreeMap<SideName, ExactSum>,
    clients: BTreeMap<ClientId, ClientScalars>,
}

struct ClientScalars {
    num_examples: u64,
    scalars: BTreeMap<SideName, f64>,
}

impl<B: Backend> Gathered<B> {
    pub(crate) fn new(strategy: &Strategy<B>, num_values: usize) -> Self {
        match strategy {
            Strategy::PerClient(_) => Self::Updates(Vec::new()),
            Strategy::Mean(strategy) => Self::Mean(MeanSums {
                weighting: strategy.weighting(),
                params: ExactSum::new(num_values),
                side: BTreeMap::new(),
                clients: BTreeMap::new(),
            }),
        }
    }

    /// Takes an update in, all of it or, on error, nothing.
    pub(crate) fn add(&mut self, update: ClientUpdate<B>) -> Result<(), ClientFailure> {
        let side = &update.local.side.vectors;
        match self {
            Self::Updates(updates) => {
                for vector in std::iter::once(&update.local.params).chain(side.values()) {
                    finite(vector)?;
                }
                updates.push(update);
                Ok(())
            }
            Self::Mean(sums) => {
                side.values().try_for_each(finite)?;
                let weight = match sums.weighting {
                    Weighting::Examples => update.local.num_examples,
                    Weighting::Uniform => 1,
                };
                let malformed = |e: crate::ExactSumError| ClientFailure::Malformed { reason: e.to_string() };
                let values = update.local.params.to_host();
                if let Err(error) = sums.params.add(&values, weight) {
                    finite(&update.local.params)?;
                    return Err(malformed(error));
                }
                for (name, vector) in side {
                    // Cannot fail where the parameters went in: same length, same weight, finite.
                    sums.side
                        .entry(name.clone())
                        .or_insert_with(|| ExactSum::new(values.len()))
                        .add(&vector.to_host(), weight)
                        .map_err(malformed)?;
                }
                let scalars =
                    ClientScalars { num_examples: update.local.num_examples, scalars: update.local.side.scalars };
                sums.clients.insert(update.client, scalars);
                Ok(())
            }
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
    /// The round's mean, each value rounded once.
    ///
    /// # Errors
    /// The reason, where clients sent different pieces of side information.
    pub(crate) fn mean<B: Backend>(self, like: &ParamVector<B>) -> Result<RoundMean<B>, String> {
        let vector = |sum: &ExactSum| {
            let values = sum.mean().map_err(|e| e.to_string())?;
            ParamVector::from_host(values, like.schema().clone(), &like.device()).map_err(|e| e.to_string())
        };
        let mut side = SideInfo::default();
        for (name, sum) in &self.side {
            if sum.weight() != self.params.weight() {
                return Err(format!("some clients did not send the side vector `{name}`"));
            }
            side.vectors.insert(name.clone(), vector(sum)?);
        }
        let mut scalars: BTreeMap<SideName, (f64, usize)> = BTreeMap::new();
        for client in self.clients.values() {
            let weight = match self.weighting {
                Weighting::Examples => client.num_examples as f64,
                Weighting::Uniform => 1.0,
            };
            for (name, value) in &client.scalars {
                let sum = scalars.entry(name.clone()).or_default();
                *sum = (sum.0 + weight * value, sum.1 + 1);
            }
        }
        for (name, (sum, count)) in scalars {
            if count != self.clients.len() {
                return Err(format!("some clients did not send the side scalar `{name}`"));
            }
            side.scalars.insert(name, sum / self.params.weight() as f64);
        }
        Ok(RoundMean {
            params: vector(&self.params)?,
            side,
            num_examples: self.clients.values().map(|c| c.num_examples).sum(),
            num_updates: self.clients.len(),
        })
    }
}

fn finite<B: Backend>(vector: &ParamVector<B>) -> Result<(), ClientFailure> {
    match vector.first_non_finite() {
        Some(entry) => {
            Err(ClientFailure::Malformed { reason: format!("tensor `{}` holds a NaN or an infinity", entry.path) })
        }
        None => Ok(()),
    }
}
