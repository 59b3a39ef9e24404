//! Where a simulation keeps its clients' state between rounds.

mod disk;

pub use disk::DiskStore;
pub use fedburn_core::MemoryStore;
