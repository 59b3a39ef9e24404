//! Runs that begin with a model that was trained before.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{Workplace, json};

/// A transformer of four layers.
const PRETRAINED: &str = r#"
title = "Before fine-tuning"
seeds = [0]
data = { kind = "digits" }
partition = { kind = "iid", clients = 4 }
model = { kind = "vit", patch = 4, width = 16, depth = 4, heads = 2 }
client = { rule = "sgd", epochs = 1, batch_size = 16, lr = 0.05, momentum = 0.9 }
sampler = { kind = "all" }
server = { rounds = 6 }
"#;

/// From what that left, in the folder of the file. Of another seed: with the same one a new head would be the one that the
/// rest was trained to.
const TUNED: &str = r#"
title = "Part by part"
seeds = [5]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.5, min_examples = 10 }
model = { kind = "vit", patch = 4, width = 16, depth = 4, heads = 2 }
initial_model = { file = "start.safetensors" }
client = { rule = { depthwise = { memory = { shares = [0.8, 0.9] } } }, epochs = 1, batch_size = 16, lr = 0.02 }
sampler = { kind = "uniform", per_round = 3 }
server = { rounds = 3, checkpoint_every = 1 }
transport = { kind = "in_process", workers = 1 }
"#;

const FILE: &str = "benches/experiments/suite/start.safetensors";
const CONFIG: &str = "benches/experiments/suite/name.toml";
const RUN: &str = "experiment run suite --quiet --out out";

/// The model, the accuracy that it has, and a place where it lies for the experiment `TUNED`.
fn pretrained() -> (Vec<u8>, f64, Workplace) {
    let place = Workplace::new(PRETRAINED);
    place.succeed("experiment run suite --quiet --out first");
    let dir = place.seed("first", 0);
    let model = fs::read(dir.join("model.safetensors")).unwrap();
    let accuracy = json(&dir.join("summary.json"))["final_accuracy"]["value"].as_f64().unwrap();
    place.write(FILE, &model);
    place.write(CONFIG, TUNED);
    (model, accuracy, place)
}

/// The accuracy after each round, from that of the initial model on.
fn accuracies(place: &Workplace, out: &str) -> Vec<f64> {
    let text = fs::read_to_string(place.seed(out, 5).join("rounds.csv")).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let column = header.split(',').position(|name| name == "accuracy").unwrap();
    rows.lines().map(|row| row.split(',').nth(column).unwrap().parse().unwrap()).collect()
}

#[test]
fn a_transformer_is_tuned_part_by_part_from_where_it_was() {
    let (_, before, place) = pretrained();
    assert!(before > 0.5, "something was learnt: {before}");
    let plan = place.succeed("plan suite/name --json").stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    for group in plan["groups"].as_array().unwrap() {
        assert!(group["cut"]["parts"].as_array().unwrap().len() > 1, "no group trains the model at once: {group}");
    }
    place.succeed(&format!("{RUN} --seeds 5,6"));
    let tuned = accuracies(&place, "out");
    assert_eq!((tuned.len(), tuned[0]), (4, before));
    let start = fs::read(place.path(FILE)).unwrap();
    assert_ne!(fs::read(place.seed("out", 5).join("model.safetensors")).unwrap(), start);
    assert_eq!(json(&place.seed("out", 5).join("summary.json"))["failures"], 0);
    // The second in a process that has trained before.
    [5, 6].into_iter().for_each(|seed| clients_held_what_they_have(&place, seed));

    // A head of its own knows nothing yet.
    place.write(CONFIG, TUNED.replace("start.safetensors\"", "start.safetensors\", new = [\"head\"]"));
    place.succeed("experiment run suite --quiet --out anew");
    assert!(accuracies(&place, "anew")[0] < before - 0.2, "{:?}", accuracies(&place, "anew"));
}

/// What the program's allocator counted, part by part, beside what was planned and what there is.
fn clients_held_what_they_have(place: &Workplace, seed: u64) {
    let text = fs::read_to_string(place.seed("out", seed).join("memory.csv")).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    assert_eq!(header, "client,part,first_block,last_block,steps,budget,planned,held");
    let rows: Vec<Vec<u64>> =
        rows.lines().map(|row| row.split(',').map(|number| number.parse().unwrap()).collect()).collect();
    assert!(rows.iter().any(|row| row[1] == 2), "parts: {text}");
    for row in &rows {
        let [budget, planned, held] = row[5..] else { panic!("{row:?}") };
        assert!(planned * 4 / 5 < held && held <= planned && planned <= budget, "{text}");
    }
    let page = fs::read_to_string(place.path("out/suite/name/report.html"));
    assert!(page.is_ok_and(|page| page.contains("<section id=\"memory\">")));
}

#[test]
fn another_file_is_another_experiment_and_another_place_is_not() {
    let (model, _, place) = pretrained();
    place.succeed(RUN);
    let written = fs::read_to_string(place.seed("out", 5).join("config.toml")).unwrap();
    assert!(written.contains("sha256 = \""), "{written}");
    place.write("elsewhere/moved.safetensors", &model);
    place.write(CONFIG, TUNED.replace("start.safetensors", "../../../elsewhere/moved.safetensors"));
    let events = |place: &Workplace| fs::read(place.seed("out", 5).join("events.jsonl")).unwrap();
    let before = events(&place);
    place.succeed(RUN);
    assert_eq!(events(&place), before, "it is done already");

    let place_of_value = model.len() - 4;
    let mut changed = model;
    changed[place_of_value..].copy_from_slice(&0.125_f32.to_le_bytes());
    place.write("elsewhere/moved.safetensors", &changed);
    place.call(RUN).assert_refused(&["holds results of another configuration", "--fresh"]);
    let pinned = written.lines().find(|line| line.starts_with("sha256")).unwrap();
    place.write(
        CONFIG,
        TUNED.replace("start.safetensors\"", &format!("../../../elsewhere/moved.safetensors\", {pinned}")),
    );
    place.call(RUN).assert_refused(&["[initial_model]", "moved.safetensors has the SHA-256", "expected"]);
}

#[test]
fn a_file_that_does_not_fit_is_refused_before_anything_runs() {
    let (model, _, place) = pretrained();
    let refused = |from: &str, to: &str, words: &[&str]| {
        assert!(TUNED.contains(from));
        place.write(CONFIG, TUNED.replace(from, to));
        place.call(RUN).assert_refused(words);
        assert!(!place.seed("out", 5).exists());
    };
    refused("start.safe", "absent.safe", &["[initial_model]", "absent.safetensors", "`model.safetensors` that a run"]);
    refused("file = \"start.safetensors\"", "new = []", &["[initial_model]", "`file` is missing"]);
    refused(
        "width = 16",
        "width = 8",
        &["start.safetensors: ", "tensor `patches.weight` is F32 [16, 1, 4, 4]", "[8, 1"],
    );
    refused("depth = 4", "depth = 5", &["start.safetensors", "`blocks.4.", "is missing, expected F32"]);
    refused("depth = 4", "depth = 3", &["start.safetensors", "`blocks.3.", "not one of the model"]);
    refused("start.safetensors\"", "start.safetensors\", new = [\"tail\"]", &["`new` names `tail`", "patches", "head"]);
    place.write(FILE, &model[..model.len() / 2]);
    refused("Part by part", "Part by part", &["[initial_model]", "start.safetensors"]);
}
