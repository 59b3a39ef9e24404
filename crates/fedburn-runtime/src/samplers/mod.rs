//! Who takes part in a round: one file a rule, and the config that chooses among them.

mod all;
mod availability;
mod fixed;
mod uniform;
mod weighted;

pub use all::All;
pub use availability::{Availability, AvailabilityConfig};
pub use fixed::Fixed;
pub use uniform::Uniform;
pub use weighted::Weighted;

use std::num::NonZeroUsize;

use fedburn_core::{ClientId, ClientInfo, ClientSampler};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which sampler a run uses, the `[sampler]` table of a config file.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClientId, ClientInfo, RoundIndex, Seed};
/// use fedburn_runtime::SamplerConfig;
///
/// let clients: Vec<_> = (0..100).map(|id| ClientInfo { id: ClientId(id), num_examples: 600 }).collect();
/// let config: SamplerConfig = serde_json::from_str(r#"{ "kind": "uniform", "per_round": 10 }"#)?;
/// let sampler = config.build(&clients)?;
/// let cohort = sampler.sample(RoundIndex(1), &clients, Seed::new(7));
/// assert_eq!(cohort.len(), 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum SamplerConfig {
    /// [`Uniform`]: every cohort of this size is equally likely.
    Uniform {
        /// Clients a round, at least 1 and at most the population.
        per_round: usize,
    },
    /// [`Weighted`]: clients with more examples are more likely.
    Weighted {
        /// Clients a round, at least 1 and at most the population.
        per_round: usize,
    },
    /// [`Fixed`]: the same clients every round.
    Fixed {
        /// The clients, in any order, without repeats, all of the population.
        clients: Vec<ClientId>,
    },
    /// [`All`]: every client that has data. Braces, so that a stray field in a config is refused here too.
    All {},
}

impl SamplerConfig {
    /// The sampler for `population`, which is sorted by id.
    ///
    /// # Errors
    /// [`SamplerError`] where the population cannot give what is asked.
    pub fn build(self, population: &[ClientInfo]) -> Result<Box<dyn ClientSampler>, SamplerError> {
        if population.iter().all(|client| client.num_examples == 0) {
            return Err(SamplerError::NoData { clients: population.len() });
        }
        let checked = |per_round: usize| match NonZeroUsize::new(per_round) {
            Some(checked) if per_round <= population.len() => Ok(checked),
            _ => Err(SamplerError::PerRound { value: per_round, clients: population.len() }),
        };
        Ok(match self {
            Self::Uniform { per_round } => Box::new(Uniform::new(checked(per_round)?)),
            Self::Weighted { per_round } => Box::new(Weighted::new(checked(per_round)?)),
            Self::Fixed { clients } => Box::new(Fixed::new(clients, population)?),
            Self::All {} => Box::new(All),
        })
    }
}

/// A sampler that cannot work.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// The cohort is empty, or larger than the population.
    #[error("`per_round` is {value}, expected 1 to {clients}, the number of clients")]
    PerRound {
        /// The field's value.
        value: usize,
        /// Size of the population.
        clients: usize,
    },
    /// A fixed cohort without clients.
    #[error("`clients` is empty, expected at least one client")]
    NoClients,
    /// A fixed cohort names a client twice.
    #[error("`clients` names client {client} twice")]
    Repeated {
        /// The client.
        client: ClientId,
    },
    /// A fixed cohort names a client that does not exist.
    #[error("`clients` names client {client}, which is none of the population's {clients}")]
    Unknown {
        /// The client.
        client: ClientId,
        /// Size of the population.
        clients: usize,
    },
    /// No client could ever be chosen.
    #[error("none of the {clients} clients has data to train on")]
    NoData {
        /// Size of the population.
        clients: usize,
    },
    /// A probability of [`AvailabilityConfig`] is none.
    #[error("`{field}` is {value}, expected {expected}")]
    Probability {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// Its range.
        expected: &'static str,
    },
}
