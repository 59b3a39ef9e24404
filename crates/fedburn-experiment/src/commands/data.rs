//! `fedburn data`.

use std::process::ExitCode;

use fedburn_experiment::cli::DataCommand;
use fedburn_experiment::fetch;

use super::Outcome;

pub fn run(command: DataCommand) -> Outcome {
    match command {
        DataCommand::List { data } => print!("{}", fetch::list(&super::data_root(data.as_ref()))),
        DataCommand::Fetch { name, from, data } => {
            println!("{}", fetch::fetch(&name, &super::data_root(data.as_ref()), from.as_deref())?);
        }
    }
    Ok(ExitCode::SUCCESS)
}
