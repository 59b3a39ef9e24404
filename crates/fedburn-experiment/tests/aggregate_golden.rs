//! Golden vectors of every strategy through `fedburn aggregate`, files in and files out, round after round: so that
//! another tool gets from files what a federation gets from its clients.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use support::{STEADY, Workplace};

/// One client's answer: what stands behind the file's name, and its values.
#[derive(Clone)]
struct Sent {
    extras: &'static str,
    values: Place,
}

/// Values as such, or as a step from where the round starts.
#[derive(Clone)]
enum Place {
    At(Vec<f32>),
    By(Vec<f32>),
}

fn at(extras: &'static str, values: &[f32]) -> Sent {
    Sent { extras, values: Place::At(values.to_vec()) }
}

fn by(extras: &'static str, step: &[f32]) -> Sent {
    Sent { extras, values: Place::By(step.to_vec()) }
}

fn file(values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![values.len()], &data).unwrap();
    safetensors::serialize([("x", view)], None).unwrap()
}

fn values(place: &Workplace, name: &str) -> Vec<f32> {
    let bytes = fs::read(place.path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor("x").unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[track_caller]
fn assert_near(what: &str, found: &[f32], expected: &[f64]) {
    let near = |(x, y): (&f32, &f64)| (f64::from(*x) - y).abs() < 1e-5;
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(near),
        "{what}: {found:?}, not {expected:?}"
    );
}

/// A federation by hand: one folder, one call a round.
struct Calls {
    place: Workplace,
    arguments: String,
    round: u32,
}

impl Calls {
    fn new(table: &str, global: &[f32], arguments: &str) -> Self {
        let place = Workplace::new(STEADY);
        place.write("s.toml", table);
        place.write("g.safetensors", file(global));
        fs::create_dir(place.path("side")).unwrap();
        let arguments = format!(
            "aggregate --strategy s.toml --global g.safetensors --state st --out g.safetensors \
             --deployed d.safetensors --side side --json {arguments}"
        );
        Self { place, arguments, round: 0 }
    }

    /// The report of one round; the next starts from its result.
    fn round(&mut self, sent: &[Sent]) -> serde_json::Value {
        self.round += 1;
        let global = values(&self.place, "g.safetensors");
        let mut call = self.arguments.clone();
        for (k, Sent { extras, values }) in sent.iter().enumerate() {
            let values = match values {
                Place::At(values) => values.clone(),
                Place::By(step) => global.iter().zip(step).map(|(x, d)| x + d).collect(),
            };
            self.place.write(&format!("{k}.safetensors"), file(&values));
            call += &format!(" --update {k}.safetensors:{extras}");
        }
        let report = self.place.succeed(&call).json_lines().remove(0);
        assert_eq!(report["round"], self.round);
        report
    }

    fn global(&self) -> Vec<f32> {
        values(&self.place, "g.safetensors")
    }
}

/// A strategy, and rounds from `start` with what comes out of each.
struct Case {
    table: &'static str,
    start: Vec<f32>,
    rounds: Vec<(Vec<Sent>, Vec<f64>)>,
}

/// From the BASE case on: `x = [1, 2, 3]`, A has one example and B three.
fn base(table: &'static str, extras: [&'static str; 2], first: [f64; 3], later: Vec<(Vec<Sent>, [f64; 3])>) -> Case {
    let clients = vec![at(extras[0], &[1.2, 1.8, 3.0]), at(extras[1], &[0.6, 2.4, 3.6])];
    let later = later.into_iter().map(|(sent, expected)| (sent, expected.to_vec()));
    Case {
        table,
        start: vec![1.0, 2.0, 3.0],
        rounds: std::iter::once((clients, first.to_vec())).chain(later).collect(),
    }
}

const PLAIN: [&str; 2] = ["1", "3"];

/// The second round of server optimisers: the mean moves by `[0.1, -0.1, 0.2]`.
fn optimiser(table: &'static str, first: [f64; 3], second: [f64; 3]) -> Case {
    base(table, PLAIN, first, vec![(vec![by("4", &[0.1, -0.1, 0.2])], second)])
}

/// The second round of EWWA.
fn ewwa(table: &'static str, first: [f64; 3], second: [f64; 3]) -> Case {
    let clients = vec![by("1", &[0.1, -0.1, -0.2]), by("3", &[-0.3, 0.1, 0.2])];
    base(table, PLAIN, first, vec![(clients, second)])
}

