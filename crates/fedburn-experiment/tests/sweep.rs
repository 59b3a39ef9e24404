//! Sweeps, and the commands that look at results.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use support::{Finished, STEADY, Workplace, json};

const TWO_SEEDS: (&str, &str) = ("seeds = [0]", "seeds = [0, 1]");

/// Two seeds, a table of its own grid, and claims: one that is met and, with `miss`, one that cannot be.
fn config(miss: bool) -> String {
    let mut text = STEADY.replace(TWO_SEEDS.0, TWO_SEEDS.1);
    text += "\n[sweep]\n\"client.lr\" = [0.1, 0.05]\n\"partition.alpha\" = [0.3, 10]\n";
    text += "[[expect]]\nmetric = \"accuracy\"\nat_least = 0.2\n";
    if miss {
        text += "[[expect]]\nmetric = \"loss\"\nat_most = 0.001\n";
    }
    text
}

/// The files `name` of every cell and seed, with their bytes.
fn files(place: &Workplace, out: &str, name: &str) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    place.everything(out).into_iter().filter(|(path, _)| path.ends_with(name)).collect()
}

#[test]
fn a_killed_sweep_goes_on_where_it_was() {
    let place = Workplace::new(&config(false));
    let table = place.succeed("experiment sweep suite/name --quiet --out undisturbed").stdout;
    for at in [1, 4] {
        let mut process = place.command("experiment sweep suite/name --quiet --out killed");
        let mut process = process.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while files(&place, "killed", "summary.json").len() < at {
            assert!(process.try_wait().unwrap().is_none(), "the sweep ended before it was killed");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
    // Of a seed killed between its summary and its last word, run.json is written again.
    let is_done = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("\"finished\"");
    let mut done = files(&place, "killed", "run.json");
    done.retain(|(_, bytes)| is_done(bytes));
    assert!((3..8).contains(&done.len()), "{} runs were finished before the second kill", done.len());

    let resumed = place.succeed("experiment sweep suite/name --out killed");
    assert_eq!(resumed.stderr.matches("already done").count(), done.len());
    assert_eq!(resumed.stdout, table);
    let after = files(&place, "killed", "run.json");
    assert_eq!(after.len(), 8, "four cells, two seeds");
    assert!(after.iter().all(|(_, bytes)| is_done(bytes)));
    assert!(done.iter().all(|kept| after.contains(kept)), "a finished run was touched");
    let models = |out: &str| -> Vec<Vec<u8>> {
        files(&place, out, "model.safetensors").into_iter().map(|(_, bytes)| bytes).collect()
    };
    assert!(models("killed") == models("undisturbed"));
}

#[test]
fn a_grid_on_the_command_line_replaces_the_files_and_its_table_has_a_row_a_cell() {
    let place = Workplace::new(&config(false));
    let call = "experiment sweep suite/name --quiet --out out --grid strategy.weighting=examples,uniform \
                --grid server.rounds=1,2 --seeds 5";
    let table = place.succeed(call).stdout;
    let rows: Vec<_> = table.lines().collect();
    let cells: Vec<_> = rows.iter().filter(|row| row.contains("strategy.weighting=")).collect();
    assert_eq!(cells.len(), 4, "{table}");
    assert!(rows[0].contains("final accuracy") && cells.iter().all(|row| row.contains('%')), "{table}");
    assert_eq!(files(&place, "out", "report.html").len(), 4);
    let dir = place.path("out/suite/name/sweep");
    let cell = dir.join("strategy.weighting=_uniform_,server.rounds=2/seed-5/config.toml");
    let resolved = fs::read_to_string(cell).unwrap();
    assert!(resolved.contains("weighting = \"uniform\"") && resolved.contains("rounds = 2"), "{resolved}");

    let lines = place.succeed(&format!("{call} --json").replace("--quiet ", "")).json_lines();
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], last["cells"].as_array().unwrap().len()), (&"sweep_finished".into(), 4));
    assert_eq!(last["cells"][0]["seeds"], 1);
}

