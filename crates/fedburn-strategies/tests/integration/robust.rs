//! Byzantine-robust rules and weight erosion: golden vectors, references on random rounds, laws, too few updates.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_core::{
    Aggregate, AggregateError, ClientUpdate, ParamEntry, ParamKind, ParamSchema, ParamVector, RoundIndex,
};
use fedburn_strategies::StrategyConfig;
use fedburn_testkit::reference::robust;
use fedburn_testkit::{Convexity, Rounds, combine, schema, strategy_laws, update, vector};
use proptest::prelude::*;

/// The example of the golden vectors: six clients that agree more or less, and one that is broken.
const ROWS: [[f32; 2]; 7] = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.1], [1.05, 1.0], [0.95, 1.05], [1.0, 0.9], [10.0, -10.0]];

fn config(text: &str) -> StrategyConfig {
    toml::from_str(text).unwrap()
}

fn round_of<B: Backend>(text: &str, global: &[f32], rows: &[Vec<f32>]) -> Result<Aggregate<B>, AggregateError> {
    let (device, schema) = (B::Device::default(), schema(&[global.len()]));
    let updates: Vec<_> = (0..).zip(rows).map(|(k, x)| update(k, k + 1, vector(x, &schema, &device))).collect();
    combine::<B>(&mut config(text).build().unwrap(), RoundIndex(1), &vector(global, &schema, &device), &updates)
}

fn next<B: Backend>(text: &str, global: &[f32], rows: &[Vec<f32>]) -> Vec<f32> {
    round_of::<B>(text, global, rows).unwrap().global.to_host()
}

fn example() -> Vec<Vec<f32>> {
    ROWS.iter().map(|row| row.to_vec()).collect()
}

fn largest_gap(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max)
}

/// Section D.
#[test]
fn golden_vectors() {
    let golden = [
        ("kind = 'krum'", [1.0, 1.0]),
        ("kind = 'multi_krum'\nselect = 3", [1.0, 1.01666667]),
        ("kind = 'median'", [1.0, 1.0]),
        ("kind = 'trimmed_mean'", [1.02, 0.97]),
        ("kind = 'bulyan'", [1.0, 1.01666667]),
        ("kind = 'geometric_median'\niterations = 1", [1.24542047, 0.69205559]),
        ("kind = 'geometric_median'\niterations = 2", [1.05403034, 0.92658219]),
        ("kind = 'geometric_median'\niterations = 3", [1.03484517, 0.94925488]),
        ("kind = 'geometric_median'", [1.02521662, 0.96361913]),
    ];
    for (text, expected) in golden {
        for found in [next::<Flex>(text, &[0.0, 0.0], &example()), next::<NdArray>(text, &[0.0, 0.0], &example())] {
            assert!(largest_gap(&found, &expected) < 1e-5, "{text}: {found:?}, expected {expected:?}");
        }
    }
    let clip = "kind = 'norm_clipping'\nthreshold = 1.0";
    for found in
        [next::<Flex>(clip, &[0.0, 0.0], &[vec![3.0, 4.0]]), next::<NdArray>(clip, &[0.0; 2], &[vec![3.0, 4.0]])]
    {
        assert!(largest_gap(&found, &[0.6, 0.8]) < 1e-6, "{found:?}");
    }
}

