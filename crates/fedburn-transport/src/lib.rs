//! Carries requests and replies between server and clients.
//!
//! [`InProcess`] simulates a federation in one process: worker threads, each with one resident model, train the clients
//! of a [`fedburn_core::Population`].
//!
//! With the feature `wire` the module `wire` has the protocol that server and clients speak over a network: frames,
//! messages, chunks, blobs, with every bound that a hostile peer could try to exceed.
//!
//! With the feature `quic` the module `quic` has server and nodes that speak it, over QUIC with mutual TLS.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//! use burn_flex::Flex;
//! use fedburn_core::ServerTransport;
//! use fedburn_testkit::EchoPopulation;
//! use fedburn_transport::InProcess;
//!
//! let transport = InProcess::<Flex>::new(Arc::new(EchoPopulation::new(1_000)), None, 2)?;
//! assert_eq!(transport.clients().len(), 1_000);
//! # Ok::<(), fedburn_core::TransportError>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod in_process;
#[cfg(feature = "quic")]
pub mod quic;
#[cfg(feature = "wire")]
pub mod wire;

pub use in_process::InProcess;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
