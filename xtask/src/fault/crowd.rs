//! Crowds of which some are killed in the middle of their uploads.

use clap::Args;

use crate::cargo::Cargo;

#[derive(Args)]
pub struct Crowd {
    /// Clients of the round; three in ten are killed.
    #[arg(long, default_value_t = 1_000)]
    clients: u64,
    /// Chooses who is killed, and at which byte.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Crowd {
    pub fn call(&self) -> Cargo {
        Cargo::line("test --package fedburn-transport --lib crowd -- --nocapture --test-threads 1")
            .env("FEDBURN_CROWD_CLIENTS", self.clients.to_string())
            .env("FEDBURN_FAULT_SEED", self.seed.to_string())
    }
}
