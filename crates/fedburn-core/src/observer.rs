//! Watching a run.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::{ClientFailure, ClientId, Metrics, MixingWeights, Pictures, RoundIndex};

/// Why an observer wants the run to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StopReason(pub String);

/// What happened in a run. Names and fields are fixed: tools read them. No event carries a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run began, or went on after `round` from a checkpoint.
    RunStarted {
        /// The last finished round, 0 at the beginning.
        round: RoundIndex,
        /// The round that ends the run.
        rounds: u64,
        /// Number of clients known.
        clients: u64,
        /// Values of the flat vector.
        parameters: u64,
    },
    /// A cohort was chosen and asked to train.
    RoundStarted {
        /// The round.
        round: RoundIndex,
        /// Who was asked, sorted.
        cohort: Vec<ClientId>,
        /// Number of clients that could be reached.
        available: u64,
    },
    /// A client's update was accepted.
    ClientTrained {
        /// The round.
        round: RoundIndex,
        /// The client.
        client: ClientId,
        /// Number of examples it trained on.
        num_examples: u64,
        /// Its training metrics.
        metrics: Metrics,
    },
    /// A client did not deliver.
    ClientFailed {
        /// The round.
        round: RoundIndex,
        /// The client.
        client: ClientId,
        /// Why.
        failure: ClientFailure,
    },
    /// The strategy told how much each client counts in the vector that the round commits.
    Mixed {
        /// The round.
        round: RoundIndex,
        /// The weights.
        weights: MixingWeights,
    },
    /// The strategy's generator showed what it makes.
    Generated {
        /// The round.
        round: RoundIndex,
        /// The pictures.
        pictures: Pictures,
    },
    /// The round's updates became the next global vector.
    RoundCommitted {
        /// The round.
        round: RoundIndex,
        /// Number of updates combined.
        updates: u64,
        /// Number of clients that failed.
        failures: u64,
        /// Training metrics over the cohort and the strategy's own.
        metrics: Metrics,
        /// Bytes sent to clients.
        bytes_down: u64,
        /// Bytes received from clients.
        bytes_up: u64,
        /// Wall-clock seconds from the choice of the cohort to the new vector.
        seconds: f64,
    },
    /// The round did not reach its quorum; the global vector and the strategy's state are unchanged.
    RoundAbandoned {
        /// The round.
        round: RoundIndex,
        /// Why.
        reason: String,
        /// Number of usable updates, which were dropped.
        updates: u64,
        /// Number of clients that failed.
        failures: u64,
        /// Bytes sent to clients.
        bytes_down: u64,
        /// Bytes received from clients.
        bytes_up: u64,
        /// Wall-clock seconds spent.
        seconds: f64,
    },
    /// The model was measured on the server's held-out data.
    Evaluated {
        /// The round after which it was measured.
        round: RoundIndex,
        /// The measurements.
        metrics: Metrics,
    },
    /// A client measured the model on its own data.
    ClientEvaluated {
        /// The round after which it was measured.
        round: RoundIndex,
        /// The client.
        client: ClientId,
        /// The measurements.
        metrics: Metrics,
    },
    /// Everything needed to go on after `round` is on disk.
    Checkpointed {
        /// The round.
        round: RoundIndex,
    },
    /// The run ended as planned or was asked to stop.
    RunEnded {
        /// The last finished round.
        round: RoundIndex,
        /// Why it ended before its last round, if it did.
        stopped: Option<StopReason>,
    },
}

impl Event {
    /// The round that the event belongs to.
    pub fn round(&self) -> RoundIndex {
        match self {
            Self::RunStarted { round, .. }
            | Self::RoundStarted { round, .. }
            | Self::ClientTrained { round, .. }
            | Self::ClientFailed { round, .. }
            | Self::Mixed { round, .. }
            | Self::Generated { round, .. }
            | Self::RoundCommitted { round, .. }
            | Self::RoundAbandoned { round, .. }
            | Self::Evaluated { round, .. }
            | Self::ClientEvaluated { round, .. }
            | Self::Checkpointed { round }
            | Self::RunEnded { round, .. } => *round,
        }
    }
}

/// Watches a run. Cannot change it, except to ask for a stop.
pub trait Observer: Send {
    /// Called for each event, in order. `Break` ends the run after the current round.
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason>;
}
