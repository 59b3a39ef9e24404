//! The same clients every round.

use fedburn_core::{ClientId, ClientInfo, ClientSampler, RoundIndex, Seed};

use super::SamplerError;

/// Chooses the same clients every round, as far as they can be reached and have data.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// Sorted, without repeats.
    clients: Vec<ClientId>,
}

impl Fixed {
    /// The cohort `clients`, in any order; `population` is sorted by id.
    ///
    /// # Errors
    /// [`SamplerError::NoClients`], [`SamplerError::Repeated`], [`SamplerError::Unknown`].
    pub fn new(mut clients: Vec<ClientId>, population: &[ClientInfo]) -> Result<Self, SamplerError> {
        clients.sort_unstable();
        if clients.is_empty() {
            return Err(SamplerError::NoClients);
        }
        if let Some(pair) = clients.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(SamplerError::Repeated { client: pair[0] });
        }
        let is_known = |client: &ClientId| population.binary_search_by_key(client, |known| known.id).is_ok();
        match clients.iter().find(|client| !is_known(client)) {
            Some(&client) => Err(SamplerError::Unknown { client, clients: population.len() }),
            None => Ok(Self { clients }),
        }
    }
}

impl ClientSampler for Fixed {
    fn sample(&self, _round: RoundIndex, available: &[ClientInfo], _seed: Seed) -> Vec<ClientId> {
        let is_usable = |client: &ClientId| match available.binary_search_by_key(client, |known| known.id) {
            Ok(index) => available[index].num_examples > 0,
            Err(_) => false,
        };
        self.clients.iter().copied().filter(is_usable).collect()
    }
}
