//! Federations of real processes over loopback: the same bits as in one process, whoever is killed; strangers and what
//! the data's owner does not permit are refused.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Command;

use fedburn::core::Seed;
use serde_json::Value;
use support::federation::{Federation, Running};
use support::traces::{Traces, draw, last_round};
use support::{Finished, Workplace, json};

const ROUNDS: u64 = 16;

/// Clients keep control variates between rounds; the server's mean does not depend on who answers first.
const SCAFFOLD: &str = r#"
title = "Control variates"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 10 }
evaluation = { client_holdout = 0.2 }
model = { kind = "softmax" }
client = { rule = { scaffold = {} }, epochs = 1, batch_size = 32, lr = 0.1 }
strategy = { kind = "scaffold" }
sampler = { kind = "uniform", per_round = 4 }
server = { rounds = 16, checkpoint_every = 3 }
"#;

/// The server remembers moments of each client and sees every update.
const EWWA: &str = r#"
title = "Element-wise weights"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 10 }
model = { kind = "softmax" }
client = { rule = "sgd", epochs = 1, batch_size = 32, lr = 0.1 }
strategy = { kind = "ewwa" }
sampler = { kind = "uniform", per_round = 4 }
server = { rounds = 16, checkpoint_every = 3 }
"#;

/// The server sends a network of its own beside the model, by the counts that clients tell.
const FEDGEN: &str = r#"
title = "A generator of features"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 10 }
model = { kind = "two_nn", hidden = 16 }
client = { rule = { fedgen = { generated = 8 } }, epochs = 1, batch_size = 32, lr = 0.05 }
strategy = { kind = "fedgen", iterations = 5, noise = 8, hidden = 16 }
sampler = { kind = "uniform", per_round = 4 }
server = { rounds = 16, checkpoint_every = 3 }
"#;

/// Clients keep their last models.
fn moon() -> String {
    let strategy = "{ kind = \"fedgen\", iterations = 5, noise = 8, hidden = 16 }";
    FEDGEN
        .replace("{ fedgen = { generated = 8 } }", "{ moon = { mu = 1.0 } }")
        .replace(strategy, "{ kind = \"fedavg\" }")
}

/// Half of the clients train half of the channels.
const HETEROFL: &str = r#"
title = "Nets of two widths"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 10 }
model = { kind = "two_nn", hidden = 16 }
client = { rule = { heterofl = { shares = [0.5, 1.0] } }, epochs = 1, batch_size = 32, lr = 0.05 }
strategy = { kind = "fedavg", weighting = "uniform" }
sampler = { kind = "uniform", per_round = 4 }
server = { rounds = 16, checkpoint_every = 3 }
"#;

/// Clients with memory for parts of the model hold what they train and count less; nobody holds every classifier.
const TRAINED_ONLY: &str = r#"
title = "Parts by memory"
seeds = [3]
data = { kind = "digits" }
reduce = { train = 300, test = 60 }
partition = { kind = "dirichlet", clients = 6, alpha = 0.3, min_examples = 10 }
model = { kind = "with_exits", body = { kind = "preresnet20", width = 2 } }
client = { rule = { depthwise = { RULE } }, epochs = 1, batch_size = 8, lr = 0.05 }
strategy = { kind = "fedavg" }
sampler = { kind = "uniform", per_round = 4 }
server = { rounds = 16, checkpoint_every = 3, eval_every = 4 }
"#;

fn trained_only() -> String {
    let memory = "memory = { shares = [0.6, 0.8, 1.0] }";
    TRAINED_ONLY.replace("RULE", &format!("{memory}, heads = \"own\", trained_only = true, resource_weight = true"))
}

/// Asserts that `fedburn join` is refused with a message that holds every one of `words`.
fn refused(mut join: Command, words: &[&str]) {
    join.arg("--quiet");
    Finished::of(join).assert_refused(words);
}

fn in_process(place: &Workplace, settings: &str) -> Traces {
    let out = format!("simulated{}", settings.replace(' ', "-"));
    place.succeed(&format!("experiment run suite --quiet --out {out} {settings}"));
    Traces::of(&place.seed(&out, 3))
}

fn has_the_bits_of_one_process(config: &str, backend: &str) {
    in_this_place(&Workplace::new(config), backend);
}

