//! Federated learning in Rust on [burn](https://burn.dev): the facade over the fedburn crates.
//!
//! Each module is a crate of its own and can be used alone; [`prelude`] holds what a federation of one's own usually
//! needs.
//!
//! | module | responsibility |
//! |---|---|
//! | [`core`] | the vocabulary: flat parameters, updates, rounds, seeds, metrics, and every trait |
//! | [`data`] | labelled examples, views of them per client, and partitioners that split them |
//! | [`ops`] | training kernels that models call instead of a backend's own |
//! | [`models`] | the model zoo |
//! | [`train`] | the client half: local rules, evaluation |
//! | [`strategies`] | the server half: aggregation strategies |
//! | [`transport`] | requests and replies between server and clients |
//! | [`runtime`] | the server loop, samplers, state stores, checkpoints, observers |
//! | [`durable`] | files that a crash leaves whole |
//! | [`meter`] | how much memory each thread holds, counted |

pub use burn;
pub use fedburn_core as core;
pub use fedburn_data as data;
pub use fedburn_durable as durable;
pub use fedburn_meter as meter;
pub use fedburn_models as models;
pub use fedburn_ops as ops;
pub use fedburn_runtime as runtime;
pub use fedburn_strategies as strategies;
pub use fedburn_train as train;
pub use fedburn_transport as transport;

pub mod prelude;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
