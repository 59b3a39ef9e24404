//! Labelled examples, views of them per client, and partitioners that split them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batches;
mod client_data;
mod error;
mod examples;
pub mod partition;
mod transform;

pub use batches::Batches;
pub use client_data::ClientData;
pub use error::{DatasetError, PartitionError};
pub use examples::{Batch, Examples, Inputs};
pub use transform::Transform;