fn in_this_place(place: &Workplace, backend: &str) {
    let settings = format!("--backend {backend}");
    let mut federation = Federation::new(place, "served", &settings);
    let server = federation.serve();
    let nodes = federation.join_all();
    let simulated = in_process(place, &settings);
    assert_eq!(simulated.rounds.len() as u64, ROUNDS + 2, "a header, the initial model and the rounds");
    federation.finish(server, nodes).assert_same(&simulated, backend);
    let hash = |out: &str| json(&place.seed(out, 3).join("run.json"))["config_hash"].clone();
    assert_eq!(hash("served"), hash(&format!("simulated{}", settings.replace(' ', "-"))), "it is the same run");
}

#[test]
fn a_federation_with_client_state_has_the_bits_of_one_process() {
    has_the_bits_of_one_process(SCAFFOLD, "flex");
    has_the_bits_of_one_process(SCAFFOLD, "ndarray");
}

#[test]
fn a_federation_with_memory_of_clients_has_the_bits_of_one_process() {
    has_the_bits_of_one_process(EWWA, "flex");
    has_the_bits_of_one_process(EWWA, "ndarray");
}

#[test]
fn a_federation_with_a_network_beside_the_model_has_the_bits_of_one_process() {
    has_the_bits_of_one_process(FEDGEN, "flex");
    has_the_bits_of_one_process(FEDGEN, "ndarray");
}

#[test]
fn a_federation_of_clients_with_their_last_models_has_the_bits_of_one_process() {
    has_the_bits_of_one_process(&moon(), "flex");
    has_the_bits_of_one_process(&moon(), "ndarray");
}

#[test]
fn a_federation_of_parts_of_the_model_has_the_bits_of_one_process() {
    has_the_bits_of_one_process(HETEROFL, "flex");
    has_the_bits_of_one_process(&compressed(HETEROFL), "ndarray");
}

#[test]
fn a_federation_of_clients_that_hold_what_they_train_has_the_bits_of_one_process() {
    has_the_bits_of_one_process(&trained_only(), "flex");
    has_the_bits_of_one_process(&compressed(&trained_only()), "ndarray");
}

#[test]
fn nodes_go_on_from_a_model_that_the_server_alone_has() {
    let place = Workplace::new(HETEROFL);
    place.succeed("experiment run suite --quiet --out first --set server.rounds=1");
    let model = fs::read(place.seed("first", 3).join("model.safetensors")).unwrap();
    place.write("benches/experiments/suite/start.safetensors", &model);
    let initial = "initial_model = { file = \"start.safetensors\", new = [\"head\"] }\n";
    place.write("benches/experiments/suite/name.toml", HETEROFL.to_owned() + initial);
    in_this_place(&place, "flex");
}

/// Updates lose most of their bits, and clients keep what was lost; the model loses some on its way down.
fn compressed(config: &str) -> String {
    let compression = "compression = { up = { kind = \"int4\" }, down = { kind = \"f16\" } }\n";
    config.to_owned() + compression
}

#[test]
fn a_federation_with_codecs_has_the_bits_of_one_process() {
    has_the_bits_of_one_process(&compressed(EWWA), "flex");
    has_the_bits_of_one_process(&compressed(EWWA), "ndarray");
}

#[test]
fn killed_clients_leave_no_trace() {
    killed_clients_leave_no_trace_of(SCAFFOLD);
}

#[test]
fn killed_clients_lose_nothing_of_what_their_updates_left_out() {
    killed_clients_leave_no_trace_of(&compressed(SCAFFOLD));
}

fn killed_clients_leave_no_trace_of(config: &str) {
    let place = Workplace::new(config);
    let simulated = in_process(&place, "");
    let (mut federation, seed) = (Federation::new(&place, "served", ""), Seed::new(21));
    let mut server = federation.serve();
    let mut nodes = federation.join_all();
    let (dir, mut kills) = (federation.dir(), 0);
    for round in 1..ROUNDS {
        if !server.until(|| last_round(&dir) >= round) {
            break;
        }
        let node = draw(seed, round, 3) as usize;
        if !nodes[node].has_ended() {
            nodes[node].kill();
            kills += 1;
        }
        nodes[node] = federation.join_again(node);
    }
    assert!(kills >= 8, "{kills} kills");
    federation.finish(server, nodes).assert_same(&simulated, &format!("{kills} kills"));
}

