//! The same bits whatever the number of workers, whether a run is left alone, interrupted or killed; and two backends
//! that agree.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fedburn::core::Seed;
use safetensors::SafeTensors;
use support::traces::{Traces, draw, last_round};
use support::{Finished, STEADY, Workplace, json};

const ROUNDS: u64 = 60;

/// Clients come, go and fail; the optimiser has a velocity; there are baselines.
const UNRELIABLE: &str = r#"
title = "An unreliable federation"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 12, alpha = 0.3, min_examples = 5 }
evaluation = { client_holdout = 0.2 }
model = { kind = "two_nn", hidden = 12 }
client = { rule = "sgd", epochs = 1, batch_size = 16, lr = 0.1, momentum = 0.5 }
strategy = { kind = "fedavg" }
sampler = { kind = "uniform", per_round = 5 }
availability = { probability = 0.7, dropout = 0.2 }
server = { rounds = 60, min_updates = 2, checkpoint_every = 3 }
baselines = { centralised_epochs = 3, local_only_epochs = 1 }
"#;

/// Everybody takes part, and there is a schedule over rounds.
const EVERYBODY: &str = r#"
title = "Everybody, every round"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "shards", clients = 8 }
model = { kind = "softmax" }
client = { steps = 4, batch_size = 16, lr = 0.2, schedule = { kind = "exponential", decay = 0.97 } }
strategy = { kind = "fedavg", weighting = "uniform", server_lr = 0.9 }
sampler = { kind = "all" }
server = { rounds = 60, checkpoint_every = 3 }
"#;

/// Two gradients a step at two points, control variates on both sides: many graphs of automatic differentiation at
/// once, of which none may lose a step to another thread's.
const MANY_GRAPHS: &str = r#"
title = "Sharpness-aware SCAFFOLD"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 12, alpha = 0.3, min_examples = 5 }
model = { kind = "two_nn", hidden = 12 }
client = { rule = { scaffold = { option = "two" } }, epochs = 2, batch_size = 8, lr = 0.1, sharpness = { kind = "sam", rho = 0.05 } }
strategy = { kind = "scaffold" }
sampler = { kind = "all" }
server = { rounds = 20, eval_every = 1, checkpoint_every = 0 }
"#;

/// Clients keep their last models, the server learns from examples of its own.
const TAUGHT: &str = r#"
title = "Model contrast and distillation"
seeds = [3]
data = { kind = "digits" }
server_data = { share = 0.1 }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 5 }
model = { kind = "projected", body = { kind = "two_nn", hidden = 12 }, width = 8 }
client = { rule = { moon = { mu = 1.0 } }, epochs = 1, batch_size = 16, lr = 0.1 }
strategy = { kind = "feddf", steps = 4, batch_size = 32, base = { kind = "fedavgm" } }
sampler = { kind = "uniform", per_round = 3 }
server = { rounds = 60, checkpoint_every = 3 }
"#;

/// Clients learn from the server's generator, which it keeps with its moments; some clients fail.
const GENERATED: &str = r#"
title = "A generator of features"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 5 }
model = { kind = "two_nn", hidden = 12 }
client = { rule = { fedgen = { generated = 8, epochs = 1 } }, epochs = 2, batch_size = 16, lr = 0.05 }
strategy = { kind = "fedgen", iterations = 5, noise = 8, hidden = 16, beta = 0.1, base = { kind = "fedavgm" } }
sampler = { kind = "uniform", per_round = 3 }
availability = { dropout = 0.2 }
server = { rounds = 60, checkpoint_every = 3 }
"#;

fn undisturbed(place: &Workplace, out: &str, settings: &str) -> Traces {
    place.succeed(&format!("experiment run suite --quiet --out {out} {settings}"));
    Traces::of(&place.seed(out, 3))
}

