//! What a run writes and reads again: checkpoints, records of open rounds and answers, events, tables, results.

use std::fs;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{Event, RoundIndex, StateDict};
use fedburn_experiment::results::SeedResults;
use fedburn_runtime::{Checkpoint, CheckpointDir, DiskStore, EventLog, RoundsCsv, RunTotals};
use fedburn_transport::quic;
use sha2::{Digest, Sha256};

use super::Folder;
use super::values::{schema, vector};
use crate::Decoder;

pub(super) fn decoders() -> Vec<Decoder> {
    let [open_round, answers, results] = [Folder::new(), Folder::new(), Folder::new()];
    let schema = schema();
    let global = vector(vec![1.0; schema.num_values()], &schema);
    vec![
        checkpoint("checkpoint-manifest", "manifest.json", true),
        checkpoint("checkpoint-sums", "SHA256SUMS", false),
        Decoder::new(
            "open-round",
            8_192,
            move |input| {
                let sealed = [input, Sha256::digest(input).as_slice()].concat();
                Ok(fedburn_runtime::fuzz::open_round(&open_round.put("open", &sealed), &global)?)
            },
            |_, _| (),
        )
        // It is read through a large buffer.
        .holding(2 << 20),
        Decoder::new(
            "answers",
            4_096,
            move |input| match quic::fuzz::answers(&answers.path().join("a"), input)? {
                0 => Err("no answer".into()),
                found => Ok(found),
            },
            |_, _| (),
        )
        .holding(256 << 10),
        Folder::new().decoder("participation", 2_048, "p", |_, file| Ok(quic::fuzz::participation(file)?), |_, ()| ()),
        Folder::new()
            .decoder("openings", 1_024, "openings.json", |dir, _| Ok(DiskStore::open(dir, RoundIndex(3))?), |_, _| ())
            // A list of numbers that has two bytes each in the file has eight in memory, and twice as many as it grows.
            .holding(16 << 10),
        Folder::new()
            .decoder("rounds-csv", 4_096, "r", |_, file| Ok(RoundsCsv::read(file)?), |_, _| ())
            .holding(64 << 10),
        Folder::new()
            .decoder(
                "events",
                4_096,
                "e",
                |_, file| Ok(EventLog::open(file)?.collect::<Result<Vec<Event>, _>>()?),
                |_, _| (),
            )
            .holding(64 << 10),
        Decoder::new(
            "results",
            4_096,
            // The first byte chooses the file.
            move |input| {
                let (choice, content) = input.split_first().ok_or("no file")?;
                let file = results.put(RESULTS[usize::from(*choice) % RESULTS.len()], content);
                let found = SeedResults::load(3, results.path());
                fs::remove_file(file)?;
                if found.problems.is_empty() { Ok(found) } else { Err(found.problems.join("; ").into()) }
            },
            |_, found| {
                found.status();
                found.own_accuracy();
                found.figures();
            },
        )
        .holding(128 << 10),
    ]
}

/// A checkpoint of which one file is the input; its checksum fits where `sealed`.
fn checkpoint(name: &str, file: &'static str, sealed: bool) -> Decoder {
    let (folder, schema) = (Folder::new(), schema());
    let dir = CheckpointDir::open(folder.path()).expect("a folder of temporary files can be written");
    dir.save(&Checkpoint {
        round: RoundIndex(3),
        config_hash: "fuzz".to_owned(),
        global: vector(vec![1.0; schema.num_values()], &schema),
        deploy: None,
        strategy: "fedavg".to_owned(),
        strategy_state: StateDict::new(),
        totals: RunTotals::default(),
    })
    .expect("a checkpoint can be written");
    let place = fs::read_dir(folder.path()).expect("it was made").flatten().next().expect("one was saved").path();
    let sums = fs::read_to_string(place.join("SHA256SUMS")).expect("every checkpoint has it");
    Decoder::new(
        name,
        4_096,
        move |input| {
            fs::write(place.join(file), input)?;
            if sealed {
                let sum: String = Sha256::digest(input).iter().map(|byte| format!("{byte:02x}")).collect();
                let line = |line: &str| match line.ends_with(file) {
                    true => format!("{sum}  {file}\n"),
                    false => format!("{line}\n"),
                };
                fs::write(place.join("SHA256SUMS"), sums.lines().map(line).collect::<String>())?;
            }
            let found = dir.latest::<Flex>(&schema, &FlexDevice)?;
            // The folder lives as long as the decoder.
            let _ = &folder;
            Ok(found.ok_or("no checkpoint")?)
        },
        |_, checkpoint| assert_eq!(checkpoint.round, RoundIndex(3)),
    )
    .holding(64 << 10)
}

/// The files of a seed's folder.
const RESULTS: [&str; 9] = [
    "config.toml",
    "run.json",
    "baselines.json",
    "partition.json",
    "sharpness.json",
    "summary.json",
    "clients.csv",
    "events.jsonl",
    "rounds.csv",
];
