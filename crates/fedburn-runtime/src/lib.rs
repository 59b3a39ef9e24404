//! The server loop and the client loop, samplers, stores, checkpoints and observers.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attacks;
mod checkpoint;
mod client_loop;
mod client_states;
mod config;
mod coordinator;
mod error;
mod exact_sum;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod gather;
mod held;
mod observers;
mod open_round;
mod open_round_file;
mod running_mean;
mod samplers;
mod server;
mod staged;
mod store;
mod unreliable;

pub use attacks::{Attack, AttackConfig, AttackError, Attacked, AttackersConfig};
pub use checkpoint::{Checkpoint, CheckpointDir, CheckpointError, RunTotals};
pub use client_loop::run_clients;
pub use client_states::ClientStates;
pub use config::ServerConfig;
pub use coordinator::{Coordinator, Effect, Input, RestoreError};
pub use error::ServerError;
pub use exact_sum::{ExactSum, ExactSumError, exact_mean, exact_mean_into};
pub use observers::{
    Console, ConsoleMode, EarlyStop, EarlyStopConfig, EventLog, JsonLines, ObserverError, RoundRow, RoundsCsv,
    StopMetric,
};
pub use samplers::{All, Availability, AvailabilityConfig, Fixed, SamplerConfig, SamplerError, Uniform, Weighted};
pub use server::{Observers, RunSummary, Server};
pub use store::{DiskStore, MemoryStore};
pub use unreliable::{DroppingOut, ReachableOnly};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
