//! The strategies from outside, one file a family; one program, so that the backends are compiled once.
#![allow(clippy::unwrap_used)]

mod corrections;
mod ewwa;
mod feddf;
mod fedftg;
mod fedgen;
mod fednova;
mod golden;
mod laws;
mod optimal_averaging;
mod robust;
mod server_optimisers;
mod support;
mod swa;
