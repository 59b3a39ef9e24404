//! Why a run cannot go on.

use fedburn_core::{AggregateError, EvaluateError, RoundIndex, StateError, TransportError};
use thiserror::Error;

use crate::{CheckpointError, RestoreError};

/// A run that cannot go on. Clients that fail are data, not errors.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The strategy failed.
    #[error("aggregation failed: {source}")]
    Aggregate {
        /// The strategy's error.
        #[from]
        source: AggregateError,
    },
    /// The global model could not be measured.
    #[error("evaluation after round {round} failed: {source}")]
    Evaluate {
        /// The round.
        round: RoundIndex,
        /// The evaluator's error.
        source: EvaluateError,
    },
    /// The transport failed as a whole.
    #[error("round {round}: {source}")]
    Transport {
        /// The round.
        round: RoundIndex,
        /// The transport's error.
        source: TransportError,
    },
    /// What the strategy remembers of clients could not be kept.
    #[error("round {round}: the strategy's memory of clients: {source}")]
    Memory {
        /// The round.
        round: RoundIndex,
        /// What went wrong.
        source: StateError,
    },
    /// A run is to be resumed whose strategy remembers clients, and nothing kept that memory.
    #[error(
        "strategy `{strategy}` remembers clients; give the server the store that kept it (`with_memory`) to resume"
    )]
    NoMemory {
        /// The strategy.
        strategy: &'static str,
    },
    /// A checkpoint could not be written or read.
    #[error("checkpoint: {source}")]
    Checkpoint {
        /// What went wrong.
        #[from]
        source: CheckpointError,
    },
    /// A checkpoint does not fit the strategy or the model.
    #[error("checkpoint: {source}")]
    Restore {
        /// What does not fit.
        #[from]
        source: RestoreError,
    },
    /// What an open round has of its clients could not be written or read.
    #[error("round {round}: {place}: {source}")]
    OpenRound {
        /// The round.
        round: RoundIndex,
        /// The file.
        place: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A setting that no run can work with.
    #[error("server: {field} = {value}, expected {expected}")]
    Config {
        /// The field of the `[server]` table.
        field: &'static str,
        /// Its value.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
}
