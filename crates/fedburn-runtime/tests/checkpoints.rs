//! Checkpoints are there whole or not at all, and only the run that they belong to goes on from them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{ParamEntry, ParamKind, ParamSchema, ParamVector, RoundIndex, StateData, StateDict, StateTensor};
use fedburn_runtime::{Checkpoint, CheckpointDir, CheckpointError, RunTotals};

fn schema(weights: usize) -> Arc<ParamSchema> {
    Arc::new(ParamSchema::new(vec![ParamEntry::new("w", vec![weights], ParamKind::Weight)]).unwrap())
}

fn checkpoint(round: u64) -> Checkpoint<Flex> {
    let vector = |values: [f32; 3]| ParamVector::from_host(values.to_vec(), schema(3), &FlexDevice).unwrap();
    let mut strategy_state = StateDict::new();
    strategy_state.insert_u64("step", round);
    let moment = StateData::F32(vec![0.5, -0.0, f32::MIN_POSITIVE]);
    strategy_state.insert("moment", StateTensor { shape: vec![3], data: moment });
    Checkpoint {
        round: RoundIndex(round),
        config_hash: "c0ffee".to_owned(),
        global: vector([round as f32, -0.0, 1e-40]),
        deploy: round.is_multiple_of(2).then(|| vector([0.25, 0.5, round as f32])),
        strategy: "swa".to_owned(),
        strategy_state,
        totals: RunTotals { updates: 3 * round, failures: 1, abandoned: 0, bytes_down: 9, bytes_up: 8, seconds: 0.1 },
    }
}

fn latest(dir: &CheckpointDir) -> Result<Option<Checkpoint<Flex>>, CheckpointError> {
    dir.latest(&schema(3), &FlexDevice)
}

/// The round of the newest usable checkpoint.
fn found(dir: &CheckpointDir) -> Option<u64> {
    latest(dir).unwrap().map(|checkpoint| checkpoint.round.0)
}

fn bits(params: &ParamVector<Flex>) -> Vec<u32> {
    params.to_host().iter().map(|v| v.to_bits()).collect()
}

fn saved(rounds: &[u64]) -> (tempfile::TempDir, CheckpointDir) {
    let directory = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::open(directory.path()).unwrap();
    rounds.iter().for_each(|&round| {
        dir.save(&checkpoint(round)).unwrap();
    });
    (directory, dir)
}

fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

fn files(directory: &Path) -> Vec<PathBuf> {
    names(directory).into_iter().map(|name| directory.join(name)).collect()
}

#[test]
fn everything_comes_back_bit_for_bit() {
    for round in [7, 8] {
        let (_directory, dir) = saved(&[round]);
        let (before, after) = (checkpoint(round), latest(&dir).unwrap().unwrap());
        assert_eq!(bits(&after.global), bits(&before.global));
        assert_eq!(after.deploy.as_ref().map(bits), before.deploy.as_ref().map(bits));
        assert_eq!((after.round, after.totals), (before.round, before.totals));
        assert_eq!((after.strategy, after.config_hash), (before.strategy, before.config_hash));
        assert_eq!(after.strategy_state, before.strategy_state);
    }
}

#[test]
fn the_newest_two_are_kept_and_the_older_of_them_is_told() {
    let (directory, dir) = saved(&[]);
    assert_eq!(found(&dir), None);
    let told: Vec<u64> = [5, 10, 15, 20].map(|round| dir.save(&checkpoint(round)).unwrap().0).to_vec();
    assert_eq!(told, [5, 5, 10, 15]);
    assert_eq!(names(directory.path()), ["round-00000015", "round-00000020"]);
    assert_eq!(found(&dir), Some(20));
    dir.clear().unwrap();
    assert_eq!((found(&dir), names(directory.path()).len()), (None, 0));
}

#[test]
fn any_cut_and_any_flipped_bit_falls_back_to_the_one_before() {
    let (directory, dir) = saved(&[5, 10]);
    for file in files(&directory.path().join("round-00000010")) {
        let whole = fs::read(&file).unwrap();
        // Every fifth byte, and the last: a cut there is the hardest to notice.
        for at in (0..whole.len()).step_by(5).chain([whole.len() - 1]) {
            fs::write(&file, &whole[..at]).unwrap();
            assert_eq!(found(&dir), Some(5), "{} cut at {at}", file.display());
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&file, &flipped).unwrap();
            assert_eq!(found(&dir), Some(5), "{} flipped at {at}", file.display());
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(found(&dir), Some(5), "{} missing", file.display());
        fs::write(&file, &whole).unwrap();
        assert_eq!(found(&dir), Some(10));
    }
}

#[test]
fn a_run_that_fell_back_writes_over_what_it_left_behind() {
    let (directory, dir) = saved(&[5, 10]);
    fs::write(directory.path().join("round-00000010/global.safetensors"), "").unwrap();
    assert_eq!(found(&dir), Some(5));
    assert_eq!(dir.save(&checkpoint(8)).unwrap(), RoundIndex(5), "what the run goes on from is kept");
    assert_eq!(names(directory.path()), ["round-00000005", "round-00000008"]);

    fs::write(directory.path().join("round-00000008/global.safetensors"), "").unwrap();
    dir.save(&checkpoint(8)).unwrap();
    assert_eq!(found(&dir), Some(8));
}

#[test]
fn a_kill_while_saving_leaves_the_one_before() {
    let whole = saved(&[10]).0.keep();
    let parts = files(&whole.join("round-00000010"));
    for written in 0..=parts.len() {
        // A kill before the rename leaves some files under the unfinished name.
        let (directory, dir) = saved(&[5]);
        let unfinished = directory.path().join("round-00000010.unfinished");
        fs::create_dir(&unfinished).unwrap();
        parts[..written].iter().for_each(|part| {
            fs::copy(part, unfinished.join(part.file_name().unwrap())).unwrap();
        });
        assert_eq!(found(&dir), Some(5));
        let dir = CheckpointDir::open(directory.path()).unwrap();
        assert_eq!(names(directory.path()), ["round-00000005"]);
        dir.save(&checkpoint(10)).unwrap();
        assert_eq!(found(&dir), Some(10));
    }
    fs::remove_dir_all(whole).unwrap();
}

#[test]
fn damage_everywhere_is_an_error_that_says_what_to_do() {
    let (directory, dir) = saved(&[5, 10]);
    for place in files(directory.path()) {
        fs::write(place.join("strategy.safetensors"), "x").unwrap();
    }
    let message = latest(&dir).unwrap_err().to_string();
    assert!(message.contains("strategy.safetensors") && message.contains("start over"), "{message}");
}

#[test]
fn another_run_is_refused() {
    let (_directory, dir) = saved(&[5]);
    match dir.latest::<Flex>(&schema(4), &FlexDevice) {
        Err(CheckpointError::OtherModel { round, reason }) => {
            assert_eq!(round, RoundIndex(5));
            assert!(reason.contains("`w` [4]") && reason.contains("`w` [3]"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let checkpoint = latest(&dir).unwrap().unwrap();
    checkpoint.ensure_of("swa", "c0ffee").unwrap();
    assert!(matches!(checkpoint.ensure_of("fedavg", "c0ffee"), Err(CheckpointError::OtherStrategy { .. })));
    assert!(matches!(checkpoint.ensure_of("swa", "dec0de"), Err(CheckpointError::OtherConfig { .. })));
}

#[test]
fn the_vector_is_a_plain_safetensors_file() {
    let (directory, _dir) = saved(&[5]);
    let bytes = fs::read(directory.path().join("round-00000005/global.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("w").unwrap().shape(), [3]);
}
