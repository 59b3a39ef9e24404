//! The server loop, samplers, populations, stores, checkpoints and observers.

mod exact_sum;

pub use exact_sum::{ExactSum, ExactSumError};
