//! Who takes part in a round.

use crate::{ClientId, ClientInfo, RoundIndex, Seed};

/// Chooses the cohort of a round.
///
/// # Laws
/// Pure in its arguments. The result is sorted, without repeats, and a subset of `available`. Clients without data
/// (`num_examples == 0`) are never chosen.
pub trait ClientSampler: Send {
    /// The cohort of `round` among the clients that can be reached, which are sorted by id. `seed` is the run's seed for
    /// sampling, the same in every round: the sampler derives its own for the round.
    fn sample(&self, round: RoundIndex, available: &[ClientInfo], seed: Seed) -> Vec<ClientId>;
}
