//! Results that no run made, for tests.

use std::path::{Path, PathBuf};

use fedburn::core::ClassId;
use fedburn::data::PartitionStatistics;
use fedburn::data::partition::Partition;
use fedburn::train::{LossAt, Sharpness};

use crate::results::{
    BaselinePoint, Baselines, ClientRow, ExperimentResults, LocalOnly, RoundRow, RunInfo, RunStatus, SeedResults,
    write_csv, write_json,
};

/// An experiment of seeds 0, 1, ….
pub(crate) fn experiment(name: &str, mut seeds: Vec<SeedResults>) -> ExperimentResults {
    seeds.iter_mut().zip(0..).for_each(|(run, seed)| run.seed = seed);
    ExperimentResults { name: name.into(), dir: PathBuf::from("out").join(name), seeds }
}

/// A finished run with this accuracy after rounds 1, 2, …; its loss is one minus the accuracy.
pub(crate) fn finished(accuracy: &[Option<f64>]) -> SeedResults {
    let row = |(round, accuracy): (u64, &Option<f64>)| RoundRow {
        round,
        updates: 9,
        failures: u64::from(round % 5 == 0),
        train_loss: Some(2.0 / round as f64),
        loss: accuracy.map(|accuracy| 1.0 - accuracy),
        accuracy: *accuracy,
        bytes_down: 7_968_400,
        bytes_up: 7_968_400 - 1_000 * (round % 3),
        seconds: Some(0.4 + 0.02 * (round % 7) as f64),
    };
    SeedResults {
        config: Some("title = \"Fixture\"\nseeds = [0]\n".into()),
        run: Some(run_info(accuracy.len() as u64)),
        rounds: (1..).zip(accuracy).map(row).collect(),
        ..SeedResults::default()
    }
}

/// Makes a run look killed after `round`.
pub(crate) fn interrupt(run: &mut SeedResults, round: u64) {
    run.rounds.truncate(round as usize);
    run.summary = None;
    if let Some(info) = &mut run.run {
        (info.status, info.ended) = (RunStatus::Running {}, None);
    }
}

pub(crate) fn baselines(centralised: f64, local_only: &[f64]) -> Baselines {
    let point = |epoch: u64| BaselinePoint {
        epoch,
        loss: Some(0.3 / epoch as f64),
        accuracy: Some(centralised * epoch as f64 / 10.0),
    };
    let alone = |(client, &accuracy): (u64, &f64)| LocalOnly {
        client,
        num_examples: 40 + 7 * client,
        accuracy: Some(accuracy),
        loss: Some(1.0 - accuracy),
        own_accuracy: Some(accuracy),
    };
    Baselines {
        centralised: Some((1..=10).map(point).collect()),
        local_only: Some((0..).zip(local_only).map(alone).collect()),
    }
}

pub(crate) fn clients(accuracy: impl IntoIterator<Item = f64>) -> Vec<ClientRow> {
    let row = |(client, accuracy): (u64, f64)| ClientRow {
        client,
        num_examples: 10 + client % 13,
        accuracy: Some(accuracy),
        loss: Some(1.0 - accuracy),
        global_accuracy: Some(accuracy),
    };
    (0..).zip(accuracy).map(row).collect()
}

/// Ten classes of a hundred examples each, dealt unevenly to clients.
pub(crate) fn partition(clients: usize) -> PartitionStatistics {
    let labels: Vec<ClassId> = (0..1_000).map(|example| ClassId(example / 100)).collect();
    let mut lists = vec![Vec::new(); clients];
    (0..1_000).for_each(|example| lists[(example / 37 + example * example / 5_000) % clients].push(example));
    PartitionStatistics::new(&Partition::new(lists, labels.len()).unwrap(), &labels, 10).unwrap()
}

/// A bowl of this curvature.
pub(crate) fn sharpness(top_eigenvalue: f64) -> Sharpness {
    let at = |distance: f64| LossAt { distance, loss: Some(0.5 + top_eigenvalue * distance * distance / 2.0) };
    let curve = [-0.5, -0.25, 0.0, 0.25, 0.5].map(at).to_vec();
    Sharpness { top_eigenvalue: Some(top_eigenvalue), products: 9, converged: true, examples: 100, curve }
}

/// Writes what a run would.
pub(crate) fn write(run: &SeedResults, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    run.config.iter().for_each(|config| std::fs::write(dir.join("config.toml"), config).unwrap());
    run.run.iter().for_each(|info| write_json(&dir.join("run.json"), info).unwrap());
    run.baselines.iter().for_each(|baselines| write_json(&dir.join("baselines.json"), baselines).unwrap());
    run.partition.iter().for_each(|partition| write_json(&dir.join("partition.json"), partition).unwrap());
    run.sharpness.iter().for_each(|sharpness| write_json(&dir.join("sharpness.json"), sharpness).unwrap());
    run.summary.iter().for_each(|summary| write_json(&dir.join("summary.json"), summary).unwrap());
    write_csv(&dir.join("rounds.csv"), &run.rounds).unwrap();
    write_csv(&dir.join("clients.csv"), &run.clients).unwrap();
}

fn run_info(rounds: u64) -> RunInfo {
    RunInfo {
        revision: Some("0f1e2d3c4b5a".into()),
        fedburn_version: "0.1.0".into(),
        burn_version: "0.21.0".into(),
        rustc_version: "1.95.0".into(),
        backend: "flex".into(),
        device: "cpu".into(),
        cores: 2,
        os: "linux x86_64".into(),
        started: 1_772_368_205,
        ended: Some(1_772_368_245),
        status: RunStatus::Finished {},
        rounds,
        config_hash: "00ff00ff00ff00ff".into(),
        command: "cargo xtask experiment run suite/name --seeds 0".into(),
    }
}