/// Kills the server every few rounds, and a node now and then. The nodes must find out soon, so that silence ends a
/// connection after a second.
fn killed_servers_leave_no_trace(config: &str, durability: &str, seed: Seed) {
    let place = Workplace::new(&(config.to_owned() + &impatient(durability)));
    let simulated = in_process(&place, "--workers 2");
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    let mut nodes = federation.join_all();
    let dir = federation.dir();
    let mut round = 0;
    for attempt in 0.. {
        round += 1 + draw(seed, attempt, 4);
        if round >= ROUNDS || !server.until(|| last_round(&dir) >= round) {
            break;
        }
        server.kill();
        if attempt % 2 == 1 {
            nodes[0].kill();
        }
        server = federation.serve();
        if attempt % 2 == 1 {
            nodes[0] = federation.join_again(0);
        }
    }
    assert!(round > ROUNDS / 2);
    federation.finish(server, nodes).assert_same(&simulated, "after kills");
}

fn impatient(durability: &str) -> String {
    format!("transport = {{ kind = \"quic\", durability = \"{durability}\", network = {{ idle_timeout_secs = 1 }} }}\n")
}

#[test]
fn a_killed_server_goes_on_where_clients_keep_state() {
    killed_servers_leave_no_trace(SCAFFOLD, "round", Seed::new(22));
}

#[test]
fn a_killed_server_goes_on_where_it_remembers_clients() {
    killed_servers_leave_no_trace(EWWA, "accumulator", Seed::new(23));
}

#[test]
fn a_killed_server_goes_on_where_it_keeps_answers() {
    killed_servers_leave_no_trace(SCAFFOLD, "update", Seed::new(24));
}

#[test]
fn a_killed_server_goes_on_with_its_generator() {
    killed_servers_leave_no_trace(FEDGEN, "round", Seed::new(25));
}

#[test]
fn a_killed_server_goes_on_where_clients_hold_parts_of_the_model() {
    killed_servers_leave_no_trace(HETEROFL, "accumulator", Seed::new(26));
}

#[test]
fn a_killed_server_goes_on_where_clients_count_by_their_memory() {
    killed_servers_leave_no_trace(&trained_only(), "accumulator", Seed::new(27));
}

/// More clients a round than updates between two writings of the sums.
const MANY: &str = r#"
title = "Sums of many"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "iid", clients = 72 }
model = { kind = "softmax" }
client = { rule = "sgd", epochs = 1, batch_size = 32, lr = 0.1 }
strategy = { kind = "fedavg" }
sampler = { kind = "all" }
server = { rounds = 4 }
"#;

#[test]
fn a_server_killed_over_its_sums_asks_the_others_only() {
    let place = Workplace::new(&(MANY.to_owned() + &impatient("accumulator")));
    let simulated = in_process(&place, "--workers 2");
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    let nodes = (0..2).map(|n| federation.join(&format!("node-{n}"), &format!("{}..{}", 36 * n, 36 * n + 36)));
    let nodes: Vec<_> = nodes.collect();
    let (dir, mut kills) = (federation.dir(), 0);
    // The file is there from the 64th update on, until the round's checkpoint.
    while kills < 3 && server.until(|| dir.join("open-round").exists()) {
        server.kill();
        kills += 1;
        server = federation.serve();
    }
    assert_eq!(kills, 3);
    federation.finish(server, nodes).assert_same(&simulated, "after kills");
}

#[test]
fn an_interrupted_server_ends_its_round_and_its_nodes_wait_until_it_goes_on() {
    let place = Workplace::new(SCAFFOLD);
    let simulated = in_process(&place, "");
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    let nodes = federation.join_all();
    let dir = federation.dir();
    assert!(server.until(|| last_round(&dir) >= 5), "{}", federation.log("server"));
    let sent = Command::new("sh").arg("-c").arg(format!("kill -INT {}", server.0.id())).status().unwrap();
    assert!(sent.success());
    assert_eq!(server.0.wait().unwrap().code(), Some(130));
    assert_eq!(json(&dir.join("run.json"))["status"]["kind"], "stopped");
    let server = federation.serve();
    federation.finish(server, nodes).assert_same(&simulated, "after an interrupt");
}

