//! `fedburn plan`.

use std::process::ExitCode;

use fedburn_experiment::assemble::Experiment;
use fedburn_experiment::cli::PlanArgs;
use fedburn_experiment::config::ExperimentConfig;
use fedburn_experiment::plan::Planning;

use super::Outcome;
use super::run::find_one;

pub fn show(args: &PlanArgs) -> Outcome {
    let target = find_one(&args.places, &args.target)?;
    let config = ExperimentConfig::load(&target.path, &args.overrides)?;
    let seed = config.seeds[0];
    let run = Experiment::new(&target.path, config, &super::data_root(args.data.as_ref()))?.run(seed)?;
    let plan = args.backend.run(Planning(&run))??;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&plan)?),
        false => print!("{}/{}\n{plan}", target.suite, target.name),
    }
    Ok(ExitCode::SUCCESS)
}
