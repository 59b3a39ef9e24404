//! Laws, conformance suites and independent references for testing fedburn components (development only).
//!
//! The functions panic where a law is broken, with the law in words: call them from tests.

mod codecs;
mod fixtures;
mod memory_link;
pub mod reference;
mod strategy_laws;
mod transport_suite;

pub use codecs::codecs;
pub use fixtures::{EchoClient, EchoPopulation, answer_all, base_case, schema, update, vector};
pub use memory_link::{LinkClient, LinkServer, MemoryLink};
pub use reference::{Rounds, combine, weighted_mean};
pub use strategy_laws::{Convexity, strategy_laws};
pub use transport_suite::{compression_suite, transport_suite, transport_suite_schema};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
