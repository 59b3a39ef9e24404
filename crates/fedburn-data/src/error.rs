//! One error enum for data, one for partitions. Messages are fragments fit for "failed to …: {error}".

use std::path::PathBuf;

use thiserror::Error;

/// Examples that cannot be read or do not hold together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A data set is not on this machine.
    #[error("data set `{name}` not found in {}; get it with `{command}`", list(searched))]
    Missing {
        /// The data set.
        name: String,
        /// The directories that were searched.
        searched: Vec<PathBuf>,
        /// The command that gets it.
        command: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is damaged or of another format.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, where.
        problem: String,
    },
    /// Inputs, shape and labels do not go together.
    #[error("expected {expected} {what}, found {found}")]
    Length {
        /// What was counted.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// An input shape is empty or too large.
    #[error("input shape {shape:?} (channels, height, width) is empty or too large for this machine")]
    Shape {
        /// The shape.
        shape: [usize; 3],
    },
    /// A label is not below the number of classes.
    #[error("example {index} has label {label}, expected less than {num_classes}")]
    Label {
        /// The example.
        index: usize,
        /// Its label.
        label: u32,
        /// The number of classes.
        num_classes: usize,
    },
    /// An input is NaN or infinite.
    #[error("input value {index} (counted over all examples) or its scale is not a finite number")]
    NonFinite {
        /// Position in the flat list of inputs.
        index: usize,
    },
    /// A view names an example that does not exist.
    #[error("index {index} names no example, there are {len}")]
    Index {
        /// The index.
        index: usize,
        /// The number of examples.
        len: usize,
    },
    /// A setting cannot be used.
    #[error("`{field}` is {value}, expected {expected}")]
    Setting {
        /// The field of the config.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}
