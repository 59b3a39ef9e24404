//! What can go wrong between server and nodes.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use super::IdentityError;

/// A server cannot start or a node cannot take part.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QuicError {
    /// A setting has an unusable value.
    #[error("`{field} = {value}`: expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The identity is unusable.
    #[error("identity: {source}")]
    Identity {
        /// What is wrong with it.
        #[from]
        source: IdentityError,
    },
    /// The network refuses the address.
    #[error("UDP socket {address}: {source}")]
    Socket {
        /// The local address.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// TLS does not accept keys or certificates.
    #[error("TLS: {reason}")]
    Tls {
        /// What it does not accept.
        reason: String,
    },
    /// The system refuses a thread.
    #[error("cannot start a thread: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// The plan or the record of participations cannot be used.
    #[error("{what}: {reason}")]
    Unusable {
        /// Which of them.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Something did not come in time.
    #[error("{what} did not come within {seconds} s")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// The server cannot be reached.
    #[error("server {server}: {reason}")]
    Unreachable {
        /// Its name and port.
        server: String,
        /// The last attempt's failure.
        reason: String,
    },
    /// The other side will not work with this one, however often it is asked.
    #[error("refused: {reason}")]
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The other side does not keep to the protocol.
    #[error("protocol: {reason}")]
    Protocol {
        /// What it did.
        reason: String,
    },
}
