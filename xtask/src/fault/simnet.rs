//! Worlds in which everything goes wrong: the real server and nodes over a simulated network, clock and randomness.

use clap::Args;

use crate::cargo::Cargo;

/// Which worlds to live through, each twice.
#[derive(Args)]
pub struct Simnet {
    /// Number of worlds.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Seed of the first world; the others follow.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Tell everything that happens, packet by packet: for one world.
    #[arg(long)]
    verbose: bool,
}

impl Simnet {
    /// In the profile of tests, which is optimised and where an overflow is an error and not a wrapped number.
    pub fn call(&self) -> Cargo {
        let line = "test --package fedburn-transport --lib many_worlds -- --nocapture";
        let call = Cargo::line(line)
            .env("FEDBURN_SIMNET_SEEDS", self.seeds.to_string())
            .env("FEDBURN_SIMNET_FROM", self.from.to_string());
        match self.verbose {
            true => call.env("FEDBURN_SIMNET_VERBOSE", "1"),
            false => call,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_world_can_be_repeated() {
        assert_eq!(
            Simnet { seeds: 1, from: 72, verbose: false }.call().shown(),
            "FEDBURN_SIMNET_SEEDS=1 FEDBURN_SIMNET_FROM=72 \
             cargo test --package fedburn-transport --lib many_worlds -- --nocapture"
        );
    }
}
