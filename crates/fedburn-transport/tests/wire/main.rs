//! The protocol from outside: committed bytes, laws of messages and frames, and what arbitrary bytes may cost.
#![allow(clippy::unwrap_used)]

mod generate;
mod golden;
mod laws;
mod samples;
