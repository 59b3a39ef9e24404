//! The way between server and clients, as either side sees it.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ClientId, ClientInfo, LocalUpdate, Metrics, ParamVector, RoundIndex, TrainTask, TransportError};

/// What the server asks of a client.
#[derive(Clone, Debug)]
pub enum Request<B: Backend> {
    /// Train from the task's global vector.
    Train(TrainTask<B>),
    /// Measure `global` on the client's held-out examples.
    Evaluate {
        /// The round after which it is measured.
        round: RoundIndex,
        /// The vector to measure.
        global: ParamVector<B>,
    },
}

/// What a client answers.
#[derive(Clone, Debug)]
pub enum Reply<B: Backend> {
    /// To [`Request::Train`].
    Trained(LocalUpdate<B>),
    /// To [`Request::Evaluate`].
    Evaluated(Metrics),
}

/// Why a client did not answer. A failing client is data, not an error of the run.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ClientFailure {
    /// No answer before the deadline.
    #[error("timed out")]
    TimedOut,
    /// The connection broke.
    #[error("disconnected")]
    Disconnected,
    /// The client has no examples; it does not take part.
    #[error("has no data")]
    NoData,
    /// The client's owner does not permit the task.
    #[error("refused: {reason}")]
    Refused {
        /// The owner's reason.
        reason: String,
    },
    /// The answer does not fit the request.
    #[error("malformed answer: {reason}")]
    Malformed {
        /// What does not fit.
        reason: String,
    },
    /// Local training failed.
    #[error("failed: {reason}")]
    Failed {
        /// The client's error.
        reason: String,
    },
}

/// The one answer to a request.
#[derive(Clone, Debug)]
pub struct Outcome<B: Backend> {
    /// Who answered.
    pub client: ClientId,
    /// The answer, or why there is none.
    pub reply: Result<Reply<B>, ClientFailure>,
}

/// The server's view of its clients.
///
/// # Laws
/// Each request yields exactly one outcome, at the latest when the timeout ends; outcomes may come in any order.
/// Checked by `fedburn_testkit::transport_suite`.
pub trait ServerTransport<B: Backend>: Send {
    /// Every client that may be asked now, sorted by id.
    fn clients(&self) -> Arc<[ClientInfo]>;

    /// Sends the requests and yields outcomes as they come. Dropping the iterator abandons what is outstanding.
    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a>;

    /// The round ended with the updates of `included`, sorted: their state of this round becomes permanent, that of
    /// every other client is forgotten. An abandoned round includes nobody.
    ///
    /// # Errors
    /// [`TransportError`] where client state could not be kept.
    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError>;

    /// Everything needed to go on after `round` is durable: what clients or the transport kept in order to repeat this
    /// round or an earlier one may be dropped.
    ///
    /// # Errors
    /// [`TransportError`] where the transport's own state could not be written.
    fn checkpointed(&mut self, _round: RoundIndex) -> Result<(), TransportError> {
        Ok(())
    }
}

/// The client's view of its server.
pub trait ClientTransport<B: Backend>: Send {
    /// The next request; `None` once the server said goodbye.
    ///
    /// # Errors
    /// [`TransportError`] where the connection broke and could not be restored.
    fn next(&mut self) -> Result<Option<Request<B>>, TransportError>;

    /// Answers the last request.
    ///
    /// # Errors
    /// [`TransportError`].
    fn reply(&mut self, reply: Result<Reply<B>, ClientFailure>) -> Result<(), TransportError>;
}