/// Section D: seven clients, the last of them broken.
fn robust(table: &'static str, expected: [f64; 2]) -> Case {
    let rows = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.1], [1.05, 1.0], [0.95, 1.05], [1.0, 0.9], [10.0, -10.0]];
    let rows = rows.iter().map(|row| at("1", row)).collect();
    Case { table, start: vec![0.0, 0.0], rounds: vec![(rows, expected.to_vec())] }
}

fn cases() -> Vec<Case> {
    vec![
        base("kind = 'fedavg'", PLAIN, [0.75, 2.25, 3.45], vec![]),
        optimiser("kind = 'fedavgm'", [0.75, 2.25, 3.45], [0.625, 2.375, 4.055]),
        optimiser("kind = 'fedavgm'\ndamped = true", [0.975, 2.025, 3.045], [0.9625, 2.0375, 3.1055]),
        optimiser("kind = 'fedadagrad'", [0.99003992, 2.00996008, 3.0099778], [0.98541475, 2.01458525, 3.02223857]),
        optimiser("kind = 'fedadam'", [0.90391929, 2.09608071, 3.0978027], [0.85900016, 2.14099984, 3.21868607]),
        optimiser("kind = 'fedyogi'", [0.90392003, 2.09607997, 3.09780247], [0.85918833, 2.14081167, 3.21818984]),
        optimiser(
            "kind = 'fedadam'\nv0 = 0\nbias_correction = true",
            [0.90384615, 2.09615385, 3.09782609],
            [0.87047359, 2.12952641, 3.18759505],
        ),
        optimiser("kind = 'fedams'", [0.20943058, 2.79056942, 4.0], [-0.08405242, 3.08405242, 4.91599551]),
        base("kind = 'fednova'", ["1:accumulation=2", "3:accumulation=4"], [0.825, 2.175, 3.39375], vec![]),
        // Momentum 0.9: tau_eff = 0.25 * 2.9 + 0.75 * 9.049. A step of -0.3 by B and 0.05 by A, and so on.
        base(
            "kind = 'fednova'",
            ["1:accumulation=2.9", "3:accumulation=9.049"],
            [
                1.0 + 7.51175 * (0.05 / 2.9 - 0.3 / 9.049),
                2.0 - 7.51175 * (0.05 / 2.9 - 0.3 / 9.049),
                3.0 + 7.51175 * 0.45 / 9.049,
            ],
            vec![],
        ),
        // Proximal: tau_eff = 0.25 * 2 + 0.75 * 4.
        base(
            "kind = 'fednova'\neffective_steps = 'steps'",
            ["1:accumulation=1.95,steps=2", "3:accumulation=3.709875,steps=4"],
            [
                1.0 + 3.5 * (0.05 / 1.95 - 0.3 / 3.709875),
                2.0 - 3.5 * (0.05 / 1.95 - 0.3 / 3.709875),
                3.0 + 3.5 * 0.45 / 3.709875,
            ],
            vec![],
        ),
        ewwa("kind = 'ewwa'", [0.67152176, 1.87152176, 3.16136485], [0.42290081, 1.80081033, 3.02771198]),
        ewwa(
            "kind = 'ewwa'\nform = 'log_share'",
            [0.6000007, 1.96329388, 3.00000001],
            [0.46993592, 1.94533419, 2.80000003],
        ),
        ewwa(
            "kind = 'ewwa'\nform = 'log_share'\noptimizer = 'adagrad'",
            [0.60000014, 1.92377228, 3.00000019],
            [0.46011713, 1.90329707, 2.80000095],
        ),
        ewwa(
            "kind = 'ewwa'\nform = 'log_share'\noptimizer = 'yogi'",
            [0.6000007, 1.96330332, 3.00000001],
            [0.46993157, 1.9453541, 2.80000003],
        ),
        robust("kind = 'krum'\nattackers = 1", [1.0, 1.0]),
        robust("kind = 'multi_krum'\nattackers = 1\nselect = 3", [1.0, 1.01666667]),
        robust("kind = 'median'", [1.0, 1.0]),
        robust("kind = 'trimmed_mean'\nbeta = 0.2", [1.02, 0.97]),
        robust("kind = 'bulyan'\nattackers = 1", [1.0, 1.01666667]),
        robust("kind = 'geometric_median'\niterations = 1", [1.24542047, 0.69205559]),
        robust("kind = 'geometric_median'\niterations = 2", [1.05403034, 0.92658219]),
        robust("kind = 'geometric_median'\niterations = 3", [1.03484517, 0.94925488]),
        robust("kind = 'geometric_median'", [1.02521662, 0.96361913]),
        Case {
            table: "kind = 'norm_clipping'\nthreshold = 1.0",
            start: vec![0.0, 0.0],
            rounds: vec![(vec![at("5", &[3.0, 4.0])], vec![0.6, 0.8])],
        },
        // Section A2.6: the weights are 0.09722222, 0.27777778 and 0.625.
        Case {
            table: "kind = 'optimal_averaging'\ntarget = 0\nbiases = 'plain'",
            start: vec![0.0],
            rounds: vec![(
                vec![at("10:variance=0.1", &[0.0]), at("10:variance=0.01", &[0.5]), at("10:variance=0.02", &[-0.2])],
                vec![0.5 * 0.27777778 - 0.2 * 0.625],
            )],
        },
        // Section F5: three rounds of agreement, whose result is where the agreement points.
        Case {
            table: "kind = 'weight_erosion'\nsize_penalty = 0.2\nbatch = 2",
            start: vec![0.0, 0.0],
            rounds: vec![
                (vec![by("3", &[-1.0, 0.0]), by("3", &[-1.0, 0.0])], vec![-1.0, 0.0]),
                (vec![by("3", &[-1.0, 0.0]), by("3", &[-1.0, 0.0])], vec![-2.0, 0.0]),
                (vec![by("3", &[-1.0, 0.0]), by("3", &[-1.0, 0.0])], vec![-3.0, 0.0]),
                (vec![by("3", &[-1.0, 0.0]), by("3", &[0.0, -1.0])], vec![-3.52603753, -0.47396247]),
            ],
        },
        Case {
            table: "kind = 'swa'\nstart = 9",
            start: vec![0.0, 0.0],
            rounds: vec![(vec![at("3", &[-1.0, 0.0]), at("3", &[1.0, 2.0])], vec![0.0, 1.0])],
        },
    ]
}

