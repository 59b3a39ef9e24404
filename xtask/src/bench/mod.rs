//! Benchmarks: micro benchmarks and their baselines, the same jobs in other frameworks, figures.

mod baseline;
mod figures;
mod jobs;
mod machine;
mod measure;
mod micro;
mod peers;
mod plot;
mod python;
mod statistics;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::workspace;

/// The arguments of `bench`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    micro: micro::Micro,
}

#[derive(Subcommand)]
enum Command {
    /// Play the same jobs in fedburn and in each framework that is installed, in turn, and print the ratios.
    Peers(peers::Peers),
    /// Measure rounds against clients, cores and parameters, and draw the pictures of docs/figures.
    Figures(figures::Figures),
}

impl Bench {
    /// Does what was asked and gives the exit code.
    pub fn run(self) -> Result<ExitCode, String> {
        match self.command {
            None => self.micro.run(),
            Some(Command::Peers(peers)) => peers.run(),
            Some(Command::Figures(figures)) => figures.run(),
        }
    }
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace::root().join("target"), PathBuf::from)
}

/// Writes a file of results and says where, making its folder.
fn write(path: &std::path::Path, text: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(failed)?;
    std::fs::write(path, text).map_err(failed)?;
    println!("written: {}", path.display());
    Ok(())
}
