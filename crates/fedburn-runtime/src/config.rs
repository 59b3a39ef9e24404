//! How a run is paced.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ServerError;

/// Settings of a [`crate::Server`], an experiment's `[server]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Number of rounds, at least 1.
    pub rounds: u64,
    /// Quorum: a round with fewer usable updates is abandoned, the global model unchanged. At least 1.
    #[serde(default = "one")]
    pub min_updates: usize,
    /// Seconds that a round waits for its clients, above 0.
    #[serde(default = "hour")]
    pub timeout_secs: f64,
    /// The model is measured after every so many rounds and after the last; 0 never.
    #[serde(default = "one_round")]
    pub eval_every: u64,
    /// A checkpoint is written after every so many rounds and after the last; 0 never.
    #[serde(default = "ten")]
    pub checkpoint_every: u64,
}

fn one() -> usize {
    1
}
fn one_round() -> u64 {
    1
}
fn ten() -> u64 {
    10
}
fn hour() -> f64 {
    3600.0
}

impl ServerConfig {
    /// A run of `rounds` rounds, everything else as by default.
    pub fn new(rounds: u64) -> Self {
        Self { rounds, min_updates: one(), timeout_secs: hour(), eval_every: one_round(), checkpoint_every: ten() }
    }

    /// How long a round waits for its clients.
    pub fn timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.timeout_secs).unwrap_or(Duration::MAX)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`ServerError::Config`] with the field, its value and what was expected.
    pub fn check(&self) -> Result<(), ServerError> {
        let refuse = |field, value: String, expected| Err(ServerError::Config { field, value, expected });
        if self.rounds == 0 {
            return refuse("rounds", self.rounds.to_string(), "at least 1");
        }
        if self.min_updates == 0 {
            return refuse("min_updates", self.min_updates.to_string(), "at least 1");
        }
        if self.timeout_secs.is_nan() || self.timeout_secs <= 0.0 {
            return refuse("timeout_secs", self.timeout_secs.to_string(), "a number of seconds above 0");
        }
        Ok(())
    }
}
