//! `fedburn experiment run` and `sweep`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fedburn_experiment::assemble::Run;
use fedburn_experiment::check::check;
use fedburn_experiment::cli::{Places, RunArgs, RunSettings, SweepArgs, parse_numbers};
use fedburn_experiment::config::{ExperimentConfig, TransportConfig};
use fedburn_experiment::list::list;
use fedburn_experiment::progress::Progress;
use fedburn_experiment::report::{headline, write_html};
use fedburn_experiment::results::ExperimentResults;
use fedburn_experiment::run::{RunError, RunOptions, SeedOutcome, check_start, run_seed};
use fedburn_experiment::sweep::{Axis, PlannedCell, figures, plan, table};

use super::Outcome;

/// An experiment file and where its results go.
pub struct Target {
    pub suite: String,
    pub name: String,
    pub path: PathBuf,
}

/// The experiments that `target` names: a suite, suite/name, or a file.
pub fn find(places: &Places, target: &str) -> Result<Vec<Target>, Box<dyn std::error::Error>> {
    let path = Path::new(target);
    if path.extension().is_some_and(|e| e == "toml") {
        let part = |p: Option<&Path>| {
            p.and_then(Path::file_stem).map_or("local".to_owned(), |s| s.to_string_lossy().into_owned())
        };
        return Ok(vec![Target { suite: part(path.parent()), name: part(Some(path)), path: path.to_owned() }]);
    }
    let found = list(&places.configs, &places.out, Some(target))?;
    Ok(found.into_iter().map(|e| Target { suite: e.suite, name: e.name, path: e.path }).collect())
}

/// The one experiment that `target` names.
pub fn find_one(places: &Places, target: &str) -> Result<Target, Box<dyn std::error::Error>> {
    let mut found = find(places, target)?;
    match found.len() {
        1 => Ok(found.remove(0)),
        n => {
            let names: Vec<_> = found.iter().map(|t| format!("{}/{}", t.suite, t.name)).collect();
            Err(format!("`{target}` names {n} experiments, expected one of {}", names.join(", ")).into())
        }
    }
}

