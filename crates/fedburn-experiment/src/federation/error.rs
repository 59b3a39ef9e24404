//! Why a federation could not begin, or ended early.

use std::path::PathBuf;

use fedburn::core::{ClientId, SchemaError, StateError, TransportError};
use fedburn::transport::quic::{IdentityError, QuicError};
use thiserror::Error;

use super::{PlanError, PolicyError, Violation};
use crate::backend::BackendError;
use crate::config::ConfigError;
use crate::results::ResultsError;

/// A federation that could not begin or ended early. What either side has on disk stays usable: the same commands go on
/// from there.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FederationError {
    /// Keys or certificates cannot be used, or the join string is none.
    #[error("{source}")]
    Identity {
        /// Why.
        #[from]
        source: IdentityError,
    },
    /// The network refused, or the other side did.
    #[error("{source}")]
    Network {
        /// Why.
        #[from]
        source: QuicError,
    },
    /// The connection ended before the server said goodbye.
    #[error("{source}")]
    Transport {
        /// Why.
        #[from]
        source: TransportError,
    },
    /// What the server sent is no experiment that this program can run.
    #[error("the server's experiment: {source}")]
    Plan {
        /// Why.
        #[from]
        source: PlanError,
    },
    /// The data or another part of the experiment cannot be had here.
    #[error("{source}")]
    Config {
        /// Why.
        #[from]
        source: ConfigError,
    },
    /// The policy file cannot be used.
    #[error("policy: {source}")]
    Policy {
        /// Why.
        #[from]
        source: PolicyError,
    },
    /// The policy does not permit the experiment.
    #[error("{source}; nothing was read or sent")]
    NotPermitted {
        /// What is not permitted.
        #[from]
        source: Violation,
    },
    /// The experiment has no such client.
    #[error("--clients: the experiment has no client {client}, expected numbers below {clients}")]
    NoSuchClient {
        /// The first that it does not have.
        client: ClientId,
        /// Number of its clients.
        clients: usize,
    },
    /// The server would wait for ever.
    #[error("--wait-for {wanted}: the experiment has {clients} clients, expected at least 1 and at most so many")]
    WaitFor {
        /// Clients to wait for.
        wanted: usize,
        /// Clients of the experiment.
        clients: usize,
    },
    /// Not enough clients came in time.
    #[error(
        "{connected} of {wanted} clients were there after {seconds} s; start the others, or ask for fewer with --wait-for"
    )]
    TooFew {
        /// Clients that are connected.
        connected: usize,
        /// Clients that were waited for.
        wanted: usize,
        /// How long it was waited.
        seconds: u64,
    },
    /// The run was begun with other clients' states than those that would go on with it.
    #[error("{}: {reason}", place.display())]
    OtherCarrier {
        /// The run's folder.
        place: PathBuf,
        /// What to do.
        reason: &'static str,
    },
    /// The disk of the run's folder cannot be written.
    #[error("{}: {source}", place.display())]
    Disk {
        /// The folder.
        place: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The backend cannot be used.
    #[error("{source}")]
    Backend {
        /// Why.
        #[from]
        source: BackendError,
    },
    /// The states of clients cannot be kept.
    #[error("client state: {source}")]
    State {
        /// Why.
        #[from]
        source: StateError,
    },
    /// The model makes no usable vector.
    #[error("model: {source}")]
    Schema {
        /// Why.
        #[from]
        source: SchemaError,
    },
    /// A file could not be written.
    #[error("{source}")]
    File {
        /// Why.
        #[from]
        source: ResultsError,
    },
}
