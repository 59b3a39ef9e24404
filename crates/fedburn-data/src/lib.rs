//! Labelled examples, views of them per client, and partitioners that split them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batches;
mod client_data;
pub mod datasets;
mod error;
mod examples;
pub mod partition;
mod picture;
mod statistics;
mod transform;

pub use batches::Batches;
pub use client_data::ClientData;
pub use error::{DatasetError, PartitionError};
pub use examples::{Batch, Examples, Inputs};
pub use picture::{heat_map, stacked_bars};
pub use statistics::{ClientStatistics, Heterogeneity, PartitionStatistics, SizeSummary};
pub use transform::Transform;
