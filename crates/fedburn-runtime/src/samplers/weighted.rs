//! Sampling by size of the data.

use std::collections::BinaryHeap;
use std::num::NonZeroUsize;

use fedburn_core::{ClientId, ClientInfo, ClientSampler, RoundIndex, Seed};
use rand::Rng;

/// Chooses `per_round` clients one after another without replacement, each time with probability proportional to the
/// number of examples `n_k` among those that are left (successive sampling); all that have data where fewer can be
/// reached.
///
/// As clients with more data are chosen more often, the mean of their updates should weigh them alike
/// (`fedburn_core::Weighting::Uniform`); weighing by examples as well counts the data twice.
///
/// Drawn as in Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters
/// 97(5), 2006: each client gets the arrival time `-ln(u) / n_k`, `u` uniform in `(0, 1]`, and the `per_round`
/// earliest are the cohort. One pass, memory for the cohort alone.
#[derive(Clone, Copy, Debug)]
pub struct Weighted {
    per_round: NonZeroUsize,
}

impl Weighted {
    /// Cohorts of `per_round` clients.
    pub fn new(per_round: NonZeroUsize) -> Self {
        Self { per_round }
    }
}

impl ClientSampler for Weighted {
    fn sample(&self, round: RoundIndex, available: &[ClientInfo], seed: Seed) -> Vec<ClientId> {
        let mut rng = seed.round(round).rng();
        let mut earliest = BinaryHeap::with_capacity(self.per_round.get().min(available.len()) + 1);
        for client in available.iter().filter(|client| client.num_examples > 0) {
            let uniform = ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
            let arrival = -uniform.ln() / client.num_examples as f64;
            // The bits of floats that are not negative are ordered as the floats are; `abs` turns -0 into 0.
            earliest.push((arrival.abs().to_bits(), client.id));
            if earliest.len() > self.per_round.get() {
                earliest.pop();
            }
        }
        let mut cohort: Vec<ClientId> = earliest.into_iter().map(|(_, client)| client).collect();
        cohort.sort_unstable();
        cohort
    }
}
