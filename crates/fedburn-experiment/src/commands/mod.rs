//! What each command does: read arguments, call the library, print.

mod aggregate;
mod data;
mod federation;
mod operation;
mod partition;
mod plan;
mod results;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use fedburn_experiment::cli::{Command, ExperimentCommand};

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

/// Does what the command line says.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Experiment(ExperimentCommand::List(args)) => results::list(&args),
        Command::Experiment(ExperimentCommand::Run(args)) => run::run(&args),
        Command::Experiment(ExperimentCommand::Sweep(args)) => run::sweep(&args),
        Command::Experiment(ExperimentCommand::Compare(args)) => results::compare(&args),
        Command::Experiment(ExperimentCommand::Report(args)) => results::report(&args),
        Command::Experiment(ExperimentCommand::Check(args)) => results::check(&args),
        Command::Partition(args) => partition::show(&args),
        Command::Plan(args) => plan::show(&args),
        Command::Data(command) => data::run(command),
        Command::Aggregate(args) => aggregate::run(args),
        Command::Serve(args) => federation::serve(args),
        Command::Join(args) => federation::join(args),
        Command::Status(args) => operation::status(&args),
        Command::Jobs(server) => operation::jobs(&server),
        Command::Nodes(command) => federation::nodes(&command),
        Command::Ca(command) => federation::ca(&command),
    }
}

/// The folder of data sets: as given, else `$FEDBURN_DATA`, else the user's data folder.
fn data_root(given: Option<&PathBuf>) -> PathBuf {
    given.cloned().unwrap_or_else(fedburn_experiment::fetch::default_root)
}
