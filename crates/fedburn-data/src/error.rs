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

/// A split that cannot be made.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum PartitionError {
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
    /// Too few examples for the minimum of every client.
    #[error(
        "{clients} clients with at least {min_examples} examples each need {}, there are {examples}; use fewer clients or a smaller `min_examples`",
        clients.saturating_mul(*min_examples)
    )]
    Infeasible {
        /// Number of clients.
        clients: usize,
        /// The minimum asked for.
        min_examples: usize,
        /// Number of examples.
        examples: usize,
    },
    /// More classes a client than there are.
    #[error("`classes_per_client` is {classes_per_client}, the labels have only {classes} classes")]
    TooFewClasses {
        /// Classes asked for.
        classes_per_client: usize,
        /// Classes that occur.
        classes: usize,
    },
    /// More shards than examples.
    #[error("{clients} clients with {shards_per_client} shards each, there are only {examples} examples")]
    TooManyShards {
        /// Number of clients.
        clients: usize,
        /// Shards of each client.
        shards_per_client: usize,
        /// Number of examples.
        examples: usize,
    },
    /// More natural clients asked for than there are.
    #[error("`clients` is {clients}, only {users} users have at least {min_examples} examples")]
    TooFewUsers {
        /// Number of clients asked for.
        clients: usize,
        /// Number of usable users.
        users: usize,
        /// The minimum asked for.
        min_examples: usize,
    },
    /// A natural split needs to know who made each example.
    #[error("kind `natural` needs a data set with user ids, this one has none")]
    NoUsers,
    /// Labels and user ids differ in number.
    #[error("expected {expected} user ids, one for each label, found {found}")]
    UserIds {
        /// Number of labels.
        expected: usize,
        /// Number of user ids.
        found: usize,
    },
    /// An index is beyond the examples.
    #[error("client {client} holds example {index}, there are {examples}")]
    OutOfRange {
        /// The client's position.
        client: usize,
        /// The index.
        index: usize,
        /// Number of examples.
        examples: usize,
    },
    /// An example was given twice.
    #[error("example {index} is given to client {client} and to another or twice")]
    Repeated {
        /// The second client.
        client: usize,
        /// The example.
        index: usize,
    },
}
