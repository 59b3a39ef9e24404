//! Local rules, compression and sharpness from a file to the results on disk.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{STEADY, Workplace, json};

/// A run of two rounds with this `[client]` table and these evaluation settings: the final model's hash.
fn model_hash(client: &str, evaluation: &str) -> (String, Workplace) {
    let config = STEADY
        .replace("rule = \"sgd\"", client)
        .replace("rounds = 4", "rounds = 2")
        .replace("client_holdout = 0.2", &format!("client_holdout = 0.2{evaluation}"));
    let place = Workplace::new(&config);
    place.succeed("experiment run suite --out out");
    let summary = json(&place.seed("out", 0).join("summary.json"));
    (summary["model_hash"].as_str().unwrap().to_owned(), place)
}

/// The same with this `[compression]`.
fn compressed(compression: &str) -> String {
    model_hash("rule = \"sgd\"", &format!(" }}\ncompression = {{ {compression}")).0
}

#[test]
fn every_rule_and_wrapper_runs_and_does_something() {
    let plain = model_hash("rule = \"sgd\"", "").0;
    let mut hashes = vec![plain.clone()];
    for client in [
        "rule = { proximal = { mu = 1.0 } }",
        "rule = { ntd = {} }",
        "rule = { ntd = {} }, sharpness = { kind = \"sam\" }",
        "sharpness = { kind = \"sam\" }",
        "sharpness = { kind = \"asam\" }",
    ] {
        hashes.push(model_hash(client, "").0);
    }
    for compression in [
        "up = { kind = \"f16\" }",
        "up = { kind = \"bf16\" }",
        "up = { kind = \"int8\" }",
        "up = { kind = \"int8\" }, error_feedback = false",
        "up = { kind = \"int4\" }",
        "up = { kind = \"scaled_sign\" }",
        "up = { kind = \"top_k\", ratio = 0.1 }",
        "down = { kind = \"f16\" }",
        "down = { kind = \"int8\" }",
    ] {
        hashes.push(compressed(compression));
    }
    for client in ["rule = { proximal = { mu = 0.0 } }", "sharpness = { kind = \"asam\", rho = 0.0 }"] {
        assert_eq!(model_hash(client, "").0, plain, "{client}");
    }
    let count = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), count, "two settings gave the same model");
}

#[test]
fn both_halves_of_an_algorithm_run_together_or_not_at_all() {
    let both = |kind: &str, rule: &str| {
        let model = if kind == "fedgen" { "{ kind = \"two_nn\", hidden = 64 }" } else { "{ kind = \"softmax\" }" };
        let config = STEADY
            .replace("rounds = 4", "rounds = 30")
            .replace("kind = \"fedavg\"", &format!("kind = \"{kind}\""))
            .replace("rule = \"sgd\"", &format!("rule = {rule}, sharpness = {{ kind = \"sam\" }}"))
            .replace("{ kind = \"softmax\" }", model);
        Workplace::new(&config)
    };
    for (kind, rule) in [
        ("scaffold", "{ scaffold = {} }"),
        ("scaffold", "{ scaffold = { option = \"one\" } }"),
        ("feddyn", "{ feddyn = {} }"),
        ("fedgen", "{ fedgen = {} }"),
    ] {
        let place = both(kind, rule);
        place.succeed("experiment run suite --out out");
        let figures = json(&place.seed("out", 0).join("summary.json"));
        assert!(figures["final_accuracy"]["value"].as_f64().unwrap() > 0.7, "{kind}: {figures}");
        let run = "experiment run suite --out out";
        both("fedavg", rule).call(run).assert_refused(&["[client]", &format!("needs [strategy] kind = \"{kind}\"")]);
        both(kind, "\"sgd\"").call(run).assert_refused(&["[strategy]", &format!("`{kind}` needs [client] rule")]);
    }
}

