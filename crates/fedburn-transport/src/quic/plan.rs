//! What a federation trains, as its server tells its nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::QuicError;
use super::send::Blob;
use crate::wire::limits::MAX_CHUNK_LEN;

/// What a federation trains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The run's name.
    pub name: String,
    /// The experiment file, resolved.
    pub text: String,
    /// The root of the run's seed tree.
    pub seed: u64,
    /// The backend that everybody computes on: another one gives other bits.
    pub backend: String,
    /// What makes two plans the same.
    pub hash: [u8; 32],
}

impl Plan {
    /// The plan as it travels.
    pub(crate) fn encode(&self) -> Result<Blob, QuicError> {
        let unusable = |reason: String| QuicError::Unusable { what: "plan", reason };
        let text = Bytes::from(serde_json::to_vec(self).map_err(|e| unusable(e.to_string()))?);
        if text.len() > MAX_PLAN {
            return Err(unusable(format!("{} bytes, at most {MAX_PLAN}", text.len())));
        }
        Blob::of_bytes(text, MAX_CHUNK_LEN).map_err(|e| unusable(e.to_string()))
    }

    /// The plan that came.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, QuicError> {
        serde_json::from_slice(bytes).map_err(|e| QuicError::Unusable { what: "plan", reason: e.to_string() })
    }
}

/// Bytes of a plan as it travels.
pub(crate) const MAX_PLAN: usize = MAX_CHUNK_LEN as usize;
