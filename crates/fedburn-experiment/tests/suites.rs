//! Every experiment of the repository can run: each file and each cell of its grid is checked as before a run.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use fedburn::train::ClientDataSource;
use fedburn_experiment::config::{ConfigError, ExperimentConfig};
use fedburn_experiment::fetch;
use fedburn_experiment::list::list;
use fedburn_experiment::sweep::{Axis, plan};

#[test]
fn every_file_and_cell_of_the_suites_is_accepted() {
    let configs = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/experiments"));
    let found = list(&configs, Path::new("nowhere"), None).unwrap();
    assert!(found.len() > 4, "{found:?}");
    let mut cells = 0;
    for experiment in found {
        let config = ExperimentConfig::load(&experiment.path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let mut axes = Axis::of_table(&experiment.path, &config.sweep).unwrap();
        if axes.is_empty() {
            axes = vec![Axis::parse("title=\"as it is\"").unwrap()];
        }
        // One seed: the others differ in draws alone.
        let one = |config: ExperimentConfig| ExperimentConfig { seeds: vec![config.seeds[0]], ..config };
        match plan(&experiment.path, &[], &axes, &fetch::default_root(), one) {
            Ok(planned) => {
                for cell in &planned {
                    let run = &cell.runs[0];
                    let strategy = run.experiment().strategy::<burn_flex::Flex>().map(drop);
                    let clients = run.clients().clients().len();
                    let memory = run.experiment().check_memory::<burn_flex::Flex>(&burn_flex::FlexDevice, clients);
                    if let Err(error) = strategy.and(memory) {
                        panic!("{}: {:?}: {error}", experiment.path.display(), cell.cell);
                    }
                }
                cells += planned.len();
            }
            Err(ConfigError::Value { table: "data", reason, .. }) => eprintln!("left out, no data here: {reason}"),
            // What another experiment leaves is there once that was run.
            Err(ConfigError::Value { table: "initial_model", reason, .. }) => eprintln!("left out, no model: {reason}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(cells > 20, "the digits are always there, but {cells} cells were checked");
}