fn start(place: &Workplace, out: &str) -> Child {
    let mut command = place.command(&format!("experiment run suite --quiet --workers 2 --out {out}"));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until the round is on disk; `false` where the process ended first.
fn wait_for_round(process: &mut Child, dir: &Path, round: u64) -> bool {
    wait_until(process, || last_round(dir) >= round)
}

fn wait_until(process: &mut Child, is_reached: impl Fn() -> bool) -> bool {
    while !is_reached() {
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        // A breath between looks, so that the process under test has the processor; nothing depends on its length.
        std::thread::park_timeout(Duration::from_micros(200));
    }
    true
}

/// Runs `config` and kills it with SIGKILL again and again, one to seven rounds after the last round on disk or, in the
/// end, during what follows the last round. Returns the number of kills.
fn kill_and_resume(place: &Workplace, out: &str, seed: Seed) -> u32 {
    let dir = place.seed(out, 3);
    let mut kills = 0;
    for attempt in 0.. {
        assert!(attempt < 2 * ROUNDS, "the run gets nowhere");
        let before = last_round(&dir);
        let mut process = start(place, out);
        if before < ROUNDS {
            let round = (before + 1 + draw(seed, attempt, 7)).min(ROUNDS);
            if wait_for_round(&mut process, &dir, round) {
                process.kill().unwrap();
            }
        }
        let status = process.wait().unwrap();
        match status.signal() {
            Some(signal) => assert_eq!(signal, 9),
            None => {
                assert!(status.success(), "{status}");
                break;
            }
        }
        kills += 1;
    }
    kills
}

fn kills_leave_no_trace(config: &str, seed: Seed) {
    let place = Workplace::new(config);
    let expected = undisturbed(&place, "undisturbed", "--workers 2");
    assert_eq!(expected.rounds.len() as u64, ROUNDS + 2, "a header, the initial model and the rounds");
    let mut kills = 0;
    for run in 0.. {
        let out = format!("killed-{run}");
        kills += kill_and_resume(&place, &out, seed.index(run));
        Traces::of(&place.seed(&out, 3)).assert_same(&expected, &format!("run {run}, {kills} kills so far"));
        if kills >= 20 {
            return;
        }
    }
}

#[test]
fn twenty_kills_leave_no_trace_where_clients_fail() {
    kills_leave_no_trace(UNRELIABLE, Seed::new(11));
}

#[test]
fn twenty_kills_leave_no_trace_where_everybody_takes_part() {
    kills_leave_no_trace(EVERYBODY, Seed::new(12));
}

#[test]
fn a_run_killed_after_its_early_stop_does_not_train_on() {
    let stop = "early_stop = { target = 0.75 }\nbaselines = { centralised_epochs = 100 }\n";
    let place = Workplace::new(&(EVERYBODY.to_owned() + stop));
    let expected = undisturbed(&place, "undisturbed", "");
    let ended = expected.events.iter().find(|event| event["event"] == "run_ended").unwrap();
    assert!(ended["stopped"].is_string() && ended["round"].as_u64().unwrap() < ROUNDS, "{ended}");
    let dir = place.seed("killed", 3);
    for _ in 0..3 {
        let mut process = start(&place, "killed");
        let told = || fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default().contains("run_ended");
        assert!(wait_until(&mut process, told), "ended before it was killed");
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(9));
    }
    place.succeed("experiment run suite --quiet --out killed");
    Traces::of(&dir).assert_same(&expected, "after kills");
}

#[test]
fn the_number_of_workers_changes_no_bit() {
    let place = Workplace::new(UNRELIABLE);
    let one = undisturbed(&place, "one", "--workers 1");
    let failures = |traces: &Traces| traces.events.iter().filter(|e| e["event"] == "client_failed").count();
    assert!(failures(&one) > 10, "clients that fail are part of this claim");
    for workers in [2, 3] {
        let more = undisturbed(&place, &format!("workers-{workers}"), &format!("--workers {workers}"));
        more.assert_same(&one, &format!("{workers} workers"));
    }
}

