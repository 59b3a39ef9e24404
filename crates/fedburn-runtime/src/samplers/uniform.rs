//! Uniform sampling without replacement.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use fedburn_core::{ClientId, ClientInfo, ClientSampler, RoundIndex, Seed};
use rand::RngExt;

/// Chooses `per_round` clients without replacement, every cohort of that size equally likely; all that have data where
/// fewer can be reached.
///
/// The sampling of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
/// AISTATS 2017, arXiv 1602.05629. Drawn by algorithm F2 of Bentley and Floyd, "Programming Pearls: a sample of
/// brilliance", Communications of the ACM 30(9), 1987: memory for the cohort alone, one draw a member; the population
/// is only scanned.
#[derive(Clone, Copy, Debug)]
pub struct Uniform {
    per_round: NonZeroUsize,
}

impl Uniform {
    /// Cohorts of `per_round` clients.
    pub fn new(per_round: NonZeroUsize) -> Self {
        Self { per_round }
    }
}

impl ClientSampler for Uniform {
    fn sample(&self, round: RoundIndex, available: &[ClientInfo], seed: Seed) -> Vec<ClientId> {
        let mut rng = seed.round(round).rng();
        let mut eligible = available.iter().filter(|client| client.num_examples > 0);
        let count = eligible.clone().count();
        let mut places = BTreeSet::new();
        for last in count - self.per_round.get().min(count)..count {
            let place = rng.random_range(0..=last as u64) as usize;
            // A place that is taken stands for the last one, which no earlier draw could reach.
            if !places.insert(place) {
                places.insert(last);
            }
        }
        let mut next = 0;
        let members = places.into_iter().filter_map(|place| {
            let skipped = place - std::mem::replace(&mut next, place + 1);
            eligible.nth(skipped)
        });
        members.map(|client| client.id).collect()
    }
}
