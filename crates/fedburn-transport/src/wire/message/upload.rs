//! Upload: what a client made of a task.

use bytes::Bytes;
use fedburn_core::{ClientReport, Mean, Metrics};
use serde::{Deserialize, Serialize};

use super::discovery::NamedValue;
use crate::wire::bitmap::Bitmap;
use crate::wire::bounded::{InOrder, List, Names, Octets, Sorted, Text};
use crate::wire::chunk::{Hash, TaskId};
use crate::wire::extension::Extensions;
use crate::wire::limits::{
    MAX_CLASSES, MAX_INLINE, MAX_METRICS, MAX_NAME, MAX_REASON, MAX_SIDE_SCALARS, MAX_SIDE_VECTORS,
};

/// Asks to send an update in chunks. It may be asked again at any time, for example after a reconnection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadBegin {
    /// The task.
    pub task: TaskId,
    /// Length of one vector. The server refuses any but the model's.
    pub num_values: u64,
    /// Names of the vectors that follow the parameters, sorted.
    #[serde(with = "Names::<MAX_SIDE_VECTORS, MAX_NAME>")]
    pub vectors: Vec<String>,
    /// Additions.
    pub ext: Extensions,
}

/// The answer to [`UploadBegin`]: chunks may be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadGrant {
    /// The chunks that the server has already.
    pub have: Bitmap,
    /// Additions.
    pub ext: Extensions,
}

/// Not now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Busy {
    /// Milliseconds after which to ask again.
    pub retry_after_ms: u64,
    /// Additions.
    pub ext: Extensions,
}

/// An update, complete. It may be repeated at any time and counts once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UploadCommit {
    /// The task.
    pub task: TaskId,
    /// Root of the payload as a blob.
    pub root: Hash,
    /// Where the payload is.
    pub payload: Payload,
    /// Number of examples trained on.
    pub num_examples: u64,
    /// What the algorithm sends besides the model: numbers, by name.
    #[serde(with = "Sorted::<NamedValue, MAX_SIDE_SCALARS>")]
    pub side_scalars: Vec<NamedValue>,
    /// What the strategy asked for.
    pub report: Report,
    /// Training metrics, by name.
    #[serde(with = "Sorted::<NamedMean, MAX_METRICS>")]
    pub metrics: Vec<NamedMean>,
    /// Additions.
    pub ext: Extensions,
}

/// Where the payload of an update is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Payload {
    /// Sent in chunks before.
    Chunks,
    /// Here; [`UploadBegin`] is not needed.
    Inline {
        /// Names of the vectors that follow the parameters, sorted.
        #[serde(with = "Names::<MAX_SIDE_VECTORS, MAX_NAME>")]
        vectors: Vec<String>,
        /// The payload.
        #[serde(with = "Octets::<MAX_INLINE>")]
        data: Bytes,
    },
}

/// [`ClientReport`] as it travels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Number of training examples of each class, by class.
    pub class_counts: Option<ClassCounts>,
    /// The 1-norm of the accumulation vector of the local steps.
    pub accumulation: Option<f64>,
    /// Number of local steps.
    pub steps: Option<u64>,
}

/// Number of examples of each class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassCounts(#[serde(with = "List::<u64, MAX_CLASSES>")] pub Vec<u64>);

/// A metric by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedMean {
    /// Its name.
    #[serde(with = "Text::<MAX_NAME>")]
    pub name: String,
    /// Sum and weight, with all their bits.
    pub mean: Mean,
}

/// What became of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitAck {
    /// What became of it.
    pub state: CommitState,
    /// Additions.
    pub ext: Extensions,
}

/// What became of an answer to a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CommitState {
    /// It counts.
    Committed,
    /// Its round ended without it.
    Superseded,
    /// It does not count and must not come again.
    Rejected {
        /// Why, for people.
        #[serde(with = "Text::<MAX_REASON>")]
        reason: String,
    },
    /// It counts, also after a crash of the server: nobody will ask for it again. Sent where the connection has
    /// [`features::DURABLE`](crate::wire::features::DURABLE), `Committed` otherwise.
    Durable,
}

/// A measurement. It may be repeated at any time and counts once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The task.
    pub task: TaskId,
    /// What was measured, by name.
    #[serde(with = "Sorted::<NamedMean, MAX_METRICS>")]
    pub metrics: Vec<NamedMean>,
    /// Additions.
    pub ext: Extensions,
}

/// Metrics as they travel.
pub fn metrics_to_wire(metrics: &Metrics) -> Vec<NamedMean> {
    metrics.iter().map(|(name, mean)| NamedMean { name: name.to_owned(), mean }).collect()
}

/// Metrics as they came.
pub fn metrics_from_wire(metrics: Vec<NamedMean>) -> Metrics {
    metrics.into_iter().map(|metric| (metric.name.into(), metric.mean)).collect()
}

impl InOrder for NamedMean {
    fn precedes(&self, next: &Self) -> bool {
        self.name < next.name
    }
}

impl From<ClientReport> for Report {
    fn from(ClientReport { class_counts, accumulation, steps }: ClientReport) -> Self {
        Self { class_counts: class_counts.map(ClassCounts), accumulation, steps }
    }
}

impl From<Report> for ClientReport {
    fn from(Report { class_counts, accumulation, steps }: Report) -> Self {
        Self { class_counts: class_counts.map(|counts| counts.0), accumulation, steps }
    }
}
