//! Rounds.

use std::fmt;

use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::{ClientId, ParamVector, Seed, StateStore};

/// The number of a round, from 1. Round 0 is the state before training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoundIndex(pub u64);

impl RoundIndex {
    /// The round after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RoundIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a strategy may know of the round that it aggregates.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a, B: Backend> {
    /// Its number, from 1.
    pub index: RoundIndex,
    /// The vector that the cohort started from, `x_t`.
    pub global: &'a ParamVector<B>,
    /// The clients whose updates count, sorted.
    pub cohort: &'a [ClientId],
    /// Number of clients that the server knows, `N`.
    pub population: u64,
    /// The strategy's own randomness in this round.
    pub seed: Seed,
    /// What the strategy remembers of each client (EWWA's moments): loaded as it was when the round began, staged for
    /// the round's end. Only for a strategy that says so ([`crate::PerClientStrategy::remembers_clients`]).
    pub memory: &'a dyn StateStore,
}
