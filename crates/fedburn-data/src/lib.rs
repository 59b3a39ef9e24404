//! Labelled examples, views of them per client, and partitioners that split them.
//!
//! [`Examples`] are shared by all clients; a [`ClientData`] names those that one client holds; [`Batches`] yields its
//! mini-batches as tensors of any backend. [`partition`] decides who holds what, [`PartitionStatistics`] says how
//! heterogeneous that is, [`stacked_bars`] and [`heat_map`] draw it. [`datasets`] reads what there is to split, the only
//! part that touches files.
//!
//! # Examples
//!
//! ```
//! use std::path::Path;
//! use burn_flex::{Flex, FlexDevice};
//! use fedburn_core::Seed;
//! use fedburn_data::Batches;
//! use fedburn_data::datasets::{DatasetConfig, load};
//! use fedburn_data::partition::{Dirichlet, Partitioner};
//!
//! let digits = load(&DatasetConfig::Digits {}, Path::new("data"))?;
//! let partition = Dirichlet::new(0.3, 10)?.partition(digits.train.labels(), 20, Seed::new(0))?;
//! let clients = partition.client_data(&digits.train)?;
//! for batch in Batches::<Flex>::epochs(&clients[0], 32, 1, Seed::new(1), &FlexDevice) {
//!     assert_eq!(batch.inputs.dims()[1..], [1, 8, 8]);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
