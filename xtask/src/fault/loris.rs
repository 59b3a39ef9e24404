//! Nodes that are as slow as they can be, and what honest rounds lose by them.

use clap::Args;

use crate::cargo::Cargo;

#[derive(Args)]
pub struct Loris {
    /// Slow nodes: a third each in the handshake, in a frame, in a chunk.
    #[arg(long, default_value_t = 500)]
    nodes: u64,
}

impl Loris {
    pub fn call(&self) -> Cargo {
        Cargo::line("test --package fedburn-transport --lib loris -- --nocapture")
            .env("FEDBURN_LORIS", self.nodes.to_string())
    }
}
