//! Which failures pass and which do not.

use quinn::ConnectionError;

use super::super::QuicError;
use super::super::stream::StreamError;
use crate::wire::{BlobError, CloseCode, Refusal, Refused};

/// Why something did not work.
#[derive(Debug)]
pub(in super::super) enum Failure {
    /// The connection: it is worth trying again.
    Passing(String),
    /// The server does not want this any more.
    Superseded,
    /// It will never work.
    Lasting(QuicError),
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Lost(reason) => Self::Passing(reason),
            StreamError::Unwanted => Self::Superseded,
            StreamError::Slow => Self::Passing("no progress".to_owned()),
            StreamError::Frame(e) => Self::Lasting(QuicError::Protocol { reason: e.to_string() }),
            StreamError::Chunk(e) => Self::Lasting(QuicError::Protocol { reason: e.to_string() }),
        }
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        Self::Lasting(QuicError::Protocol { reason: error.to_string() })
    }
}

impl From<QuicError> for Failure {
    fn from(error: QuicError) -> Self {
        Self::Lasting(error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused.code {
            Refusal::UnknownTask | Refusal::UnknownBlob => Self::Superseded,
            Refusal::Draining | Refusal::Internal | Refusal::Limit => Self::Passing(refused.reason),
            _ => Self::Lasting(QuicError::Refused { reason: refused.reason }),
        }
    }
}

/// What the end of a connection means.
pub(super) fn of_connection(error: &ConnectionError) -> Failure {
    let refused = |reason: String| Failure::Lasting(QuicError::Refused { reason });
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            match CloseCode::from_number(close.error_code.into_inner()) {
                Some(
                    CloseCode::Version
                    | CloseCode::Unauthenticated
                    | CloseCode::Revoked
                    | CloseCode::Protocol
                    | CloseCode::Replaced,
                ) => refused(reason),
                _ => Failure::Passing(reason),
            }
        }
        ConnectionError::VersionMismatch => {
            refused("the server speaks no version of QUIC that this one does".to_owned())
        }
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(OVER) => refused(
                "the server takes this node's certificate for expired: one of the two clocks is wrong, or the node was \
                 away for so long that it has to enrol again (delete its node.pem)"
                    .to_owned(),
            ),
            Some(meaning) => refused(format!("by the server: {meaning}")),
            None => Failure::Passing(error.to_string()),
        },
        ConnectionError::TransportError(e) => match alert(u64::from(e.code)) {
            Some(OVER) => refused(format!("the server's certificate is over, or this machine's clock is wrong ({e})")),
            Some(meaning) => refused(format!("the server is not the one of the join string: {meaning} ({e})")),
            None => Failure::Passing(error.to_string()),
        },
        _ => Failure::Passing(error.to_string()),
    }
}

/// The meaning of a TLS alert that will come again (RFC 8446, section 6; QUIC adds 256 to its number).
fn alert(code: u64) -> Option<&'static str> {
    match code.checked_sub(0x100)? {
        42 => Some("bad certificate"),
        43 => Some("unsupported certificate"),
        44 => Some("certificate revoked"),
        45 => Some(OVER),
        46 => Some("certificate unknown"),
        48 => Some("unknown authority"),
        49 => Some("access denied"),
        51 => Some("signature does not verify"),
        70 => Some("no common version of TLS"),
        116 => Some("certificate required"),
        120 => Some("no common version of the protocol"),
        _ => None,
    }
}

/// What TLS says of a certificate that holds no longer, or not yet.
const OVER: &str = "certificate expired";