#[test]
fn golden_vectors_on_both_backends() {
    for backend in ["flex", "ndarray"] {
        for Case { table, start, rounds } in cases() {
            let mut calls = Calls::new(table, &start, &format!("--backend {backend}"));
            for (round, (sent, expected)) in (1..).zip(rounds) {
                calls.round(&sent);
                assert_near(&format!("{table}, round {round}, {backend}"), &calls.global(), &expected);
            }
        }
    }
}

/// Section B3. A first round in which nobody moves brings `c` to where the example begins.
#[test]
fn scaffold_sends_and_takes_control_variates() {
    let mut calls = Calls::new("kind = 'scaffold'", &[1.0, 2.0, 3.0], "--population 4");
    calls.place.write("dc.safetensors", file(&[0.4, 0.0, -0.4]));
    let sent = "7:control_delta=dc.safetensors";
    calls.round(&[by(sent, &[0.0; 3])]);
    assert_near("c at first", &values(&calls.place, "side/control.safetensors"), &[0.1, 0.0, -0.1]);
    calls.place.write("dc.safetensors", file(&[0.945, 1.71, 1.905]));
    let report = calls.round(&[at(sent, &[0.791, 1.658, 2.639])]);
    assert_near("x", &calls.global(), &[0.791, 1.658, 2.639]);
    assert_near("c", &values(&calls.place, "side/control.safetensors"), &[0.33625, 0.4275, 0.37625]);
    assert_eq!(report["side_vectors"]["control"], "side/control.safetensors");
    assert!(report["metrics"]["control_norm"]["sum"].as_f64().unwrap() > 0.6, "{report}");
}

/// Section B4.
#[test]
fn feddyn_knows_the_population_and_sends_alpha() {
    let clients = [at("1", &[0.811, 1.622, 2.622]), at("50", &[1.19845, 2.0, 2.80155])];
    let mut calls = Calls::new("kind = 'feddyn'\nalpha = 0.1", &[1.0, 2.0, 3.0], "--population 4");
    let report = calls.round(&clients);
    assert_near("x", &calls.global(), &[1.0070875, 1.7165, 2.5676625]);
    assert_eq!(report["side_scalars"]["alpha"], 0.1);
    let mut alone = Calls::new("kind = 'feddyn'\nalpha = 0.1", &[1.0, 2.0, 3.0], "");
    alone.round(&clients);
    assert!((alone.global()[0] - calls.global()[0]).abs() > 1e-4, "of two clients, not of four");
}

