//! `fedburn experiment list`, `compare`, `report` and `check`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fedburn_experiment::Metric;
use fedburn_experiment::check::check as verdicts;
use fedburn_experiment::cli::{CheckArgs, CompareArgs, ListArgs, Places, ReportArgs};
use fedburn_experiment::compare::{CompareAt, compare as comparison};
use fedburn_experiment::config::ExperimentConfig;
use fedburn_experiment::list::list as listed;
use fedburn_experiment::report::{Grid, write_html, write_markdown};
use fedburn_experiment::results::ExperimentResults;
use fedburn_experiment::sweep::Axis;

use super::Outcome;
use super::run::find;

pub fn list(args: &ListArgs) -> Outcome {
    let found = listed(&args.places.configs, &args.places.out, args.target.as_deref())?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&found)?),
        false => found.iter().for_each(|experiment| print!("{experiment}")),
    }
    Ok(ExitCode::SUCCESS)
}

pub fn compare(args: &CompareArgs) -> Outcome {
    let metric: Metric = args.metric.parse()?;
    let at = match (args.at_round, args.to) {
        (Some(round), _) => CompareAt::Round { round },
        (None, Some(target)) => CompareAt::Reached { target },
        (None, None) => CompareAt::LastCommonRound,
    };
    let mut results = Vec::new();
    for target in &args.targets {
        for dir in folders(&args.places, target)? {
            results.push(ExperimentResults::load(&dir)?);
        }
    }
    if results.len() < 2 {
        return Err("there is one experiment, expected at least two to compare".into());
    }
    let table = comparison(&results, metric, at)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&table)?),
        false => println!("{table}"),
    }
    Ok(ExitCode::SUCCESS)
}

pub fn report(args: &ReportArgs) -> Outcome {
    let (mut all, mut grids) = (Vec::new(), Vec::new());
    let mut suite = String::new();
    for target in find(&args.places, &args.target)? {
        let config = ExperimentConfig::load(&target.path, &[])?;
        let dir = args.places.out.join(&target.suite).join(&target.name);
        let grid = Grid::load(&dir, &config.title, Axis::of_table(&target.path, &config.sweep)?)?;
        suite = target.suite;
        let results = match (ExperimentResults::load(&dir), grid) {
            // A grid stands for its file, whose own run is then optional.
            (results, Some(grid)) => {
                grids.push(grid);
                results.ok()
            }
            (results, None) => Some(results?),
        };
        let Some(results) = results else { continue };
        let page = write_html(&results, &verdicts(Some(&results), &config.seeds, &config.expect))?;
        println!("written: {}", page.display());
        all.push(results);
    }
    println!("written: {}", write_markdown(&args.docs, &suite, &all, &grids)?.display());
    Ok(ExitCode::SUCCESS)
}

pub fn check(args: &CheckArgs) -> Outcome {
    let mut missed = 0;
    let mut all = Vec::new();
    for experiment in listed(&args.places.configs, &args.places.out, args.target.as_deref())? {
        let config = ExperimentConfig::load(&experiment.path, &[])?;
        let results = ExperimentResults::load(&args.places.out.join(&experiment.suite).join(&experiment.name)).ok();
        for verdict in verdicts(results.as_ref(), &config.seeds, &config.expect) {
            missed += usize::from(!verdict.met);
            if !args.json {
                println!("{}/{}: {verdict}", experiment.suite, experiment.name);
            }
            all.push(serde_json::json!({ "experiment": format!("{}/{}", experiment.suite, experiment.name), "verdict": verdict }));
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else if all.is_empty() {
        println!("no [[expect]] table to check");
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The folders of results that `target` names: a suite, suite/name, or a folder.
fn folders(places: &Places, target: &str) -> Result<Vec<PathBuf>, Box<dyn std::error::Error>> {
    if Path::new(target).is_dir() {
        return Ok(vec![PathBuf::from(target)]);
    }
    Ok(find(places, target)?.into_iter().map(|t| places.out.join(t.suite).join(t.name)).collect())
}
