//! One conformance suite for every store, and what only a store on disk must bear.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use fedburn_core::{ClientId, RoundIndex, StateDict, StateError, StateStore};
use fedburn_runtime::{DiskStore, MemoryStore};
use proptest::collection::vec;
use proptest::prelude::*;

fn state(value: u64) -> StateDict {
    let mut dict = StateDict::new();
    dict.insert_u64("value", value);
    dict.insert_f64("half", value as f64 / 2.0);
    dict
}

fn loaded(store: &dyn StateStore, client: u64, round: u64) -> Option<u64> {
    store.load(ClientId(client), RoundIndex(round)).unwrap().map(|mut dict| dict.take_u64("value").unwrap())
}

fn stage(store: &dyn StateStore, client: u64, round: u64, value: u64) {
    store.stage(ClientId(client), RoundIndex(round), state(value)).unwrap();
}

/// Ends a round that included every client.
fn commit(store: &dyn StateStore, round: u64) {
    let everyone: Vec<_> = (0..300).map(ClientId).collect();
    store.commit(RoundIndex(round), &everyone).unwrap();
}

/// Ends a round that was abandoned.
fn abandon(store: &dyn StateStore, round: u64) {
    store.commit(RoundIndex(round), &[]).unwrap();
}

fn temporary() -> (tempfile::TempDir, DiskStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskStore::open(directory.path(), RoundIndex(0)).unwrap();
    (directory, store)
}

/// The laws of [`StateStore`] on a fresh store.
fn conformance(store: &dyn StateStore) {
    assert_eq!(loaded(store, 1, 1), None, "nothing before the first participation");

    stage(store, 1, 1, 10);
    assert_eq!(loaded(store, 1, 2), None, "staged is not visible");
    commit(store, 1);
    assert_eq!(loaded(store, 1, 1), None, "a round does not see what was staged in it");
    assert_eq!(loaded(store, 1, 2), Some(10));
    assert_eq!(loaded(store, 2, 2), None, "clients do not share state");

    stage(store, 1, 2, 20);
    stage(store, 2, 2, 21);
    abandon(store, 2);
    commit(store, 2);
    assert_eq!((loaded(store, 1, 3), loaded(store, 2, 3)), (Some(10), None), "an abandoned round keeps nothing");

    stage(store, 1, 2, 22);
    stage(store, 2, 2, 23);
    store.commit(RoundIndex(2), &[ClientId(2), ClientId(9)]).unwrap();
    assert_eq!((loaded(store, 1, 3), loaded(store, 2, 3)), (Some(10), Some(23)), "only who was included counts");

    stage(store, 1, 3, 30);
    stage(store, 1, 3, 31);
    stage(store, 2, 4, 40);
    commit(store, 3);
    assert_eq!(loaded(store, 1, 9), Some(31), "the last of two stagings counts");
    assert_eq!(loaded(store, 2, 9), Some(23), "only the round's own stagings are committed");
    commit(store, 4);
    assert_eq!(loaded(store, 2, 9), Some(40));
    assert_eq!(loaded(store, 1, 3), Some(10), "older versions stay until a checkpoint");

    store.checkpointed(RoundIndex(3)).unwrap();
    assert_eq!((loaded(store, 1, 4), loaded(store, 2, 4), loaded(store, 2, 5)), (Some(31), Some(23), Some(40)));

    stage(store, 2, 4, 44);
    commit(store, 6);
    commit(store, 4);
    assert_eq!(loaded(store, 2, 9), Some(40), "what comes after its round's end is forgotten");
    stage(store, 1, 5, 50);
    commit(store, 5);
    stage(store, 1, 5, 51);
    commit(store, 5);
    assert_eq!(loaded(store, 1, 6), Some(51), "a round that is run again replaces its version");
}

#[test]
fn the_memory_store_conforms() {
    conformance(&MemoryStore::new());
}

