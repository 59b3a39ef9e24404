//! The command line of the `fedburn` program.

mod federation;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::federation::{CaCommand, JoinArgs, NodesCommand, ServeArgs, ServerState, StatusArgs};

use crate::aggregate::UpdateFile;
use crate::backend::BackendName;

/// Federated learning experiments: run, compare and report.
#[derive(Debug, Parser)]
#[command(name = "fedburn", version, propagate_version = true)]
pub struct Cli {
    /// How what happens is written to standard error. `FEDBURN_LOG` says how much of it, as in `info` or
    /// `fedburn_transport=debug`; warnings by default.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line: `timestamp`, `level`, `target`, and `fields` with the event's name as `message`.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run experiments and look at their results.
    #[command(subcommand)]
    Experiment(ExperimentCommand),
    /// Show how an experiment splits its data, without training.
    Partition(PartitionArgs),
    /// Show how clients cut the model to fit their memory, without training.
    Plan(PlanArgs),
    /// Find data sets or download them.
    #[command(subcommand)]
    Data(DataCommand),
    /// Apply a strategy to safetensors files of any tool, without training.
    Aggregate(AggregateArgs),
    /// Run an experiment whose clients join over a network.
    Serve(ServeArgs),
    /// Be clients of a server: train on this machine what it asks for and the policy permits.
    Join(JoinArgs),
    /// What the server is doing, or did last; exit code 3 where none runs.
    Status(StatusArgs),
    /// The runs that were served from this machine.
    Jobs(ServerState),
    /// See and decide which nodes may take part.
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// See and renew a server's certificates.
    #[command(subcommand)]
    Ca(CaCommand),
}

/// `fedburn experiment …`
#[derive(Debug, Subcommand)]
pub enum ExperimentCommand {
    /// List experiments and which seeds are done.
    List(ListArgs),
    /// Run experiments, or go on with what was begun.
    Run(RunArgs),
    /// Run a grid over fields of an experiment; finished cells are skipped.
    Sweep(SweepArgs),
    /// Compare the results of experiments.
    Compare(CompareArgs),
    /// Write the report of each experiment and a page for the suite.
    Report(ReportArgs),
    /// Check results against the experiments' `[[expect]]` tables; fails on a miss.
    Check(CheckArgs),
}

/// Where things are.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Folder of experiment files, `<suite>/<name>.toml`.
    #[arg(long, default_value = "benches/experiments")]
    pub configs: PathBuf,
    /// Folder of results, `<suite>/<name>/seed-<n>`.
    #[arg(long, default_value = "target/experiments")]
    pub out: PathBuf,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// A suite, or suite/name; all by default.
    pub target: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// What `run` and `sweep` share.
#[derive(Clone, Debug, Args)]
pub struct RunSettings {
    /// Seeds instead of the file's: `3`, `0,1,2` or `0..3` (without the last).
    #[arg(long)]
    pub seeds: Option<String>,
    /// flex, ndarray, cuda, wgpu or tch.
    #[arg(long, default_value = "flex")]
    pub backend: BackendName,
    /// Worker threads, 0 for one a core; does not change results.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Override a field of the file: `client.lr=0.1`. May be repeated.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub overrides: Vec<String>,
    /// A short version that shows that everything works: one seed, two rounds. Results go to `<out>/smoke`.
    #[arg(long)]
    pub smoke: bool,
    /// Delete earlier results of the seeds instead of going on with them.
    #[arg(long)]
    pub fresh: bool,
    /// Print events as JSON lines.
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Print results only.
    #[arg(long)]
    pub quiet: bool,
    /// Folder of data sets [default: $FEDBURN_DATA, else the user's data folder].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Suites, suite/name, or .toml files.
    #[arg(required = true)]
    pub targets: Vec<String>,
    /// How to run.
    #[command(flatten)]
    pub settings: RunSettings,
}

/// Arguments of `sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// A suite, suite/name or a .toml file; of a suite, every file with a sweep table.
    pub target: String,
    /// A dimension of the grid: `client.lr=0.1,0.01`, or choices that the file names: `method=fedavg`. May be repeated; the
    /// file's `[sweep]` table by default.
    #[arg(long = "grid", value_name = "FIELD=VALUES")]
    pub grid: Vec<String>,
    /// How to run.
    #[command(flatten)]
    pub settings: RunSettings,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Two or more experiments: suites, suite/name or folders of results.
    #[arg(required = true)]
    pub targets: Vec<String>,
    /// A column of rounds.csv, accuracy_over_centralised or accuracy_over_local_only.
    #[arg(long, default_value = "accuracy")]
    pub metric: String,
    /// Compare after this round instead of the last that all have.
    #[arg(long, conflicts_with = "to")]
    pub at_round: Option<u64>,
    /// Compare rounds and bytes until the metric first reaches this value.
    #[arg(long)]
    pub to: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A suite or suite/name.
    pub target: String,
    /// Folder of the suite's page.
    #[arg(long, default_value = "docs/results")]
    pub docs: PathBuf,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A suite or suite/name; all by default.
    pub target: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// Arguments of `partition`.
