//! What clients keep for themselves, from a file to the results on disk.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{STEADY, Workplace, json};

struct Outcome {
    model_hash: String,
    /// `(accuracy, global accuracy)` of each client.
    clients: Vec<(f64, f64)>,
    place: Workplace,
}

/// A run with this addition to the `[client]` table.
fn run(personal: &str) -> Outcome {
    let config = STEADY
        .replace("kind = \"softmax\"", "kind = \"two_nn\", hidden = 16")
        .replace("rule = \"sgd\", epochs = 1", &format!("epochs = 2{personal}"))
        .replace("per_round = 3", "per_round = 6");
    let place = Workplace::new(&format!("{config}\nbaselines = {{ local_only_epochs = 4 }}\n"));
    place.succeed("experiment run suite --out out");
    let dir = place.seed("out", 0);
    let rows = fs::read_to_string(dir.join("clients.csv")).unwrap();
    let mut lines = rows.lines();
    assert_eq!(lines.next(), Some("client,num_examples,accuracy,loss,global_accuracy"));
    let row = |line: &str| {
        let cells: Vec<_> = line.split(',').collect();
        (cells[2].parse().unwrap(), cells[4].parse().unwrap())
    };
    let model_hash = json(&dir.join("summary.json"))["model_hash"].as_str().unwrap().to_owned();
    Outcome { model_hash, clients: lines.map(row).collect(), place }
}

#[test]
fn every_kind_keeps_a_model_and_is_held_against_the_global_one() {
    let plain = run("");
    assert_eq!(plain.clients.len(), 6);
    assert!(plain.clients.iter().all(|(used, global)| used == global));
    let page = fs::read_to_string(plain.place.path("out/suite/name/report.html")).unwrap();
    assert!(!page.contains("what clients use"));
    for (kind, changes_what_is_sent) in [
        ("kind = \"ditto\"", false),
        ("kind = \"apfl\"", false),
        ("kind = \"mixing\", variance = { kind = \"split\", parts = 2 }", false),
        ("kind = \"fedrep\"", true),
        ("kind = \"pfedme\", lambda = 5.0", true),
    ] {
        let found = run(&format!(", personal = {{ {kind} }}"));
        assert_eq!(found.model_hash != plain.model_hash, changes_what_is_sent, "{kind}");
        assert!(found.clients.iter().any(|(used, global)| used != global), "{kind}: {:?}", found.clients);
        if !changes_what_is_sent {
            let global = |outcome: &Outcome| outcome.clients.iter().map(|(_, global)| *global).collect::<Vec<_>>();
            assert_eq!(global(&found), global(&plain), "{kind}");
        }
        let page = fs::read_to_string(found.place.path("out/suite/name/report.html")).unwrap();
        assert!(
            page.contains("what clients use") && page.contains("clients that gain over the global model"),
            "{kind}"
        );
    }
    let alone = json(&plain.place.seed("out", 0).join("baselines.json"));
    assert!(alone["local_only"][0]["own_accuracy"].as_f64().unwrap() > 0.0);
}

#[test]
fn meaningless_settings_are_refused_before_anything_runs() {
    for (personal, words) in [
        ("{ kind = \"mixing\", own_share = 1.0 }", ["[client]", "own_share"]),
        ("{ kind = \"mixing\", blocks = \"per_element\" }", ["[client]", "estimator"]),
        ("{ kind = \"ditto\", lambda = -1.0 }", ["[client]", "personal.lambda"]),
        ("{ kind = \"ditt\" }", ["client.personal", "ditt"]),
    ] {
        let place = Workplace::new(&STEADY.replace("rule = \"sgd\"", &format!("personal = {personal}")));
        place.call("experiment run suite --out out").assert_refused(&words);
        assert!(!place.path("out").exists());
    }
}