#[test]
fn seeds_are_a_dimension_like_any_other() {
    let place = Workplace::new(STEADY);
    let table = place.succeed("experiment sweep suite/name --quiet --out out --grid seeds=[7],[8]").stdout;
    assert!(table.contains("seeds=[7]") && table.contains("seeds=[8]"), "{table}");
    assert_eq!(files(&place, "out", "summary.json").len(), 2);
}

#[test]
fn a_bad_grid_is_refused_before_anything_runs() {
    let place = Workplace::new(STEADY);
    let refused = |grid: &str, words: &[&str]| {
        place.call(&format!("experiment sweep suite/name --out out {grid}")).assert_refused(words);
        assert!(!place.path("out").exists(), "{grid}");
    };
    refused("", &["[sweep]", "--grid"]);
    refused("--grid client.lr", &["client.lr", "table.field=value"]);
    refused("--grid client.lr=", &["client.lr=", "at least one value"]);
    // The last cell alone is bad.
    refused("--grid client.lr=0.1,0.2,-1", &["[client]", "`lr` is -1"]);
    refused("--grid client.lrr=0.1,0.2", &["client.lrr", "unknown field"]);
    refused("--grid server.rounds=1,2 --grid strategy.kind=fedavg,fedsgd", &["strategy.kind", "`fedsgd`"]);

    place.write("benches/experiments/suite/name.toml", STEADY.to_owned() + "[sweep]\n\"client.lr\" = 0.1\n");
    refused("", &["name.toml", "[sweep]", "client.lr", "a list"]);
    place.write("benches/experiments/suite/other.toml", STEADY);
    place.call("experiment sweep suite --out out").assert_refused(&["name.toml", "[sweep]"]);
    place.call("experiment sweep suite --out out --grid client.lr=0.1").assert_refused(&[
        "2 experiments",
        "suite/name",
        "suite/other",
    ]);
}

/// A base for two files of a suite, one of them a grid of named choices.
fn suite_of_choices() -> Workplace {
    let place = Workplace::new("extends = \"_base.toml\"\ntitle = \"Alone\"\n");
    place.write("benches/experiments/suite/_base.toml", STEADY);
    let grid = "extends = \"_base.toml\"\ntitle = \"Attacks and defences\"\n\
                [sweep.attack.none]\n\
                [sweep.attack.flipped]\nattack = { kind = \"sign_flip\", attackers = { number = 2 }, scale = 9.0 }\n\
                [sweep.defence.alike]\nstrategy = { kind = \"fedavg\", weighting = \"uniform\" }\n\
                [sweep.defence.mean]\nstrategy = { kind = \"fedavg\" }\nsampler = { kind = \"all\" }\n";
    place.write("benches/experiments/suite/grid.toml", grid);
    place
}

#[test]
fn a_suite_is_swept_over_named_choices_of_whole_tables() {
    let place = suite_of_choices();
    let listed = place.succeed("experiment list").stdout;
    assert!(listed.contains("suite/grid  Attacks and defences") && !listed.contains("_base"), "{listed}");
    let table = place.succeed("experiment sweep suite --quiet --out out --seeds 3").stdout;
    let cells: Vec<_> = table.lines().filter(|line| line.contains("defence=")).collect();
    assert_eq!(cells.len(), 4, "{table}");
    let dir = place.path("out/suite/grid/sweep");
    let cell = |name: &str| fs::read_to_string(dir.join(name).join("seed-3/config.toml")).unwrap();
    let flipped = cell("attack=flipped,defence=alike");
    assert!(flipped.contains("kind = \"sign_flip\"") && flipped.contains("weighting = \"uniform\""), "{flipped}");
    assert!(flipped.contains("kind = \"uniform\"") && flipped.contains("lr = 0.1"), "the base shows through");
    let honest = cell("attack=none,defence=mean");
    assert!(!honest.contains("[attack]") && honest.contains("kind = \"all\""), "{honest}");
    let accuracy =
        |name: &str| json(&dir.join(name).join("seed-3/summary.json"))["final_accuracy"]["value"].as_f64().unwrap();
    let (attacked, honest) = (accuracy("attack=flipped,defence=mean"), accuracy("attack=none,defence=mean"));
    assert!(attacked + 0.2 < honest, "two of six attackers turn a mean: {attacked} against {honest}");

    // One choice asked for is the same cell: nothing runs again.
    let again =
        place.succeed("experiment sweep suite/grid --out out --seeds 3 --grid attack=flipped --grid defence=mean");
    assert!(again.stderr.contains("already done"), "{}", again.stderr);
    place
        .call("experiment sweep suite/grid --out out --grid attack=bribes")
        .assert_refused(&["`bribes`", "flipped, none"]);
}