#[derive(Debug, Args)]
pub struct PartitionArgs {
    /// An experiment: suite/name or a .toml file.
    pub target: String,
    /// The seed; the file's first by default.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Override a field of the file: `partition.alpha=0.1`. May be repeated.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub overrides: Vec<String>,
    /// Write bars.svg and heat-map.svg into this folder.
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Folder of data sets [default: $FEDBURN_DATA, else the user's data folder].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// An experiment: suite/name or a .toml file.
    pub target: String,
    /// Override a field of the file: `client.batch_size=8`. May be repeated.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub overrides: Vec<String>,
    /// flex, ndarray, cuda, wgpu or tch.
    #[arg(long, default_value = "flex")]
    pub backend: BackendName,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Folder of data sets [default: $FEDBURN_DATA, else the user's data folder].
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
}

/// `fedburn data …`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// List the data sets that are known and where they were found.
    List {
        /// Folder of data sets [default: $FEDBURN_DATA, else the user's data folder].
        #[arg(long)]
        data: Option<PathBuf>,
    },
    /// Find a data set on this system, or download it.
    Fetch {
        /// Its name.
        name: String,
        /// Download from this address instead of the usual ones.
        #[arg(long)]
        from: Option<String>,
        /// Folder of data sets [default: $FEDBURN_DATA, else the user's data folder].
        #[arg(long)]
        data: Option<PathBuf>,
    },
}

/// Arguments of `aggregate`.
#[derive(Debug, Args)]
pub struct AggregateArgs {
    /// A TOML file with what an experiment's `[strategy]` table holds.
    #[arg(long)]
    pub strategy: PathBuf,
    /// The parameters that the clients started from.
    #[arg(long)]
    pub global: PathBuf,
    /// A client's parameters and its number of examples, and what else it sent: `client=ID` (its place in the list
    /// where not given), `accumulation=NUMBER`, `steps=NUMBER`, `class_counts=N/N/…`, `NAME=NUMBER` or
    /// `NAME=FILE.safetensors` for an algorithm's own scalars and vectors.
    #[arg(long = "update", value_name = "FILE:EXAMPLES[:NAME=VALUE,…]", required = true)]
    pub updates: Vec<UpdateFile>,
    /// Number of clients that there are; the number of updates by default.
    #[arg(long)]
    pub population: Option<u64>,
    /// The strategy's state between rounds, with what it remembers of clients: read if the file is there, and written.
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// Where the next global parameters go.
    #[arg(long)]
    pub out: PathBuf,
    /// Where the parameters to evaluate and ship go (averages of `swa`); the global ones where the strategy has none.
    #[arg(long)]
    pub deployed: Option<PathBuf>,
    /// An existing folder for the vectors that clients of the next round get besides the global ones (`control` of `scaffold`).
    #[arg(long)]
    pub side: Option<PathBuf>,
    /// Root of the strategy's randomness.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where tensors live: flex, ndarray, cuda, wgpu or tch.
    #[arg(long, default_value = "flex")]
    pub backend: BackendName,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Reads `3`, `0,1,2` or `0..3` as the value of `option`.
///
/// # Errors
/// The reason, with what was expected.
pub fn parse_numbers(option: &str, text: &str) -> Result<Vec<u64>, String> {
    let refuse = || format!("{option} {text}: expected `3`, `0,1,2` or `0..3`");
    let number = |part: &str| part.trim().parse::<u64>().map_err(|_| refuse());
    let numbers = match text.split_once("..") {
        Some((first, end)) => (number(first)?..number(end)?).collect(),
        None => text.split(',').map(number).collect::<Result<Vec<_>, _>>()?,
    };
    if numbers.is_empty() { Err(refuse()) } else { Ok(numbers) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The arguments in what `docs/deploy` runs, with a value for each variable.
    fn deployed() -> Vec<(&'static str, String)> {
        let files = [
            ("fedburn-server.service", include_str!("../../../docs/deploy/fedburn-server.service"), "ExecStart="),
            ("fedburn-node.service", include_str!("../../../docs/deploy/fedburn-node.service"), "ExecStart="),
            ("compose.yaml", include_str!("../../../docs/deploy/compose.yaml"), "command:"),
            ("Containerfile", include_str!("../../../docs/deploy/Containerfile"), "HEALTHCHECK"),
        ];
        let lines = |(file, text, mark): (&'static str, &'static str, &'static str)| {
            text.lines().filter_map(move |line| Some((file, line.trim().strip_prefix(mark)?.trim().to_owned())))
        };
        let plain = |(file, line): (&'static str, String)| {
            let line = line.split("CMD ").last().unwrap_or_default().replace(['"', '[', ']', ','], " ");
            let line = line.replace("${SEED}", "0").replace("${CLIENTS}", "0..10").replace("/usr/local/bin/", "");
            (
                file,
                line.replace("${EXPERIMENT}", "a.toml")
                    .replace("${PUBLIC_HOST}", "server")
                    .replace("${", "/")
                    .replace('}', ""),
            )
        };
        files.into_iter().flat_map(lines).map(plain).collect()
    }

    #[test]
    fn what_the_deployment_runs_exists() {
        let commands = deployed();
        for file in ["fedburn-server.service", "fedburn-node.service", "compose.yaml", "Containerfile"] {
            assert!(commands.iter().any(|(known, _)| *known == file), "{file} runs nothing");
        }
        for (file, line) in commands {
            let words = line.split_whitespace().filter(|word| *word != "fedburn");
            if let Err(error) = Cli::try_parse_from(std::iter::once("fedburn").chain(words)) {
                panic!("{file}: {line}: {error}");
            }
        }
    }

    #[test]
    fn numbers_have_three_forms() {
        assert_eq!(parse_numbers("--seeds", "3"), Ok(vec![3]));
        assert_eq!(parse_numbers("--seeds", "0, 2"), Ok(vec![0, 2]));
        assert_eq!(parse_numbers("--seeds", "1..4"), Ok(vec![1, 2, 3]));
        for wrong in ["", "a", "3..3", "1..x", "-1"] {
            let reason = parse_numbers("--clients", wrong).unwrap_err();
            assert!(reason.starts_with("--clients") && reason.contains("expected"), "{reason}");
        }
    }
}
