//! Turns a config file into an assembled run and writes its results: the library and the fedburn binary.
//!
//! # Examples
//!
//! ```
//! use std::path::Path;
//! use fedburn_experiment::assemble::Experiment;
//! use fedburn_experiment::config::ExperimentConfig;
//!
//! let text = r#"
//!     title = "Ten clients"
//!     seeds = [0]
//!     data = { kind = "digits" }
//!     partition = { kind = "iid", clients = 10 }
//!     model = { kind = "softmax" }
//!     client = { rule = "sgd", epochs = 1, batch_size = 16, lr = 0.1 }
//!     sampler = { kind = "all" }
//!     server = { rounds = 3 }
//! "#;
//! let path = Path::new("ten.toml");
//! let config = ExperimentConfig::parse(path, text, &["client.lr=0.05".to_owned()])?;
//! let run = Experiment::new(path, config, Path::new("data"))?.run(0)?;
//! assert_eq!(run.partition().clients().len(), 10);
//! # Ok::<(), fedburn_experiment::config::ConfigError>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod aggregate;
pub mod assemble;
pub mod backend;
pub mod baselines;
pub mod check;
pub mod cli;
mod clients;
pub mod compare;
pub mod compatibility;
pub mod config;
mod events;
pub mod federation;
pub mod fetch;
mod files;
#[cfg(test)]
mod fixture;
mod format;
pub mod initial_model;
pub mod layers;
pub mod library;
pub mod list;
mod memory;
mod metric;
pub mod operation;
pub mod plan;
pub mod progress;
pub mod report;
pub mod results;
pub mod run;
mod spread;
pub mod sweep;
mod table;
pub mod trace;

pub use check::Verdict;
pub use metric::{Metric, MetricError};
pub use results::SeedStatus;
pub use spread::Spread;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
