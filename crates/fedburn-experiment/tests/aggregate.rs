//! `fedburn aggregate`: any strategy over files of any tool; what does not fit is refused and nothing is written.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use fedburn_experiment::aggregate::{AggregateFiles, AggregateReport, UpdateFile};
use fedburn_experiment::backend::BackendName;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use support::{Finished, STEADY, Workplace};

/// A tensor of a file: its name, type, shape and bytes.
type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(name: &'static str, shape: &[usize], values: &[f32]) -> Tensor {
    (name, Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn bytes(tensors: &[Tensor]) -> Vec<u8> {
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let metadata = HashMap::from([("format", "pt"), ("author", "somebody"), ("step", "7")]);
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn values(path: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A folder with a strategy, a global model `x` and two clients' models.
fn place() -> Workplace {
    let place = Workplace::new(STEADY);
    place.write("s.toml", "kind = \"fedavg\"");
    place.write("g.safetensors", bytes(&[f32s("x", &[3], &[1.0, 2.0, 3.0])]));
    place.write("a.safetensors", bytes(&[f32s("x", &[3], &[1.2, 1.8, 3.0])]));
    place.write("b.safetensors", bytes(&[f32s("x", &[3], &[0.6, 2.4, 3.6])]));
    place
}

const CALL: &str = "aggregate --strategy s.toml --global g.safetensors --out next.safetensors";
const BOTH: &str = "--update a.safetensors:1 --update b.safetensors:3";

/// Asserts that a call is refused with `words` and changes nothing in its folder, whether or not the output exists.
fn refused(place: &Workplace, arguments: &str, words: &[&str]) {
    for existing in [None, Some("an earlier result")] {
        existing.iter().for_each(|text| drop(place.write("next.safetensors", text)));
        let before = place.everything("");
        place.call(arguments).assert_refused(words);
        assert!(place.everything("") == before, "{arguments}: something was written");
    }
    fs::remove_file(place.path("next.safetensors")).unwrap();
}

#[test]
fn the_weighted_mean_of_two_files() {
    let place = place();
    let printed = place.succeed(&format!("{CALL} {BOTH}")).stdout;
    assert!(printed.starts_with("round 1: fedavg over 2 clients, 3 parameters"), "{printed}");
    let next = values(&place.path("next.safetensors"), "x");
    let expected = [0.75, 2.25, 3.45];
    assert!(next.iter().zip(expected).all(|(value, expected)| (value - expected).abs() < 1e-6), "{next:?}");
}

#[test]
fn the_global_file_matters_where_the_server_has_a_rate_of_its_own() {
    let place = place();
    place.write("s.toml", "kind = \"fedavg\"\nweighting = \"uniform\"\nserver_lr = 0.5");
    place.succeed(&format!("{CALL} {BOTH}"));
    // 1 + 0.5 * ((1.2 + 0.6) / 2 - 1) and so on.
    let next = values(&place.path("next.safetensors"), "x");
    assert!(next.iter().zip([0.95, 2.05, 3.15]).all(|(value, expected)| (value - expected).abs() < 1e-6), "{next:?}");
}

#[test]
fn json_for_programs() {
    let place = place();
    let report = place.succeed(&format!("{CALL} {BOTH} --json")).json_lines().remove(0);
    assert_eq!((&report["round"], &report["clients"], &report["parameters"]), (&1.into(), &2.into(), &3.into()));
    assert_eq!((&report["strategy"], &report["out"]), (&"fedavg".into(), &"next.safetensors".into()));
}

/// Every type, with names in no order, a scalar and an empty tensor. `shift` moves all values.
fn mixed(shift: u8) -> Vec<Tensor> {
    let float = [0.5, 1.5, -2.0, 0.25].map(|v: f32| v + f32::from(shift));
    vec![
        ("z.half", Dtype::F16, vec![2, 2], float.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        ("b.brain", Dtype::BF16, vec![4], float.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        ("m.double", Dtype::F64, vec![4, 1], float.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        f32s("a.scalar", &[], &float[..1]),
        ("n.batches", Dtype::I64, vec![], (i64::from(shift) - 5).to_le_bytes().to_vec()),
        ("n.small", Dtype::I8, vec![2], vec![shift, 0u8.wrapping_sub(shift)]),
        ("n.words", Dtype::U16, vec![1], (300 + u16::from(shift)).to_le_bytes().to_vec()),
        ("mask", Dtype::BOOL, vec![3], vec![0, u8::from(shift == 2), 1]),
    ]
}

#[test]
fn names_shapes_types_and_metadata_stay_and_integers_take_the_maximum() {
    let place = place();
    place.write("g.safetensors", bytes(&mixed(9)));
    place.write("a.safetensors", bytes(&mixed(1)));
    place.write("b.safetensors", bytes(&mixed(2)));
    let printed = place.succeed(&format!("{CALL} --update a.safetensors:3 --update b.safetensors:1"));
    assert!(printed.stderr.contains("32-bit") && printed.stderr.contains("m.double"), "{}", printed.stderr);
    let [next, global] = ["next.safetensors", "g.safetensors"].map(|name| fs::read(place.path(name)).unwrap());
    let header = 8 + SafeTensors::read_metadata(&global).unwrap().0;
    assert!(next[..header] == global[..header], "the header stays as it is, byte for byte");
    assert_eq!(next.len(), global.len());
    let file = SafeTensors::deserialize(&next).unwrap();
    let data = |name: &str| file.tensor(name).unwrap().data().to_vec();
    // 1.25 is added to every value: three quarters of 1 and one of 2.
    let mean = [1.75, 2.75, -0.75, 1.5f32];
    assert_eq!(data("z.half"), mean.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect::<Vec<_>>());
    assert_eq!(data("b.brain"), mean.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect::<Vec<_>>());
    assert_eq!(data("m.double"), mean.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect::<Vec<_>>());
    assert_eq!(data("a.scalar"), 1.75f32.to_le_bytes());
    // Over the clients: the global file's 9 - 5 does not count.
    assert_eq!(data("n.batches"), (-3i64).to_le_bytes());
    assert_eq!(data("n.small"), [2, 255]);
    assert_eq!(data("n.words"), 302u16.to_le_bytes());
    assert_eq!(data("mask"), [0, 1, 1]);
}

#[test]
fn one_clients_file_comes_back_bit_for_bit() {
    let place = place();
    let odd = [1.0e-40, -0.0, f32::MAX, f32::MIN_POSITIVE, 1.0 / 3.0];
    let file = bytes(&[vec![f32s("odd", &[5], &odd)], mixed(4)].concat());
    // The header's metadata may come in another order from one file to the next.
    place.write("g.safetensors", &file);
    place.write("a.safetensors", &file);
    place.succeed(&format!("{CALL} --update a.safetensors:7"));
    assert!(fs::read(place.path("next.safetensors")).unwrap() == file);
}

#[test]
fn repeated_calls_with_a_state_are_rounds() {
    let place = place();
    let round = |n: u64| {
        let printed = place.succeed(&format!("{CALL} {BOTH} --state st.safetensors")).stdout;
        assert!(printed.starts_with(&format!("round {n}: ")), "{printed}");
    };
    (1..=3).for_each(round);
    // Without a state, every call is the first round.
    assert!(place.succeed(&format!("{CALL} {BOTH}")).stdout.starts_with("round 1: "));
    // A refused call leaves the state as it was.
    place.write("bad.safetensors", bytes(&[f32s("x", &[3], &[f32::NAN, 0.0, 0.0])]));
    refused(&place, &format!("{CALL} --update bad.safetensors:1 --state st.safetensors"), &["bad.safetensors", "NaN"]);
    round(4);
}

#[test]
fn the_state_of_another_model_and_files_that_are_no_state_are_refused() {
    let place = place();
    place.succeed(&format!("{CALL} {BOTH} --state st.safetensors"));
    let call = format!("{CALL} {BOTH} --state st.safetensors");
    for name in ["g", "a", "b"] {
        place.write(&format!("{name}.safetensors"), bytes(&[f32s("y", &[3], &[1.0; 3])]));
    }
    refused(&place, &call, &["st.safetensors", "another model", "--state"]);
    place.write("st.safetensors", bytes(&[f32s("x", &[1], &[1.0])]));
    refused(&place, &call, &["st.safetensors"]);
    place.write("st.safetensors", "no state");
    refused(&place, &call, &["st.safetensors"]);
}

#[test]
fn the_state_of_another_strategy_is_refused() {
    let place = place();
    place.succeed(&format!("{CALL} {BOTH} --state st.safetensors"));
    // The strategy's name is the name of an entry: renamed at the same length, the file stays whole.
    let mut state = fs::read(place.path("st.safetensors")).unwrap();
    let at = state.windows(6).position(|window| window == b"fedavg").unwrap();
    state[at..at + 6].copy_from_slice(b"fedxyz");
    place.write("st.safetensors", state);
    refused(&place, &format!("{CALL} {BOTH} --state st.safetensors"), &["another strategy than `fedavg`", "--state"]);
}

#[test]
fn models_that_do_not_fit_are_refused_by_tensor() {
    let place = place();
    let x = f32s("x", &[3], &[1.0; 3]);
    let refused_as = |tensors: &[Tensor], words: &[&str]| {
        place.write("b.safetensors", bytes(tensors));
        refused(&place, &format!("{CALL} {BOTH}"), &[&["b.safetensors"], words].concat());
    };
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "infinity"), (f32::NEG_INFINITY, "infinity")] {
        refused_as(&[f32s("x", &[3], &[0.0, value, 0.0])], &["`x`", name]);
    }
    refused_as(&[f32s("y", &[3], &[1.0; 3])], &["`x`", "missing"]);
    refused_as(&[x.clone(), f32s("y", &[1], &[1.0])], &["`y`", "not in g.safetensors"]);
    refused_as(&[f32s("x", &[3, 1], &[1.0; 3])], &["`x`", "[3, 1]", "expected F32 [3]"]);
    refused_as(&[f32s("x", &[2], &[1.0; 2])], &["`x`", "[2]", "expected F32 [3]"]);
    refused_as(&[("x", Dtype::F16, vec![3], vec![0; 6])], &["`x`", "F16", "expected F32"]);
    let halves = [f16::NAN, f16::ONE].iter().flat_map(|v| v.to_le_bytes()).collect();
    refused_as(&[("x", Dtype::F16, vec![2], halves)], &["`x`", "NaN"]);
    let huge = 1e300f64.to_le_bytes().to_vec();
    refused_as(&[("x", Dtype::F64, vec![1], huge)], &["`x`", "range of 32-bit floats"]);
    refused_as(&[("x", Dtype::F8_E4M3, vec![3], vec![0; 3])], &["`x`", "F8_E4M3"]);
}

#[test]
fn truncated_and_damaged_files_are_refused() {
    let place = place();
    let whole = fs::read(place.path("b.safetensors")).unwrap();
    for length in (0..whole.len()).step_by(11).chain([whole.len() - 1]) {
        place.write("b.safetensors", &whole[..length]);
        place.call(&format!("{CALL} {BOTH}")).assert_refused(&["b.safetensors", "not a whole safetensors file"]);
        assert!(!place.path("next.safetensors").exists(), "cut at {length}");
    }
    place.write("b.safetensors", [&whole[..], b"more"].concat());
    refused(&place, &format!("{CALL} {BOTH}"), &["b.safetensors", "not a whole safetensors file"]);
    place.write("b.safetensors", &whole);
    place.write("g.safetensors", &whole[..whole.len() - 4]);
    refused(&place, &format!("{CALL} {BOTH}"), &["g.safetensors", "not a whole safetensors file"]);
}

#[test]
fn bad_arguments_are_refused() {
    let place = place();
    refused(&place, CALL, &["--update <FILE:EXAMPLES"]);
    refused(&place, &format!("{CALL} --update a.safetensors:0"), &["a.safetensors", "0 examples", "at least 1"]);
    refused(&place, &format!("{CALL} --update a.safetensors"), &["FILE:EXAMPLES"]);
    refused(&place, &format!("{CALL} --update no.safetensors:1"), &["no.safetensors", "No such file"]);
    place.write("s.toml", "kind = \"fedsgd\"");
    refused(&place, &format!("{CALL} {BOTH}"), &["s.toml", "`fedsgd`", "`fedavg`"]);
    place.write("s.toml", "kind = \"fedavg\"\nserver_lr = -1");
    refused(&place, &format!("{CALL} {BOTH}"), &["s.toml", "server_lr = -1", "above 0"]);
    place.write("s.toml", "kind = \"fedavg\"\nlr = 1");
    refused(&place, &format!("{CALL} {BOTH}"), &["s.toml", "`lr`"]);
    place.write("g.safetensors", bytes(&[("n", Dtype::I64, vec![1], vec![0; 8])]));
    place.write("s.toml", "kind = \"fedavg\"");
    refused(&place, &format!("{CALL} {BOTH}"), &["g.safetensors", "no float tensor"]);
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let place = place();
    fs::create_dir(place.path("folder")).unwrap();
    let to = |out: &str| CALL.replace("next.safetensors", out);
    for (out, state) in [("folder", "st"), ("none/next.safetensors", "st"), ("next.safetensors", "none/st")] {
        let before = place.everything("");
        place.call(&format!("{} {BOTH} --state {state}", to(out))).assert_refused(&[]);
        assert!(place.everything("") == before, "{out}, {state}: something was written");
    }
}

#[cfg(unix)]
#[test]
fn the_result_is_as_readable_as_any_other_file() {
    use std::os::unix::fs::PermissionsExt;
    let place = place();
    place.succeed(&format!("{CALL} {BOTH} --state st.safetensors"));
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode();
    assert_eq!(mode("next.safetensors"), mode("g.safetensors"));
    assert_eq!(mode("st.safetensors"), mode("g.safetensors"));
}

#[test]
fn every_backend_of_this_build_gives_the_mean() {
    let place = place();
    for backend in ["flex", "ndarray"] {
        place.succeed(&format!("{CALL} {BOTH} --backend {backend}"));
        assert!((values(&place.path("next.safetensors"), "x")[0] - 0.75).abs() < 1e-6, "{backend}");
    }
    if !Path::new("/dev/nvidia0").exists() {
        fs::remove_file(place.path("next.safetensors")).unwrap();
        refused(&place, &format!("{CALL} {BOTH} --backend cuda"), &["`cuda`", "--backend flex"]);
    }
}

/// One call of the library over `updates`, in their order.
fn combine(place: &Workplace, updates: Vec<(PathBuf, u64)>) -> (AggregateReport, Vec<u8>) {
    let files = AggregateFiles {
        strategy: place.path("s.toml"),
        global: place.path("g.safetensors"),
        updates: updates.into_iter().map(|(path, examples)| UpdateFile::new(path, examples)).collect(),
        population: None,
        state: None,
        out: place.path("next.safetensors"),
        deployed: None,
        side: None,
        seed: 0,
    };
    let report = BackendName::Flex.run(files).unwrap().unwrap();
    (report, fs::read(place.path("next.safetensors")).unwrap())
}

/// Clients: a number of examples and a vector of the same length each, over many orders of magnitude.
fn clients() -> impl Strategy<Value = Vec<(u64, Vec<f32>)>> {
    let value = (-1.0f32..1.0, -12i32..12).prop_map(|(v, exponent)| v * 10f32.powi(exponent));
    (1usize..9).prop_flat_map(move |length| {
        prop::collection::vec((1u64..100_000, prop::collection::vec(value.clone(), length)), 1..7)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a mean in `f64`, and in two orders.
    #[test]
    fn the_mean_is_the_exact_one_in_any_order(clients in clients(), rotation in 0usize..7) {
        let place = place();
        let length = clients[0].1.len();
        place.write("g.safetensors", bytes(&[f32s("x", &[length], &vec![0.0; length])]));
        let updates: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(k, (n, x))| (place.write(&format!("{k}.safetensors"), bytes(&[f32s("x", &[length], x)])), *n))
            .collect();
        let (report, first) = combine(&place, updates.clone());
        prop_assert_eq!((report.round.0, report.parameters), (1, length));
        let total: f64 = clients.iter().map(|(n, _)| *n as f64).sum();
        for (j, value) in values(&place.path("next.safetensors"), "x").into_iter().enumerate() {
            let terms = clients.iter().map(|(n, x)| *n as f64 * f64::from(x[j]) / total);
            let (mean, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            // Half a unit of the last place of the result, and what the reference itself may be wrong by.
            let tolerance = 6e-8 * mean.abs() + 1e-14 * size + f64::from(f32::MIN_POSITIVE);
            prop_assert!((f64::from(value) - mean).abs() <= tolerance, "value {}: {} and {}", j, value, mean);
        }
        let mut others = updates;
        others.rotate_left(rotation % clients.len());
        others.reverse();
        prop_assert!(combine(&place, others).1 == first, "another order, other bits");
    }
}

#[test]
fn a_call_with_unknown_arguments_says_which() {
    Finished::of(place().command("aggregate --stratgy s.toml")).assert_refused(&["--stratgy", "--strategy"]);
}