#[test]
fn a_strategy_learns_from_examples_that_no_client_has() {
    let run = |share: &str, strategy: &str| {
        let config = STEADY
            .replace("evaluation", &format!("server_data = {{ share = {share} }}\nevaluation"))
            .replace("rounds = 4", "rounds = 30")
            .replace("{ kind = \"fedavg\" }", strategy);
        let place = Workplace::new(&config);
        place.succeed("experiment run suite --out out");
        let dir = place.seed("out", 0);
        let trained_on: usize = fs::read_to_string(dir.join("clients.csv"))
            .unwrap()
            .lines()
            .skip(1)
            .map(|line| line.split(',').nth(1).unwrap().parse::<usize>().unwrap())
            .sum();
        (json(&dir.join("summary.json")), trained_on)
    };
    let (plain, tenth) = run("0.1", "{ kind = \"fedavg\" }");
    let (fused, same) = run("0.1", "{ kind = \"feddf\", steps = 30, batch_size = 32 }");
    assert_eq!(tenth, same, "whoever learns on the server, clients have the same examples");
    assert_ne!(fused["model_hash"], plain["model_hash"]);
    assert!(fused["final_accuracy"]["value"].as_f64().unwrap() > 0.7, "{fused}");
    assert!(run("0.5", "{ kind = \"fedavg\" }").1 < tenth * 3 / 5);
}

#[test]
fn features_are_compared_with_those_of_the_clients_last_model() {
    let projected = "{ kind = \"projected\", body = { kind = \"two_nn\", hidden = 64 }, width = 32 }";
    let run = |rule: &str| {
        let config = STEADY
            .replace("{ kind = \"softmax\" }", projected)
            .replace("rule = \"sgd\", epochs = 1", &format!("rule = {rule}, epochs = 3"))
            .replace("rounds = 4", "rounds = 30");
        let place = Workplace::new(&config);
        place.succeed("experiment run suite --out out");
        json(&place.seed("out", 0).join("summary.json"))
    };
    let [plain, none, moon] = ["\"sgd\"", "{ moon = { mu = 0.0 } }", "{ moon = { mu = 1.0 } }"].map(run);
    assert_eq!(none["model_hash"], plain["model_hash"]);
    assert_ne!(moon["model_hash"], plain["model_hash"]);
    assert!(moon["final_accuracy"]["value"].as_f64().unwrap() > 0.7, "{moon}");
}

#[test]
fn clients_keep_their_state_between_rounds() {
    let run = |rounds: usize| {
        let config = STEADY
            .replace("holdout = 0.2 }", "holdout = 0.2 }\ncompression = { up = { kind = \"top_k\", ratio = 0.2 } }")
            .replace("rounds = 4, checkpoint_every = 3", &format!("rounds = {rounds}, checkpoint_every = 1"));
        let place = Workplace::new(&config);
        place.succeed("experiment run suite --out out");
        let kept = fs::read_dir(place.seed("out", 0).join("clients")).unwrap().count();
        assert!(kept > 0, "the store of clients is empty");
        json(&place.seed("out", 0).join("summary.json"))["model_hash"].clone()
    };
    assert_eq!(run(3), run(3));
}

#[test]
fn sharpness_is_measured_written_and_reported() {
    let asked = ", sharpness = { examples = 100, iterations = 20, points = 5 }";
    let (hash, place) = model_hash("rule = \"sgd\"", asked);
    assert_eq!(hash, model_hash("rule = \"sgd\"", "").0, "measuring changes nothing");
    let dir = place.seed("out", 0);
    let sharpness = json(&dir.join("sharpness.json"));
    let eigenvalue = sharpness["top_eigenvalue"].as_f64().unwrap();
    assert!(eigenvalue > 0.0, "{sharpness}");
    assert_eq!(sharpness["examples"], 100);
    let losses: Vec<f64> =
        sharpness["curve"].as_array().unwrap().iter().map(|point| point["loss"].as_f64().unwrap()).collect();
    assert!(losses.len() == 5 && losses[2] < losses[0].max(losses[4]), "the model lies in a valley: {losses:?}");
    assert_eq!(json(&dir.join("summary.json"))["top_eigenvalue"].as_f64(), Some(eigenvalue));
    let page = fs::read_to_string(place.path("out/suite/name/report.html")).unwrap();
    assert!(page.contains("<section id=\"sharpness\">") && page.contains(&format!("{eigenvalue:.2}")));
}
