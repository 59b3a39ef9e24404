//! Depth-wise training: what a step needs of memory, and how a model is cut into parts that fit a budget.
//!
//! Kai Zhang, Yutong Dai, Hongyi Wang, Eric Xing, Xun Chen, Lichao Sun: Memory-adaptive Depth-wise Heterogenous Federated
//! Learning, 2023, arXiv:2303.04887. The model of memory and the greedy rule are our own; they give the parts that the
//! published code lists.
//!
//! [`MemoryConfig`] says which client has which budget, [`StepMemory`] what a [`Staged`](fedburn_core::Staged) model
//! needs, [`Cut`] what comes of both.

mod bytes;
mod config;
mod cut;
mod machine;
mod memory;

pub use bytes::{Bytes, BytesError};
pub use config::MemoryConfig;
pub(crate) use config::group_of;
pub use cut::{Cut, Part, TooLittleMemory};
pub use memory::StepMemory;