#[test]
fn a_server_whose_disk_fails_says_so_and_its_nodes_wait_until_it_goes_on() {
    let place = Workplace::new(&(SCAFFOLD.to_owned() + "transport = { kind = \"quic\", wait_secs = 60 }\n"));
    let simulated = in_process(&place, "--workers 2");
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    let checkpoints = federation.dir().join("checkpoint");
    fs::remove_dir(&checkpoints).unwrap();
    fs::write(&checkpoints, "no folder").unwrap();
    let nodes = federation.join_all();
    assert_eq!(server.0.wait().unwrap().code(), Some(1), "{}", federation.log("server"));
    assert_eq!(json(&federation.dir().join("run.json"))["status"]["kind"], "failed");
    fs::remove_file(&checkpoints).unwrap();
    let server = federation.serve();
    federation.finish(server, nodes).assert_same(&simulated, "after a failed checkpoint");
}

/// A federation that needs one update a round, so that it goes on without those who refuse.
const NOVA: &str = r#"
title = "Normalised averaging"
seeds = [3]
data = { kind = "digits" }
partition = { kind = "iid", clients = 3 }
model = { kind = "softmax" }
client = { rule = "sgd", epochs = 1, batch_size = 32, lr = 0.1 }
strategy = { kind = "fednova" }
sampler = { kind = "all" }
server = { rounds = 2 }
"#;

