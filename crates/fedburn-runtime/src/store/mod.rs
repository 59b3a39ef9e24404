//! Where a simulation keeps its clients' state between rounds.

mod disk;
mod memory;

pub use disk::DiskStore;
pub use memory::MemoryStore;