#[test]
fn attacks_are_the_same_bits_with_any_number_of_workers() {
    let place = suite_of_choices();
    for kind in ["alie", "inner_product", "gaussian", "sign_flip", "label_flip"] {
        let models = ["1", "3"].map(|workers| {
            let mut call = place.command(&format!("experiment run suite/name --quiet --out {kind}-{workers}"));
            call.args(["--workers", workers, "--set", "sampler={kind=\"all\"}", "--set"]);
            call.arg(format!("attack={{kind=\"{kind}\", attackers={{share=0.34}}}}"));
            let finished = Finished::of(call);
            assert!(finished.status.success(), "{}", finished.stderr);
            let seed = place.seed(&format!("{kind}-{workers}"), 0);
            json(&seed.join("summary.json"))["model_hash"].as_str().unwrap().to_owned()
        });
        assert_eq!(models[0], models[1], "{kind}");
    }
    let mut call = place.command("experiment run suite/name --out out --set");
    call.arg("attack={kind=\"alie\", attackers={number=7}}");
    Finished::of(call).assert_refused(&["[attack]", "`attackers` asks for 7", "at most 6"]);
}

#[test]
fn a_finished_run_is_not_run_again() {
    let place = Workplace::new(&config(false));
    let first = place.succeed("experiment run suite --out out");
    assert!(first.stderr.contains("seed 1 (2 of 2)"), "{}", first.stderr);
    let runs = files(&place, "out", "run.json");
    let again = place.succeed("experiment run suite --out out");
    assert_eq!(again.stderr.matches("already done").count(), 2, "{}", again.stderr);
    assert_eq!(again.stdout, first.stdout, "the figures are shown again");
    assert!(files(&place, "out", "run.json") == runs);
    assert_eq!(json(&place.seed("out", 0).join("run.json"))["device"], "Cpu");
}

