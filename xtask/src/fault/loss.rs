//! Models over a path that loses packets.

use clap::Args;

use crate::cargo::Cargo;

#[derive(Args)]
pub struct Loss {
    /// Packets of a hundred that are lost, each way; one round for each.
    #[arg(long, num_args = 1.., default_values_t = [1, 5, 10])]
    percent: Vec<u32>,
}

impl Loss {
    pub fn call(&self) -> Cargo {
        Cargo::line("run --release --quiet -p fedburn-benches --bin network -- loss --percent")
            .args(self.percent.iter().map(u32::to_string))
    }
}
