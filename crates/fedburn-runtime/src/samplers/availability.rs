//! Simulated devices that come and go.

use std::borrow::Cow;

use fedburn_core::{ClientId, ClientInfo, Purpose, RoundIndex, Seed};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::SamplerError;

/// How reliable simulated clients are, the `[availability]` table of a config file. By default all are always there
/// and never fail.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AvailabilityConfig {
    /// Probability that a client can be reached in a round, in `(0, 1]`.
    pub probability: f64,
    /// Probability that a chosen client fails in a round, in `[0, 1]`.
    pub dropout: f64,
}

impl Default for AvailabilityConfig {
    fn default() -> Self {
        Self { probability: 1.0, dropout: 0.0 }
    }
}

impl AvailabilityConfig {
    /// Checks the probabilities.
    ///
    /// # Errors
    /// [`SamplerError::Probability`].
    pub fn build(self) -> Result<Availability, SamplerError> {
        let Self { probability, dropout } = self;
        if !(probability > 0.0 && probability <= 1.0) {
            let expected = "more than 0 and at most 1";
            return Err(SamplerError::Probability { field: "probability", value: probability, expected });
        }
        if !(0.0..=1.0).contains(&dropout) {
            return Err(SamplerError::Probability { field: "dropout", value: dropout, expected: "0 to 1" });
        }
        Ok(Availability(self))
    }
}

/// Decides for each client and round whether it can be reached and whether it fails.
///
/// # Determinism
/// Functions of the run's seed, the round and the client alone: other clients, the order of questions and threads do
/// not matter. Whether a client can be reached and whether it fails are independent.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClientId, RoundIndex, Seed};
/// use fedburn_runtime::AvailabilityConfig;
///
/// let half = AvailabilityConfig { probability: 0.5, ..Default::default() }.build()?;
/// let reached = |round| half.is_available(Seed::new(7), RoundIndex(round), ClientId(3));
/// assert!((1..=100).any(reached) && !(1..=100).all(reached));
/// # Ok::<(), fedburn_runtime::SamplerError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Availability(AvailabilityConfig);

impl Availability {
    /// Whether `client` can be reached in `round`; `seed` is the run's.
    pub fn is_available(&self, seed: Seed, round: RoundIndex, client: ClientId) -> bool {
        // Nothing is drawn where nothing is open, so that large reliable populations cost nothing.
        self.0.probability >= 1.0 || draw(round_seed(seed, round), client, Draw::Reached) < self.0.probability
    }

    /// Whether `client`, if it is chosen, fails in `round`; `seed` is the run's.
    pub fn drops_out(&self, seed: Seed, round: RoundIndex, client: ClientId) -> bool {
        self.0.dropout > 0.0 && draw(round_seed(seed, round), client, Draw::Failed) < self.0.dropout
    }

    /// The clients that can be reached in `round`, in the order given; `seed` is the run's.
    pub fn reachable<'a>(&self, seed: Seed, round: RoundIndex, clients: &'a [ClientInfo]) -> Cow<'a, [ClientInfo]> {
        if self.0.probability >= 1.0 {
            return Cow::Borrowed(clients);
        }
        let seed = round_seed(seed, round);
        let is_reached = |client: &&ClientInfo| draw(seed, client.id, Draw::Reached) < self.0.probability;
        Cow::Owned(clients.iter().filter(is_reached).copied().collect())
    }
}

/// What a number is drawn for: its place in the client's stream.
#[derive(Clone, Copy)]
enum Draw {
    Reached = 0,
    Failed = 1,
}

fn round_seed(seed: Seed, round: RoundIndex) -> Seed {
    seed.purpose(Purpose::Availability).round(round)
}

/// Uniform in `[0, 1)`.
fn draw(round_seed: Seed, client: ClientId, draw: Draw) -> f64 {
    let mut rng = round_seed.client(client).rng();
    let draws = [rng.next_u64(), rng.next_u64()];
    (draws[draw as usize] >> 11) as f64 / (1u64 << 53) as f64
}