#[test]
fn graphs_of_other_threads_change_no_bit() {
    let place = Workplace::new(MANY_GRAPHS);
    let one = undisturbed(&place, "one", "--workers 1");
    for workers in [2, 3, 8] {
        let more = undisturbed(&place, &format!("workers-{workers}"), &format!("--workers {workers}"));
        more.assert_same(&one, &format!("{workers} workers"));
    }
}

#[test]
fn flex_twice_gives_the_same_bits_and_another_seed_others() {
    let place = Workplace::new(EVERYBODY);
    let first = undisturbed(&place, "first", "");
    undisturbed(&place, "second", "").assert_same(&first, "again");
    place.succeed("experiment run suite --quiet --out first --seeds 4");
    assert_ne!(json(&place.seed("first", 4).join("summary.json"))["model_hash"], first.model_hash);
}

#[test]
fn an_interrupt_ends_the_round_and_the_same_command_goes_on() {
    interrupted_twice(&UNRELIABLE.replace("rounds = 60", "rounds = 120"));
}

#[test]
fn an_interrupt_leaves_what_clients_and_the_server_keep_as_it_was() {
    interrupted_twice(TAUGHT);
    interrupted_twice(GENERATED);
}

fn interrupted_twice(config: &str) {
    let place = Workplace::new(config);
    let expected = undisturbed(&place, "undisturbed", "");
    let dir = place.seed("interrupted", 3);
    for round in [2, 31] {
        let mut process = start(&place, "interrupted");
        assert!(wait_for_round(&mut process, &dir, round), "ended before it was interrupted");
        let sent = Command::new("sh").arg("-c").arg(format!("kill -INT {}", process.id())).status().unwrap();
        assert!(sent.success());
        assert_eq!(process.wait().unwrap().code(), Some(130));
        let info = json(&dir.join("run.json"));
        assert_eq!(info["status"]["kind"], "stopped", "{info}");
        assert!(!dir.join("summary.json").exists());
        // Nothing of the work is lost: the checkpoint is of the last round, wherever that fell.
        assert!(dir.join(format!("checkpoint/round-{:08}", last_round(&dir))).is_dir());
    }
    let resumed = place.succeed("experiment run suite --out interrupted");
    assert!(resumed.stderr.contains("resuming after round"), "{}", resumed.stderr);
    Traces::of(&dir).assert_same(&expected, "after two interrupts");
}

#[test]
fn ndarray_agrees_with_flex() {
    let place = Workplace::new(STEADY);
    let model = |backend: &str| {
        place.succeed(&format!("experiment run suite --quiet --out {backend} --backend {backend}"));
        let dir = place.seed(backend, 0);
        let accuracy = json(&dir.join("summary.json"))["final_accuracy"]["value"].as_f64().unwrap();
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = tensors.names();
        names.sort();
        let mut values = Vec::new();
        for name in names {
            let tensor = tensors.tensor(name).unwrap();
            values.extend(tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        (values, accuracy)
    };
    let ((flex, accuracy), (ndarray, other)) = (model("flex"), model("ndarray"));
    assert_eq!((flex.len(), ndarray.len()), (650, 650));
    let furthest = flex.iter().zip(&ndarray).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = flex.iter().map(|v| v.abs()).fold(0.0, f32::max);
    assert!(furthest <= 1e-4 * largest, "{furthest} apart, the largest value is {largest}");
    assert!((accuracy - other).abs() <= 0.01, "{accuracy} and {other}");
    assert!(accuracy > 0.25, "{accuracy}: the models are trained ones");
}

#[test]
fn results_of_one_backend_are_not_gone_on_with_by_another() {
    let place = Workplace::new(STEADY);
    place.succeed("experiment run suite --quiet --out out");
    Finished::of(place.command("experiment run suite --out out --backend ndarray")).assert_refused(&[
        "seed-0",
        "another configuration or backend",
        "--fresh",
    ]);
}
