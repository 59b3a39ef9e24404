//! Full participation.

use fedburn_core::{ClientId, ClientInfo, ClientSampler, RoundIndex, Seed};

/// Chooses every client that can be reached and has data: cross-silo federations.
#[derive(Clone, Copy, Debug, Default)]
pub struct All;

impl ClientSampler for All {
    fn sample(&self, _round: RoundIndex, available: &[ClientInfo], _seed: Seed) -> Vec<ClientId> {
        available.iter().filter(|client| client.num_examples > 0).map(|client| client.id).collect()
    }
}