#[test]
fn what_the_owner_does_not_permit_is_declined_with_the_reason() {
    let place = Workplace::new(NOVA);
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    place.write("policy.toml", "strategies = [\"fednova\"]\nreports = []\nevaluation = false\n");
    let _open = federation.join("open", "0,1");
    let mut command = federation.join_command("closed", "2");
    command.args(["--json", "--policy", "policy.toml"]);
    let mut closed = Running::start(command, federation.path("closed.log"));
    server.succeeds();
    closed.succeeds();
    let refused: Vec<_> = federation
        .events()
        .into_iter()
        .filter(|event| event["event"] == "client_failed")
        .map(|event| (event["client"].as_u64().unwrap(), event["failure"]["kind"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(refused, [(2, "refused".to_owned()), (2, "refused".to_owned())], "one a round");
    let log = federation.log("closed");
    assert!(log.contains("does not permit telling"), "{log}");
    assert!(log.contains("does not permit measuring"), "{log}");
}

/// The plan asks for counts by name, and goes on without those that the owner keeps to himself.
#[test]
fn counts_that_the_owner_keeps_do_not_end_the_round() {
    let config = FEDGEN.replace("rounds = 16", "rounds = 3").replace("per_round = 4", "per_round = 6");
    let place = Workplace::new(&config);
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    place.write("open.toml", "strategies = [\"fedgen\", \"fedavg\"]\nreports = [\"class_counts\"]\n");
    place.write("closed.toml", "strategies = [\"fedgen\", \"fedavg\"]\nreports = []\n");
    let nodes: Vec<_> = [("open", "0..4"), ("closed", "4..6")]
        .into_iter()
        .map(|(name, clients)| {
            let mut command = federation.join_command(name, clients);
            command.args(["--policy", &format!("{name}.toml")]);
            Running::start(command, federation.path(&format!("{name}.log")))
        })
        .collect();
    server.succeeds();
    nodes.into_iter().for_each(|mut node| node.succeeds());
    let ended: Vec<_> = federation.events().into_iter().filter(|event| event["event"] == "round_committed").collect();
    for event in &ended {
        assert_eq!((&event["updates"], &event["failures"]), (&Value::from(6), &Value::from(0)), "{event}");
        let figure = |name: &str| event["metrics"][name]["sum"].as_f64();
        assert_eq!((figure("fedgen_silent"), figure("fedgen_skipped")), (Some(2.0), Some(0.0)), "{event}");
    }
    assert_eq!(ended.len(), 3);
}

#[test]
fn an_experiment_that_the_owner_does_not_permit_is_left_at_once() {
    let place = Workplace::new(NOVA);
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    place.write("policy.toml", "strategies = [\"fedavg\"]\n");
    let mut command = federation.join_command("node", "0..3");
    command.args(["--policy", "policy.toml"]);
    refused(command, &["does not permit the strategy `fednova`", "nothing was read or sent"]);
    assert!(!federation.path("node").join("runs").exists());
    // The server's operator sees why.
    let state = federation.path("server").display().to_string();
    let list = || place.succeed(&format!("nodes list --state {state}")).stdout;
    assert!(server.until(|| list().contains("declined: the data's owner does not permit the strategy `fednova`")));
    assert!(federation.log("server").contains("node.declined"), "{}", federation.log("server"));
}

#[test]
fn strangers_and_mistakes_are_refused_in_plain_words() {
    let place = Workplace::new(NOVA);
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    let right = federation.join_string();
    let (known, secret) = right.trim().rsplit_once(':').unwrap();
    let wrong: String = secret.chars().rev().collect();
    place.write("wrong", format!("{known}:{wrong}"));
    let join = |what: &str, node: &str| place.command(&format!("join {what} --clients 0 --state {node}"));
    refused(join("@wrong", "stranger"), &["secret"]);
    refused(join("fedburn1:nonsense", "stranger"), &["join string"]);
    refused(join("@nowhere", "stranger"), &["cannot read nowhere"]);
    refused(federation.join_command("node", "0..4"), &["no client 3", "below 3"]);
    let mut data = federation.join_command("node", "0");
    data.args(["--policy", "nowhere.toml"]);
    refused(data, &["cannot read nowhere.toml"]);

    // Nobody listens at the discard port.
    let port = right.split(':').nth(2).unwrap();
    place.write("silent", right.replace(port, "9"));
    refused(join("@silent --patience 1", "stranger"), &["server 127.0.0.1:9"]);

    let first = federation.join("first", "0");
    let connected = || federation.log("server").contains("1 of 3 clients");
    assert!(server.until(connected), "{}", federation.log("server"));
    refused(federation.join_command("second", "0,1"), &["client 0"]);
    drop(first);
}

#[test]
fn a_revoked_node_is_shut_out_and_may_be_allowed_again() {
    let place = Workplace::new(NOVA);
    let mut federation = Federation::new(&place, "served", "");
    let mut server = federation.serve();
    let state = federation.path("server").display().to_string();
    let nodes = |words: &str| {
        let finished = place.succeed(&format!("nodes {words} --json --state {state}"));
        serde_json::from_str::<Value>(&finished.stdout).unwrap()
    };
    assert_eq!(nodes("list"), serde_json::json!([]));
    let mut first = federation.join("first", "0");
    assert!(server.until(|| federation.log("server").contains("1 of 3 clients")), "{}", federation.log("server"));
    let node = nodes("list")[0]["node"].as_str().unwrap().to_owned();
    assert_eq!(nodes(&format!("revoke {node}"))[0]["standing"], "revoked");
    // It ends by itself: nothing that it could do would be heard.
    assert_eq!(first.0.wait().unwrap().code(), Some(1));
    assert!(federation.log("first").contains("revoked"), "{}", federation.log("first"));
    refused(federation.join_command("first", "0"), &["revoked"]);
    assert_eq!(nodes(&format!("allow {node}"))[0]["standing"], "allowed");
    let all = [federation.join("first", "0"), federation.join("second", "1..3")];
    server.succeeds();
    all.into_iter().for_each(|mut node| node.succeeds());
}

#[test]
fn a_run_is_gone_on_with_by_what_began_it() {
    let place = Workplace::new(&SCAFFOLD.replace("rounds = 16", "rounds = 200"));
    let mut simulation = Running::start(place.command("experiment run suite --quiet --out out"), place.path("log"));
    let dir = place.seed("out", 3);
    assert!(simulation.until(|| dir.join("checkpoint/round-00000003").exists()));
    simulation.kill();
    let serve = "serve suite --quiet --listen 127.0.0.1:0 --out out";
    place.call(serve).assert_refused(&["begun in one process", "--out"]);
}

#[test]
fn what_cannot_be_served_is_refused_before_anything_is_made() {
    let place = Workplace::new(&NOVA.replace("seeds = [3]", "seeds = [3, 4]"));
    place.call("serve suite --out out").assert_refused(&["seeds 3, 4", "--seed"]);
    let place = Workplace::new(&(NOVA.to_owned() + "transport = { kind = \"quic\", wait_for = 3 }\n"));
    place.call("experiment run suite --out out").assert_refused(&["fedburn serve", "--workers"]);
    place.call("nodes list").assert_refused(&["no server's folder", "--state"]);
    let network = "transport = { kind = \"quic\", network = { mtu_upper_bound = 9000 } }\n";
    let place = Workplace::new(&(NOVA.to_owned() + network));
    place.call("serve suite --out out").assert_refused(&["mtu_upper_bound", "9000", "6,550"]);
}
