//! Suites that break things on purpose: longer forms of what the ordinary tests do in short.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cargo::Cargo;

/// The suite to run.
#[derive(Args)]
pub struct Fault {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// Feed every decoder of the network protocol with arbitrary bytes.
    Fuzz {
        /// Inputs of each decoder.
        #[arg(long, default_value_t = 1_000_000)]
        inputs: u64,
        /// Where the inputs start from; the same seed gives the same inputs.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

impl Fault {
    /// Runs the suite; its output is ours.
    ///
    /// # Errors
    /// Where the suite failed, with the line that repeats it.
    pub fn run(self) -> Result<ExitCode, String> {
        let call = match self.suite {
            Suite::Fuzz { inputs, seed } => fuzz(inputs, seed),
        };
        match call.status()? {
            true => Ok(ExitCode::SUCCESS),
            false => Err(format!("the suite failed; repeat it with:\n\n    {}\n", call.shown())),
        }
    }
}

/// In the profile of tests, where an overflow is an error and not a wrapped number; that costs half a minute of a core for
/// a million inputs of each decoder.
fn fuzz(inputs: u64, seed: u64) -> Cargo {
    Cargo::line("test --package fedburn-transport --test wire fuzz -- --nocapture")
        .env("FEDBURN_FUZZ_INPUTS", inputs.to_string())
        .env("FEDBURN_FUZZ_SEED", seed.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_is_one_call_that_can_be_repeated() {
        assert_eq!(
            fuzz(1_000, 3).shown(),
            "FEDBURN_FUZZ_INPUTS=1000 FEDBURN_FUZZ_SEED=3 \
             cargo test --package fedburn-transport --test wire fuzz -- --nocapture"
        );
    }
}