pub fn run(args: &RunArgs) -> Outcome {
    let settings = &args.settings;
    let mut planned = Vec::new();
    for name in &args.targets {
        for target in find(&settings.places, name)? {
            // Every target is checked before the first one runs.
            let cells = plan(
                &target.path,
                &settings.overrides,
                &[],
                &super::data_root(settings.data.as_ref()),
                adjusted(settings)?,
            )?;
            planned.extend(cells.into_iter().map(|cell| (target.path.clone(), settings.dir(&target), cell.runs)));
        }
    }
    let interrupt = on_interrupt(|| {})?;
    let options = |path: &Path, dir: &Path| settings.options(dir, &interrupt, &run_command(path, settings));
    for (path, dir, runs) in &planned {
        runs.iter().try_for_each(|run| check_start(run, &options(path, dir)))?;
    }
    for (path, dir, runs) in planned {
        let options = options(&path, &dir);
        settings.progress().note(&format!("{}: {}", dir.display(), runs[0].experiment().config().title));
        if run_all(&runs, &options)? {
            return Ok(interrupted());
        }
        show(&dir, &runs, settings.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn sweep(args: &SweepArgs) -> Outcome {
    let settings = &args.settings;
    let targets = match args.grid.is_empty() {
        true => find(&settings.places, &args.target)?,
        false => vec![find_one(&settings.places, &args.target)?],
    };
    // Every cell of every target is checked before the first one runs.
    let mut grids = Vec::new();
    for target in targets {
        let file = ExperimentConfig::load(&target.path, &settings.overrides)?.sweep;
        let axes = match args.grid.is_empty() {
            false => args.grid.iter().map(|text| Axis::asked(text, &file)).collect::<Result<Vec<_>, _>>()?,
            true => Axis::of_table(&target.path, &file)?,
        };
        if !axes.is_empty() {
            let data = super::data_root(settings.data.as_ref());
            let cells = plan(&target.path, &settings.overrides, &axes, &data, adjusted(settings)?)?;
            grids.push((target, cells));
        }
    }
    if grids.is_empty() {
        return Err(format!("{} has no [sweep] table; name the grid with --grid FIELD=VALUES", args.target).into());
    }
    let interrupt = on_interrupt(|| {})?;
    let options = |target: &Target, cell: &PlannedCell| {
        let command = sweep_command(&target.path, settings, &cell.cell.settings);
        settings.options(&cell.cell.dir(&settings.dir(target)), &interrupt, &command)
    };
    for (target, cells) in &grids {
        for cell in cells {
            cell.runs.iter().try_for_each(|run| check_start(run, &options(target, cell)))?;
        }
    }
    for (target, cells) in &grids {
        let (experiment, total) = (settings.dir(target), cells.len());
        for (index, cell) in cells.iter().enumerate() {
            let what = cell.cell.settings.join(" ");
            settings.progress().note(&format!("{} cell {}/{total}: {what}", target.name, index + 1));
            if run_all(&cell.runs, &options(target, cell))? {
                return Ok(interrupted());
            }
            write_html(&ExperimentResults::load(&cell.cell.dir(&experiment))?, &[])?;
        }
        match settings.json {
            true => {
                println!("{}", serde_json::json!({ "event": "sweep_finished", "cells": figures(cells, &experiment)? }))
            }
            false => print!("{}", table(cells, &experiment)?),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the seeds of one experiment; whether the user interrupted them.
pub fn run_all(runs: &[Run], options: &RunOptions) -> Result<bool, RunError> {
    for (index, run) in runs.iter().enumerate() {
        options.progress.note(&format!("seed {} ({} of {})", run.seed(), index + 1, runs.len()));
        match run_seed(run, options)? {
            SeedOutcome::AlreadyDone => {
                options.progress.note(&format!("seed {}: already done (--fresh runs it again)", run.seed()));
            }
            SeedOutcome::Finished(_) => {}
            SeedOutcome::Interrupted(round) => {
                options
                    .progress
                    .note(&format!("seed {}: interrupted after round {round}; the same command goes on", run.seed()));
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Writes the report and prints the figures.
pub fn show(dir: &Path, runs: &[Run], json: bool) -> Result<(), Box<dyn std::error::Error>> {
    let results = ExperimentResults::load(dir)?;
    let config = runs[0].experiment().config();
    let planned: Vec<u64> = runs.iter().map(Run::seed).collect();
    let verdicts = check(Some(&results), &planned, &config.expect);
    let report = write_html(&results, &verdicts)?;
    if json {
        let figures: Vec<_> =
            results.seeds.iter().filter(|s| planned.contains(&s.seed)).filter_map(|s| s.summary.as_ref()).collect();
        println!(
            "{}",
            serde_json::json!({ "event": "experiment_finished", "report": report, "summaries": figures, "expect": verdicts })
        );
        return Ok(());
    }
    println!("{}", config.title);
    for (what, figure) in headline(&results) {
        println!("  {what:<22} {figure}");
    }
    verdicts.iter().for_each(|verdict| println!("  {verdict}"));
    println!("  report: {}", report.display());
    Ok(())
}

/// What the command line changes in every config.
fn adjusted(settings: &RunSettings) -> Result<impl Fn(ExperimentConfig) -> ExperimentConfig, String> {
    let seeds = settings.seeds.as_deref().map(|text| parse_numbers("--seeds", text)).transpose()?;
    let (workers, smoke) = (settings.workers, settings.smoke);
    Ok(move |mut config: ExperimentConfig| {
        config.seeds = seeds.clone().unwrap_or(config.seeds);
        if let Some(workers) = workers {
            config.transport = TransportConfig::InProcess { workers };
        }
        if smoke { config.smoke() } else { config }
    })
}

trait Settings {
    fn dir(&self, target: &Target) -> PathBuf;
    fn progress(&self) -> Progress;
    fn options(&self, dir: &Path, interrupt: &Arc<AtomicBool>, command: &str) -> RunOptions;
}

impl Settings for RunSettings {
    fn dir(&self, target: &Target) -> PathBuf {
        let out = if self.smoke { self.places.out.join("smoke") } else { self.places.out.clone() };
        out.join(&target.suite).join(&target.name)
    }

    fn progress(&self) -> Progress {
        match (self.json, self.quiet) {
            (true, _) => Progress::Json,
            (_, true) => Progress::Quiet,
            _ => Progress::Auto,
        }
    }

    fn options(&self, dir: &Path, interrupt: &Arc<AtomicBool>, command: &str) -> RunOptions {
        RunOptions {
            dir: dir.to_owned(),
            backend: self.backend,
            fresh: self.fresh,
            progress: self.progress(),
            interrupt: interrupt.clone(),
            command: command.to_owned(),
            serving: None,
        }
    }
}

/// The command that repeats a run, without what does not change its results.
fn run_command(path: &Path, settings: &RunSettings) -> String {
    command("run", path, settings, Vec::new())
}

/// The command that repeats a cell of a sweep.
fn sweep_command(path: &Path, settings: &RunSettings, cell: &[String]) -> String {
    command("sweep", path, settings, cell.iter().map(|text| format!("--grid '{text}'")).collect())
}

fn command(verb: &str, path: &Path, settings: &RunSettings, grid: Vec<String>) -> String {
    let mut words = vec!["cargo xtask experiment".to_owned(), verb.to_owned(), path.display().to_string()];
    words.extend(grid);
    if let Some(seeds) = &settings.seeds {
        words.push(format!("--seeds {seeds}"));
    }
    if settings.backend != Default::default() {
        words.push(format!("--backend {}", settings.backend));
    }
    words.extend(settings.overrides.iter().map(|text| format!("--set '{text}'")));
    if settings.smoke {
        words.push("--smoke".to_owned());
    }
    words.join(" ")
}

pub fn interrupted() -> ExitCode {
    // What shells report for a program that the user interrupted.
    ExitCode::from(130)
}

/// The first interrupt, of the terminal (Ctrl-C) or by SIGTERM, asks for an orderly end and does what `first` says; the
/// second ends at once: everything since the last checkpoint is then computed again by the next run.
pub fn on_interrupt(first: impl Fn() + Send + 'static) -> std::io::Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let flag = asked.clone();
    each_signal(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("ending after this round; interrupt again to end at once");
        first();
    })?;
    Ok(asked)
}

/// Acts on each wish of the system to end.
#[cfg(unix)]
fn each_signal(mut act: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let listen = move || signals.forever().for_each(|_| act());
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map(drop)
}

/// Acts on each wish of the system to end.
#[cfg(not(unix))]
fn each_signal(act: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    ctrlc::set_handler(act).map_err(std::io::Error::other)
}
