//! Nodes with good certificates that do not keep to the rules, and what honest rounds lose by them.

use clap::Args;

use crate::cargo::Cargo;

#[derive(Args)]
pub struct Rogues {
    /// Rogues, of six kinds by turns.
    #[arg(long, default_value_t = 6)]
    nodes: u64,
}

impl Rogues {
    pub fn call(&self) -> Cargo {
        Cargo::line("test --package fedburn-transport --lib rogues -- --nocapture")
            .env("FEDBURN_ROGUES", self.nodes.to_string())
    }
}
