//! Server and nodes over QUIC, both authenticated by TLS 1.3 in every connection.
//!
//! - [`QuicServer`] is the server's [`fedburn_core::ServerTransport`]; [`ServerIdentity`] is who it is.
//! - [`join`] and [`QuicClient`] are a node's [`fedburn_core::ClientTransport`]; [`NodeIdentity`] is who it is.
//! - [`JoinString`] is the one line by which a node finds the server and is admitted; [`NodeRegistry`] is the list of
//!   nodes that may take part.
//!
//! Models go out and updates come in as chunks that are verified one by one; what was cut off goes on where it was.
//! Everything that the other side decides is bounded: sizes, numbers, rates, times.

#[doc(hidden)]
pub mod bare;
mod blob;
mod client;
mod config;
mod error;
mod identity;
mod plan;
mod receive;
mod restart;
mod runtime;
mod send;
mod server;
mod status;
mod stream;
mod surroundings;
#[cfg(test)]
mod tests;
mod tls;
mod tuning;
mod watched;

pub use client::{Joined, NodeThread, QuicClient, Taken, join};
pub use config::{ClientConfig, Congestion, QuicConfig};
pub use error::QuicError;
pub use identity::{
    IdentityError, JoinString, NodeId, NodeIdentity, NodeRecord, NodeRegistry, ServerIdentity, ServerRecord, Standing,
    page_token,
};
pub use plan::Plan;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use server::fuzz;
pub use server::{NetworkWatch, QuicServer, RunFiles};
pub use status::{Declined, NetworkStatus, NodeStatus, Traffic, Usage};
