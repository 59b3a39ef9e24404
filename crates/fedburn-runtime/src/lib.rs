//! The server loop, samplers, populations, stores, checkpoints and observers.

mod checkpoint;
mod durable;
mod exact_sum;
mod samplers;
mod store;

pub use checkpoint::{Checkpoint, CheckpointDir, CheckpointError, RunTotals};
pub use exact_sum::{ExactSum, ExactSumError};
pub use samplers::{All, Availability, AvailabilityConfig, Fixed, SamplerConfig, SamplerError, Uniform, Weighted};
pub use store::{DiskStore, MemoryStore};