#[test]
fn the_selected_are_reported() {
    let cases = [
        ("kind = 'krum'", vec![0]),
        ("kind = 'multi_krum'\nselect = 3", vec![0, 3, 4]),
        ("kind = 'multi_krum'", vec![0, 1, 2, 3, 4, 5]),
        ("kind = 'bulyan'", vec![0, 1, 2, 3, 4]),
    ];
    for (text, selected) in cases {
        let mixing = round_of::<Flex>(text, &[0.0, 0.0], &example()).unwrap().mixing.unwrap();
        assert_eq!(mixing.tensors, ["*"]);
        let found: Vec<_> = (0..7).filter(|k| mixing.weights[0][*k] > 0.0).collect();
        assert_eq!(found, selected, "{text}");
        assert!((mixing.weights[0].iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
    let mixing = round_of::<Flex>("kind = 'geometric_median'", &[0.0, 0.0], &example()).unwrap().mixing.unwrap();
    assert!(mixing.weights[0][6] < 0.01 && mixing.weights[0][0] > 0.1, "{mixing:?}");
}

/// Section D1: the scores behind the winner.
#[test]
fn the_reference_gives_the_published_scores() {
    let rows: Vec<Vec<f64>> =
        ROWS.iter().map(|row| row.iter().map(|v| (f64::from(*v) * 1e4).round() / 1e4).collect()).collect();
    let expected = [0.0375, 0.0875, 0.1075, 0.04, 0.0475, 0.0575, 800.9325];
    for (found, expected) in robust::krum_scores(&rows, 1).iter().zip(expected) {
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    }
}

#[test]
fn laws() {
    let kinds = [
        ("kind = 'median'", Convexity::Convex),
        ("kind = 'trimmed_mean'\nif_too_few = 'median'", Convexity::Convex),
        ("kind = 'krum'\nattackers = 0\nif_too_few = 'median'", Convexity::Convex),
        ("kind = 'krum'\nif_too_few = 'median'", Convexity::Convex),
        ("kind = 'multi_krum'\nattackers = 0\nselect = 2\nif_too_few = 'median'", Convexity::Convex),
        ("kind = 'bulyan'\nattackers = 0\nif_too_few = 'median'", Convexity::Convex),
        ("kind = 'geometric_median'", Convexity::Convex),
        ("kind = 'geometric_median'\nweighting = 'examples'\niterations = 9", Convexity::Convex),
        ("kind = 'norm_clipping'", Convexity::Convex),
        ("kind = 'norm_clipping'\nthreshold = 0.5\nreject_above = 3.0", Convexity::Free),
        ("kind = 'norm_clipping'\nthreshold = 0.5\n[base]\nkind = 'ewwa'\nform = 'log_share'", Convexity::Free),
        ("kind = 'weight_erosion'", Convexity::Convex),
    ];
    for (text, convexity) in kinds {
        strategy_laws::<Flex>(|| config(text).build().unwrap(), convexity, &FlexDevice);
        strategy_laws::<NdArray>(|| config(text).build().unwrap(), convexity, &Default::default());
    }
}

#[test]
fn too_few_updates_are_refused_with_the_numbers_or_answered_by_the_median() {
    let rows = example()[..4].to_vec();
    let cases = [
        ("kind = 'krum'", "needs 5 updates", "has 4"),
        ("kind = 'multi_krum'", "needs 5 updates", "has 4"),
        ("kind = 'multi_krum'\nattackers = 0\nselect = 5", "select = 5", "has 4"),
        ("kind = 'bulyan'", "needs 7 updates", "has 4"),
        ("kind = 'trimmed_mean'", "fewer than 5 updates", "has 4"),
        ("kind = 'krum'\nattackers = 9223372036854775807", "needs 18446744073709551615", "has 4"),
    ];
    let median = next::<Flex>("kind = 'median'", &[0.0, 0.0], &rows);
    for (text, need, have) in cases {
        let error = round_of::<Flex>(text, &[0.0, 0.0], &rows).unwrap_err().to_string();
        assert!(error.contains(need) && error.contains(have) && error.contains("if_too_few"), "{error}");
        assert_eq!(next::<Flex>(&format!("{text}\nif_too_few = 'median'"), &[0.0, 0.0], &rows), median, "{text}");
    }
}

/// Two tensors of which one holds running statistics, over several pieces.
fn with_statistics(values: impl Fn(u64, usize) -> f32, clients: u64) -> (ParamVector<Flex>, Vec<ClientUpdate<Flex>>) {
    let entries = vec![
        ParamEntry::new("w", vec![20_000], ParamKind::Weight),
        ParamEntry::new("norm.running_var", vec![20_000], ParamKind::Buffer),
        ParamEntry::new("b", vec![1], ParamKind::Weight),
    ];
    let schema = Arc::new(ParamSchema::new(entries).unwrap());
    let row = |k: u64| vector(&(0..40_001).map(|i| values(k, i)).collect::<Vec<_>>(), &schema, &FlexDevice);
    (vector(&vec![0.0; 40_001], &schema, &FlexDevice), (0..clients).map(|k| update(k, 1, row(k))).collect())
}

/// Client 6 is far off in its running statistics alone: no distance sees it, and the median ignores it.
#[test]
fn statistics_are_medians_and_take_no_part_in_distances() {
    let value = |k: u64, i: usize| match i {
        20_000..40_000 if k == 6 => 1e6,
        20_000..40_000 => k as f32,
        _ => ((k * 7 + i as u64) % 5) as f32 + if k == 0 { 50.0 } else { 0.0 },
    };
    let (global, updates) = with_statistics(value, 7);
    for kind in ["krum", "multi_krum", "bulyan", "trimmed_mean", "geometric_median", "median"] {
        let strategy = &mut config(&format!("kind = '{kind}'")).build::<Flex>().unwrap();
        let Aggregate { global: next, mixing, .. } = combine(strategy, RoundIndex(1), &global, &updates).unwrap();
        let next = next.to_host();
        assert!(next[20_000..40_000].iter().all(|v| *v == 3.0), "{kind}");
        assert!(next[..20_000].iter().all(|v| *v < 10.0), "{kind}: {:?}", &next[..5]);
        if let Some(mixing) = mixing {
            let weights = &mixing.weights[0];
            assert!(weights[0] < 0.05, "{kind}: {weights:?}");
            assert!(weights[6] > 0.1 || kind == "krum" || kind == "bulyan", "{kind}: {weights:?}");
        }
    }
    let clip = &mut config("kind = 'norm_clipping'\nthreshold = 1.0").build::<Flex>().unwrap();
    let next = combine(clip, RoundIndex(1), &global, &updates).unwrap().global.to_host();
    let statistics = (15.0 + 1e6) / 7.0;
    assert!((next[20_000] - statistics).abs() < 0.1, "{}: statistics pass as they are", next[20_000]);
}

#[test]
fn clipping_bounds_rejects_and_says_so() {
    let rows = vec![vec![3.0, 4.0], vec![0.3, 0.4], vec![0.0, 0.5], vec![60.0, 80.0]];
    let clipped = |text: &str| round_of::<Flex>(text, &[0.0, 0.0], &rows).unwrap();
    // Norms 5, 0.5, 0.5, 100: median 2.75. The mean is weighted by 1, 2, 3, 4 examples.
    let all = clipped("kind = 'norm_clipping'");
    let expected =
        [(0.6 * 2.75 + 2.0 * 0.3 + 4.0 * 0.6 * 2.75) / 10.0, (0.8 * 2.75 + 2.0 * 0.4 + 1.5 + 4.0 * 0.8 * 2.75) / 10.0];
    assert!(largest_gap(&all.global.to_host(), &expected) < 1e-6, "{all:?}");
    let metric = |aggregate: &Aggregate<Flex>, name: &str| aggregate.metrics.get(name).unwrap();
    assert_eq!((metric(&all, "clipped"), metric(&all, "rejected")), (0.5, 0.0));
    assert!((metric(&all, "norm_bound") - 2.75).abs() < 1e-6);

    let without = clipped("kind = 'norm_clipping'\nreject_above = 3.0");
    let expected = [(0.6 * 2.75 + 2.0 * 0.3) / 6.0, (0.8 * 2.75 + 2.0 * 0.4 + 1.5) / 6.0];
    assert!(largest_gap(&without.global.to_host(), &expected) < 1e-6, "{without:?}");
    assert_eq!((metric(&without, "clipped"), metric(&without, "rejected")), (0.25, 0.25));

    let krum = "kind = 'norm_clipping'\nreject_above = 3.0\n[base]\nkind = 'krum'\nattackers = 0";
    assert_eq!(clipped(krum).mixing.unwrap().clients.len(), 3, "the base sees the kept clients alone");
}

/// A wrapper hands on what its base remembers, keeps and asks for.
#[test]
fn clipping_is_transparent_for_the_state_of_its_base() {
    let text = "kind = 'norm_clipping'\nthreshold = 100.0\n[base]\nkind = 'ewwa'";
    let strategy = config(text).build::<Flex>().unwrap();
    assert!(strategy.remembers_clients() && strategy.state().is_empty());
    let (bare, wrapped) = (
        "kind = 'ewwa'\nform = 'log_share'",
        "kind = 'norm_clipping'\nthreshold = 100.0\n[base]\nkind = 'ewwa'\nform = 'log_share'",
    );
    let run = |text: &str| {
        let mut strategy = config(text).build::<Flex>().unwrap();
        let schema = schema(&[2]);
        let updates: Vec<_> =
            (0..).zip(example()).map(|(k, x)| update(k, 1, vector(&x, &schema, &FlexDevice))).collect();
        let global = vector(&[0.0, 0.0], &schema, &FlexDevice);
        let next = Rounds::new(7).combine(&mut strategy, RoundIndex(1), &global, &updates).unwrap().global;
        (next.to_host(), strategy.state())
    };
    let (bare, mut wrapped) = (run(bare), run(wrapped));
    assert_eq!(bare.0, wrapped.0);
    assert_eq!(wrapped.1.split_off("base"), bare.1);
    assert!(wrapped.1.is_empty());
}

/// Section F5: three rounds in agreement, then the example in round 4 of a client with 3 examples and batches of 2.
#[test]
fn weight_erosion_golden() {
    let text = "kind = 'weight_erosion'\nsize_penalty = 0.2\nbatch = 2";
    let (rounds, schema) = (Rounds::new(2), schema(&[2]));
    let mut strategy = config(text).build::<Flex>().unwrap();
    let zero = vector::<Flex>(&[0.0, 0.0], &schema, &FlexDevice);
    let peers = |peer: [f32; 2]| [[-1.0, 0.0], peer].map(|x| vector::<Flex>(&x, &schema, &FlexDevice));
    for (round, peer) in (1..).zip([[-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]) {
        let [own, peer] = peers(peer);
        let updates = [update(0, 3, own), update(1, 3, peer)];
        let aggregate = rounds.combine(&mut strategy, RoundIndex(round), &zero, &updates).unwrap();
        if round == 4 {
            assert!(largest_gap(&aggregate.global.to_host(), &[-0.52603753, -0.47396247]) < 1e-6, "{aggregate:?}");
            let weights = &aggregate.mixing.unwrap().weights[0];
            assert!((weights[1] / weights[0] - 0.90100505).abs() < 1e-7, "{weights:?}");
        }
    }
}

#[test]
fn weight_erosion_without_a_direction_or_a_target() {
    let text = "kind = 'weight_erosion'";
    let still = next::<Flex>(text, &[1.0, 2.0], &[vec![1.0, 2.0], vec![5.0, 5.0]]);
    assert_eq!(still, [1.0, 2.0], "the target does not move: its own vector");
    let error = round_of::<Flex>("kind = 'weight_erosion'\ntarget = 9", &[0.0], &[vec![1.0]]).unwrap_err().to_string();
    assert!(error.contains("client 9") && error.contains("sample all clients"), "{error}");

    // A newcomer starts from the median of the peers: 0.5, 1 and 1 eroded by nothing leave it at 1.
    let schema = schema(&[1]);
    let at = |k: u64, x: f32| update(k, 1, vector::<Flex>(&[x], &schema, &FlexDevice));
    let mut strategy = config("kind = 'weight_erosion'\ndistance_penalty = 0.5").build::<Flex>().unwrap();
    let rounds = Rounds::new(5);
    let zero = vector::<Flex>(&[0.0], &schema, &FlexDevice);
    let mut weights = |round: u64, updates: &[ClientUpdate<Flex>]| {
        rounds.combine(&mut strategy, RoundIndex(round), &zero, updates).unwrap().mixing.unwrap().weights[0].clone()
    };
    let first = weights(1, &[at(0, 1.0), at(1, 2.0), at(2, 1.0), at(3, 1.0)]);
    assert!((first[1] - 0.5 / 3.5).abs() < 1e-12, "{first:?}");
    let second = weights(2, &[at(0, 1.0), at(1, 1.0), at(4, 1.0)]);
    assert!((second[2] - 1.0 / 2.5).abs() < 1e-12, "{second:?}");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    for (text, field) in [
        ("kind = 'trimmed_mean'\nbeta = 0.5", "beta"),
        ("kind = 'trimmed_mean'\nbeta = 0.0", "beta"),
        ("kind = 'multi_krum'\nselect = 0", "select"),
        ("kind = 'geometric_median'\niterations = 0", "iterations"),
        ("kind = 'geometric_median'\nsmoothing = 0.0", "smoothing"),
        ("kind = 'geometric_median'\ntolerance = -1.0", "tolerance"),
        ("kind = 'norm_clipping'\nthreshold = 0.0", "threshold"),
        ("kind = 'norm_clipping'\nreject_above = 0.5", "reject_above"),
        ("kind = 'norm_clipping'\n[base]\nkind = 'fedavg'\nserver_lr = 0.0", "server_lr"),
        ("kind = 'weight_erosion'\ndistance_penalty = -1.0", "distance_penalty"),
        ("kind = 'weight_erosion'\nsize_penalty = nan", "size_penalty"),
        ("kind = 'weight_erosion'\nbatch = 0", "batch"),
    ] {
        let error = config(text).build::<Flex>().err().unwrap().to_string();
        assert!(error.contains(field), "{error}");
    }
    assert!(toml::from_str::<StrategyConfig>("kind = 'median'\nbeta = 0.1").is_err());
}

fn rows(clients: std::ops::Range<usize>, scale: f32) -> impl Strategy<Value = Vec<Vec<f32>>> {
    (1usize..5)
        .prop_flat_map(move |len| prop::collection::vec(prop::collection::vec(-scale..scale, len), clients.clone()))
}

fn wide(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_agree_with_their_references(rows in rows(7..24, 10.0), attackers in 0usize..2) {
        let zero = vec![0.0; rows[0].len()];
        let (m, exact) = (rows.len(), wide(&rows));
        let (_, multi) = robust::multi_krum(&exact, attackers, m - attackers);
        let (winner, _) = robust::multi_krum(&exact, attackers, 1);
        let weighted: Vec<_> = exact.iter().map(|row| (1.0, row.clone())).collect();
        let by_examples: Vec<_> = (1..).zip(&exact).map(|(n, row)| (f64::from(n), row.clone())).collect();
        let cases = [
            ("kind = 'median'".to_owned(), robust::median(&exact)),
            ("kind = 'trimmed_mean'".to_owned(), robust::trimmed_mean(&exact, m / 5)),
            (format!("kind = 'krum'\nattackers = {attackers}"), exact[winner[0]].clone()),
            (format!("kind = 'multi_krum'\nattackers = {attackers}"), multi),
            (format!("kind = 'bulyan'\nattackers = {attackers}"), robust::bulyan(&exact, attackers)),
            ("kind = 'geometric_median'\ntolerance = 0.0".to_owned(), robust::geometric_median(&weighted, 4, 1e-5)),
            (
                "kind = 'geometric_median'\ntolerance = 0.0\nweighting = 'examples'".to_owned(),
                robust::geometric_median(&by_examples, 4, 1e-5),
            ),
        ];
        for (text, expected) in cases {
            let found = next::<Flex>(&text, &zero, &rows);
            prop_assert!(largest_gap(&found, &expected) < 1e-5, "{text}: {found:?}, expected {expected:?}");
            prop_assert_eq!(found, next::<NdArray>(&text, &zero, &rows), "{} on the other backend", text);
        }
    }

    #[test]
    fn clipping_agrees_with_its_reference(rows in rows(1..9, 10.0), bound in 0.1f64..20.0) {
        let zero = vec![0.5; rows[0].len()];
        let start = vec![0.5f64; rows[0].len()];
        let clipped = (1..).zip(wide(&rows)).map(|(n, row)| (f64::from(n), robust::clip(&start, &row, bound)));
        let expected = fedburn_testkit::weighted_mean(&clipped.collect::<Vec<_>>());
        let found = next::<Flex>(&format!("kind = 'norm_clipping'\nthreshold = {bound:?}"), &zero, &rows);
        prop_assert!(largest_gap(&found, &expected) < 1e-5, "{found:?}, expected {expected:?}");
    }

    /// Values at the edge of the number type neither overflow nor carry an attacker's answer.
    #[test]
    fn extreme_values_stay_finite(rows in rows(7..12, 3.4e38)) {
        let zero = vec![0.0; rows[0].len()];
        for kind in [
            "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "norm_clipping",
            "weight_erosion",
        ] {
            let found = next::<Flex>(&format!("kind = '{kind}'"), &zero, &rows);
            prop_assert!(found.iter().all(|v| v.is_finite()), "{kind}: {found:?}");
        }
    }

    /// The point of it all: one broken client among seven moves no rule beyond the honest clients' values.
    #[test]
    fn an_attacker_cannot_carry_the_result_away(rows in rows(6..7, 1.0), place in 0usize..7, far in 10f32..1e6) {
        let mut rows = rows;
        let zero = vec![0.0; rows[0].len()];
        rows.insert(place, vec![far; zero.len()]);
        for kind in ["median", "trimmed_mean", "krum", "multi_krum", "bulyan"] {
            let found = next::<Flex>(&format!("kind = '{kind}'"), &zero, &rows);
            prop_assert!(found.iter().all(|v| v.abs() <= 1.0 + 1e-6), "{kind}: {found:?}");
        }
    }
}
