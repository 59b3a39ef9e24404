//! One error enum per area. Messages are fragments fit for "failed to …: {error}".

use thiserror::Error;

use crate::{ClientId, CodecError, RoundIndex};

/// A flat vector, a schema and a module that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// Two tensors of a model share a path.
    #[error("path `{path}` occurs twice")]
    DuplicatePath {
        /// The repeated path.
        path: String,
    },
    /// The number of values overflows.
    #[error("tensor `{path}` makes the model larger than this machine can address")]
    TooLarge {
        /// The tensor at which the total overflowed.
        path: String,
    },
    /// The module has no parameter.
    #[error("the model has no parameters")]
    Empty,
    /// Two schemas differ.
    #[error("schemas differ at entry {index}: expected {expected}, found {found}")]
    Mismatch {
        /// Index of the first entry that differs.
        index: usize,
        /// The entry of the reference.
        expected: String,
        /// The entry that was found.
        found: String,
    },
    /// A vector is not as long as its schema.
    #[error("expected {expected} values, found {found}")]
    Length {
        /// The schema's length.
        expected: usize,
        /// The vector's length.
        found: usize,
    },
    /// No tensor has this path.
    #[error("the model has no tensor `{path}`")]
    UnknownPath {
        /// The path asked for.
        path: String,
    },
    /// A tensor was asked for with the wrong number of dimensions.
    #[error("tensor `{path}` has {expected} dimensions, not {found}")]
    Rank {
        /// The tensor's path.
        path: String,
        /// Its number of dimensions.
        expected: usize,
        /// The number asked for.
        found: usize,
    },
    /// A tensor of a sub-model reaches over the whole model's.
    #[error("tensor `{path}` is {found:?}, expected at most {whole:?}")]
    Corner {
        /// The tensor's path.
        path: String,
        /// Its shape in the whole model.
        whole: Vec<usize>,
        /// Its shape in the sub-model.
        found: Vec<usize>,
    },
    /// No part of the model has this name.
    #[error("the model has no part `{name}`; is the other end's plan another?")]
    UnknownSlice {
        /// The name.
        name: String,
    },
    /// Parts of the model that are to be one share a tensor.
    #[error("the parts {names:?} of the model share the tensor `{path}`")]
    Overlap {
        /// The parts' names.
        names: Vec<String>,
        /// The tensor's path.
        path: String,
    },
    /// The module has an integer or boolean parameter, which a float vector cannot carry.
    #[error("parameter `{path}` is not a float tensor")]
    UnsupportedKind {
        /// Its path.
        path: String,
    },
    /// A file of parameters is damaged or is of another model.
    #[error("not a usable parameter file: {reason}")]
    File {
        /// What is wrong with it.
        reason: String,
    },
}

/// A strategy could not combine a round.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// The parts of the round do not fit each other.
    #[error("round {round}: {source}")]
    Schema {
        /// The round.
        round: RoundIndex,
        /// What does not fit.
        source: SchemaError,
    },
    /// The result holds a NaN or an infinity.
    #[error("round {round}: strategy `{strategy}` made a non-finite value in tensor `{path}`")]
    NonFinite {
        /// The round.
        round: RoundIndex,
        /// The strategy's name.
        strategy: &'static str,
        /// The first tensor with such a value.
        path: String,
    },
    /// The model cannot be written as it is to be sent.
    #[error("round {round}: the model cannot be compressed: {source}")]
    Compression {
        /// The round.
        round: RoundIndex,
        /// Why.
        source: CodecError,
    },
    /// The strategy cannot work with what it got.
    #[error("round {round}: strategy `{strategy}`: {reason}")]
    Unusable {
        /// The round.
        round: RoundIndex,
        /// The strategy's name.
        strategy: &'static str,
        /// Why.
        reason: String,
    },
}

/// Saved state that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// Saved state was given to something that keeps none.
    #[error("unexpected state entry `{name}`")]
    Unexpected {
        /// The first entry.
        name: String,
    },
    /// An entry is missing.
    #[error("state entry `{name}` is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// An entry has another type or shape than expected.
    #[error("state entry `{name}` is {found}, expected {expected}")]
    Shape {
        /// Its name.
        name: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The saved bytes are damaged.
    #[error("damaged state: {reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// The store cannot be read or written.
    #[error("state store, {place}: {reason}")]
    Store {
        /// The file or key.
        place: String,
        /// What went wrong.
        reason: String,
    },
}

/// A client could not train.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The client has no examples.
    #[error("client {client} has no data")]
    NoData {
        /// The client.
        client: ClientId,
    },
    /// The loss or a parameter became NaN or infinite.
    #[error(
        "client {client}, round {round}: the loss became non-finite at step {step}; a smaller learning rate or gradient clipping may help"
    )]
    NonFinite {
        /// The client.
        client: ClientId,
        /// The round.
        round: RoundIndex,
        /// Local step, counted from 0.
        step: usize,
    },
    /// The global vector is not of this client's model.
    #[error("client {client}: {source}")]
    Schema {
        /// The client.
        client: ClientId,
        /// What does not fit.
        source: SchemaError,
    },
    /// The client's saved state cannot be used.
    #[error("client {client}: {source}")]
    State {
        /// The client.
        client: ClientId,
        /// Why.
        source: StateError,
    },
    /// The client's data or setting cannot be used.
    #[error("client {client}: {reason}")]
    Unusable {
        /// The client.
        client: ClientId,
        /// Why.
        reason: String,
    },
}

/// A model could not be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The vector is not of the evaluator's model.
    #[error("{source}")]
    Schema {
        /// What does not fit.
        #[from]
        source: SchemaError,
    },
    /// There are no examples to measure on.
    #[error("no examples to evaluate on")]
    NoData,
}

/// The way between server and clients failed as a whole; the failure of one client is a [`crate::ClientFailure`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Client state could not be kept or found.
    #[error("client state: {source}")]
    State {
        /// What went wrong.
        #[from]
        source: StateError,
    },
    /// The other side is gone.
    #[error("connection closed: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
}
