//! A process that keeps client state and checkpoints is killed with `kill -9` again and again, and goes on.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{ClientId, ParamEntry, ParamKind, ParamSchema, ParamVector, RoundIndex, StateDict, StateStore};
use fedburn_runtime::{Checkpoint, CheckpointDir, DiskStore, RunTotals};

const DIRECTORY: &str = "FEDBURN_TEST_KILL_DIRECTORY";
const CLIENTS: u64 = 5;
const ROUNDS: u64 = 120;

fn schema() -> Arc<ParamSchema> {
    Arc::new(ParamSchema::new(vec![ParamEntry::new("w", vec![2], ParamKind::Weight)]).unwrap())
}

fn cohort(round: u64) -> Vec<ClientId> {
    (0..CLIENTS).filter(|client| !(round + client).is_multiple_of(3)).map(ClientId).collect()
}

/// A run that counts: each client its participations, the global vector all of them. Asserts at every step that
/// nothing was lost or counted twice.
fn count(directory: &Path) {
    let checkpoints = CheckpointDir::open(directory.join("checkpoints")).unwrap();
    let latest = checkpoints.latest::<Flex>(&schema(), &FlexDevice).unwrap();
    let (after, mut total) = latest.map_or((0, 0.0), |c| (c.round.0, c.global.to_host()[0]));
    let store = DiskStore::open(directory.join("clients"), RoundIndex(after)).unwrap();
    let taken =
        |client: ClientId, rounds: u64| (1..=rounds).filter(|round| cohort(*round).contains(&client)).count() as u64;
    for round in after + 1..=ROUNDS {
        let index = RoundIndex(round);
        for client in cohort(round) {
            let before = store.load(client, index).unwrap().map_or(0, |mut state| state.take_u64("count").unwrap());
            assert_eq!(before, taken(client, round - 1), "client {client} in round {round}");
            let mut state = StateDict::new();
            state.insert_u64("count", before + 1);
            store.stage(client, index, state).unwrap();
            total += 1.0;
        }
        println!("round {round}");
        std::io::stdout().flush().unwrap();
        store.commit(index, &cohort(round)).unwrap();
        if round.is_multiple_of(3) {
            let global = ParamVector::<Flex>::from_host(vec![total, 0.5], schema(), &FlexDevice).unwrap();
            let oldest = checkpoints.save(&Checkpoint {
                round: index,
                config_hash: String::new(),
                global,
                deploy: None,
                strategy: "count".to_owned(),
                strategy_state: StateDict::new(),
                totals: RunTotals::default(),
            });
            store.checkpointed(oldest.unwrap()).unwrap();
        }
    }
    let all: u64 = (0..CLIENTS).map(|client| taken(ClientId(client), ROUNDS)).sum();
    assert_eq!(total, all as f32);
    println!("complete");
}

/// Not a test of its own: what [`nothing_is_lost_or_counted_twice`] starts and kills.
#[test]
fn counting_process() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        count(Path::new(&directory));
    }
}

#[test]
fn nothing_is_lost_or_counted_twice() {
    let directory = tempfile::tempdir().unwrap();
    let mut kills = 0;
    // Each process gets past at least one checkpoint; where in a round the kill falls is left to the scheduler.
    for attempt in 0.. {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "counting_process", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let complete = if attempt < 25 {
            let rounds = lines.by_ref().filter(|line| line.contains("round ") || line == "complete");
            rounds.take(4 + attempt % 5).any(|line| line == "complete")
        } else {
            lines.any(|line| line == "complete")
        };
        if complete || attempt >= 25 {
            assert!(process.wait().unwrap().success());
            assert!(complete);
            break;
        }
        // SIGKILL: no destructor, no flush.
        process.kill().unwrap();
        process.wait().unwrap();
        kills += 1;
    }
    assert!(kills >= 15, "only {kills} kills fell into the run");
}