#[test]
fn the_disk_store_conforms() {
    conformance(&temporary().1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A whole history on both stores, checkpoints included: they agree at every question that a run may ask.
    #[test]
    fn both_stores_agree(rounds in vec((vec(0u64..4, 0..4), any::<bool>(), prop::bool::weighted(0.3)), 1..12)) {
        let (memory, (_directory, disk)) = (MemoryStore::new(), temporary());
        let stores: [&dyn StateStore; 2] = [&memory, &disk];
        let mut floor = 0;
        for (index, (cohort, committed, checkpoint)) in rounds.iter().enumerate() {
            let round = index as u64 + 1;
            for store in stores {
                cohort.iter().for_each(|&client| stage(store, client, round, 100 * round + client));
                if *committed { commit(store, round) } else { abandon(store, round) }
                if *checkpoint { store.checkpointed(RoundIndex(round)).unwrap() }
            }
            floor = if *checkpoint { round } else { floor };
            for (client, asked) in (0..4).flat_map(|client| (floor + 1..=round + 1).map(move |asked| (client, asked))) {
                // The reference: the newest committed round before the one asked for in which the client took part.
                let took_part = |r: &u64| rounds[*r as usize - 1].1 && rounds[*r as usize - 1].0.contains(&client);
                let expected = (1..asked).rev().find(took_part).map(|r| 100 * r + client);
                for store in stores {
                    prop_assert_eq!(loaded(store, client, asked), expected, "client {} in round {}", client, asked);
                }
            }
        }
    }
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn staged_files_of_a_killed_run_are_dropped() {
    let (directory, store) = temporary();
    stage(&store, 1, 1, 10);
    drop(store);
    let store = DiskStore::open(directory.path(), RoundIndex(0)).unwrap();
    commit(&store, 1);
    assert_eq!(loaded(&store, 1, 2), None);
    assert!(files(&directory.path().join("staged")).is_empty());
}

#[test]
fn a_commit_cut_off_anywhere_is_harmless() {
    let cohort = [1, 2, 3, 258];
    for cut in 0..=cohort.len() {
        let (directory, store) = temporary();
        cohort.iter().for_each(|&client| stage(&store, client, 1, 10));
        commit(&store, 1);
        store.checkpointed(RoundIndex(1)).unwrap();
        // What a kill after `cut` renames leaves: as many clients have the new version.
        cohort[..cut].iter().for_each(|&client| stage(&store, client, 2, 20));
        commit(&store, 2);
        cohort[cut..].iter().for_each(|&client| stage(&store, client, 2, 20));
        drop(store);

        let store = DiskStore::open(directory.path(), RoundIndex(1)).unwrap();
        // Round 2 goes another way this time: only client 2 delivers.
        cohort.iter().for_each(|&client| assert_eq!(loaded(&store, client, 2), Some(10), "cut at {cut}"));
        stage(&store, 2, 2, 22);
        commit(&store, 2);
        for client in cohort {
            let expected = if client == 2 { 22 } else { 10 };
            assert_eq!(loaded(&store, client, 3), Some(expected), "client {client}, cut at {cut}");
        }
    }
}

#[test]
fn versions_after_the_round_gone_back_to_stay_dead() {
    let (directory, store) = temporary();
    for round in 1..=4 {
        stage(&store, 7, round, round);
        commit(&store, round);
    }
    drop(store);
    let reopen = |after| DiskStore::open(directory.path(), RoundIndex(after)).unwrap();
    assert_eq!(loaded(&reopen(4), 7, 9), Some(4));
    assert_eq!(loaded(&reopen(2), 7, 9), Some(2));
    assert_eq!(loaded(&reopen(4), 7, 9), Some(2), "a later opening does not revive them");
    let store = reopen(2);
    stage(&store, 7, 3, 33);
    commit(&store, 3);
    drop(store);
    assert_eq!(loaded(&reopen(3), 7, 9), Some(33));
}

#[test]
fn checkpoints_bound_the_files_of_a_client() {
    let (directory, store) = temporary();
    for round in 1..=20 {
        stage(&store, 7, round, round);
        commit(&store, round);
        if round % 5 == 0 {
            store.checkpointed(RoundIndex(round)).unwrap();
            assert_eq!(files(&directory.path().join("clients")).len(), 1);
        }
    }
    stage(&store, 7, 21, 21);
    commit(&store, 21);
    drop(store);
    let store = DiskStore::open(directory.path(), RoundIndex(20)).unwrap();
    stage(&store, 7, 21, 211);
    commit(&store, 21);
    store.checkpointed(RoundIndex(20)).unwrap();
    assert_eq!(files(&directory.path().join("clients")).len(), 2, "the dead version is gone, the old one needed");
    assert_eq!((loaded(&store, 7, 21), loaded(&store, 7, 22)), (Some(20), Some(211)));
}

#[test]
fn a_store_belongs_to_one_run() {
    let (directory, _store) = temporary();
    let message = DiskStore::open(directory.path(), RoundIndex(0)).unwrap_err().to_string();
    assert!(message.contains("another run"), "{message}");
}

#[test]
fn a_damaged_state_is_an_error_that_names_the_file() {
    let (directory, store) = temporary();
    stage(&store, 7, 1, 1);
    commit(&store, 1);
    let file = files(&directory.path().join("clients")).pop().unwrap();
    let bytes = fs::read(&file).unwrap();
    for cut in 0..bytes.len() {
        fs::write(&file, &bytes[..cut]).unwrap();
        match store.load(ClientId(7), RoundIndex(2)) {
            Err(StateError::Store { place, .. }) => assert_eq!(place, file.display().to_string()),
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
}
