//! Discovery: what there is to do.

use std::collections::BTreeMap;

use fedburn_core::{ClientFailure, ClientId, Reports, RoundIndex, Seed, SideName};
use serde::{Deserialize, Serialize};

use crate::wire::blob::BlobRef;
use crate::wire::bounded::{InOrder, Sorted, Text};
use crate::wire::chunk::TaskId;
use crate::wire::extension::Extensions;
use crate::wire::limits::{MAX_NAME, MAX_REASON, MAX_SIDE_SCALARS, MAX_SIDE_VECTORS};

/// Opens the watch stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Additions.
    pub ext: Extensions,
}

/// A request to one client of the node. It may come again after each reconnection, until it is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskOffer {
    /// Its number, the same however often it comes.
    pub task: TaskId,
    /// Whom it is for.
    pub client: ClientId,
    /// The round.
    pub round: RoundIndex,
    /// The vector to start from or to measure.
    pub model: BlobRef,
    /// What to do with it.
    pub kind: TaskKind,
    /// The client's last round that counted, whose state the task starts from; 0 for none.
    pub state_of: RoundIndex,
    /// The server never goes back before this round.
    pub durable: RoundIndex,
    /// Milliseconds until an answer comes too late.
    pub remaining_ms: u64,
    /// Additions.
    pub ext: Extensions,
}

/// What a task asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TaskKind {
    /// Train from the model.
    Train {
        /// The client's own randomness in this round.
        seed: Seed,
        /// What the algorithm sends besides the model: vectors of its schema, by name.
        #[serde(with = "Sorted::<NamedBlob, MAX_SIDE_VECTORS>")]
        side_vectors: Vec<NamedBlob>,
        /// What the algorithm sends besides the model: numbers, by name.
        #[serde(with = "Sorted::<NamedValue, MAX_SIDE_SCALARS>")]
        side_scalars: Vec<NamedValue>,
        /// What the algorithm wants to know besides parameters.
        reports: ReportsWanted,
    },
    /// Measure the model.
    Evaluate,
}

/// A vector by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedBlob {
    /// Its name.
    #[serde(with = "Text::<MAX_NAME>")]
    pub name: String,
    /// Its values.
    pub blob: BlobRef,
}

/// A number by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedValue {
    /// Its name.
    #[serde(with = "Text::<MAX_NAME>")]
    pub name: String,
    /// Its value, with all its bits.
    pub value: f64,
}

/// [`Reports`] as they travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportsWanted {
    /// Number of training examples of each class.
    pub class_counts: bool,
    /// How much the client's steps add up to.
    pub accumulation: bool,
    /// Number of local steps.
    pub steps: bool,
}

/// A task that is no longer wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The task.
    pub task: TaskId,
    /// Why, for people.
    #[serde(with = "Text::<MAX_REASON>")]
    pub reason: String,
    /// Additions.
    pub ext: Extensions,
}

/// A round ended; what belongs to it is no longer wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundClosed {
    /// The round.
    pub round: RoundIndex,
    /// Additions.
    pub ext: Extensions,
}

/// A task that will not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    /// The task.
    pub task: TaskId,
    /// Why.
    pub failure: Failure,
    /// Additions.
    pub ext: Extensions,
}

/// [`ClientFailure`] as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Failure {
    /// No answer before the deadline.
    TimedOut,
    /// The connection broke.
    Disconnected,
    /// The client has no examples.
    NoData,
    /// The client's owner does not permit the task.
    Refused {
        /// The owner's reason.
        #[serde(with = "Text::<MAX_REASON>")]
        reason: String,
    },
    /// The task does not fit the client.
    Malformed {
        /// What does not fit.
        #[serde(with = "Text::<MAX_REASON>")]
        reason: String,
    },
    /// Local training failed.
    Failed {
        /// The client's error.
        #[serde(with = "Text::<MAX_REASON>")]
        reason: String,
    },
}

/// Numbers beside the model as they travel.
pub fn scalars_to_wire(scalars: &BTreeMap<SideName, f64>) -> Vec<NamedValue> {
    scalars.iter().map(|(name, value)| NamedValue { name: name.to_string(), value: *value }).collect()
}

/// Numbers beside the model as they came.
pub fn scalars_from_wire(scalars: Vec<NamedValue>) -> BTreeMap<SideName, f64> {
    scalars.into_iter().map(|scalar| (scalar.name.into(), scalar.value)).collect()
}

impl InOrder for NamedBlob {
    fn precedes(&self, next: &Self) -> bool {
        self.name < next.name
    }
}

impl InOrder for NamedValue {
    fn precedes(&self, next: &Self) -> bool {
        self.name < next.name
    }
}

impl From<Reports> for ReportsWanted {
    fn from(Reports { class_counts, accumulation, steps }: Reports) -> Self {
        Self { class_counts, accumulation, steps }
    }
}

impl From<ReportsWanted> for Reports {
    fn from(ReportsWanted { class_counts, accumulation, steps }: ReportsWanted) -> Self {
        Self { class_counts, accumulation, steps }
    }
}

impl From<ClientFailure> for Failure {
    /// Cuts a reason that is longer than the protocol allows.
    fn from(failure: ClientFailure) -> Self {
        match failure {
            ClientFailure::TimedOut => Self::TimedOut,
            ClientFailure::Disconnected => Self::Disconnected,
            ClientFailure::NoData => Self::NoData,
            ClientFailure::Refused { reason } => Self::Refused { reason: short_reason(reason) },
            ClientFailure::Malformed { reason } => Self::Malformed { reason: short_reason(reason) },
            ClientFailure::Failed { reason } => Self::Failed { reason: short_reason(reason) },
            other => Self::Failed { reason: short_reason(other.to_string()) },
        }
    }
}

impl From<Failure> for ClientFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut => Self::TimedOut,
            Failure::Disconnected => Self::Disconnected,
            Failure::NoData => Self::NoData,
            Failure::Refused { reason } => Self::Refused { reason },
            Failure::Malformed { reason } => Self::Malformed { reason },
            Failure::Failed { reason } => Self::Failed { reason },
        }
    }
}

/// A reason cut to what a message may hold.
pub fn short_reason(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason
}