/// Section A5.5.
#[test]
fn swa_writes_the_average_apart_and_sends_rates() {
    let mut calls = Calls::new("kind = 'swa'\nstart = 1\ncycle = 1", &[9.0, 9.0], "");
    for (model, average) in [([1.0, 2.0], [1.0, 2.0]), ([3.0, 2.0], [2.0, 2.0]), ([2.0, 5.0], [2.0, 3.0])] {
        calls.round(&[at("3", &model)]);
        assert_eq!(calls.global(), model);
        assert_near("average", &values(&calls.place, "d.safetensors"), &average);
    }
    let mut calls = Calls::new("kind = 'swa'\nstart = 2\ncycle = 5\nfinal_lr = 1e-4", &[9.0, 9.0], "");
    let rates = [0.00802, 0.00604, 0.00406, 0.00208, 0.0001, 0.00802];
    for (round, expected) in (1..).zip(rates) {
        let next = calls.round(&[at("3", &[1.0, 1.0])])["side_scalars"].clone();
        let [tau, target] = ["rate_blend", "rate_target"].map(|name| next[name].as_f64().unwrap());
        assert!(((1.0 - tau) * 0.01 + tau * target - expected).abs() < 1e-9, "after round {round}: {next}");
    }
}

/// Moments belong to clients, not to places in the list: a client that is left out finds its own again.
#[test]
fn what_is_remembered_of_clients_lives_in_the_state_file() {
    let steps = [[0.1, -0.2, 0.3], [-0.4, 0.1, 0.2], [0.2, 0.2, -0.1]];
    let by_all = |order: [usize; 3]| {
        let names = ["5:client=0", "5:client=1", "5:client=2"];
        order.map(|k| by(names[k], &steps[k]))
    };
    let [_, b, _] = by_all([0, 1, 2]);
    let run = |first: [usize; 3], last: [usize; 3]| {
        let mut calls = Calls::new("kind = 'ewwa'", &[1.0, 2.0, 3.0], "--population 3");
        calls.round(&by_all(first));
        calls.round(std::slice::from_ref(&b));
        calls.round(&by_all(last));
        let state = fs::read(calls.place.path("st")).unwrap();
        let state = SafeTensors::deserialize(&state).unwrap();
        let rounds = |k: usize| state.tensor(&format!("client.{k}.rounds")).unwrap().data().to_vec();
        assert_eq!([0, 1, 2].map(rounds), [2u64, 3, 2].map(|n| n.to_le_bytes().to_vec()));
        calls.global()
    };
    let expected = run([0, 1, 2], [0, 1, 2]);
    assert_eq!(run([2, 0, 1], [1, 2, 0]), expected, "the place in the list does not matter");
    let mut strangers = Calls::new("kind = 'ewwa'", &[1.0, 2.0, 3.0], "--population 9");
    strangers.round(&by_all([0, 1, 2]));
    strangers.round(std::slice::from_ref(&b));
    let names = ["5:client=6", "5:client=7", "5:client=8"];
    strangers.round(&[0, 1, 2].map(|k| by(names[k], &steps[k])));
    assert_ne!(strangers.global(), expected, "other clients have no moments yet");
}

#[test]
fn what_a_strategy_needs_and_what_does_not_fit_is_refused() {
    let place = Workplace::new(STEADY);
    place.write("g.safetensors", file(&[1.0, 2.0, 3.0]));
    place.write("a.safetensors", file(&[1.2, 1.8, 3.0]));
    place.write("short.safetensors", file(&[1.2, 1.8]));
    let refused = |table: &str, arguments: &str, words: &[&str]| {
        place.write("s.toml", table);
        let before = place.everything("");
        place
            .call(&format!("aggregate --strategy s.toml --global g.safetensors --out o --state st {arguments}"))
            .assert_refused(words);
        assert!(place.everything("") == before, "{arguments}: something was written");
    };
    let a = "--update a.safetensors:1";
    refused("kind = 'fednova'", a, &["a.safetensors", "did not report its accumulation"]);
    refused("kind = 'fednova'", &format!("{a}:accumulation=-1"), &["a.safetensors", "accumulation -1"]);
    refused("kind = 'fednova'\neffective_steps = 'steps'", &format!("{a}:accumulation=1"), &["number of steps"]);
    refused("kind = 'scaffold'", a, &["`scaffold`", "`control_delta`"]);
    refused("kind = 'scaffold'", &format!("{a}:control_delta=no.safetensors"), &["no.safetensors", "No such file"]);
    refused("kind = 'scaffold'", &format!("{a}:control_delta=short.safetensors"), &["short.safetensors", "[2]", "[3]"]);
    refused("kind = 'fedavg'", &format!("{a} {a}:client=0"), &["a.safetensors", "client 0"]);
    refused("kind = 'fedavg'", &format!("{a} {a} --population 1"), &["population of 1", "2 updates"]);
    refused("kind = 'fedavg'", &format!("{a}:steps"), &["FILE:EXAMPLES", "NAME=VALUE"]);
    refused("kind = 'fedavg'", &format!("{a} --side nowhere/side --deployed nowhere/d"), &["nowhere/d"]);
}
