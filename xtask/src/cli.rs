//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::bench::Bench;
use crate::cargo::Cargo;
use crate::fault::Fault;
use crate::federation::Federation;
use crate::{ci, examples, launch, tidy, workspace};

/// Automation of the fedburn workspace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check, cheapest first; what continuous integration runs.
    Ci {
        /// Leave out cuda, wgpu, docs and release builds.
        #[arg(long)]
        fast: bool,
    },
    /// Check the rules of docs/style.md that a compiler does not know.
    Tidy,
    /// Run, list, compare, report, check or sweep experiments: `experiment run quickstart`.
    #[command(disable_help_flag = true)]
    Experiment(Words),
    /// List or fetch data sets: `data fetch fashion-mnist`.
    #[command(disable_help_flag = true)]
    Data(Words),
    /// Run an experiment with a server and client processes on this machine: `federation quickstart --clients 20 -- --seed 0`.
    Federation(Federation),
    /// Run the micro benchmarks, or hold fedburn against other frameworks: `bench peers`.
    Bench(Box<Bench>),
    /// Run a suite that breaks things on purpose: `fault fuzz`.
    Fault(Fault),
    /// Run every example.
    Examples,
    /// Build the documentation, warnings denied.
    Doc,
}

/// Words passed on unread.
#[derive(Args)]
struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

impl Cli {
    /// Does what was asked and gives the exit code.
    pub fn run(self) -> Result<ExitCode, String> {
        match self.command {
            Command::Ci { fast } => ci::run(fast),
            Command::Tidy => tidy::run(&workspace::root()),
            Command::Experiment(words) => launch::fedburn("experiment", words.words),
            Command::Data(words) => launch::fedburn("data", words.words),
            Command::Federation(federation) => federation.run(),
            Command::Bench(bench) => bench.run(),
            Command::Fault(fault) => fault.run(),
            Command::Examples => examples::run(),
            Command::Doc => Cargo::doc().status().map(exit_code),
        }
    }
}

fn exit_code(success: bool) -> ExitCode {
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn words_of_experiments_pass_through_unread() {
        let line = ["xtask", "experiment", "run", "quickstart", "--seeds", "0..3", "--help", "-x"];
        let Command::Experiment(words) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not an experiment")
        };
        assert_eq!(words.words, ["run", "quickstart", "--seeds", "0..3", "--help", "-x"]);
    }
}
