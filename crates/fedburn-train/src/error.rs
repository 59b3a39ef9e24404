//! What can be wrong with a setting or with centralised training; a client's own failures are
//! [`fedburn_core::TrainError`].

use fedburn_core::SchemaError;
use thiserror::Error;

/// A training setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TrainingConfigError {
    /// A field has an impossible value.
    #[error("`{field}` is {value}, expected {expected}")]
    Invalid {
        /// The field's name, with dots for nested tables.
        field: &'static str,
        /// What it was set to.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
    /// The model has no vector.
    #[error("{source}")]
    Schema {
        /// What does not fit.
        #[from]
        source: SchemaError,
    },
}

/// Training left the finite numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the loss became non-finite at step {step}; a smaller learning rate or gradient clipping may help")]
pub struct Diverged {
    /// The first step, counted from 0, whose loss was NaN or infinite.
    pub step: usize,
}

/// Centralised training could not go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CentralError {
    /// There are no examples.
    #[error("no examples to train on")]
    NoData,
    /// The initial vector is not of this model.
    #[error("{source}")]
    Schema {
        /// What does not fit.
        #[from]
        source: SchemaError,
    },
    /// The loss or a parameter became NaN or infinite.
    #[error("epoch {epoch}: {source}")]
    Diverged {
        /// The epoch, from 1.
        epoch: u64,
        /// The step within the epoch.
        source: Diverged,
    },
}
