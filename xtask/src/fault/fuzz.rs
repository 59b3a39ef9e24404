//! Arbitrary bytes into every decoder.

use clap::Args;

use crate::cargo::Cargo;

#[derive(Args)]
pub struct Fuzz {
    /// Inputs of each decoder.
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// Where the inputs start from; the same seed gives the same inputs.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Fuzz {
    /// In the profile of tests, where an overflow is an error and not a wrapped number; that costs half a minute of a
    /// core for a million inputs of each decoder.
    pub fn call(&self) -> Cargo {
        Cargo::line("test --package fedburn-transport --test wire fuzz -- --nocapture")
            .env("FEDBURN_FUZZ_INPUTS", self.inputs.to_string())
            .env("FEDBURN_FUZZ_SEED", self.seed.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_one_call_that_can_be_repeated() {
        assert_eq!(
            Fuzz { inputs: 1_000, seed: 3 }.call().shown(),
            "FEDBURN_FUZZ_INPUTS=1000 FEDBURN_FUZZ_SEED=3 \
             cargo test --package fedburn-transport --test wire fuzz -- --nocapture"
        );
    }
}
