//! `fedburn partition`.

use std::process::ExitCode;

use fedburn::data::{PartitionStatistics, heat_map, stacked_bars};
use fedburn_experiment::assemble::Experiment;
use fedburn_experiment::cli::PartitionArgs;
use fedburn_experiment::config::ExperimentConfig;
use fedburn_experiment::results::write_atomic;

use super::Outcome;
use super::run::find_one;

pub fn show(args: &PartitionArgs) -> Outcome {
    let target = find_one(&args.places, &args.target)?;
    let config = ExperimentConfig::load(&target.path, &args.overrides)?;
    let seed = args.seed.unwrap_or(config.seeds[0]);
    let run = Experiment::new(&target.path, config, &super::data_root(args.data.as_ref()))?.run(seed)?;
    let statistics = run.statistics();
    let names = &run.experiment().dataset().class_names;
    let title = format!("{}/{}, seed {seed}", target.suite, target.name);
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(statistics)?),
        false => {
            println!("{title}");
            print!("{}", summary(statistics));
        }
    }
    if let Some(dir) = &args.svg {
        std::fs::create_dir_all(dir)?;
        for (name, svg) in [
            ("bars.svg", stacked_bars(statistics, &title, names)),
            ("heat-map.svg", heat_map(statistics, &title, names)),
        ] {
            write_atomic(&dir.join(name), svg.as_bytes())?;
            if !args.json {
                println!("written: {}", dir.join(name).display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(statistics: &PartitionStatistics) -> String {
    let sizes = &statistics.sizes;
    let mut text = format!(
        "  fingerprint {}\n  {} of {} examples over {} clients, {} moved to reach the minimum\n  sizes {} to {}, median {}, coefficient of variation {:.2}\n",
        statistics.fingerprint,
        statistics.num_assigned,
        statistics.num_examples,
        statistics.clients.len(),
        statistics.num_moved,
        sizes.min,
        sizes.max,
        sizes.median,
        sizes.coefficient_of_variation,
    );
    for (what, figures) in [("unweighted", &statistics.mean), ("by examples", &statistics.weighted_mean)] {
        if let Some(f) = figures {
            let (entropy, emd, js) = (f.label_entropy, f.emd, f.jensen_shannon);
            text += &format!(
                "  mean, {what}: label entropy {entropy:.3} nats, EMD {emd:.3}, Jensen-Shannon {js:.3} nats\n"
            );
        }
    }
    text
}
