//! Automation of the workspace: `cargo xtask ci` runs every check, `cargo xtask experiment` launches experiments.
//!
//! Builds in seconds, because it holds no tensor code: it only launches.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bench;
mod cargo;
mod ci;
mod cli;
mod examples;
mod fault;
mod federation;
mod launch;
mod step;
mod tally;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