#[test]
fn results_are_listed_compared_checked_and_reported() {
    let place = Workplace::new(&config(true));
    place.write("benches/experiments/suite/other.toml", config(false).replace("lr = 0.1", "lr = 0.02"));
    let listed = place.succeed("experiment list").stdout;
    assert!(listed.contains("suite/name") && listed.contains("seeds 0, 1: missing"), "{listed}");
    // Nothing was run: every claim is missed.
    assert_eq!(place.call("experiment check").status.code(), Some(1));
    place.call("experiment compare suite/name suite/other").assert_refused(&["suite/name"]);

    place.succeed("experiment run suite --quiet");
    let listed = place.succeed("experiment list suite/name").stdout;
    assert!(listed.contains("seeds 0, 1: finished") && !listed.contains("suite/other"), "{listed}");
    let listed = place.succeed("experiment list --json").stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[1]["seeds"][1]["status"]["kind"], "finished", "{listed}");

    let table = place.succeed("experiment compare suite/name suite/other").stdout;
    assert!(table.contains("suite/name") && table.contains("suite/other"), "{table}");
    let compared = place.succeed("experiment compare suite/name target/experiments/suite/other --at-round 2 --json");
    let compared: serde_json::Value = serde_json::from_str(&compared.stdout).unwrap();
    assert_eq!((&compared["round"], compared["rows"].as_array().unwrap().len()), (&2.into(), 2));
    place.succeed("experiment compare suite --to 0.2");
    place.call("experiment compare suite/name").assert_refused(&["at least two"]);
    place.call("experiment compare suite suite --metric acuracy").assert_refused(&["`acuracy`", "accuracy"]);

    let checked = place.call("experiment check");
    assert_eq!(checked.status.code(), Some(1), "one claim is missed");
    assert!(checked.stdout.contains("suite/name: missed loss"), "{}", checked.stdout);
    assert!(checked.stdout.contains("suite/other: met "), "{}", checked.stdout);
    assert_eq!(place.call("experiment check suite/other").status.code(), Some(0));
    let checked = place.call("experiment check --json");
    let checked: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(checked.as_array().unwrap().iter().filter(|v| v["verdict"]["met"] == true).count(), 2, "{checked}");

    let written = place.succeed("experiment report suite --docs pages").stdout;
    for line in written.lines() {
        let path = place.path(line.strip_prefix("written: ").unwrap());
        assert!(fs::metadata(&path).unwrap().len() > 100, "{line}");
    }
    assert!(place.path("pages/suite.md").exists());
    let page = fs::read_to_string(place.path("target/experiments/suite/name/report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("A steady federation") && page.contains("lr = 0.1"), "{page}");
}

#[test]
fn json_mode_prints_json_and_nothing_else() {
    let place = Workplace::new(&config(true));
    let run = place.succeed("experiment run suite --json --out out");
    let lines = run.json_lines();
    let events = |name: &str| lines.iter().filter(|line| line["event"] == name).count();
    assert_eq!((events("run_started"), events("round_committed")), (2, 8));
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], last["summaries"].as_array().unwrap().len()), (&"experiment_finished".into(), 2));
    assert_eq!(last["expect"].as_array().unwrap().len(), 2);
    assert_eq!(run.stderr, "");
}

#[test]
fn a_split_is_shown_without_training() {
    let place = Workplace::new(STEADY);
    let shown = place.succeed("partition suite/name --svg pictures").stdout;
    assert!(shown.contains("6 clients") && shown.contains("1438") && shown.contains("label entropy"), "{shown}");
    for name in ["bars.svg", "heat-map.svg"] {
        let svg = fs::read_to_string(place.path("pictures").join(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(shown.contains(name), "{shown}");
    }
    let figures = place.succeed("partition suite/name --json --svg pictures --set partition.clients=9").stdout;
    let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
    assert_eq!(figures["clients"].as_array().unwrap().len(), 9);
    // The split of a run is the one shown.
    place.succeed("experiment run suite/name --quiet --out out");
    let summary = json(&place.seed("out", 0).join("summary.json"));
    assert!(shown.contains(summary["partition_fingerprint"].as_str().unwrap()), "{shown}");
    place.call("partition suite/name --set partition.alpha=-1").assert_refused(&["[partition]", "`alpha` is -1"]);
}

#[test]
fn output_that_is_no_terminals_has_no_control_characters() {
    let place =
        Workplace::new(&(STEADY.to_owned() + "baselines = { centralised_epochs = 2, local_only_epochs = 1 }\n"));
    let mut call = place.command("experiment run suite --out out");
    call.env("FEDBURN_LOG", "trace");
    let finished = Finished::of(call);
    assert!(finished.status.success(), "{}", finished.stderr);
    for text in [&finished.stdout, &finished.stderr] {
        assert!(!text.is_empty());
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
    assert!(finished.stderr.contains("4 rounds, 6 clients, 650 parameters"), "{}", finished.stderr);
    assert!(
        finished.stdout.contains("final accuracy") && finished.stdout.contains("report.html"),
        "{}",
        finished.stdout
    );
}

#[test]
fn the_short_version_leaves_the_real_results_alone() {
    let place = Workplace::new(&config(false));
    place.succeed("experiment run suite --quiet --smoke --out out");
    assert!(!place.path("out/suite").exists());
    assert_eq!(json(&place.path("out/smoke/suite/name/seed-0/summary.json"))["rounds"], 2);
}
