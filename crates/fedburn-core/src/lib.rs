//! The vocabulary of federated learning: flat parameters, updates, rounds, seeds, metrics, and every trait that
//! crosses crates.
//!
//! A **server** holds one flat [`ParamVector`]. Each round it picks a **cohort** of clients ([`ClientSampler`]), sends
//! them the vector ([`TrainTask`]), each trains on its own data ([`Client`]) and answers ([`LocalUpdate`]); a
//! [`Strategy`] combines the answers into the next vector. Nothing here does I/O, knows a clock or names a backend.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//! use burn_flex::{Flex, FlexDevice};
//! use fedburn_core::{ParamEntry, ParamKind, ParamSchema, ParamVector};
//!
//! let schema = Arc::new(ParamSchema::new(vec![
//!     ParamEntry::new("linear.weight", vec![2, 3], ParamKind::Weight),
//!     ParamEntry::new("linear.bias", vec![3], ParamKind::Weight),
//! ])?);
//! let params = ParamVector::<Flex>::from_host(vec![0.5; 9], schema, &FlexDevice)?;
//! assert_eq!(params.num_values(), 9);
//! assert_eq!(params.tensor::<2>("linear.weight")?.dims(), [2, 3]);
//! # Ok::<(), fedburn_core::SchemaError>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answerer;
mod averaging;
mod client;
mod codec;
mod compression;
mod ensemble;
mod error;
mod evaluator;
mod generator;
mod memory_store;
mod metrics;
mod mixing;
mod model;
mod observer;
mod params;
mod population;
mod round;
mod sampler;
mod seed;
mod staged;
mod state;
mod strategy;
mod sub_models;
mod transport;
mod update;

pub use answerer::{Answered, Answerer};
pub use averaging::{MixingBlocks, MixingConfig, MixingEstimator, VarianceConfig};
pub use client::{Client, ClientId, ClientInfo, Resample, ResamplingClient, TrainTask};
pub use codec::{Codec, CodecError};
pub use compression::{CompressionConfig, Encoded};
pub use ensemble::{Ensemble, Size};
pub use error::{AggregateError, EvaluateError, SchemaError, StateError, TrainError, TransportError};
pub use evaluator::Evaluator;
pub use generator::{Generator, GeneratorFamily, Pictures};
pub use memory_store::MemoryStore;
pub use metrics::{Mean, MetricName, Metrics};
pub use mixing::MixingWeights;
pub use model::{ClassId, Classifier, Mode, ModelFamily, Split};
pub use observer::{Event, Observer, StopReason};
pub use params::{
    ParamEntry, ParamKind, ParamSchema, ParamVector, Schemas, Slice, SliceName, flat_gradients, flatten, flatten_part,
    is_below, load, load_frozen, load_part, load_part_to_train, load_to_train, schema_of,
};
pub use population::{Population, Worker};
pub use round::{Round, RoundIndex};
pub use sampler::ClientSampler;
pub use seed::{Purpose, Seed};
pub use staged::{Stage, Staged, Stages};
pub use state::{StateData, StateDict, StateStore, StateTensor};
pub use strategy::{Aggregate, MeanStrategy, PerClientStrategy, RoundMean, Strategy, UpdateSet, Weighting};
pub use sub_models::SubModels;
pub use transport::{Asked, ClientFailure, ClientTransport, History, Outcome, Reply, Request, ServerTransport};
pub use update::{ClientReport, ClientUpdate, LocalUpdate, Reports, SideInfo, SideName};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
