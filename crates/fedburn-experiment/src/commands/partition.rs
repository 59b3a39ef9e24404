//! `fedburn partition`.

use std::process::ExitCode;

use fedburn::data::{heat_map, stacked_bars};
use fedburn_experiment::assemble::Experiment;
use fedburn_experiment::cli::PartitionArgs;
use fedburn_experiment::config::ExperimentConfig;
use fedburn_experiment::results::write_atomic;

use super::Outcome;
use super::run::find;

pub fn show(args: &PartitionArgs) -> Outcome {
    let target = find(&args.places, &args.target)?.remove(0);
    let config = ExperimentConfig::load(&target.path, &args.overrides)?;
    let seed = args.seed.unwrap_or(config.seeds[0]);
    let run = Experiment::new(&target.path, config, &super::data_root(args.data.as_ref()))?.run(seed)?;
    let statistics = run.statistics();
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&statistics)?),
        false => {
            println!("{}/{}, seed {seed}: fingerprint {:016x}", target.suite, target.name, run.partition().fingerprint());
            println!("{statistics}");
        }
    }
    if let Some(dir) = &args.svg {
        std::fs::create_dir_all(dir)?;
        for (name, svg) in [("bars.svg", stacked_bars(&statistics)), ("heat-map.svg", heat_map(&statistics))] {
            write_atomic(&dir.join(name), svg.as_bytes())?;
            println!("written: {}", dir.join(name).display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
