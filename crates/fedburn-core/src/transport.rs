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

impl<B: Backend> Request<B> {
    /// The round that it belongs to: of an evaluation, the round after which it is measured.
    pub fn round(&self) -> RoundIndex {
        match self {
            Self::Train(task) => task.round,
            Self::Evaluate { round, .. } => *round,
        }
    }

    /// The client starts from its newest state of a round before this one: training sees the state before its own round,
    /// an evaluation the state after the round that it measures.
    pub fn state_before(&self) -> RoundIndex {
        match self {
            Self::Train(task) => task.round,
            Self::Evaluate { round, .. } => round.next(),
        }
    }
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
/// Where there are clients, waiting for them ends at once.
/// Checked by `fedburn_testkit::transport_suite`.
pub trait ServerTransport<B: Backend>: Send {
    /// Every client that may be asked now, sorted by id.
    fn clients(&self) -> Arc<[ClientInfo]>;

    /// Waits until a client may be asked, for at most `timeout`. A transport whose clients never change does not wait.
    ///
    /// # Errors
    /// [`TransportError`] where no round can follow: the server was asked to end, or cannot go on.
    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError>;

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

    /// Everything needed to go on after `round` is durable: answers that were kept in order to repeat it may be dropped.
    /// The run never goes back before `oldest`, which is `round` or earlier: neither need states of clients be kept
    /// that only an earlier one starts from.
    ///
    /// # Errors
    /// [`TransportError`] where the transport's own state could not be written.
    fn checkpointed(&mut self, _round: RoundIndex, _oldest: RoundIndex) -> Result<(), TransportError> {
        Ok(())
    }
}

impl<B: Backend, T: ServerTransport<B> + ?Sized> ServerTransport<B> for Box<T> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        (**self).clients()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        (**self).wait(timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        (**self).exchange(requests, timeout)
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        (**self).close_round(round, included)
    }

    fn checkpointed(&mut self, round: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        (**self).checkpointed(round, oldest)
    }
}

/// A request as it reaches the process that plays the client.
#[derive(Clone, Debug)]
pub struct Asked<B: Backend> {
    /// Who is asked.
    pub client: ClientId,
    /// What is asked.
    pub request: Request<B>,
    /// Which of the client's own states it starts from.
    pub history: History,
}

/// What the server knows of a client's past. The client keeps its state by round and is told with each request which
/// one counts, so that neither lost messages nor a server that went back to a checkpoint can make it train from
/// another state than an undisturbed run would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The client's last round whose update counted, before a training request's round, or up to an evaluation's. 0
    /// where there is none: the client starts without state.
    pub state_of: RoundIndex,
    /// The server never goes back before this round: states older than the newest one up to here may be dropped.
    pub durable: RoundIndex,
}

/// The view that a process has of its server. The process may be one client or many; worker threads share the
/// transport.
///
/// # Laws
/// Each request that `next` gives is given once while it is being worked on. Requests to one client that were given
/// one after the other were sent in that order.
pub trait ClientTransport<B: Backend>: Send + Sync {
    /// The next request for any client that this process is; waits for one. `None` once the server said goodbye.
    ///
    /// # Errors
    /// [`TransportError`] where the connection broke and could not be restored.
    fn next(&self) -> Result<Option<Asked<B>>, TransportError>;

    /// Answers a request of [`ClientTransport::next`]: that to `client` in `round`. Returns once the server has
    /// acknowledged the answer, or no longer wants it.
    ///
    /// # Errors
    /// [`TransportError`] where the connection broke and could not be restored.
    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError>;
}
